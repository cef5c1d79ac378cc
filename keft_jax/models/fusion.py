"""A BERT encoder that exchanges with a graph network: knowledge is additive, and nothing at first.

Every path from nodes to text is `x + where(there is a graph, delta, 0)`, and delta's out-projection
starts at zero. So at initialisation, and wherever the graph is empty, the forward pass is plain
BERT's, bit for bit.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import Config, EncoderConfig, GraphConfig
from keft_jax.data.batch import Batch, Mentions, node_mask, token_mask
from keft_jax.models.encoder import Encoder
from keft_jax.models.functional import param, use, zeros
from keft_jax.models.graph import Edges, GraphBlock, NodeGate
from keft_jax.models.heads import HEADS
from keft_jax.models.layers import LayerNorm, Linear, fold, glorot
from keft_jax.sharding import shard


@flax.struct.dataclass
class Sizes:
    """Lengths that come from the data; fixed for the life of a model."""

    vocab: int = flax.struct.field(pytree_node=False)  # padded to a multiple of 128
    rows: int = flax.struct.field(pytree_node=False)  # entity rows, row 0 for the unknown
    relations: int = flax.struct.field(pytree_node=False)
    labels: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Output:
    tokens: jax.Array  # [b, l, d] states after the last layer
    logits: jax.Array  # f32[b, c] of the task
    node_gate: jax.Array | None = None  # f32[b, n]
    edge_gates: list[jax.Array] = flax.struct.field(default_factory=list)  # f32[b, e] a layer


class NodeInput(nnx.Module):
    """First node states: the name's mean word embedding, a trainable row for each entity, and
    whether the text mentions it. [b, n, w]."""

    def __init__(self, config: GraphConfig, text_width: int, rows: int):
        width = ("graph", config.width)
        self.name = Linear(("embed", text_width), width, kernel=glorot(text_width, config.width))
        self.rows = param((rows, config.width), ("entity", "graph"), zeros)
        self.mention = param((config.width,), ("graph",), jax.nn.initializers.normal(1.0))
        self.norm = LayerNorm(width)

    def __call__(self, graph: Any, word_vd: jax.Array) -> jax.Array:
        pieces = graph.nodes["pieces"]
        real = (pieces > 0)[..., None]
        # No gradient into the word table from here: it would be a scatter for every node's piece.
        states = jnp.where(real, jax.lax.stop_gradient(word_vd)[pieces], 0)
        name = states.sum(2) / jnp.maximum(real.sum(2), 1) / 0.02  # unit scale at BERT's init
        x = self.name(name) + use(self.rows)[graph.nodes["row"]]
        return self.norm(x + graph.nodes["mention"][..., None] * use(self.mention))


class MentionAdd(nnx.Module):
    """A node's state, projected, is added to every token of its mention."""

    def __init__(self, text: EncoderConfig, graph: GraphConfig):
        self.out = Linear(
            ("graph", graph.width),
            ("embed", text.width),
            kernel=zeros,
            dtype=jnp.dtype(text.dtype),
        )

    def __call__(
        self, x_bld: jax.Array, nodes_bnw: jax.Array, gate_bn: jax.Array, batch: Batch
    ) -> jax.Array:
        mentions: Mentions = batch.mentions
        nodes_bnw = nodes_bnw * gate_bn[..., None].astype(nodes_bnw.dtype)
        of = jax.nn.one_hot(mentions.node, nodes_bnw.shape[1], dtype=nodes_bnw.dtype)
        delta_bmd = self.out(jnp.einsum("bmn,bnw->bmw", of, nodes_bnw))
        at = jnp.arange(x_bld.shape[1])[None, None, :]
        inside_bml = (at >= mentions.start[..., None]) & (at < mentions.end[..., None])
        inside_bml &= (mentions.node >= 0)[..., None]
        delta = jnp.einsum("bml,bmd->bld", inside_bml.astype(delta_bmd.dtype), delta_bmd)
        return jnp.where(inside_bml.any(1)[..., None], delta, 0).astype(x_bld.dtype)


class CrossAttention(nnx.Module):
    """Every token attends to the nodes, scaled by their gates, or to nothing."""

    def __init__(self, text: EncoderConfig, graph: GraphConfig):
        dtype = jnp.dtype(text.dtype)
        heads = (("heads", graph.heads), ("kv", graph.width // graph.heads))
        embed, width = ("embed", text.width), ("graph", graph.width)
        self.query = Linear(embed, *heads, dtype=dtype, kernel=glorot(text.width, graph.width))
        self.key = Linear(width, *heads, dtype=dtype, kernel=glorot(graph.width, graph.width))
        self.value = Linear(width, *heads, dtype=dtype, kernel=glorot(graph.width, graph.width))
        self.nothing = param((graph.heads,), (None,), zeros)
        self.out = Linear(("heads", graph.width), embed, kernel=zeros, dtype=dtype)
        self.scale = heads[1][1] ** -0.5

    def __call__(
        self, x_bld: jax.Array, nodes_bnw: jax.Array, gate_bn: jax.Array, batch: Batch
    ) -> jax.Array:
        q, k, v = self.query(x_bld), self.key(nodes_bnw), self.value(nodes_bnw)
        logits = jnp.einsum("blhk,bnhk->bhln", q * self.scale, k).astype(jnp.float32)
        gate = jnp.where(node_mask(batch.graph), gate_bn, 0)[:, None, None, :]
        logits = jnp.where(gate > 0, logits + jnp.log(jnp.maximum(gate, 1e-30)), -jnp.inf)
        nothing = use(self.nothing)[None, :, None, None]
        nothing = jnp.broadcast_to(nothing, (*logits.shape[:3], 1))
        weights = jax.nn.softmax(jnp.concatenate([nothing, logits], -1), -1)[..., 1:]
        y = jnp.einsum("bhln,bnhk->blhk", weights.astype(v.dtype), v)
        delta = self.out(y.reshape(*y.shape[:2], -1))
        has_graph = (batch.graph.n_node[:, 0] > 0)[:, None, None]
        return jnp.where(has_graph, delta, 0).astype(x_bld.dtype)


FUSIONS = {"mention_add": MentionAdd, "cross_attention": CrossAttention}


class Exchange(nnx.Module):
    """Text -> graph by the query, graph network, graph -> text by the fusion."""

    def __init__(self, config: Config, sizes: Sizes):
        dtype = jnp.dtype(config.encoder.dtype)
        width = config.encoder.width
        self.graph = GraphBlock(config.graph, width, sizes.relations, dtype)
        self.gate = NodeGate(config.graph, width) if config.graph.gate else None
        self.fuse = FUSIONS[config.fusion.kind](config.encoder, config.graph)

    def __call__(self, x_bld: jax.Array, nodes_bnw: jax.Array, edges: Edges, batch: Batch):
        nodes_bnw, edge_gates = self.graph(nodes_bnw, x_bld[:, 0], edges)
        gate_bn = (
            jnp.ones(nodes_bnw.shape[:2])
            if self.gate is None
            else self.gate(x_bld[:, 0], nodes_bnw)
        )
        x_bld = x_bld + self.fuse(x_bld, nodes_bnw, gate_bn, batch)
        return shard(x_bld, "batch", "length", "embed"), nodes_bnw, edge_gates


class FusedModel(nnx.Module):
    """Text and subgraph in, the task's logits out. Without fusion: plain BERT and the head."""

    def __init__(self, config: Config, sizes: Sizes):
        self.encoder = Encoder(config.encoder, sizes.vocab)
        depth = config.encoder.layers
        self.fused = config.fusion.kind != "none"
        at = sorted({i % depth for i in config.fusion.layers}) if self.fused else []
        self.at = tuple(at)
        self.compute = config.graph.compute
        if self.fused:
            self.nodes = NodeInput(config.graph, config.encoder.width, sizes.rows)
            self.exchanges = nnx.Dict({str(i): Exchange(config, sizes) for i in at})
        self.head = HEADS[config.task.kind](config, sizes)

    def __call__(self, batch: Batch, names: Any = None, key: jax.Array | None = None) -> Output:
        """`names`: the piece ids of all entities (kgqa). key None: inference, no dropout."""
        mask = token_mask(batch)
        x_bld = self.encoder.embed(batch.tokens, batch.types, fold(key, 1000))
        x_bld = shard(x_bld, "batch", "length", "embed")
        word = use(self.encoder.embed.word)
        edges: Any = None
        nodes_bnw: Any = None
        edge_gates: list[jax.Array] = []
        if self.fused:
            edges = Edges(batch.graph, self.compute)
            nodes_bnw = self.nodes(batch.graph, word).astype(x_bld.dtype)
        done = 0
        for layer in self.at:
            x_bld = self.encoder.run(x_bld, mask, key, done, layer + 1)
            exchange = self.exchanges[str(layer)]
            x_bld, nodes_bnw, gates = exchange(x_bld, nodes_bnw, edges, batch)
            edge_gates += gates
            done = layer + 1
        x_bld = self.encoder.run(x_bld, mask, key, done, self.encoder.config.layers)
        logits, node_gate, gates = self.head(
            x_bld, nodes_bnw, edges, batch, names, word, fold(key, 1001)
        )
        return Output(x_bld, logits.astype(jnp.float32), node_gate, edge_gates + gates)
