"""Text classification: one label for each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import LabelTarget
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.corpus import Corpus, count_labels
from keft_jax.tasks.task import AsGiven


class Classification(AsGiven):
    """Cross-entropy; accuracy for each example, for a split also precision, recall and F1, macro
    over the labels that occur as gold or as answer (scikit-learn's), and Matthews' correlation."""

    term = "label"
    metrics: tuple[str, ...] = ("accuracy",)

    def __init__(self, labels: Sequence[str]):
        self.choices: Sequence[str] = tuple(labels)
        self._number = {label: i for i, label in enumerate(labels)}
        counts = count_labels(len(self.choices))
        self.corpus: Mapping[str, Corpus] = {
            "precision": Corpus(counts, "macro_precision"),
            "recall": Corpus(counts, "macro_recall"),
            "f1": Corpus(counts, "macro_f1"),
            "matthews": Corpus(counts, "matthews"),
        }

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> Any:
        return self._labels(rows)

    def _labels(self, rows: Sequence[Example]) -> LabelTarget:
        label = np.zeros(len(rows), np.int32)
        weight = np.zeros(len(rows), np.float32)
        for row, example in enumerate(rows):
            if example.label is None:
                continue
            if example.label not in self._number:
                raise KeftError(
                    f"{example.where}: label {example.label!r} never occurs in training "
                    f"({', '.join(self.choices[:8])}{', ...' if len(self.choices) > 8 else ''}); "
                    "correct it, or name all labels in task.labels and train again"
                )
            label[row], weight[row] = self._number[example.label], 1
        return LabelTarget(label=label, weight=weight)

    def loss(self, logits_bc: jax.Array, target: Any) -> jax.Array:
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits_bc), target.label[:, None], 1)
        return -(target.weight * taken[:, 0]).sum()

    def score(self, logits_bc: jax.Array, target: Any) -> dict[str, jax.Array]:
        choice = logits_bc.argmax(1)
        right = (choice == target.label) & (target.weight > 0)
        return {"accuracy": right.astype(jnp.float32), "choice": choice, "gold": target.label}
