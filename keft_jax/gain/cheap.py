"""Rows of the gain table that train no network, for the kinds of task that have some."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from keft_jax.data.features import Dataset
from keft_jax.gain.baselines import fit_char_ngram, majority_per_pattern, score_single
from keft_jax.gain.cells import Cell
from keft_jax.gain.probes import Probes
from keft_jax.gain.rows import CHAR_NGRAM, MAJORITY, PROBES
from keft_jax.gain.splits import gold_of, text_of
from keft_jax.tasks.corpus import score_counts
from keft_jax.tasks.kinds import KINDS
from keft_jax.tasks.task import Task
from keft_jax.train.parts import Parts

Values = dict[str, np.ndarray]


def cheap_rows(kind: str) -> tuple[str, ...]:
    """The rows that a kind of task has. Where an answer is a span, a choice or a tag of each token,
    none: no answer of training is one of another text."""
    if KINDS[kind].single:
        return (MAJORITY, CHAR_NGRAM, *PROBES)
    return {"kgqa": (MAJORITY, CHAR_NGRAM), "typing": (MAJORITY,)}.get(kind, ())


def keep_values(task: Task, rows: Mapping[str, np.ndarray], metric: str) -> Values:
    """What a cell keeps of a split: every metric of its examples, and what `metric` takes sums of
    where it is one of the whole split."""
    kept = {name: rows[name] for name in task.metrics}
    if metric in task.corpus:
        kept[metric] = task.corpus[metric].count(rows)
    return kept


def score_of(values: np.ndarray, score: str) -> float:
    """The metric of a split from what `keep_values` kept."""
    return score_counts(score, values) if score else float(np.mean(values))


class Cheap:
    """The cheap rows of one table."""

    def __init__(
        self,
        parts: Parts,
        metric: str,
        train: Dataset,
        select: Dataset,
        tests: Mapping[str, Dataset],
    ):
        self._parts, self._metric = parts, metric
        self._train, self._select, self._tests = train, select, tests
        self._kind = parts.config.task.kind
        self.rows = cheap_rows(self._kind)

    @cached_property
    def _probes(self) -> Probes:
        def measure(gold: np.ndarray, said: np.ndarray) -> float:
            return self._measure(said.tolist(), [(label,) for label in gold.tolist()])

        return Probes(self._parts, self._train, self._tests, measure=measure)

    def _measure(self, said: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
        """The table's metric of answers in words."""
        own = self._parts.task.corpus.get(self._metric)
        return score_of(self._score(said, gold)[self._metric], own.score if own else "")

    def cell(self, row: str, seed: int, drawn: np.ndarray) -> Cell:
        """A row on the training examples `drawn` (their numbers)."""
        begin = time.perf_counter()
        said = self._answer(row, seed, drawn)
        gold = {n: [gold_of(e, self._kind) for e in d.examples] for n, d in self._tests.items()}
        metrics = {name: self._score(said[name], gold[name]) for name in self._tests}
        return Cell(row, seed, metrics, said, [], {"seconds": time.perf_counter() - begin})

    def _answer(self, row: str, seed: int, drawn: np.ndarray) -> dict[str, list[str]]:
        if row in PROBES:
            return self._probes.predict(row, drawn, seed)
        train = [self._train.examples[i] for i in drawn]
        gold, tests = [gold_of(e, self._kind) for e in train], self._tests.items()
        if row == CHAR_NGRAM:
            select = self._select.examples
            model = fit_char_ngram(
                [text_of(e) for e in train],
                gold,
                [text_of(e) for e in select],
                [gold_of(e, self._kind) for e in select],
                self._measure,
            )
            return {n: model.predict([text_of(e) for e in d.examples]) for n, d in tests}
        seen = [e.pattern for e in train]
        return {
            n: majority_per_pattern(seen, gold, [e.pattern for e in d.examples]) for n, d in tests
        }

    def _score(self, said: Sequence[str], gold: Sequence[Sequence[str]]) -> Values:
        task = self._parts.task
        rows: dict[str, Any] = score_single(said, gold)
        if KINDS[self._kind].single:
            number = {name: i for i, name in enumerate(task.choices)}
            rows["choice"] = np.array([number[name] for name in said], np.int32)
            rows["gold"] = np.array([number[label] for (label,) in gold], np.int32)
        return keep_values(task, rows, self._metric)
