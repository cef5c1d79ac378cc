"""What a graph holds, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from keft_jax.kg.store import KG


def describe(kg: KG, *, top: int = 10) -> dict[str, Any]:
    """Counts, degrees, the most frequent relations and what a linker has to know.

    `ambiguous_names`: surfaces (names and aliases, in their case) of two entities or more.
    """
    counts = np.bincount(kg.rels, minlength=kg.n_relations)
    order = np.argsort(-counts, kind="stable")[:top]
    steps = (0, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
    degrees = kg.degrees if kg.n_entities else np.zeros(1, np.int32)
    quantiles = np.quantile(degrees, steps, method="inverted_cdf")
    aliases, _ = kg.alias_table()  # an alias comes once for an entity and is never its name
    seen: dict[str, int] = dict.fromkeys(kg.names, 1)
    for alias in aliases:
        seen[alias] = seen.get(alias, 0) + 1
    return {
        "version": kg.version,
        "hash": kg.hash,
        "entities": kg.n_entities,
        "relations": kg.n_relations,
        "triples": kg.n_triples,
        "aliases": len(aliases),
        "descriptions": len(kg.descriptions),
        "isolated_entities": int((kg.degrees == 0).sum()),
        "ambiguous_names": sum(count > 1 for count in seen.values()),
        "degree_mean": float(degrees.mean()),
        "degree_quantiles": {
            f"{step:g}": int(value) for step, value in zip(steps, quantiles, strict=True)
        },
        "top_relations": {kg.relations[i]: int(counts[i]) for i in order},
    }
