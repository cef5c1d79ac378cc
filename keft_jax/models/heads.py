"""From states to the task's logits. One output space for every row of the gain table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import Config
from keft_jax.data.batch import Batch, Names, node_mask
from keft_jax.models.functional import normal, zeros
from keft_jax.models.graph import Edges, GraphBlock, NodeGate
from keft_jax.models.layers import LayerNorm, Linear, dropout, gelu, glorot
from keft_jax.sharding import shard


class ClassifyHead(nnx.Module):
    """BERT's pooler on [CLS], then a linear layer."""

    def __init__(self, config: Config, sizes: Any):
        width = config.encoder.width
        self.pooler = Linear(("embed", width), ("mlp", width))
        self.out = Linear(("mlp", width), ("label", sizes.labels))
        self.rate = config.encoder.dropout

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        pooled = jnp.tanh(self.pooler(x_bld[:, 0].astype(jnp.float32)))
        return self.out(dropout(pooled, self.rate, key)), None, []


class AnswerHead(nnx.Module):
    """Scores every entity: by its name everywhere, and inside the subgraph also by its node,

        text.name(e)                                 outside
        (1 - a) text.name(e) + gate * graph(e)       inside,

    where a is learned and both a and graph(e) start at zero. The question reads the graph once
    more here, with all of the text behind its query.
    """

    def __init__(self, config: Config, sizes: Any):
        width, dtype = config.encoder.width, jnp.dtype(config.encoder.dtype)
        embed, graph = ("embed", width), ("graph", config.graph.width)
        self.query = Linear(embed, ("kv", width), kernel=normal)
        self.name_norm = LayerNorm(("kv", width))
        self.scale = width**-0.5
        self.fused = config.fusion.kind != "none"
        if self.fused:
            inner = config.graph.width
            self.graph = GraphBlock(config.graph, width, sizes.relations, dtype)
            self.gate = NodeGate(config.graph, width) if config.graph.gate else None
            self.node = Linear(graph, ("kv", inner), kernel=glorot(inner, inner))
            self.text = Linear(embed, ("kv", inner), kernel=glorot(width, inner))
            self.score = Linear(("kv", inner), ("one", 1), kernel=zeros)
            self.trust = Linear(embed, ("one", 1), kernel=zeros)

    def __call__(self, x_bld, nodes_bnw, edges: Edges, batch: Batch, names: Names, word_vd, key):
        cls_bd = x_bld[:, 0].astype(jnp.float32)
        entities = names.count.shape[0]
        pieces = jnp.where((names.pieces > 0)[:, None], word_vd[names.pieces], 0)
        total = jax.ops.segment_sum(pieces, names.owner, entities, indices_are_sorted=True)
        name_cd = self.name_norm(total / jnp.maximum(names.count, 1)[:, None])
        logits = self.scale * jnp.einsum("bd,cd->bc", self.query(cls_bd), name_cd)
        logits = jnp.where(names.count > 0, logits, -1e9)
        logits = shard(logits, "batch", None)
        if not self.fused:
            return logits, None, []
        nodes_bnw, edge_gates = self.graph(nodes_bnw, cls_bd, edges)
        nodes_bnw = nodes_bnw.astype(jnp.float32)
        hidden = self.node(nodes_bnw) * (1 + self.text(cls_bd)[:, None, :])
        score_bn = self.score(gelu(hidden))[..., 0]
        gate_bn = jnp.ones(score_bn.shape) if self.gate is None else self.gate(cls_bd, nodes_bnw)
        real_bn = node_mask(batch.graph)
        at = jnp.where(real_bn, batch.graph.nodes["entity"], entities)  # padding falls outside
        by_name_bn = jnp.take_along_axis(logits, at, axis=1, mode="clip")
        trust_b1 = jnp.tanh(self.trust(cls_bd))
        delta = jnp.where(real_bn, gate_bn * score_bn - trust_b1 * by_name_bn, 0)
        add = jax.vmap(lambda row, i, d: row.at[i].add(d, mode="drop", unique_indices=False))
        return add(logits, at, delta), gate_bn, edge_gates


HEADS = {"classification": ClassifyHead, "kgqa": AnswerHead}
