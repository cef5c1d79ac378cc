"""Multiple choice: which of an example's own answers is right. Each choice is a row of the model,
with a subgraph of its own; their scores are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import Batch, ChoiceTarget
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.corpus import Corpus
from keft_jax.tasks.task import Rows, ranked

JOIN = " : "


def with_choice(example: Example, choice: str) -> Example:
    """`choice : text`. The choice comes first: a long text loses its end, and of many mentions the
    first get an anchor. Where the data give mentions, the choice is one too."""
    shift = len(choice) + len(JOIN)
    spans = tuple((start + shift, end + shift, name) for start, end, name in example.spans)
    return dataclasses.replace(
        example,
        text=choice + JOIN + example.text,
        spans=((0, len(choice), choice), *spans) if spans else (),
        pieces=((shift, 0),),
    )


class Choice(Classification):
    """Cross-entropy over the choices of an example. Examples may differ in how many they have:
    rows without a choice are empty texts, whose score the head makes -1e9."""

    term = "choice"
    corpus: Mapping[str, Corpus] = {}  # letters are no classes

    def __init__(self, letters: Sequence[str]):
        super().__init__(letters)
        self.corpus, self.each = {}, len(letters)

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]:
        out: list[Example] = []
        for example in examples:
            count = len(example.choices)
            if not 2 <= count <= self.each:
                raise KeftError(
                    f"{example.where}: {count} choices where the model reads 2 to {self.each}; "
                    "name more letters in task.labels and train again"
                )
            out += [with_choice(example, choice) for choice in example.choices]
            absent = dataclasses.replace(example, text="", pair="", spans=())
            out += [absent] * (self.each - count)
        return out, np.repeat(np.arange(len(examples), dtype=np.int32), self.each)

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> ChoiceTarget:
        label = self._labels(rows)
        there = np.array([bool(row.text) for row in rows])
        return ChoiceTarget(there=there, label=label.label, weight=label.weight)

    def _units(self, target: ChoiceTarget) -> ChoiceTarget:
        return jax.tree.map(lambda x: x[:: self.each], target)

    def total(self, batch: Batch) -> jax.Array:
        return self._units(batch.targets[self.term]).weight.sum()

    def loss(self, logits_bc: jax.Array, target: Any) -> jax.Array:
        return super().loss(logits_bc, self._units(target))

    def score(self, logits_bc: jax.Array, target: Any) -> dict[str, jax.Array]:
        return super().score(logits_bc, self._units(target))

    def guess(self, logits: jax.Array, target: Any) -> dict[str, jax.Array]:
        return {"p": jax.nn.softmax(logits)}

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        """As `Classification`, with the choices' texts."""
        out = []
        for example, values in zip(dataset.examples, rows["p"], strict=True):
            count = len(example.choices)
            order = np.argsort(-values[:count], kind="stable")
            pairs = [(example.choices[i], float(values[i])) for i in order]
            out.append(ranked(pairs[:top], [pairs[0][0]]))
        return out
