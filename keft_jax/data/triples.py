"""Triples -> batches of queries. Host side, numpy, deterministic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keft_jax.data.batch import QueryBatch, QueryTarget, take


@dataclass(frozen=True)
class Known:
    """All answers of every query: `tails[first[q]:last[q]]`, by query key, each list rising."""

    keys: np.ndarray  # i64[q], rising
    offsets: np.ndarray  # i64[q + 1]
    answers: np.ndarray  # i32[2t]
    entities: int
    relations: int

    @classmethod
    def of(cls, triples: np.ndarray, entities: int, relations: int) -> Known:
        """triples: i32[t, 3]; both directions of each."""
        queries = np.concatenate([triples, triples[:, ::-1]]).astype(np.int64)
        inverse = np.repeat([False, True], len(triples))
        key = _key(queries[:, 0], queries[:, 1], inverse, entities, relations)
        order = np.lexsort((queries[:, 2], key))
        key, answers = key[order], queries[order, 2]
        new = np.ones(len(key), bool)
        new[1:] = (np.diff(key) != 0) | (np.diff(answers) != 0)
        key, answers = key[new], answers[new]
        keys, first = np.unique(key, return_index=True)
        offsets = np.append(first, len(key)).astype(np.int64)
        return cls(keys, offsets, answers.astype(np.int32), entities, relations)

    def spans(self, source: np.ndarray, relation: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """i32[b, 2]: where each query's answers stand in `answers`; empty where it has none."""
        key = _key(source, relation, inverse, self.entities, self.relations)
        place = np.minimum(np.searchsorted(self.keys, key), max(len(self.keys) - 1, 0))
        found = self.keys[place] == key if len(self.keys) else np.zeros(len(key), bool)
        first, last = self.offsets[place], self.offsets[place + 1]
        return np.stack([first, np.where(found, last, first)], 1).astype(np.int32)


def _key(source: Any, relation: Any, inverse: Any, entities: int, relations: int) -> np.ndarray:
    number = np.asarray(relation, np.int64) + np.where(inverse, relations, 0)
    return number * entities + np.asarray(source, np.int64)


@dataclass(frozen=True)
class TripleExample:
    """One example as an error message names it."""

    id: int
    where: str


class _Examples(Sequence):
    def __init__(self, dataset: TripleDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: Any) -> Any:
        return self._dataset.example(int(place))


@dataclass(frozen=True)
class TripleDataset:
    """A split, ready: `batch(length, indices)` cuts a batch out of it. An example is `block`
    queries in a row, of one relation where `block` is above 1."""

    triples: np.ndarray  # i32[t, 3], as they were given
    names: tuple[Sequence[str], Sequence[str]]  # of entities, of relations
    table: QueryBatch  # of all queries, and one of padding behind them
    blocks: np.ndarray  # i32[examples, block]: queries; -1: padding
    block: int = 1

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def lengths(self) -> np.ndarray:
        """All alike: triples have no length."""
        return np.zeros(len(self), np.int32)

    @property
    def examples(self) -> Sequence[TripleExample]:
        return _Examples(self)

    def source(self, unit: int) -> TripleExample:
        return self.example(unit)

    def show(self, triple: np.ndarray) -> str:
        entities, relations = self.names
        head, relation, tail = (int(x) for x in triple)
        return f"({entities[head]}, {relations[relation]}, {entities[tail]})"

    def example(self, place: int) -> TripleExample:
        target: QueryTarget = self.table.targets["link"]
        query = max(int(self.blocks[place, 0]), 0)
        entities, relations = self.names
        source, relation = entities[int(target.source[query])], relations[target.relation[query]]
        asked = (
            f"(?, {relation}, {source})"
            if target.inverse[query]
            else (f"({source}, {relation}, ?)")
        )
        return TripleExample(place, asked)

    def batch(self, length: int, indices: np.ndarray) -> QueryBatch:
        """Examples by number; -1: padding."""
        del length
        queries = np.where(indices[:, None] >= 0, self.blocks[indices], -1).reshape(-1)
        return take(self.table, queries)


def make_triple_dataset(
    triples: np.ndarray,
    known: Known,
    names: tuple[Sequence[str], Sequence[str]],
    *,
    answers: int = 1,
    block: int = 1,
    seed: int = 0,
) -> TripleDataset:
    """Every triple as a query for its tail and one for its head. answers: of one query in an
    example, at most. block: queries of one relation in an example; which ones is drawn by `seed`.
    """
    entities = known.entities
    queries = np.concatenate([triples, triples[:, ::-1]]).astype(np.int64)
    inverse = np.repeat([False, True], len(triples))
    key = _key(queries[:, 0], queries[:, 1], inverse, entities, known.relations)
    order = np.lexsort((queries[:, 2], key))
    key, queries, inverse = key[order], queries[order], inverse[order]
    new = np.ones(len(key), bool)
    new[1:] = np.diff(key) != 0
    start = np.flatnonzero(new)
    within = np.arange(len(key)) - np.repeat(start, np.diff(np.append(start, len(key))))
    first = np.flatnonzero(within % answers == 0)
    row = np.cumsum(within % answers == 0) - 1
    table = np.full((len(first), answers), -1, np.int32)
    table[row, within % answers] = queries[:, 2]
    source, relation = (queries[first, column].astype(np.int32) for column in (0, 1))
    target = QueryTarget(
        source=source,
        relation=relation,
        inverse=inverse[first],
        answers=table,
        weight=np.ones(len(first), np.float32),
        known=known.spans(source, relation, inverse[first]),
    )
    number = np.arange(len(first), dtype=np.int32)
    whole = QueryBatch(targets={"link": target}, example=number)
    blocks = number[:, None] if block == 1 else _same_relation(relation, block, seed)
    return TripleDataset(triples, names, whole, blocks, block)


def _same_relation(relation: np.ndarray, block: int, seed: int) -> np.ndarray:
    """i32[blocks, block]: queries of one relation together, drawn by the seed; -1: padding."""
    shuffled = np.random.default_rng(seed).permutation(len(relation)).astype(np.int32)
    order = shuffled[np.argsort(relation[shuffled], kind="stable")]
    count = np.bincount(relation)
    padded = -(-count // block) * block
    first = np.concatenate([[0], np.cumsum(padded)[:-1]])
    within = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    out = np.full(int(padded.sum()), -1, np.int32)
    out[first[relation[order]] + within] = order
    return out.reshape(-1, block)


def fingerprint_triples(triples: np.ndarray) -> str:
    """sha256 of the ids, in order."""
    return hashlib.sha256(np.ascontiguousarray(triples, "<i4").tobytes()).hexdigest()
