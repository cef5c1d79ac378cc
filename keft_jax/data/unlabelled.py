"""Texts without labels beside the labelled examples, in the same batches.

No label of theirs is ever turned into an array that a loss reads: the examples lose their labels
before any target is made. What is known of them stands apart, for a metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np

from keft_jax.data.batch import Batch, ConsistencyTarget
from keft_jax.data.features import ROWS, Asks, Dataset, make_dataset, with_row
from keft_jax.data.pack import Layout
from keft_jax.data.plan import UNLABELLED, BatchPlan, MixedPlan, random_bits
from keft_jax.data.source import Example
from keft_jax.data.tokenize import encode
from keft_jax.kg.swap import Swap, group_by_facts


def without_label(example: Example) -> Example:
    """The example as it were if nobody had labelled it."""
    return dataclasses.replace(
        example,
        label=None,
        answers=(),
        tags=tuple((start, end, "") for start, end, _ in example.tags),
        answer_spans=None,
    )


def join(one: Batch, two: Batch) -> Batch:
    """The rows of both. two: has no answers, so that its lists of them may be shorter."""

    def rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        short = a.shape[1] - b.shape[1] if a.ndim > 1 else 0
        if short:
            b = np.pad(b, ((0, 0), (0, short)), constant_values=-1)
        return np.concatenate([a, b])

    return jax.tree.map(rows, one, two)


@dataclass(frozen=True)
class Mixed(Dataset):
    """Labelled examples, and `rest`, texts without labels, whose units are numbered after these."""

    task: Asks | None = None
    leftover: bool = False  # rest holds the labelled examples too: a plan leaves out those it draws
    consistent: bool = False  # batches have what objective.consistency reads
    swap: float = 0.0  # share of the mentions that get another name
    seed: int = 0  # of the run, for these names
    truth: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # i32[units of rest]:
    # labels, for a metric; -1: not known

    @property
    def _texts(self) -> Dataset:
        assert self.rest is not None
        return self.rest

    @property
    def _term(self) -> str:
        assert self.task is not None
        return self.task.term

    def source(self, unit: int) -> Example:
        own = len(self.owner)
        return super().source(unit) if unit < own else self._texts.source(unit - own)

    def mix(self, labelled: BatchPlan, size: int) -> MixedPlan:
        """The plan of batches with `size` texts without labels each."""
        numbers = np.arange(len(self._texts.owner))
        if self.leftover:
            numbers = np.setdiff1d(numbers, labelled.examples)
        lengths = self._texts.lengths[numbers]
        stream = (UNLABELLED,)
        rest = BatchPlan(lengths, size, labelled.buckets, labelled.seed, stream=stream)
        return MixedPlan(labelled, rest, len(self.owner) + numbers)

    def batch(self, length: int | Layout, indices: np.ndarray) -> Batch:
        """As that of a Dataset, but not laid out; numbers of texts without labels come last."""
        assert isinstance(length, int), "config refuses data.pack with data.unlabelled"
        own = len(self.owner)
        unlabelled = indices[indices >= own] - own
        first = super().batch(length, indices[: len(indices) - len(unlabelled)])
        second = self._texts.batch(length, unlabelled)
        second = dataclasses.replace(second, example=second.example + own)
        out = join(first, second)
        if not self.consistent:
            return out
        other, term = None, self._term
        if self.swap:
            first, second = (
                dataclasses.replace(batch, targets={term: batch.targets[term]})
                for batch in (first, second)
            )
            other = join(first, self._under_other_names(length, unlabelled, second))
        target = ConsistencyTarget(
            weight=(np.arange(len(out.example)) >= len(first.example)).astype(np.float32),
            label=np.append(np.full(len(first.example), -1), self.truth[unlabelled]).astype("i4"),
            other=other,
        )
        return dataclasses.replace(out, targets={**out.targets, "consistency": target})

    @cached_property
    def _swap(self) -> Swap:
        """By the graph that this row of the gain table reads."""
        spec, kg = ROWS[self.row[0]], self.knowledge.graph_of(*self.row)
        group = np.arange(kg.n_entities)
        if spec.facts:
            group = group_by_facts(kg, spec.relations)
        first = [m.entities[0] for some in self._texts.mentions for m in some if m.entities]
        return Swap(kg, group, np.bincount(first, minlength=kg.n_entities))

    @cached_property
    def _other(self) -> tuple[np.ndarray, Batch, np.ndarray]:
        """(bool[units]: which were given other names, the texts with them, i32[units]: tokens of
        each)."""
        texts, term = self._texts, self._term
        table = dataclasses.replace(texts.table, targets={term: texts.table.targets[term]})
        done = np.zeros(len(texts.owner), bool)
        return done, jax.tree.map(np.copy, table), texts.lengths.copy()

    def _under_other_names(self, length: int, units: np.ndarray, shown: Batch) -> Batch:
        """The texts with other names for some of their mentions, the same at every visit; as they
        are where these do not fit. shown: the texts as they are."""
        if not (len(units) and ROWS[self.row[0]].mentions):
            return shown
        done, table, lengths = self._other
        new = np.unique(units[~done[units]])
        if len(new):
            made = self._reword(new)
            for whole, part in zip(*map(jax.tree.leaves, (table, made.table)), strict=True):
                whole[new] = part
            lengths[new], done[new] = made.lengths, True
        fits = lengths[units] <= length
        other = dataclasses.replace(self._texts, table=table).batch(length, units)
        other = dataclasses.replace(other, example=shown.example)
        pick = lambda a, b: np.where(fits.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        return jax.tree.map(pick, other, shown)

    def _reword(self, units: np.ndarray) -> Dataset:
        """These texts with other names; as they are where there is none, where something would be
        cut off, and where the linker would then read other facts."""
        assert self.task is not None
        examples = [self._texts.source(unit) for unit in units]
        linked = self.knowledge.link(examples)
        new = []
        for unit, example, mentions in zip(units, examples, linked, strict=True):
            bits = random_bits(2 * len(mentions), self.seed, UNLABELLED, int(unit))
            draws = bits.astype(np.float64) / 2.0**64
            text, spans = self._swap.text(example.text, mentions, example.spans, self.swap, draws)
            new.append(dataclasses.replace(example, text=text, spans=tuple(spans)))
        longest = self.table.tokens.shape[1]
        rows, tokenizer = self.task.rows(new)[0], self.knowledge.vocabulary.tokenizer
        pairs = [row.pair for row in rows]
        whole = ~encode(tokenizer, [row.text for row in rows], pairs, longest).cut
        new = [
            two if fits and one.text != two.text and self._swap.same(a, b) else one
            for one, two, a, b, fits in zip(
                examples, new, linked, self.knowledge.link(new), whole, strict=True
            )
        ]
        made = make_dataset(new, self.knowledge, [self.task], longest)
        return with_row(made, self.knowledge, *self.row)


def mix(
    labelled: Dataset,
    texts: Sequence[Example],
    tasks: Sequence[Asks],
    labels: Sequence[str],
    longest: int,
    *,
    leftover: bool,
    consistent: bool,
    swap: float,
) -> Mixed:
    """The labelled examples with these texts beside them, whose labels are taken away here.

    tasks: as for the labelled examples. labels: what numbers a known label may have.
    """
    number = {label: i for i, label in enumerate(labels)}
    known = np.array([number.get(e.label or "", -1) for e in texts], np.int32)
    bare = [without_label(example) for example in texts]
    rest = make_dataset(bare, labelled.knowledge, tasks, longest)
    return Mixed(
        **{**vars(labelled), "rest": rest},
        task=tasks[0],
        leftover=leftover,
        consistent=consistent,
        swap=swap,
        truth=known[rest.owner],
    )
