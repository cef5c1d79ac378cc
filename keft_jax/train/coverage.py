"""What the knowledge reaches of a split, in numbers that a report can state."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import Seeds
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.triples import fingerprint_triples
from keft_jax.kg.subgraph import Subgraphs, survival
from keft_jax.train.parts import AnyParts
from keft_jax.train.triple_parts import TripleParts

logger = logging.getLogger(__name__)


def cover(dataset: Any, parts: AnyParts) -> dict[str, Any]:
    """Shares of a split's examples, of what this row of the gain table is given:

    linked: texts with a linked entity; cut: subgraphs that a budget cut; truncated: number of texts
    longer than the last bucket. For questions also answers_in_graph (of all answers), answers_near
    (of those in the graph, the ones within knowledge.hops of a mention), answers_kept (of those
    near, the ones that the budget left in the subgraph; None where none is near), answers_reached
    (of those in the graph, the ones in the subgraph: near x kept) and examples_reached (with an
    answer in the subgraph).
    """
    if isinstance(parts, TripleParts):
        return parts.cover(dataset)
    count, sub = max(len(dataset), 1), _subgraphs(dataset)
    out: dict[str, Any] = {
        "examples": len(dataset),
        "linked": float(dataset.linked.sum() / count),
        "cut": float(dataset.any_of(sub.cut).sum() / count),
        "truncated": dataset.truncated,
    }
    if parts.config.task.kind != "kgqa":
        return out
    kg = parts.knowledge.kg
    answers = []
    for example in dataset.examples:
        ids = [kg.find(name) for name in example.answers]
        answers.append({-1 - at if i is None else i for at, i in enumerate(ids)})
    found = survival(sub, answers, kg, parts.config.knowledge.hops)
    return out | {
        "answers_in_graph": found["in_graph"],
        "answers_near": found["near"],
        "answers_kept": None if math.isnan(found["survived"]) else found["survived"],
        "answers_reached": found["reached"],
        "examples_reached": found["examples_with_answer"],
    }


def _subgraphs(dataset: Dataset) -> Subgraphs:
    graph = dataset.table.graph
    if isinstance(graph, Seeds):
        return dataset.knowledge.subgraphs(dataset.seeds, *dataset.row)
    return Subgraphs(
        entity=graph.nodes["entity"],
        n_node=graph.n_node[:, 0],
        senders=graph.senders,
        receivers=graph.receivers,
        relation=graph.edges["relation"],
        n_edge=graph.n_edge[:, 0],
        seed_node=dataset.table.mentions.node,
        cut=dataset.cut,
    )


def fingerprint(examples: Any) -> str:
    """sha256 of what the model and its metrics read of the examples, or of triples i32[t, 3]."""
    if isinstance(examples, np.ndarray):
        return fingerprint_triples(examples)
    digest = hashlib.sha256()
    for e in examples:
        row: list[Any] = [e.text, e.pair, e.label, e.answers, e.spans]
        row += [more for more in (e.tags, e.answer_spans, e.choices) if more]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def refuse_selection_on_test(select: str, selected: Any, test: str, tested: Any) -> None:
    """Raises KeftError where the examples of the file `select` are those of the file `test`:
    what is chosen on the reported examples is fitted to them."""
    if fingerprint(selected) == fingerprint(tested):
        raise KeftError(
            f"data.select = {select!r}: holds the same examples as {test} of data.test; choose on "
            "examples of their own"
        )


def count_shared(unlabelled: str, texts: Sequence[Example], name: str, split: Any) -> int:
    """How many examples of a split have their text among those that are learnt from without labels,
    which a report has to tell. Raises KeftError where all have: none of them is new then."""
    seen = {(e.text, e.pair) for e in texts}
    count = sum((e.text, e.pair) in seen for e in split) if seen else 0
    if not count:
        return 0
    where = f"data.unlabelled = {unlabelled!r}: holds"
    if count == len(split):
        raise KeftError(
            f"{where} all texts of {name}; learn from texts that nothing is measured on"
        )
    logger.warning("%s %d of the %d texts of %s", where, count, len(split), name)
    return count
