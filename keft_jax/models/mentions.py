"""Which entities a mention is related to: as triple embeddings have it, and as the text has it.

For a mention m of the entity v, both are distributions over the other entities c of the example's
subgraph:

    teacher  softmax over c of 1/T log sum over r of exp score(v, r, c) + exp score(c, r, v)
    student  softmax over c of query(mean state of m's tokens) . key(name of c)

The student reads text alone, so that what it learns stays in the encoder: a graph's embeddings
shape the encoder as in KEPLER (Wang et al. 2021), by distillation (Hinton et al. 2015) instead of
a shared encoder of descriptions; aligning mentions with entities is ERNIE's (Zhang et al. 2019).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import Config, KgeConfig
from keft_jax.data.batch import Batch, Mentions, QueryTarget, node_mask
from keft_jax.models.kge import TripleScorer
from keft_jax.models.layers import Linear, glorot


class MentionHead(nnx.Module):
    """The student: logits f32[b, m, n] of every node for every mention."""

    def __init__(self, config: Config):
        text, width = config.encoder.width, config.graph.width
        embed, inner = ("embed", text), ("kv", width)
        self.query = Linear(embed, inner, kernel=glorot(text, width))
        self.key = Linear(embed, inner, kernel=glorot(text, width))
        self.scale = width**-0.5

    def __call__(self, x_bld: jax.Array, name_bnd: jax.Array, batch: Batch) -> jax.Array:
        mentions: Mentions = batch.mentions
        at = jnp.arange(x_bld.shape[1])
        inside = (at >= mentions.start[..., None]) & (at < mentions.end[..., None])
        share = inside / jnp.maximum(inside.sum(-1, keepdims=True), 1)
        state_bmd = jnp.einsum("bml,bld->bmd", share, x_bld.astype(jnp.float32))
        query_bmw, key_bnw = self.query(state_bmd), self.key(name_bnd)
        return self.scale * jnp.einsum("bmw,bnw->bmn", query_bmw, key_bnw)


class MentionTeacher(nnx.Module):
    """The scorer of a finished run of link prediction, as `teach` wants it."""

    def __init__(self, config: KgeConfig, relations: int):
        self.scorer = TripleScorer(config, relations)

    def __call__(self, entity_bnw: jax.Array, node_bm: jax.Array, temperature: float) -> jax.Array:
        return teach(self.scorer, entity_bnw, node_bm, temperature)


def teach(scorer: Any, entity_bnw: jax.Array, node_bm: jax.Array, temperature: float) -> jax.Array:
    """The teacher's logits f32[b, m, n], from the nodes' vectors."""
    b, m = node_bm.shape
    known = scorer.known
    own_bmw = jnp.take_along_axis(entity_bnw, jnp.maximum(node_bm, 0)[..., None], 1)
    # Every relation, then every inverse one, for each mention; an example's share its candidates.
    source = jnp.repeat(own_bmw, 2 * known, 1, total_repeat_length=m * 2 * known)
    relation = jnp.broadcast_to(jnp.tile(jnp.arange(known), 2 * m), (b, m * 2 * known))
    inverse = jnp.broadcast_to(jnp.tile(jnp.arange(2 * known) >= known, m), relation.shape)
    query = scorer.query(source, relation, inverse)
    score = scorer.shared(query, relation, entity_bnw, "float32").reshape(b, m, 2 * known, -1)
    return jax.nn.logsumexp(score, 2) / temperature


def candidates(batch: Batch, there_bn: jax.Array | None = None) -> jax.Array:
    """bool[b, m, n]: nodes that a mention is compared with. there_bn: those with a vector."""
    mentions: Mentions = batch.mentions
    fit_bn = node_mask(batch.graph)
    if there_bn is not None:
        fit_bn &= there_bn
    node_bm = mentions.node
    own_bm = jnp.take_along_axis(fit_bn, jnp.maximum(node_bm, 0), 1)
    asked_bm = (node_bm >= 0) & (mentions.end > mentions.start) & own_bm
    other = jnp.arange(fit_bn.shape[1]) != node_bm[..., None]
    return asked_bm[..., None] & fit_bn[:, None] & other


def divergence(taught: Any, related: Any, mask: jax.Array) -> jax.Array:
    """f32[...]: KL(teacher || student) over the last axis where the mask is, 0 if it is empty."""

    def logs(logits: Any) -> jax.Array:
        return jax.nn.log_softmax(jnp.where(mask, logits, -1e9))

    log_t, log_s = logs(taught), logs(related)
    return jnp.where(mask, jnp.exp(log_t) * (log_t - log_s), 0).sum(-1)


def from_first(target: QueryTarget) -> QueryTarget:
    """Rows of a table as entities: row 0 is nobody's."""
    return dataclasses.replace(target, source=target.source - 1, answers=target.answers - 1)
