"""From states to the task's logits. One output space for every row of the gain table."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import Config
from keft_jax.data.batch import Batch, Names, node_mask, own_mask
from keft_jax.models.functional import normal, ones, param, use, zeros
from keft_jax.models.graph import Edges, GraphBlock, NodeGate
from keft_jax.models.layers import (
    LayerNorm,
    Linear,
    activation_dtype,
    dropout,
    fold,
    gelu,
    glorot,
)
from keft_jax.sharding import shard


class Answer(NamedTuple):
    """What a head makes of a batch."""

    logits: jax.Array
    node_gate: jax.Array | None = None  # f32[b, n]
    edge_gates: tuple[jax.Array, ...] = ()  # f32[b, e] a layer of a graph network of its own
    alone: tuple[tuple[jax.Array, jax.Array], ...] = ()  # logits of which `logits` are the sum,
    # each to be trained by itself, and for which examples, bool[b]


class ClassifyHead(nnx.Module):
    """BERT's pooler on [CLS], or the mean of all tokens; then a linear layer. Beside it one on what
    stands around the mentioned entities in the graph, which is nothing at first."""

    def __init__(self, config: Config, sizes: Any):
        width = config.encoder.width
        mean = config.task.reads == "mean"
        self.pooler = None if mean else Linear(("embed", width), ("mlp", width))
        self.out = Linear(("mlp", width), ("label", sizes.labels))
        # A choice is told from the others by what leads to it, not by what is around.
        reads = config.fusion.kind != "none" and config.task.kind != "choice"
        inner, label = ("graph", config.graph.width), ("label", sizes.labels)
        self.around = Linear(inner, label, kernel=zeros, bias=False) if reads else None
        self.rate, self.trains = config.encoder.dropout, config.fusion.trains
        self.graph_scale: Any = graph_scale(config) if reads else None
        self.graph_offset: Any = graph_offset(config, sizes.labels) if reads else None

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        if self.pooler is None:
            real_bl = own_mask(batch).astype(jnp.float32)
            total_bd = jnp.einsum("bl,bld->bd", real_bl, x_bld, preferred_element_type="f4")
            pooled = total_bd / jnp.maximum(real_bl.sum(1, keepdims=True), 1)
        else:
            pooled = jnp.tanh(self.pooler(x_bld[:, 0].astype(jnp.float32)))
        logits = self.out(dropout(pooled, self.rate, key))
        if self.around is None:
            return Answer(logits)
        # One set of nodes: those of all mentions.
        around_b1w, there_b1 = edges.around(nodes_bnw, batch.graph.nodes["mention"][:, None])
        delta = self.around(around_b1w[:, 0])
        fitted = self.graph_scale, self.graph_offset
        return add_graph(logits, delta, there_b1, fitted, self.trains, self.rate, key)


class TagHead(nnx.Module):
    """A linear layer on every token: f32[b, l, c]."""

    def __init__(self, config: Config, sizes: Any):
        self.out = Linear(("mlp", config.encoder.width), ("label", sizes.labels))
        self.rate = config.encoder.dropout

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        return Answer(self.out(dropout(x_bld.astype(jnp.float32), self.rate, key)))


class SpanHead(nnx.Module):
    """A linear layer on every token, for beginnings and for ends of an answer: f32[b, 2, l], among
    [CLS] and the tokens that may be in one."""

    def __init__(self, config: Config, sizes: Any):
        self.out = Linear(("mlp", config.encoder.width), ("one", 2))

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        logits_b2l = self.out(x_bld.astype(jnp.float32)).swapaxes(1, 2)
        length = x_bld.shape[1]
        offsets = batch.targets["span"].offsets[:, :length]
        open_bl = (offsets[..., 1] > offsets[..., 0]) | (jnp.arange(length) == 0)
        return Answer(jnp.where(open_bl[:, None], logits_b2l, -1e9))


class ChoiceHead(ClassifyHead):
    """One score a row, those of a question's choices side by side: f32[b / k, k]; -1e9 where a
    question has fewer."""

    def __init__(self, config: Config, sizes: Any):
        super().__init__(config, sizes.replace(labels=1))
        self.count = sizes.labels

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        score_b1 = super().__call__(x_bld, nodes_bnw, edges, batch, names, word_vd, key).logits
        logits = jnp.where(batch.targets["choice"].there, score_b1[:, 0], -1e9)
        return Answer(logits.reshape(-1, self.count))


class AnchorHead(nnx.Module):
    """The states at the marks before mentions, end to end, then a linear layer; beside it one on
    the nodes of these mentions, one on what stands around each of them and one on their relational
    context (Wang et al. 2021, PathCon), which are nothing at first.

    Half of the context is dropped in training."""

    def __init__(self, config: Config, sizes: Any):
        width = config.encoder.width
        self.term, count = ANCHORS[config.task.kind]
        self.out = Linear(("mlp", count * width), ("label", sizes.labels))
        self.fused = config.fusion.kind != "none"
        if self.fused:
            inner = count * config.graph.width
            self.gate = NodeGate(config.graph, width) if config.graph.gate else None
            self.node = Linear(("mlp", inner), ("label", sizes.labels), kernel=zeros)
            label = ("label", sizes.labels)
            self.around = Linear(("mlp", inner), label, kernel=zeros, bias=False)
            kinds = count * 2 * sizes.relations
            self.context = Linear(("relation", kinds), label, kernel=zeros, bias=False)
            self.relations = 2 * sizes.relations
        self.rate, self.trains = config.encoder.dropout, config.fusion.trains
        self.graph_scale: Any = graph_scale(config) if self.fused else None
        self.graph_offset: Any = graph_offset(config, sizes.labels) if self.fused else None

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        at_bk1 = batch.targets[self.term].position[..., None]
        marks_bkd = jnp.take_along_axis(x_bld, at_bk1, 1).astype(jnp.float32)
        text_be = marks_bkd.reshape(len(marks_bkd), -1)
        logits = self.out(dropout(text_be, self.rate, key))
        if not self.fused:
            return Answer(logits)
        cls_bd = x_bld[:, 0].astype(jnp.float32)
        if self.trains == "apart":
            cls_bd = jax.lax.stop_gradient(cls_bd)
        # The node of a mention is that of the anchor that begins behind the mark.
        mentions = batch.mentions
        here_bkm = (mentions.start[:, None] == at_bk1 + 1) & (mentions.node >= 0)[:, None]
        # Of several candidates the first one, which is the best.
        first_bk = here_bkm.argmax(2)
        node_bk = jnp.take_along_axis(mentions.node, first_bk, 1)
        node_bk = jnp.where(here_bkm.any(2), node_bk, -1)
        nodes_bnw = nodes_bnw.astype(jnp.float32)
        gate_bn = jnp.ones(nodes_bnw.shape[:2])
        if self.gate is not None:
            gate_bn = self.gate(cls_bd, nodes_bnw)
        of_bkn = jax.nn.one_hot(node_bk, nodes_bnw.shape[1])
        own_bkw = jnp.einsum("bkn,bnw->bkw", of_bkn, nodes_bnw * gate_bn[..., None])
        delta = self.node(own_bkw.reshape(len(own_bkw), -1))
        around_bkw, _ = edges.around(nodes_bnw * gate_bn[..., None], of_bkn)
        delta = delta + self.around(around_bkw.reshape(len(around_bkw), -1))
        # As long as a state of the text, so that it learns at the same rate.
        kinds_bkr = x_bld.shape[-1] ** 0.5 * edges.context(node_bk, self.relations)
        kinds_bkr = kinds_bkr * jnp.einsum("bkn,bn->bk", of_bkn, gate_bn)[..., None]
        kinds_be = kinds_bkr.reshape(len(kinds_bkr), -1)
        delta = delta + self.context(dropout(kinds_be, CONTEXT_DROPOUT, fold(key, 1)))
        there_b1 = (node_bk >= 0).any(1, keepdims=True)
        fitted = self.graph_scale, self.graph_offset
        answer = add_graph(logits, delta, there_b1, fitted, self.trains, self.rate, key)
        return answer._replace(node_gate=gate_bn)


READS_GRAPH = ("gate", "node", "around", "context")
"""Parts of heads that nothing but the graph goes into."""
GRAPH_SCALE, GRAPH_OFFSET = "head/graph_scale", "head/graph_offset"


def graph_scale(config: Config) -> Any:
    """What the graph's logits are multiplied by where text and graph are trained apart, f32[1]. In
    training it is 1: no gradient goes into it, and since its path ends in `scale` it is not decayed
    (train/optim.py). What is judged and kept has the one that train/weigh.py sets."""
    return param((1,), ("one",), ones) if config.fusion.trains == "apart" else None


def graph_offset(config: Config, labels: int) -> Any:
    """What is added to them before, f32[c], with fusion.centred. In training it is 0, as above."""
    return param((labels,), ("label",), zeros) if config.fusion.centred else None


def add_graph(
    logits: jax.Array,
    delta: jax.Array,
    there_b1: jax.Array,
    fitted: tuple[Any, Any],  # graph_scale and graph_offset
    trains: Literal["together", "by_turns", "apart"],
    rate: float,
    key: jax.Array | None,
) -> Answer:
    """The text's logits and what the graph adds to them where it is there, f32[b, c], trained as
    fusion.trains says.

    With few labels either side fits them alone, and the other then learns nothing, or a graph that
    knows nothing is learned by heart. So in training one of the two is silent here for some
    examples (Neverova et al. 2016, ModDrop), unless there is no dropout anyway; or each answers
    alone, and in inference what the graph says counts `scale` times. What the layers below
    exchanged stays in the text's states."""
    if key is not None and trains == "by_turns" and rate > 0:
        u_b1 = jax.random.uniform(jax.random.fold_in(key, 2), there_b1.shape)
        logits = jnp.where(there_b1 & (u_b1 < TEXT_SILENT), 0, logits)
        delta = jnp.where(u_b1 >= 1 - GRAPH_SILENT, 0, delta)
    delta = jnp.where(there_b1, delta, 0)
    if trains != "apart":
        return Answer(logits + delta)
    there_b = there_b1[:, 0]
    scale, offset = fitted
    counted = delta
    if offset is not None:
        counted = jnp.where(there_b1, delta + jax.lax.stop_gradient(use(offset)), 0)
    both = logits + jax.lax.stop_gradient(use(scale)) * counted
    return Answer(both, alone=((logits, jnp.ones_like(there_b)), (delta, there_b)))


CONTEXT_DROPOUT = 0.5
TEXT_SILENT, GRAPH_SILENT = 0.25, 0.5  # shares of the examples, in training
ANCHORS = {"relation": ("relation", 2), "typing": ("types", 1)}
"""Of a kind of task, its target and how many marked mentions it reads."""


class AnswerHead(nnx.Module):
    """Scores every entity: by its name everywhere, and inside the subgraph also by its node,

        name(e) = text.embedded name of e + prior of e      outside
        (1 - a) name(e) + gate * graph(e)                   inside,

    where a is learned and a, graph(e) and the priors start at zero. A prior tells how often e is
    the answer at all; without it entities of one name (and those that lower case makes one) could
    never be told apart. The question reads the graph once more here, with all of the text behind
    its query.
    """

    def __init__(self, config: Config, sizes: Any):
        width, dtype = config.encoder.width, config.encoder.dtype
        embed, graph = ("embed", width), ("graph", config.graph.width)
        self.query = Linear(embed, ("kv", width), kernel=normal)
        self.name_norm = LayerNorm(("kv", width))
        self.prior = param((sizes.rows,), ("entity",), zeros)
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
        logits = jnp.where(names.count > 0, logits + use(self.prior)[names.row], -1e9)
        logits = shard(logits, "batch", None)
        if not self.fused:
            return Answer(logits)
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
        return Answer(add(logits, at, delta), gate_bn, tuple(edge_gates))


class MaskedLMHead(nnx.Module):
    """BERT's: a transform, then the word table transposed. Only the positions that the target
    names go through it: the matmul with the vocabulary is the dearest of all."""

    def __init__(self, config: Config, sizes: Any):
        width, dtype = config.encoder.width, config.encoder.dtype
        self.transform = Linear(("embed", width), ("kv", width), dtype=dtype)
        self.norm = LayerNorm(("kv", width), eps=config.encoder.norm_eps)
        self.bias = param((sizes.vocab,), ("vocab",), zeros)
        self.pieces, self.dtype = sizes.pieces, activation_dtype(dtype)

    def __call__(self, x_bld, nodes_bnw, edges, batch: Batch, names, word_vd, key):
        at_bt1 = batch.targets["mlm"].position[..., None]
        x_btd = self.norm(gelu(self.transform(jnp.take_along_axis(x_bld, at_bt1, 1))))
        logits = jnp.einsum(
            "btd,vd->btv", x_btd, word_vd.astype(self.dtype), preferred_element_type="f4"
        )
        logits = jnp.where(jnp.arange(len(word_vd)) < self.pieces, logits + use(self.bias), -1e9)
        return Answer(shard(logits, "batch", None, "vocab"))


def pooled_head(config: Config, sizes: Any) -> ClassifyHead | AnchorHead:
    """Labels for a text, from what `task.pooling` says."""
    return (AnchorHead if config.task.reads == "marks" else ClassifyHead)(config, sizes)


TERMS = {
    "classification": "label",
    "kgqa": "answer",
    "mlm": "mlm",
    "relation": "relation",
    "typing": "types",
    "tagging": "tags",
    "span": "span",
    "choice": "choice",
}
"""The target of each kind of task, and so its head."""
HEADS = {
    "label": pooled_head,
    "answer": AnswerHead,
    "mlm": MaskedLMHead,
    "relation": pooled_head,
    "types": pooled_head,
    "tags": TagHead,
    "span": SpanHead,
    "choice": ChoiceHead,
}
"""By the name of a task's target."""
