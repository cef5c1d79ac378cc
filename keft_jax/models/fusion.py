"""A BERT encoder that exchanges with a graph network: knowledge is additive, and nothing at first.

Every path from nodes to text is `x + where(there is a graph, delta, 0)`, and delta's out-projection
starts at zero. So at initialisation, and wherever the graph is empty, the forward pass is plain
BERT's, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import Config, EncoderConfig, GraphConfig
from keft_jax.data.batch import (
    Batch,
    EntityTarget,
    Mentions,
    QueryTarget,
    node_mask,
    sight,
)
from keft_jax.models.encoder import Encoder
from keft_jax.models.entities import EntityHead
from keft_jax.models.functional import param, use, zeros
from keft_jax.models.graph import Edges, GraphBlock, NodeGate
from keft_jax.models.heads import HEADS, READS_GRAPH, TERMS
from keft_jax.models.kge import TripleOutput, TripleScorer, entity_width, score_queries
from keft_jax.models.layers import LayerNorm, Linear, fold, gelu, glorot
from keft_jax.models.mentions import MentionHead, from_first, teach
from keft_jax.models.packed import Rows
from keft_jax.sharding import shard


@flax.struct.dataclass
class Sizes:
    """Lengths that come from the data; fixed for the life of a model."""

    vocab: int = flax.struct.field(pytree_node=False)  # padded to a multiple of 128
    pieces: int = flax.struct.field(pytree_node=False)  # of these, the real ones
    rows: int = flax.struct.field(pytree_node=False)  # entity rows, row 0 for the unknown
    relations: int = flax.struct.field(pytree_node=False)
    labels: int = flax.struct.field(pytree_node=False)
    entities: int = flax.struct.field(pytree_node=False, default=0)  # rows 1 to this are theirs
    attributes: int = flax.struct.field(pytree_node=False, default=0)  # numbers of a node's own


@flax.struct.dataclass
class Output:
    tokens: jax.Array  # [b, l, d] states after the last layer
    logits: jax.Array  # f32[b, c] of the task
    node_gate: jax.Array | None = None  # f32[b, n]
    edge_gates: list[jax.Array] = flax.struct.field(default_factory=list)  # f32[b, e] a layer
    alone: tuple[tuple[jax.Array, jax.Array], ...] = ()  # models/heads.py
    related: jax.Array | None = None  # f32[b, m, n]: logits of which nodes a mention is related to
    taught: jax.Array | None = None  # f32[b, m, n]: the same of a jointly trained teacher
    entities: jax.Array | None = None  # f32[b, m, c]: models/entities.py
    states: list[jax.Array] = flax.struct.field(default_factory=list)  # [b, l, d], the embeddings
    # and after each layer
    projected: list[jax.Array] = flax.struct.field(default_factory=list)  # these in the width of
    # the teacher's
    attention: jax.Array | None = None  # f32[b, h, l, l]: of the last layer, before the softmax


def row_width(config: Config) -> int:
    """Length of an entity's row."""
    reasons = config.objective.triples.weight > 0
    usual = entity_width(config.kge) if reasons else config.graph.width
    return config.knowledge.entity_width or usual


def mean_names(graph: Any, word_vd: jax.Array) -> jax.Array:
    """Mean word embedding of each node's name, f32[b, n, d], of unit scale at BERT's start. No
    gradient into the word table from here: it would be a scatter for every node's piece."""
    pieces = graph.nodes["pieces"]
    real = (pieces > 0)[..., None]
    states = jnp.where(real, jax.lax.stop_gradient(word_vd)[pieces], 0)
    return states.sum(2) / jnp.maximum(real.sum(2), 1) / 0.02


class NodeInput(nnx.Module):
    """First node states: the name's mean word embedding, a frozen vector of the entity where
    knowledge.vectors has one, its attributes where knowledge.attributes has some, a trainable row
    for each entity (of a width of its own, then projected), and whether the text mentions it.
    [b, n, w]."""

    def __init__(self, config: Config, rows: int, attributes: int = 0):
        graph, text = config.graph.width, config.encoder.width
        width, embed = ("graph", graph), ("embed", text)
        self.name = Linear(embed, width, kernel=glorot(text, graph))
        vectors = config.knowledge.vectors != "none"
        self.vector = Linear(embed, width, kernel=glorot(text, graph)) if vectors else None
        numbers = ("kv", attributes)
        self.attribute = (
            Linear(numbers, width, kernel=glorot(attributes, graph), bias=False)
            if attributes
            else None
        )
        own, first = row_width(config), zeros
        if config.objective.triples.weight > 0:  # products of zeros would stay zero
            first = jax.nn.initializers.normal(config.kge.init)
        self.rows = param((rows, own), ("entity", "graph"), first)
        same, kernel = own == graph, glorot(own, graph)
        self.project = None if same else Linear(("kv", own), width, kernel=kernel, bias=False)
        self.mention = param((graph,), ("graph",), jax.nn.initializers.normal(1.0))
        self.norm = LayerNorm(width)

    def __call__(self, graph: Any, name_bnd: jax.Array) -> jax.Array:
        row = use(self.rows)[graph.nodes["row"]]
        if "start" in graph.nodes:  # of entities met after training
            met = (graph.nodes["row"] == 0)[..., None]
            row = jnp.where(met, graph.nodes["start"].astype(row.dtype), row)
        x = self.name(name_bnd) + (row if self.project is None else self.project(row))
        if self.vector is not None:
            x = x + self.vector(graph.nodes["vector"])
        if self.attribute is not None:
            x = x + self.attribute(graph.nodes["attribute"])
        return self.norm(x + graph.nodes["mention"][..., None] * use(self.mention))


class MentionAdd(nnx.Module):
    """A node's state, projected, is added to every token of its mention."""

    def __init__(self, text: EncoderConfig, graph: GraphConfig):
        self.out = Linear(
            ("graph", graph.width),
            ("embed", text.width),
            kernel=zeros,
            dtype=text.dtype,
        )

    def __call__(
        self, x_bld: jax.Array, nodes_bnw: jax.Array, gate_bn: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        mentions: Mentions = batch.mentions
        weighted_bnw = nodes_bnw * gate_bn[..., None].astype(nodes_bnw.dtype)
        of = jax.nn.one_hot(mentions.node, nodes_bnw.shape[1], dtype=nodes_bnw.dtype)
        delta_bmd = self.out(jnp.einsum("bmn,bnw->bmw", of, weighted_bnw))
        at = jnp.arange(x_bld.shape[1])[None, None, :]
        inside_bml = (at >= mentions.start[..., None]) & (at < mentions.end[..., None])
        inside_bml &= (mentions.node >= 0)[..., None]
        delta = jnp.einsum("bml,bmd->bld", inside_bml.astype(delta_bmd.dtype), delta_bmd)
        return jnp.where(inside_bml.any(1)[..., None], delta, 0).astype(x_bld.dtype), nodes_bnw


class CrossAttention(nnx.Module):
    """Every token attends to the nodes, scaled by their gates, or to nothing."""

    def __init__(self, text: EncoderConfig, graph: GraphConfig):
        dtype = text.dtype
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
    ) -> tuple[jax.Array, jax.Array]:
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
        return jnp.where(has_graph, delta, 0).astype(x_bld.dtype), nodes_bnw


class Interaction(nnx.Module):
    """[CLS] and the graph's interaction node, which is the pooled graph, are mixed by an MLP; its
    output goes to both, and from the interaction node to all nodes (Zhang et al. 2022). The text
    has no token for it: [CLS] is the text's side."""

    def __init__(self, text: EncoderConfig, graph: GraphConfig):
        dtype = text.dtype
        embed, width, inner = ("embed", text.width), ("graph", graph.width), ("kv", text.width)
        self.query = Linear(
            embed, ("kv", graph.width), dtype=dtype, kernel=glorot(text.width, graph.width)
        )
        self.from_text = Linear(embed, inner, dtype=dtype, kernel=glorot(text.width, text.width))
        self.from_graph = Linear(width, inner, dtype=dtype, kernel=glorot(graph.width, text.width))
        self.to_graph = Linear(inner, width, dtype=dtype, kernel=glorot(text.width, graph.width))
        self.out = Linear(inner, embed, kernel=zeros, dtype=dtype)
        self.norm = LayerNorm(width)
        self.scale = graph.width**-0.5

    def __call__(
        self, x_bld: jax.Array, nodes_bnw: jax.Array, gate_bn: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        cls_bd = x_bld[:, 0]
        logits = jnp.einsum("bw,bnw->bn", self.query(cls_bd) * self.scale, nodes_bnw)
        gate = jnp.where(node_mask(batch.graph), gate_bn, 0)
        logits = logits.astype(jnp.float32) + jnp.log(jnp.maximum(gate, 1e-30))
        logits = jnp.where(gate > 0, logits, -jnp.inf)
        nothing = jnp.zeros((len(logits), 1))
        weight_bn = jax.nn.softmax(jnp.concatenate([nothing, logits], -1), -1)[:, 1:]
        pooled_bw = jnp.einsum("bn,bnw->bw", weight_bn.astype(nodes_bnw.dtype), nodes_bnw)
        mixed_bd = gelu(self.from_text(cls_bd) + self.from_graph(pooled_bw))
        has_graph = batch.graph.n_node[:, :1] > 0
        delta_bd = jnp.where(has_graph, self.out(mixed_bd), 0).astype(x_bld.dtype)
        nodes_bnw = self.norm(nodes_bnw + self.to_graph(mixed_bd)[:, None, :])
        # To [CLS] by a matmul: a `where` over the length is fused into the text's own LayerNorms,
        # which then round differently from plain BERT's.
        first_bl = jnp.broadcast_to(jnp.arange(x_bld.shape[1]) == 0, x_bld.shape[:2])
        return jnp.einsum("bl,bd->bld", first_bl.astype(delta_bd.dtype), delta_bd), nodes_bnw


FUSIONS = {
    "mention_add": MentionAdd,
    "cross_attention": CrossAttention,
    "interaction": Interaction,
}


class Exchange(nnx.Module):
    """Text -> graph by the query, graph network, graph -> text by the fusion."""

    def __init__(self, config: Config, sizes: Sizes):
        dtype = config.encoder.dtype
        width = config.encoder.width
        self.graph = GraphBlock(config.graph, width, sizes.relations, dtype)
        self.gate = NodeGate(config.graph, width) if config.graph.gate else None
        self.fuse = FUSIONS[config.fusion.kind](config.encoder, config.graph)
        self.apart = config.fusion.trains == "apart"

    def __call__(self, x_bld: jax.Array, nodes_bnw: jax.Array, edges: Edges, batch: Batch):
        query_bd = jax.lax.stop_gradient(x_bld[:, 0]) if self.apart else x_bld[:, 0]
        nodes_bnw, edge_gates = self.graph(nodes_bnw, query_bd, edges)
        gate_bn = (
            jnp.ones(nodes_bnw.shape[:2]) if self.gate is None else self.gate(query_bd, nodes_bnw)
        )
        delta_bld, after_bnw = self.fuse(x_bld, nodes_bnw, gate_bn, batch)
        if self.apart:  # what nodes take from the text does not teach it; computed once
            _, after_bnw = self.fuse(jax.lax.stop_gradient(x_bld), nodes_bnw, gate_bn, batch)
        x_bld = x_bld + delta_bld
        return shard(x_bld, "batch", "length", "embed"), after_bnw, edge_gates


OF_GRAPH = ("nodes/", "exchanges/", *(f"head/{part}/" for part in READS_GRAPH))
"""Beginnings of the paths of parameters that a model of text alone has not."""


class FusedModel(nnx.Module):
    """Text and subgraph in, the task's logits out. Without fusion: plain BERT and the head."""

    def __init__(self, config: Config, sizes: Sizes):
        self.encoder = Encoder(config.encoder, sizes.vocab)
        depth = config.encoder.layers
        self.fused = config.fusion.kind != "none"
        at = sorted({i % depth for i in config.fusion.layers}) if self.fused else []
        self.at = tuple(at)
        self.frozen = self.encoder.count_frozen(config.optim)
        """Layers from the first one on that never learn, the embeddings too; without dropout."""
        self.still = min([self.frozen, *(i + 1 for i in at)])
        """Of these the ones before any exchange: they say the same of a text in every step."""
        self.compute = config.graph.compute
        if self.fused:
            self.nodes = NodeInput(config, sizes.rows, sizes.attributes)
            self.exchanges = nnx.Dict({str(i): Exchange(config, sizes) for i in at})
        objective, self.entities = config.objective, sizes.entities
        self.tables: tuple[str, ...] = ("nodes/rows",) if self.fused else ()
        apart = self.fused and config.fusion.trains == "apart"
        self.alone: tuple[str, ...] = OF_GRAPH if apart else ()
        reasons, taught = objective.triples.weight > 0, objective.kg_teacher.weight > 0
        self.triples: Any = TripleScorer(config.kge, sizes.relations) if reasons else None
        self.mentions = MentionHead(config) if taught else None
        self.jointly = taught and not objective.kg_teacher.embeddings
        self.temperature = objective.kg_teacher.temperature
        own, its = config.encoder.width, objective.distill.width
        projects = objective.distill.hidden > 0 and its not in (0, own)
        kernel = glorot(own, its)
        self.to_teacher = Linear(("embed", own), ("kv", its), kernel=kernel) if projects else None
        self.term = TERMS[config.task.kind]
        self.head = HEADS[self.term](config, sizes)
        self.mlm = HEADS["mlm"](config, sizes) if config.objective.mlm.weight else None
        linked = objective.entities.weight > 0
        self.linked = EntityHead(config, row_width(config), sizes.entities) if linked else None

    def __call__(
        self,
        batch: Batch,
        names: Any = None,
        key: jax.Array | None = None,
        head: str = "",
        inner: bool = False,
    ) -> Output | TripleOutput:
        """names: the piece ids of all entities (kgqa). key None: inference, no dropout. head: the
        target that the logits are for, the task's own, "mlm", "entities" or "triples"; empty: the
        task's own.
        inner: with the states of all layers and the last one's attention.
        """
        if head == "triples":
            return self._reason(batch.targets[head])
        rows = Rows(batch)
        mask = rows.mask
        x_rsd, done = batch.states, self.still
        if x_rsd is None:
            x_rsd, done = self._embed(rows, batch, None if self.frozen else key), 0
        word = use(self.encoder.embed.word)
        edges: Any = None
        nodes_bnw: Any = None
        name_bnd: Any = None
        edge_gates: list[jax.Array] = []
        if self.fused:
            edges = Edges(batch.graph, self.compute)
            name_bnd = mean_names(batch.graph, word)
            nodes_bnw = self.nodes(batch.graph, name_bnd).astype(x_rsd.dtype)
        depth, states = self.encoder.config.layers, [rows.split(x_rsd)]
        stops = {*(i + 1 for i in self.at), self.still, self.frozen, depth} - {0}
        for stop in range(1, depth + 1) if inner else sorted(stops):
            drop = key if stop > self.frozen else None
            x_rsd = self.encoder.run(x_rsd, mask, drop, done, max(stop, done))
            if stop - 1 in self.at:
                exchange = self.exchanges[str(stop - 1)]
                x_bld, nodes_bnw, gates = exchange(rows.split(x_rsd), nodes_bnw, edges, batch)
                x_rsd = rows.join(x_bld)
                edge_gates += gates
            states.append(rows.split(x_rsd))
            done = max(stop, done)
        x_bld = states[-1]
        linked: Any = None
        if self.linked is not None and "entities" in batch.targets:
            linked = self.linked(x_bld, use(self.nodes.rows), batch)
        if head == "entities":
            return Output(x_bld, linked, entities=linked)
        own: Any = self.head if head in ("", self.term) else self.mlm
        read = rows.end_to_end(x_rsd) if (head or self.term) == "mlm" else x_bld
        answer = own(read, nodes_bnw, edges, batch, names, word, fold(key, 1001))
        out = Output(
            x_bld,
            answer.logits.astype(jnp.float32),
            answer.node_gate,
            [*edge_gates, *answer.edge_gates],
            alone=answer.alone,
            entities=linked,
        )
        if inner:
            ways = states if self.to_teacher is None else [self.to_teacher(x) for x in states]
            last = self.encoder.blocks[str(depth - 1)].attention
            attention = last.scores(states[-2], sight(batch))
            out = dataclasses.replace(out, states=states, projected=ways, attention=attention)
        if self.mentions is None:
            return out
        out = dataclasses.replace(out, related=self.mentions(x_bld, name_bnd, batch))
        if not self.jointly:
            return out
        row_bnw = use(self.nodes.rows)[batch.graph.nodes["row"]]
        taught = teach(self.triples, row_bnw, batch.mentions.node, self.temperature)
        return dataclasses.replace(out, taught=jax.lax.stop_gradient(taught))

    def _embed(self, rows: Rows, batch: Batch, key: jax.Array | None) -> jax.Array:
        tokens, types = rows.join(batch.tokens), rows.join(batch.types)
        x_rsd = self.encoder.embed(tokens, types, fold(key, 1000), rows.position)
        return shard(x_rsd, "batch", "length", "embed")

    def read(self, batch: Batch) -> jax.Array:
        """[b, l, d]: after the layers that stay as they are; `states` of a batch takes its
        place."""
        rows = Rows(batch)
        x_rsd = self._embed(rows, batch, None)
        return rows.split(self.encoder.run(x_rsd, rows.mask, None, 0, self.still))

    def _reason(self, target: QueryTarget) -> TripleOutput:
        """Scores of queries whose entities are rows of the nodes' table."""
        table = use(self.nodes.rows)
        if target.negatives is None:
            table, target = table[1:], from_first(target)
        return TripleOutput(score_queries(self.triples, target, table, self.entities))

    def map_rows(self, batch: Batch, f: Callable[[str, Any], Any]) -> Batch:
        """The batch with `f(table, ids)` in the place of every id that looks up a row."""
        (table,) = self.tables
        if "triples" in batch.targets:  # its view: the text is not read
            target: QueryTarget = batch.targets["triples"]
            target = dataclasses.replace(
                target,
                source=f(table, target.source),
                answers=f(table, target.answers),
                negatives=None if target.negatives is None else f(table, target.negatives),
            )
            return dataclasses.replace(batch, targets={**batch.targets, "triples": target})
        nodes = batch.graph.nodes | {"row": f(table, batch.graph.nodes["row"])}
        batch = dataclasses.replace(batch, graph=batch.graph._replace(nodes=nodes))
        if "entities" not in batch.targets:
            return batch
        asked: EntityTarget = batch.targets["entities"]
        asked = dataclasses.replace(
            asked, row=f(table, asked.row), candidate=f(table, asked.candidate)
        )
        return dataclasses.replace(batch, targets={**batch.targets, "entities": asked})
