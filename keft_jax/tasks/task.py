"""The contract of a task: host targets in, a loss and per-example metrics out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import Batch
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.corpus import Corpus

Rows = Mapping[str, np.ndarray]  # one value for each example
MOST = 100  # answers that a prediction can list


class Task(Protocol):
    term: str
    """Key of its target in `Batch.targets`."""
    metrics: tuple[str, ...]
    """Per-example metrics; the first one chooses checkpoints unless the config says otherwise."""
    corpus: Mapping[str, Corpus]
    """Metrics of a whole split that are no mean over its examples."""
    choices: Sequence[str]
    """What logit i stands for."""
    each: int
    """Rows that the model reads for one unit of a batch: 1, but the choices of a question."""

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]:
        """(what the model reads, i32[rows]: the example of each, rising). A unit's rows follow one
        another; an example may have several units (windows of a long text)."""

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> Any:
        """The target struct of these rows (numpy). Raises KeftError on an unknown label."""

    def prepare(self, batch: Any, key: jax.Array | None, frozen: Mapping[str, Any]) -> Any:
        """The batch as the model is shown it, inside the step. key None: evaluation."""

    def total(self, batch: Batch) -> jax.Array:
        """The denominator of the loss over a batch that is not prepared yet, f32[]."""

    def loss(self, logits_bc: Any, target: Any) -> jax.Array:
        """Sum over examples of weight * loss, f32, of a prepared batch."""

    def distributions(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What the logits of a prepared batch are distributions over, for distillation: (logits
        f32[units, ..., c], each a softmax over the last axis; f32[units, ...], the weight of each
        in its unit's loss)."""

    def score(self, logits_bc: jax.Array, target: Any) -> dict[str, jax.Array]:
        """Of each unit what `merge` needs. Inside the step, in evaluation."""

    def merge(self, rows: Rows, dataset: Dataset) -> Rows:
        """From values of a data set's units to those of its examples: `metrics` f32[n], what
        `corpus` counts, and `choice`, the model's one answer."""

    def said(self, rows: Rows) -> list[str]:
        """That answer of each example, to show."""

    def guess(self, logits_bc: jax.Array, target: Any) -> dict[str, jax.Array]:
        """Of each unit what `answers` needs. Inside the step, in prediction: nothing is known of
        the right answers."""

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        """A record for each example; of ranked answers `top`."""

    def summarise(self, rows: Rows) -> dict[str, float]:
        """Scores of a whole split from its per-example rows, for reports."""


class OneRow:
    """Tasks of which an example is one row."""

    each = 1
    term: str
    metrics: tuple[str, ...]
    corpus: Mapping[str, Corpus] = {}
    choices: Sequence[str]

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]:
        return list(examples), np.arange(len(examples), dtype=np.int32)

    def distributions(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """One for each row."""
        del batch
        return logits, jnp.ones(logits.shape[:1])

    def merge(self, rows: Rows, dataset: Dataset) -> Rows:
        del dataset
        return rows

    def said(self, rows: Rows) -> list[str]:
        return [self.choices[int(i)] for i in rows["choice"]]

    def guess(self, logits: jax.Array, target: Any) -> dict[str, jax.Array]:
        raise KeftError(
            f"task.kind = {self.term!r}: has no answers to give; `keft evaluate` scores it, `keft "
            "export` writes a folder that transformers loads"
        )

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        raise NotImplementedError

    def summarise(self, rows: Rows) -> dict[str, float]:
        means = {name: float(np.mean(rows[name])) for name in self.metrics}
        return means | {name: metric(rows) for name, metric in self.corpus.items()}


class AsGiven(OneRow):
    """And that show the model the batch as it is, and answer with one of their choices."""

    set_threshold = 1.0
    """Share of the best answer's probability that others in the set with it have."""

    def prepare(self, batch: Batch, key: jax.Array | None, frozen: Mapping[str, Any]) -> Batch:
        del key, frozen
        return batch

    def total(self, batch: Batch) -> jax.Array:
        return batch.targets[self.term].weight.sum()

    def guess(self, logits: jax.Array, target: Any) -> dict[str, jax.Array]:
        del target
        best = jax.lax.top_k(jax.nn.softmax(logits), min(MOST, logits.shape[-1]))
        return dict(zip(("p", "id"), best, strict=True))

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        """ "answer", "probability", "answers": `top` [name, probability], best first, "set": the
        names that together are the answer."""
        out = []
        for ids, values in zip(rows["id"], rows["p"], strict=True):
            # Behind the entities of a graph stand spare rows, which are never an answer.
            real = [i < len(self.choices) for i in ids]
            ids, values = ids[real], values[real]
            pairs = [(self.choices[int(i)], float(p)) for i, p in zip(ids, values, strict=True)]
            least = self.set_threshold * pairs[0][1]
            out.append(ranked(pairs[:top], [name for name, p in pairs if p >= least]))
        return out


def ranked(pairs: Sequence[tuple[str, float]], chosen: Sequence[str]) -> dict[str, Any]:
    """A record of answers with their probabilities, best first."""
    listed = [[name, round(p, 6)] for name, p in pairs]
    best = dict(zip(("answer", "probability"), listed[0], strict=True))
    return {**best, "answers": listed, "set": list(chosen)}
