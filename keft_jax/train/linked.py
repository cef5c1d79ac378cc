"""How well a run predicts the entities of masked mentions, by how often it met them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keft_jax.data.features import Dataset
from keft_jax.tasks.entities import by_frequency
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.parts import Parts


def score_entities(parts: Parts, params: Any, train: Any, test: Dataset) -> dict[str, float]:
    """hits@1 among all entities of the graph, for the mentions that the evaluation's masks hide."""
    linked = parts.linked
    assert linked is not None
    rows = Evaluator(dataclasses.replace(parts, task=linked)).evaluate(params, test)
    met = parts.knowledge.row_numbers[train.seeds[train.seeds >= 0]]
    count = np.bincount(met, minlength=len(parts.knowledge.vocabulary.entities) + 1)
    scores = linked.summarise(rows) | by_frequency(rows, count)
    return {f"entities/{name}": value for name, value in scores.items()}
