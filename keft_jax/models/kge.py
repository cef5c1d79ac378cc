"""Triple embeddings: a score for every (head, relation, tail).

A query is (source, relation, ?), or with `inverse` (?, relation, source). It becomes one vector
q, and a candidate's score is a similarity of q with the candidate's vector, so that all candidates
of many queries are one matmul:

    distmult  q = x r               score q . e          (Yang et al. 2015)
    complex   q = x r in C          score Re q . conj e  (Trouillon et al. 2016)
    transe    q = x + r             score -|q - e|       (Bordes et al. 2013)
    rotate    q = x exp(i phase)    score -|q - e|       (Sun et al. 2019)
    transr    q = x M + r           score -|q - e M|     (Lin et al. 2015)

Complex vectors are stored as their real parts, then their imaginary parts. Queries come in groups
[g, c] whose candidates may be shared; for transr a group has one relation, and its candidates are
projected once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import KgeConfig
from keft_jax.data.batch import QueryBatch, QueryTarget
from keft_jax.models.functional import Initializer, param, use
from keft_jax.models.pairwise import TINY, in_chunks, l1_shared, matmul, modulus
from keft_jax.sharding import platform, shard


@flax.struct.dataclass
class Scores:
    """What the loss of a batch of queries reads."""

    positive: jax.Array  # f32[b, a]; of an answer that is not there: anything
    negative: jax.Array  # f32[b, k]
    penalty: jax.Array  # f32[b]: the regularizer's, for each query and its answers


@flax.struct.dataclass
class TripleOutput:
    """What a model of triples gives where one of texts gives an `Output`."""

    logits: Scores
    alone = ()


class TripleScorer(nnx.Module):
    """Relations' parameters and the scores. Entities come as vectors, from whatever table."""

    def __init__(self, config: KgeConfig, relations: int):
        self.config, self.known = config, relations
        self.width = entity_width(config)
        self.reciprocal = config.reciprocal
        count = 2 * relations if self.reciprocal else relations
        out = relation_width(config)
        first: Initializer = jax.nn.initializers.normal(config.init)
        if config.model == "rotate":
            first = _uniform_phase
        self.relation = param((count, out), ("relation", "graph"), first)
        shape, axes = (relations, config.width, out), ("relation", "graph", None)
        transr = config.model == "transr"
        self.project = param(shape, axes, _near_identity) if transr else None

    def query(
        self, source_gcw: jax.Array, relation_gc: jax.Array, inverse_gc: jax.Array
    ) -> jax.Array:
        """f32[g, c, x], from the sources' vectors."""
        if self.reciprocal:
            number = relation_gc + jnp.where(inverse_gc, self.known, 0)
            inverse = jnp.zeros(inverse_gc.shape, bool)[..., None]
        else:
            number, inverse = relation_gc, inverse_gc[..., None]
        r = _rows(use(self.relation), number)
        match self.config.model:
            case "distmult":
                return source_gcw * r
            case "complex":
                return _multiply(source_gcw, _conjugate_where(inverse, r))
            case "rotate":
                phase = jnp.where(inverse, -r, r)
                turn = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], -1)
                return _multiply(source_gcw, turn)
            case "transr":
                source_gcw = self._into(source_gcw, relation_gc)
        return source_gcw + jnp.where(inverse, -r, r)

    def shared(
        self, q_gcx: jax.Array, relation_gc: jax.Array, e_gkw: jax.Array, dtype: str = ""
    ) -> jax.Array:
        """f32[g, c, k]: each query against the k candidates of its group. dtype: of the matmul,
        the config's if empty."""
        if self.project is not None:
            e_gkw = self._into(e_gkw, relation_gc)
        if self._distance == "l1":
            in_plane = self.config.model == "rotate"
            return -self.config.scale * l1_shared(q_gcx, e_gkw, in_plane)
        product = matmul(q_gcx, e_gkw, dtype or self.config.dtype)
        return self._from_product(product, q_gcx[..., None, :], e_gkw[:, None])

    def own(self, q_g1x: jax.Array, table: jax.Array, ids_gk: jax.Array) -> jax.Array:
        """f32[g, 1, k]: as `shared` of table[ids], with one query in each group: nothing for a
        matmul to reuse. Not for transr."""
        if platform() == "cpu":
            return in_chunks(self._compare, q_g1x, table, ids_gk)
        return self._compare(q_g1x, table[ids_gk][:, None])

    def pairs(self, q_gcx: jax.Array, relation_gc: jax.Array, e_gcaw: jax.Array) -> jax.Array:
        """f32[g, c, a]: each query against candidates of its own."""
        if self.project is not None:
            g, c, a, w = e_gcaw.shape
            e_gcaw = self._into(e_gcaw.reshape(g, c * a, w), relation_gc).reshape(g, c, a, -1)
        return self._compare(q_gcx, e_gcaw)

    def _compare(self, q_gcx: jax.Array, e_gcax: jax.Array) -> jax.Array:
        """f32[g, c, a]: each query with candidates of its own, projected if they have to be."""
        if self._distance == "l1":
            difference = q_gcx[..., None, :] - e_gcax
            if self.config.model == "rotate":
                return -self.config.scale * modulus(difference).sum(-1)
            return -self.config.scale * jnp.abs(difference).sum(-1)
        product = jnp.einsum("gcx,gcax->gca", q_gcx, e_gcax)
        return self._from_product(product, q_gcx[..., None, :], e_gcax)

    def penalty(self, vectors: jax.Array) -> jax.Array:
        """The regularizer of vectors [..., w], f32[...]."""
        if self.config.regularizer == "l2":
            return (vectors**2).sum(-1)
        if self.config.model in ("complex", "rotate"):
            real, imaginary = jnp.split(vectors, 2, -1)
            square = real**2 + imaginary**2 + TINY**2
            return (square * jnp.sqrt(square)).sum(-1)
        return (jnp.abs(vectors) ** 3).sum(-1)

    def relation_penalty(self, relation_b: jax.Array, inverse_b: jax.Array) -> jax.Array:
        """f32[b]; rotations have none."""
        if self.config.model == "rotate":
            return jnp.zeros(relation_b.shape)
        number = relation_b + jnp.where(inverse_b & self.reciprocal, self.known, 0)
        each = self.penalty(use(self.relation))
        return jnp.take(each, number)

    @property
    def _distance(self) -> str:
        products = self.config.model in ("distmult", "complex")
        return "product" if products else self.config.distance

    def _from_product(self, product: jax.Array, q: jax.Array, e: jax.Array) -> jax.Array:
        """q . e as this model's score; q and e broadcast against each other but for their last
        axis."""
        if self._distance == "product":
            return product
        square = (q * q).sum(-1) + (e * e).sum(-1) - 2 * product
        square = jnp.maximum(square, TINY)
        far = square if self._distance == "l2_squared" else jnp.sqrt(square)
        return -self.config.scale * far

    def _into(self, e_gkw: jax.Array, relation_gc: jax.Array) -> jax.Array:
        """Into the space of each group's one relation."""
        project: Any = self.project
        return jnp.einsum("gkw,gwx->gkx", e_gkw, _rows(use(project), relation_gc[:, 0]))


class TripleModel(nnx.Module):
    """Link prediction: a table of entities and the scorer."""

    def __init__(self, config: KgeConfig, entities: int, rows: int, relations: int):
        """rows: of the table; behind the entities lie spare ones, so that it can be cut."""
        self.config, self.entities = config, entities
        self.scorer = TripleScorer(config, relations)
        first = jax.nn.initializers.normal(config.init)
        self.entity = param((rows, entity_width(config)), ("row", "graph"), first)
        self.tables = ("entity",)

    def map_rows(self, batch: QueryBatch, f: Callable[[str, Any], Any]) -> QueryBatch:
        """The batch with `f(table, ids)` in the place of every id that looks up a row."""
        target: QueryTarget = batch.targets["link"]
        target = dataclasses.replace(
            target,
            source=f("entity", target.source),
            answers=f("entity", target.answers),
            negatives=None if target.negatives is None else f("entity", target.negatives),
        )
        return dataclasses.replace(batch, targets={**batch.targets, "link": target})

    def __call__(
        self,
        batch: QueryBatch,
        names: Any = None,
        key: jax.Array | None = None,
        head: str = "",
    ) -> TripleOutput:
        """Scores of the answers and of the negatives (none given: all entities) of each query."""
        del names, key, head
        target = batch.targets["link"]
        table = use(self.entity)
        return TripleOutput(score_queries(self.scorer, target, table, self.entities))

    def scores(self, source_b: jax.Array, relation_b: jax.Array, inverse_b: jax.Array) -> jax.Array:
        """f32[b, n]: of all entities as answers. For transr all queries have one relation."""
        table, relation = use(self.entity), relation_b[None]
        q = self.scorer.query(table[source_b][None], relation, inverse_b[None])
        return self.scorer.shared(q, relation, table[None, : self.entities], "float32")[0]

    def queries(
        self, source_b: jax.Array, relation_b: jax.Array, inverse_b: jax.Array
    ) -> jax.Array:
        """f32[b, x], for `rank`."""
        source_bw = use(self.entity)[source_b]
        return self.scorer.query(source_bw[None], relation_b[None], inverse_b[None])[0]

    def rank(
        self,
        q_bx: jax.Array,
        relation_b: jax.Array,
        answer_b: jax.Array,
        known: tuple[jax.Array, jax.Array],
        blocks: tuple[int, int],
        axes: tuple[str, ...] = (),
    ) -> jax.Array:
        """f32[b]: the rank of each answer among all entities but the known others, which are given
        as (rows, columns) of the scores [b, n], i32[f]; a row of b is padding. Ties count at their
        mean. NaN where the answer has no finite score. For transr all queries have one relation.

        Every comparison is between scores of the same matmul: with more blocks than one the scores
        are computed twice, first to find those of the answers.

        blocks: (count, size) that the entities are cut into. axes: of the mesh, inside `shard_map`;
        the table is this chip's part, and what is counted is summed over chips.
        """
        (table, (count, size)), b = (use(self.entity), blocks), len(answer_b)
        # An answer is no rival of itself, known or not.
        row = jnp.concatenate([known[0], jnp.arange(b)])
        column = jnp.concatenate([known[1], answer_b])
        end, spare = self.entities, count > 1
        if axes:
            first = jax.lax.axis_index(axes) * len(table)
            end, spare = len(table), True
            column, answer_b = column - first, answer_b - first
        starts = jnp.minimum(jnp.arange(count) * size, max(end - size, 0))

        def score(start: jax.Array) -> jax.Array:
            e_kw = jax.lax.dynamic_slice_in_dim(table, start, size)
            return self.scorer.shared(q_bx[None], relation_b[None], e_kw[None], "float32")[0]

        def own(start: jax.Array, s_bk: jax.Array) -> jax.Array:
            at = answer_b - start
            here = (at >= 0) & (at < size)
            taken = jnp.take_along_axis(s_bk, jnp.clip(at, 0, size - 1)[:, None], 1)[:, 0]
            return jnp.where(here, taken, -jnp.inf)

        def above(number: jax.Array, s_bk: jax.Array, right_b: jax.Array) -> jax.Array:
            """Twice the rank's part in this block, i32[b]."""
            start = starts[number]
            at = jnp.where(column >= start, column - start, size)
            s_bk = s_bk.at[row, at].set(-jnp.inf, mode="drop")
            if spare:
                # The last block begins earlier than it would, to be as long as the others; and
                # behind the entities lie spare rows.
                place = jnp.arange(size) + start
                seen = place < number * size
                if axes:
                    seen |= place + first >= self.entities
                s_bk = jnp.where(seen, -jnp.inf, s_bk)
            higher, level = ~(s_bk <= right_b[:, None]), s_bk == right_b[:, None]
            return (2 * higher.astype(jnp.int32) + level.astype(jnp.int32)).sum(1)

        def over_chips(right_b: jax.Array) -> jax.Array:
            if not axes:
                return right_b
            here = (answer_b >= 0) & (answer_b < len(table))
            return jax.lax.psum(jnp.where(here, right_b, 0), axes)

        if count == 1:
            s_bn = score(starts[0])
            right_b = over_chips(own(starts[0], s_bn))
            total = above(jnp.int32(0), s_bn, right_b)
        else:
            right_b = jax.lax.fori_loop(
                0,
                count,
                lambda i, best: jnp.maximum(best, own(starts[i], score(starts[i]))),
                jnp.full(b, -jnp.inf),
            )
            right_b = over_chips(right_b)
            total = jax.lax.fori_loop(
                0,
                count,
                lambda i, sum_b: sum_b + above(i, score(starts[i]), right_b),
                jnp.zeros(b, jnp.int32),
            )
        total = jax.lax.psum(total, axes) if axes else total
        return jnp.where(jnp.isfinite(right_b), 1 + total / 2, jnp.nan)


def score_queries(
    scorer: TripleScorer, target: QueryTarget, table: jax.Array, entities: int
) -> Scores:
    """Scores of queries whose ids are rows of `table`; its first `entities` rows are candidates
    where the target has no negatives."""
    config, b = scorer.config, len(target.source)
    drawn: Any = target.negatives
    everything = drawn is None
    if everything:
        groups = b // config.share if scorer.project is not None else 1
    else:
        groups = len(drawn)

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(groups, b // groups, *x.shape[1:])

    there = target.answers >= 0
    answers = jnp.where(there, target.answers, 0)
    source_gcw = grouped(table[target.source])
    relation, inverse = grouped(target.relation), grouped(target.inverse)
    q_gcx = scorer.query(source_gcw, relation, inverse)
    answer_baw: Any = None if everything else table[answers]
    if everything:
        q_gcx = q_gcx if groups > 1 else shard(q_gcx, None, None, "graph")
        e_gkw = jnp.broadcast_to(table[:entities], (groups, entities, table.shape[1]))
        negative = scorer.shared(q_gcx, relation, e_gkw).reshape(b, entities)
        negative = negative if groups > 1 else shard(negative, None, "row")
        positive = jnp.take_along_axis(negative, answers, 1)
    else:
        if groups == b and scorer.project is None:
            negative = scorer.own(q_gcx, table, drawn).reshape(b, -1)
        else:
            negative = scorer.shared(q_gcx, relation, table[drawn]).reshape(b, -1)
        positive = scorer.pairs(q_gcx, relation, grouped(answer_baw)).reshape(answers.shape)
    penalty = jnp.zeros(b)
    if config.regularizer != "none":
        rest = scorer.relation_penalty(target.relation, target.inverse)
        rest += scorer.penalty(source_gcw).reshape(b)
        # Of all entities it is cheaper than of copies of those rows that the batch names.
        own = scorer.penalty(table)[answers] if everything else scorer.penalty(answer_baw)
        penalty = there.sum(1) * rest + jnp.where(there, own, 0).sum(1)
    return Scores(positive=positive, negative=negative, penalty=penalty)


def entity_width(config: KgeConfig) -> int:
    """Numbers of an entity's vector."""
    return config.width * (2 if config.model in ("complex", "rotate") else 1)


def relation_width(config: KgeConfig) -> int:
    """Numbers of a relation's vector."""
    match config.model:
        case "transr":
            return config.relation_width or config.width
        case "rotate":
            return config.width
    return entity_width(config)


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(table, ids, axis=0)


def _near_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Lin et al.'s start from transe."""
    rows, columns = shape[1:]
    return jnp.broadcast_to(jnp.eye(rows, columns, dtype=dtype), shape)


def _uniform_phase(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -jnp.pi, jnp.pi)


def _multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    """Products of complex numbers."""
    (a, b), (c, d) = jnp.split(x, 2, -1), jnp.split(y, 2, -1)
    return jnp.concatenate([a * c - b * d, a * d + b * c], -1)


def _conjugate_where(where: jax.Array, x: jax.Array) -> jax.Array:
    real, imaginary = jnp.split(x, 2, -1)
    return jnp.concatenate([real, jnp.where(where, -imaginary, imaginary)], -1)
