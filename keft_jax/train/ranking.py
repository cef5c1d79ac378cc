"""Filtered ranks (Bordes et al. 2013) of a split's triples, on the device, in blocks.

The rank of the right entity counts those that score higher; entities that are known answers of the
same query, in any split, are left out; ties count at their mean rank. Memory is bounded: a block of
queries against a block of entities at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from keft_jax.data.triples import Known, TripleDataset
from keft_jax.models.functional import Model
from keft_jax.sharding import MESH_AXES, on_mesh, place, replicated
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.watchdog import beat

SCORES = 1 << 24
"""Scores in memory at a time, 4 bytes each, where a batch of queries has more than so many."""
QUERIES = 1 << 14  # at a time, at most
FILTER = 1 << 12  # known answers of a batch are padded to a multiple of this


class Ranker:
    """Ranks for one model and one set of known triples."""

    def __init__(self, model: Model, known: Known, mesh: Mesh, batch: int, grouped: bool):
        """grouped: all queries of a batch have one relation (transr)."""
        batch = min(batch, QUERIES)
        self._known, self.batch, self._grouped = known, batch, grouped
        self._whole = replicated(mesh)
        # On a mesh each chip ranks against its own rows of the table: no chip gathers it whole.
        axes = MESH_AXES if mesh.size > 1 else ()
        own = model.abstract()["entity"].shape[0] // mesh.size if axes else known.entities
        size = min(own, max(SCORES // batch, 1))
        blocks = -(-own // size), size

        def local(params: Any, q_bx: jax.Array, queries: dict[str, jax.Array]) -> jax.Array:
            filtered = queries["row"], queries["column"]
            given = (q_bx, queries["relation"], queries["answer"], filtered, blocks, axes)
            with on_mesh(None):
                return model.apply(params, *given, method="rank")

        def rank(params: Any, queries: dict[str, jax.Array]) -> jax.Array:
            asked = (queries[name] for name in ("source", "relation", "inverse"))
            with on_mesh(mesh):
                q_bx = model.apply(params, *asked, method="queries")
            if not axes:
                return local(params, q_bx, queries)
            whole = PartitionSpec()
            cut = jax.tree.map(lambda place: place.spec, model.shardings(mesh))
            return jax.shard_map(
                local, mesh=mesh, in_specs=(cut, whole, whole), out_specs=whole, check_vma=False
            )(params, q_bx, queries)

        self._rank = jax.jit(rank, out_shardings=self._whole)

    def evaluate(
        self,
        params: Any,
        dataset: TripleDataset,
        advance: Callable[[int], object] = lambda queries: None,
    ) -> dict[str, np.ndarray]:
        """`rank_tail`, `rank_head` f64[t] of a split's triples in their order, and `relation`.
        advance: is told of each batch how many queries it has, two for a triple in all. Raises
        NotFiniteError where a score is not finite."""
        triples = np.asarray(dataset.triples)
        sides = np.concatenate([triples, triples[:, ::-1]])  # the tails are asked for, the heads
        inverse = np.repeat([False, True], len(triples))
        spans = self._known.spans(sides[:, 0], sides[:, 1], inverse)
        batches = list(self._batches(sides[:, 1], spans[:, 1] - spans[:, 0]))
        most = max((int((spans[b, 1] - spans[b, 0]).sum()) for b in batches), default=0)
        padded = -(-max(most, 1) // FILTER) * FILTER
        ranks = np.full(len(sides), np.nan)

        def settle(places: np.ndarray, ready: Any) -> None:
            ranks[places] = np.asarray(ready)[: len(places)]
            beat()
            advance(len(places))

        waiting: tuple[np.ndarray, Any] | None = None
        for places in batches:
            queries = self._queries(sides[places], inverse[places], spans[places], padded)
            ahead = places, self._rank(params, place(queries, self._whole))
            if waiting is not None:  # one batch ahead of the device
                settle(*waiting)
            waiting = ahead
        if waiting is not None:
            settle(*waiting)
        bad = np.flatnonzero(~np.isfinite(ranks))
        if len(bad):
            raise NotFiniteError(
                f"the scores of {len(bad)} of {len(ranks)} queries are not finite, first of "
                f"{dataset.show(triples[bad[0] % len(triples)])}; train with a lower "
                "optim.learning_rate"
            )
        tail, head = ranks.reshape(2, -1)
        return {"relation": triples[:, 1], "rank_tail": tail, "rank_head": head}

    def _batches(self, relation: np.ndarray, known: np.ndarray) -> Iterator[np.ndarray]:
        """Places of the queries, so many at a time. known: answers of each. They are dealt out so
        that all batches filter about as many: one shape, thus one compilation, and little padding.
        """
        order = np.argsort(known, kind="stable")
        groups = [order]
        if self._grouped:
            order = order[np.argsort(relation[order], kind="stable")]
            groups = np.split(order, np.flatnonzero(np.diff(relation[order])) + 1)
        for own in groups:
            count = -(-len(own) // self.batch)
            yield from (own[i::count] for i in range(count))

    def _queries(
        self, sides: np.ndarray, inverse: np.ndarray, spans: np.ndarray, padded: int
    ) -> dict[str, np.ndarray]:
        """Padded arrays of the queries, and their known answers as (row, column) pairs."""
        count, b = len(sides), self.batch
        lengths = spans[:, 1] - spans[:, 0]
        total = int(lengths.sum())
        row, column = np.full(padded, b, np.int32), np.zeros(padded, np.int32)
        row[:total] = np.repeat(np.arange(count), lengths)
        within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        column[:total] = self._known.answers[np.repeat(spans[:, 0], lengths) + within]
        whole = np.minimum(np.arange(b), count - 1)
        return {
            "source": sides[whole, 0],
            "relation": sides[whole, 1],
            "inverse": inverse[whole],
            "answer": sides[whole, 2],
            "row": row,
            "column": column,
        }


def by_relation(rows: dict[str, np.ndarray], names: Any) -> list[dict[str, Any]]:
    """A record for each relation, most frequent first: triples, mrr and hits@10 of either side."""
    relation = rows["relation"]
    count = np.bincount(relation, minlength=len(names))
    out = []
    for number in np.argsort(-count, kind="stable"):
        if not count[number]:
            break
        record = {"relation": names[int(number)], "triples": int(count[number])}
        for side in ("head", "tail"):
            ranks = rows[f"rank_{side}"][relation == number]
            record[f"{side}/mrr"] = float(np.mean(1 / ranks))
            record[f"{side}/hits@10"] = float(np.mean(ranks <= 10))
        out.append(record)
    return out
