"""The rows of the gain table, as what each is given of a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from keft_jax.kg.controls import PERTURBATIONS, permute_entities, rewire, shuffle_entities
from keft_jax.kg.store import KG


@dataclass(frozen=True)
class RowSpec:
    """What a row of the gain table is given of the graph."""

    kg: Callable[[KG, int], KG] | None = None  # draws another graph by a seed
    mentions: bool = True
    neighbours: bool = True
    edges: bool = True
    relations: bool = True
    described: Callable[[KG, int], np.ndarray] | None = None  # whose description and attributes
    # each entity has, drawn by a seed; -1: nobody's. None: its own

    @property
    def seeded(self) -> bool:
        return self.kg is not None

    @property
    def facts(self) -> bool:
        """Whether it is given any fact."""
        return self.mentions and self.edges

    @property
    def embedded(self) -> Callable[[KG, int], np.ndarray] | None:
        """As `described`, of vectors made from the facts: who may not read these has none."""
        return self.described if self.facts and self.relations else _nobody


def _nobody(kg: KG, seed: int) -> np.ndarray:
    del seed
    return np.full(kg.n_entities, -1)


def _moved(kg: KG, seed: int, alike: bool = False) -> np.ndarray:
    """Descriptions go with the facts."""
    return np.argsort(permute_entities(kg, seed, np.ones(kg.n_entities, bool), alike))


def _anybody(kg: KG, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(kg.n_entities)


ROWS: dict[str, RowSpec] = {
    "none": RowSpec(mentions=False, described=_nobody),
    "dictionary": RowSpec(neighbours=False, edges=False, described=_nobody),
    "candidates": RowSpec(edges=False),
    "untyped": RowSpec(relations=False),
    "shuffled": RowSpec(kg=shuffle_entities, described=_moved),
    "kindred": RowSpec(
        kg=partial(shuffle_entities, alike=True), described=partial(_moved, alike=True)
    ),
    "random": RowSpec(kg=rewire, described=_anybody),
    "true": RowSpec(),
    # true-corrupt-30: with 30 % of the facts wrong.
    **{
        f"true-{name}-{percent:02}": RowSpec(kg=partial(change, share=percent / 100))
        for name, change in PERTURBATIONS.items()
        for percent in range(1, 100)
    },
}
