"""A mention's state against rows of entities (Zhang et al. 2019; Yamada et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import Config
from keft_jax.data.batch import Batch, EntityTarget
from keft_jax.models.layers import LayerNorm, Linear, gelu, glorot

NEVER = -1e9


class EntityHead(nnx.Module):
    """Logits f32[b, m, 1 + c] of each mention's own entity and of all candidates of the batch, or
    f32[b, m, rows] of all rows where the target names no candidates. The rows are those of the
    nodes' table, so that what a text says of an entity and what facts say of it meet there."""

    def __init__(self, config: Config, width: int, entities: int):
        """width: of a row. entities: rows 1 to this are theirs."""
        text = config.encoder.width
        self.transform = Linear(("embed", text), ("kv", text), kernel=glorot(text, text))
        self.norm = LayerNorm(("kv", text))
        self.query = Linear(("kv", text), ("graph", width), kernel=glorot(text, width))
        self.scale, self.entities = width**-0.5, entities

    def __call__(self, x_bld: jax.Array, table_rw: jax.Array, batch: Batch) -> jax.Array:
        target: EntityTarget = batch.targets["entities"]
        mentions, at = batch.mentions, jnp.arange(x_bld.shape[1])
        inside = (at >= mentions.start[..., None]) & (at < mentions.end[..., None])
        share = inside / jnp.maximum(inside.sum(-1, keepdims=True), 1)
        state_bmd = jnp.einsum("bml,bld->bmd", share, x_bld.astype(jnp.float32))
        query_bmw = self.scale * self.query(self.norm(gelu(self.transform(state_bmd))))
        if target.candidate is None or target.there is None:
            logits = jnp.einsum("bmw,rw->bmr", query_bmw, table_rw)
            row = jnp.arange(len(table_rw))
            return jnp.where((row >= 1) & (row <= self.entities), logits, NEVER)
        own_bm1 = (query_bmw * table_rw[target.row]).sum(-1, keepdims=True)
        order_c = jnp.argsort(target.candidate.ravel())
        row_c = target.candidate.ravel()[order_c]
        fits_c = target.there.ravel()[order_c] & (jnp.diff(row_c, prepend=-1) != 0)  # each once
        other = jnp.einsum("bmw,cw->bmc", query_bmw, table_rw[row_c])
        other = jnp.where(fits_c & (row_c != target.row[..., None]), other, NEVER)
        return jnp.concatenate([own_bm1, other], -1)
