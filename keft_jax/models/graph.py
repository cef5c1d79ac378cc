"""Graph networks over each example's subgraph: GCN, GAT and their relation-aware kin.

Every layer is one formula: states are projected to `heads` values for each node, and node v takes
`sum over edges e = (u, v) of coefficient[e, head] * (value[u, head] + relation term)`, plus its own
value. The kinds differ in the coefficient alone:

  gcn   1 / sqrt(out-degree(u) in-degree(v)), self-edge counted (Kipf and Welling 2017)
  gat   softmax over v's edges of leaky_relu(a.value[u] + b.value[v]) (Velickovic et al. 2018)
  rgcn  a learned scalar for each relation and basis, over in-degree (Schlichtkrull et al. 2018)
  rgat  gat with a learned term for each relation in the logit and in the message

A relevance gate in [0, 1] for each edge scales its coefficient (inside gat's softmax, so that the
share of an irrelevant edge goes to the others and at last to v itself).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jraph
from flax import nnx

from keft_jax.config import GraphConfig
from keft_jax.data.batch import edge_mask, node_mask
from keft_jax.models.functional import normal, param, use
from keft_jax.models.layers import LayerNorm, Linear, gelu, glorot, look_up
from keft_jax.sharding import platform

DENSE_LIMIT = 200  # nodes; beyond it a batched adjacency costs more than segment sums


class Edges:
    """Moves values between nodes [b, n, ...] and edges [b, e, ...], and states along the edges.
    Dense: states by the batched adjacency; on accelerators all values by matmuls with the one-hot
    incidence too (no scatter, deterministic). Else by jraph's segment operations."""

    def __init__(self, graph: jraph.GraphsTuple, compute: str):
        self.nodes = graph.nodes["entity"].shape[1]
        self.mask_be, self.node_mask_bn = edge_mask(graph), node_mask(graph)
        self.senders, self.receivers = graph.senders, graph.receivers
        self.relation_be = graph.edges["relation"]
        small = self.nodes <= DENSE_LIMIT
        self.dense = compute == "dense" or (compute == "auto" and small)
        self.one_hot = self.dense and platform() != "cpu"  # which gathers fast, and adds one by one
        if self.one_hot:
            self.sent_ben = jax.nn.one_hot(self.senders, self.nodes)
            self.received_ben = jax.nn.one_hot(self.receivers, self.nodes)

    def _gather(self, x: jax.Array, one_hot: jax.Array | None, ids: jax.Array) -> jax.Array:
        if one_hot is not None:
            return jnp.einsum("ben,bn...->be...", one_hot.astype(x.dtype), x, precision="highest")
        return jax.vmap(lambda x, i: x[i])(x, ids)

    def at_senders(self, x: jax.Array) -> jax.Array:
        return self._gather(x, self.sent_ben if self.one_hot else None, self.senders)

    def at_receivers(self, x: jax.Array) -> jax.Array:
        return self._gather(x, self.received_ben if self.one_hot else None, self.receivers)

    def sum_at_receivers(self, x: jax.Array) -> jax.Array:
        """[b, e, ...] -> [b, n, ...], summed in float32; the caller zeroes padding edges."""
        if self.one_hot:
            one_hot = self.received_ben.astype(x.dtype)
            y = jnp.einsum(
                "ben,be...->bn...", one_hot, x, precision="highest", preferred_element_type="f4"
            )
            return y.astype(x.dtype)
        add = lambda x, i: jraph.segment_sum(x, i, self.nodes, indices_are_sorted=True)  # noqa: E731
        return jax.vmap(add)(x.astype(jnp.float32), self.receivers).astype(x.dtype)

    def propagate(
        self, x_bnhk: jax.Array, coefficient_beh: jax.Array, own_bnh: jax.Array
    ) -> jax.Array:
        """Sum over edges (u, v) of coefficient * x[u], and own * x[v], at v: [b, n, h, k]."""
        coefficient_beh, own_bnh = (c.astype(x_bnhk.dtype) for c in (coefficient_beh, own_bnh))
        if not self.dense:
            sent = self.at_senders(x_bnhk) * coefficient_beh[..., None]
            return self.sum_at_receivers(sent) + x_bnhk * own_bnh[..., None]
        adjacency_bhrs = self.adjacency(coefficient_beh, own_bnh)
        y_bhrk = jnp.matmul(adjacency_bhrs, x_bnhk.swapaxes(1, 2), precision="highest")
        return y_bhrk.swapaxes(1, 2)

    def adjacency(self, coefficient_beh: jax.Array, own_bnh: jax.Array) -> jax.Array:
        """The coefficients as matrices [b, h, receiver, sender], parallel edges summed, with
        `own` on the diagonal."""
        if self.one_hot:
            one_hot = (x.astype(coefficient_beh.dtype) for x in (self.received_ben, self.sent_ben))
            edges = jnp.einsum("beh,ber,bes->bhrs", coefficient_beh, *one_hot, precision="highest")
            return (
                edges + jnp.eye(self.nodes, dtype=edges.dtype) * own_bnh.swapaxes(1, 2)[..., None]
            )
        each = jnp.arange(self.nodes)

        def place(values_i: jax.Array, receivers: jax.Array, senders: jax.Array) -> jax.Array:
            square = jnp.zeros((self.nodes,) * 2, values_i.dtype)
            return square.at[append(receivers), append(senders)].add(values_i)

        def append(ids: jax.Array) -> jax.Array:
            return jnp.concatenate([ids, each])

        values_bih = jnp.concatenate([coefficient_beh, own_bnh], 1)
        heads = jax.vmap(place, (1, None, None))
        return jax.vmap(heads)(values_bih, self.receivers, self.senders)

    def max_at_receivers(self, x: jax.Array) -> jax.Array:
        """[b, e, h] -> [b, n, h]; -inf where no edge arrives."""
        if self.one_hot:
            return jnp.where(self.received_ben[..., None] > 0, x[:, :, None], -jnp.inf).max(1)
        return jax.vmap(lambda x, i: jraph.segment_max(x, i, self.nodes))(x, self.receivers)

    def context(self, node_bk: jax.Array, relations: int) -> jax.Array:
        """Which of so many relations arrive at some nodes (-1: none), brought to unit length,
        f32[b, k, r]. Not how often: the subgraph was cut to say something of each relation."""
        arrives_bke = (node_bk[..., None] == self.receivers[:, None]) & self.mask_be[:, None]
        kinds_ber = jax.nn.one_hot(self.relation_be, relations)
        count_bkr = jnp.einsum("bke,ber->bkr", arrives_bke.astype(jnp.float32), kinds_ber)
        some_bkr = jnp.where(count_bkr > 0, 1.0, 0.0)
        return some_bkr / jnp.sqrt(jnp.maximum(some_bkr.sum(-1, keepdims=True), 1))

    def around(self, x_bnw: jax.Array, of_bkn: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the states that edges bring to each of k sets of nodes, marked in `of`, summed over so
        many edges and divided by the root of their number, f32[b, k, w]; whether there is one,
        bool[b, k]). An edge counts by itself: two words of one polarity say more than one."""
        arrives_bek = self.at_receivers(of_bkn.astype(jnp.float32).swapaxes(1, 2))
        arrives_bek = jnp.where(self.mask_be[..., None], arrives_bek, 0)
        sent_bew = self.at_senders(x_bnw.astype(jnp.float32))
        total_bk = arrives_bek.sum(1)
        sum_bkw = jnp.einsum("bek,bew->bkw", arrives_bek, sent_bew)
        return sum_bkw / jnp.sqrt(jnp.maximum(total_bk, 1))[..., None], total_bk > 0

    def degrees(self) -> tuple[jax.Array, jax.Array]:
        """(out, in) f32[b, n], self-edge counted."""
        ones = self.mask_be.astype(jnp.float32)
        if self.one_hot:
            out, into = (
                jnp.einsum("ben,be->bn", x, ones) for x in (self.sent_ben, self.received_ben)
            )
        else:
            count = lambda i: jax.vmap(  # noqa: E731
                lambda x, i: jraph.segment_sum(x, i, self.nodes)
            )(ones, i)
            out, into = count(self.senders), count(self.receivers)
        return out + 1, into + 1


def gcn_coefficients(edges: Edges) -> tuple[jax.Array, jax.Array]:
    """(edge f32[b, e, 1], self f32[b, n, 1])."""
    out_degree, in_degree = edges.degrees()
    left, right = jax.lax.rsqrt(out_degree)[..., None], jax.lax.rsqrt(in_degree)[..., None]
    return edges.at_senders(left) * edges.at_receivers(right), left * right


def attention_coefficients(
    logit_beh: jax.Array, self_bnh: jax.Array, gate_be1: jax.Array, edges: Edges
) -> tuple[jax.Array, jax.Array]:
    """Softmax over each receiver's edges and itself; an edge's share is scaled by its gate."""
    highest = jax.lax.stop_gradient(jnp.maximum(edges.max_at_receivers(logit_beh), self_bnh))
    power = jnp.exp(logit_beh - edges.at_receivers(highest)) * gate_be1
    power = jnp.where(edges.mask_be[..., None], power, 0)
    own = jnp.exp(self_bnh - highest)
    total = own + edges.sum_at_receivers(power)
    return power / edges.at_receivers(total), own / total


class GraphLayer(nnx.Module):
    """One layer: [b, n, w] -> [b, n, w], before residual and norm."""

    def __init__(self, config: GraphConfig, relations: int, dtype: str):
        width, heads = ("graph", config.width), config.heads if config.kind != "gcn" else 1
        inner = config.width if config.kind in ("gcn", "rgcn") else config.width // heads
        axes = (("one", heads), ("kv", inner))
        self.kind, self.heads = config.kind, heads
        self.value = Linear(
            width, *axes, kernel=glorot(config.width, heads * inner), bias=False, dtype=dtype
        )
        if config.kind in ("gat", "rgat"):
            self.sent = param((heads, inner), ("one", "kv"), glorot(inner, 1))
            self.received = param((heads, inner), ("one", "kv"), glorot(inner, 1))
        if config.kind == "rgat":
            self.relation_logit = param((2 * relations, heads), ("relation", "one"), normal)
            self.relation_value = param(
                (2 * relations, heads * inner), ("relation", "kv"), glorot(inner, inner)
            )
        if config.kind == "rgcn":
            self.relation_basis = param(
                (2 * relations, heads), ("relation", "one"), glorot(2 * relations, heads)
            )
            self.own = Linear(
                width, ("kv", inner), kernel=glorot(config.width, inner), bias=False, dtype=dtype
            )
        self.bias = param((config.width,), ("graph",), jax.nn.initializers.zeros)

    def __call__(self, x_bnw: jax.Array, edges: Edges, gate_be: jax.Array) -> jax.Array:
        value_bnhk = self.value(x_bnw)
        gate_be1 = jnp.where(edges.mask_be, gate_be, 0)[..., None]
        coefficient_beh, own_bnh = self._coefficients(value_bnhk, edges, gate_be1)
        y = edges.propagate(value_bnhk, coefficient_beh, own_bnh)
        if self.kind == "rgat":
            relation = look_up(use(self.relation_value), edges.relation_be)
            relation = relation.reshape(*relation.shape[:2], *value_bnhk.shape[2:])
            weighted = relation * coefficient_beh[..., None]
            y = y + edges.sum_at_receivers(weighted.astype(y.dtype))
        if self.kind == "rgcn":
            return y.sum(2) + self.own(x_bnw) + use(self.bias).astype(y.dtype)
        return y.reshape(x_bnw.shape) + use(self.bias).astype(y.dtype)

    def _coefficients(
        self, value_bnhk: jax.Array, edges: Edges, gate_be1: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if self.kind == "gcn":
            coefficient, own = gcn_coefficients(edges)
            return coefficient * gate_be1, own
        if self.kind == "rgcn":
            basis = look_up(use(self.relation_basis), edges.relation_be)
            _, in_degree = edges.degrees()
            scale = edges.at_receivers(1 / in_degree[..., None])
            return basis * scale * gate_be1, jnp.zeros(value_bnhk.shape[:3])
        value32 = value_bnhk.astype(jnp.float32)
        sent = jnp.einsum("bnhk,hk->bnh", value32, use(self.sent))
        received = jnp.einsum("bnhk,hk->bnh", value32, use(self.received))
        logit = edges.at_senders(sent) + edges.at_receivers(received)
        if self.kind == "rgat":
            logit = logit + look_up(use(self.relation_logit), edges.relation_be)
        leaky: Callable = lambda x: jax.nn.leaky_relu(x, 0.2)  # noqa: E731
        return attention_coefficients(leaky(logit), leaky(sent + received), gate_be1, edges)


class TripleLayer(nnx.Module):
    """Triple embeddings without message passing: node v takes the mean over its triples of

      triple_concat   gelu(W [head, relation, tail])
      triple_sum      W (a head + b relation + c tail), with learned weights a, b, c

    where v is the head or the tail. A triple's gate scales its share. [b, n, w] -> [b, n, w]."""

    def __init__(self, config: GraphConfig, relations: int, dtype: str):
        width, inner = ("graph", config.width), ("kv", config.width)
        kernel = glorot(config.width, config.width)
        self.concat, self.relations = config.kind == "triple_concat", relations
        self.relation = param((relations, config.width), ("relation", "graph"), normal)
        if self.concat:
            self.head = Linear(width, inner, kernel=kernel, bias=False, dtype=dtype)
            self.tail = Linear(width, inner, kernel=kernel, bias=False, dtype=dtype)
            self.middle = Linear(width, inner, kernel=kernel, dtype=dtype)
        else:
            self.weights = param((3,), (None,), jax.nn.initializers.ones)
            self.out = Linear(width, inner, kernel=kernel, dtype=dtype)

    def __call__(self, x_bnw: jax.Array, edges: Edges, gate_be: jax.Array) -> jax.Array:
        # An edge with an inverse relation comes from the tail and arrives at the head.
        inverse_be1 = (edges.relation_be >= self.relations)[..., None]
        relation_rw = use(self.relation).astype(x_bnw.dtype)
        if self.concat:
            heads, tails, relation_rw = self.head(x_bnw), self.tail(x_bnw), self.middle(relation_rw)
        else:
            a, b, c = use(self.weights).astype(x_bnw.dtype)
            heads, tails, relation_rw = a * x_bnw, c * x_bnw, b * relation_rw
        forward = edges.at_senders(heads) + edges.at_receivers(tails)
        backward = edges.at_senders(tails) + edges.at_receivers(heads)
        triple_bew = jnp.where(inverse_be1, backward, forward)
        triple_bew = triple_bew + look_up(relation_rw, edges.relation_be % self.relations)
        if self.concat:
            triple_bew = gelu(triple_bew)
        gate_be1 = jnp.where(edges.mask_be, gate_be, 0)[..., None].astype(triple_bew.dtype)
        _, degree_bn = edges.degrees()  # a self-edge counted, which is none here
        mean_bnw = edges.sum_at_receivers(triple_bew * gate_be1)
        mean_bnw = mean_bnw / jnp.maximum(degree_bn - 1, 1)[..., None].astype(mean_bnw.dtype)
        return mean_bnw if self.concat else self.out(mean_bnw)


class EdgeGate(nnx.Module):
    """How relevant the text finds each edge: sigmoid(query . (relation + sender)), in [0, 1]."""

    def __init__(self, config: GraphConfig, text_width: int, relations: int, dtype: str):
        width = ("graph", config.width)
        inner = ("kv", config.width)
        self.query = Linear(("embed", text_width), inner, kernel=glorot(text_width, config.width))
        self.sender = Linear(width, inner, kernel=glorot(config.width, config.width))
        self.relation = param((2 * relations, config.width), ("relation", "kv"), normal)
        self.relation_bias = param(
            (2 * relations, 1), ("relation", "one"), jax.nn.initializers.zeros
        )
        self.scale = config.width**-0.5

    def __call__(self, query_bd: jax.Array, x_bnw: jax.Array, edges: Edges) -> jax.Array:
        """Edge gates f32[b, e]."""
        query_bw = self.query(query_bd.astype(jnp.float32))
        sender_bn = jnp.einsum("bw,bnw->bn", query_bw, self.sender(x_bnw.astype(jnp.float32)))
        scores = query_bw @ use(self.relation).T + use(self.relation_bias)[:, 0]
        return jax.nn.sigmoid(_pick(scores, edges) + self.scale * edges.at_senders(sender_bn))


def _pick(scores_br: jax.Array, edges: Edges) -> jax.Array:
    """Each edge's entry of its example's score for its relation: f32[b, e]."""
    one_hot = jax.nn.one_hot(edges.relation_be, scores_br.shape[1])
    return jnp.einsum("ber,br->be", one_hot, scores_br, precision="highest")


class NodeGate(nnx.Module):
    """How relevant the text finds each node: sigmoid(query . node), in [0, 1]. All can go to
    zero, which is to choose no knowledge."""

    def __init__(self, config: GraphConfig, text_width: int):
        self.query = Linear(
            ("embed", text_width),
            ("kv", config.width),
            kernel=glorot(text_width, config.width),
        )
        self.bias = param((1,), ("one",), jax.nn.initializers.zeros)
        self.scale = config.width**-0.5

    def __call__(self, query_bd: jax.Array, x_bnw: jax.Array) -> jax.Array:
        """f32[b, n]."""
        query_bw = self.query(query_bd.astype(jnp.float32))
        score = jnp.einsum("bw,bnw->bn", query_bw, x_bnw.astype(jnp.float32))
        return jax.nn.sigmoid(self.scale * score + use(self.bias))


class GraphBlock(nnx.Module):
    """`config.layers` gated layers, each with residual and LayerNorm: [b, n, w] -> [b, n, w]."""

    def __init__(self, config: GraphConfig, text_width: int, relations: int, dtype: str):
        names = [str(i) for i in range(config.layers)]
        layer = TripleLayer if config.kind.startswith("triple") else GraphLayer
        self.layers = nnx.Dict({i: layer(config, relations, dtype) for i in names})
        self.norms = nnx.Dict({i: LayerNorm(("graph", config.width)) for i in names})
        self.gates = (
            nnx.Dict({i: EdgeGate(config, text_width, relations, dtype) for i in names})
            if config.gate
            else None
        )

    def __call__(
        self, x_bnw: jax.Array, query_bd: jax.Array, edges: Edges
    ) -> tuple[jax.Array, list[jax.Array]]:
        """(states, edge gates of each layer f32[b, e])."""
        used = []
        for i, layer in self.layers.items():
            gate = (
                jnp.ones(edges.mask_be.shape)
                if self.gates is None
                else self.gates[i](query_bd, x_bnw, edges)
            )
            used.append(gate)
            x_bnw = self.norms[i](x_bnw + gelu(layer(x_bnw, edges, gate)))
        return x_bnw, used
