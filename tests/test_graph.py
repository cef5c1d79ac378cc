"""Our graph layers against jraph's own, vmapped over the batch, multi-edges included."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
import toy

from keft_jax.config import GraphConfig
from keft_jax.models import graph as graph_module
from keft_jax.models.functional import Model
from keft_jax.models.graph import Edges, GraphLayer

PLATFORM = {"one-hot": "tpu"}
WAYS = ["one-hot", "dense", "segment"]


def layer(kind):
    return Model(GraphLayer(GraphConfig(kind=kind, width=16, heads=4), 5, jnp.float32))


@functools.cache
def params_of(kind):
    return jax.jit(layer(kind).init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(kind, compute, params, x, graph, gate):
    """compute: one-hot is dense as on an accelerator."""
    with mock.patch.object(graph_module, "platform", lambda: PLATFORM.get(compute, "cpu")):
        edges = Edges(graph, compute.replace("one-hot", "dense"))
        return layer(kind).apply(params, x, edges, gate)


def run(kind, compute, x, graph, gate=None):
    gate = np.ones(graph.senders.shape, np.float32) if gate is None else gate
    return call(kind, compute, params_of(kind), x, graph, gate)


def with_self_edges(graph, n):
    """Real self-edges for every node, as jraph's GAT wants them."""
    own = np.broadcast_to(np.arange(n, dtype=np.int32), (len(graph.senders), n))
    return np.concatenate([graph.senders, own], 1), np.concatenate([graph.receivers, own], 1)


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("kind", ["gcn", "gat"])
def test_equals_jraph(kind, compute):
    rng = np.random.default_rng(0)
    graph = toy.graph(rng, 8, 12, 40)
    x = rng.normal(size=(8, 12, 16)).astype(np.float32)
    params, out = params_of(kind), run(kind, compute, x, graph)
    senders, receivers = with_self_edges(graph, 12)
    kernel = params["value"]["kernel"]

    def gcn(x, s, r):
        conv = jraph.GraphConvolution(lambda h: h @ kernel[:, 0], symmetric_normalization=True)
        return conv(one(x, s, r)).nodes + params["bias"]

    def gat(x, s, r):
        heads = []
        for h in range(4):
            net = jraph.GAT(
                attention_query_fn=lambda v, h=h: v @ kernel[:, h],
                attention_logit_fn=lambda a, b, _, h=h: jax.nn.leaky_relu(
                    a @ params["sent"][h] + b @ params["received"][h], 0.2
                )[:, None],
                node_update_fn=lambda v: v,
            )
            heads.append(net(one(x, s, r)).nodes)
        return jnp.concatenate(heads, -1) + params["bias"]

    def one(x, s, r):
        return jraph.GraphsTuple(x, None, r, s, None, jnp.array([12]), jnp.array([len(s)]))

    expected = jax.jit(jax.vmap(gcn if kind == "gcn" else gat))(x, senders, receivers)
    real = np.arange(12) < graph.n_node[:, :1]
    np.testing.assert_allclose(out[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gcn", "gat", "rgcn", "rgat"])
def test_dense_equals_segment_and_gates_close(kind):
    rng = np.random.default_rng(1)
    graph = toy.graph(rng, 8, 12, 40)
    x = rng.normal(size=(8, 12, 16)).astype(np.float32)
    gate = rng.uniform(size=(8, 40)).astype(np.float32)
    segment, *others = (run(kind, compute, x, graph, gate) for compute in reversed(WAYS))
    real = np.arange(12) < graph.n_node[:, :1]
    for other in others:
        np.testing.assert_allclose(other[real], segment[real], rtol=1e-5, atol=1e-5)
    # With every gate at zero no node hears of another.
    alone = run(kind, "dense", x, graph, np.zeros_like(gate))
    other = x.copy()
    other[:, 1:] = rng.normal(size=other[:, 1:].shape)
    changed = run(kind, "dense", other, graph, np.zeros_like(gate))
    np.testing.assert_allclose(alone[:, 0], changed[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["rgcn", "rgat"])
def test_relations_matter_only_where_a_layer_reads_them(kind):
    rng = np.random.default_rng(2)
    graph = toy.graph(rng, 8, 12, 40)
    x = rng.normal(size=(8, 12, 16)).astype(np.float32)
    other = graph._replace(edges={"relation": (graph.edges["relation"] + 1) % 10})
    for k, differ in ((kind, True), (kind[1:], False)):
        out, again = run(k, "dense", x, graph), run(k, "dense", x, other)
        assert bool(np.abs(out - again).max() > 1e-3) == differ


def test_what_stands_around_mentions_equals_a_loop_over_edges():
    rng = np.random.default_rng(3)
    graph = toy.graph(rng, 6, 12, 40, empty=(4,))
    x = rng.normal(size=(6, 12, 16)).astype(np.float32)
    node = np.where(np.arange(6)[:, None] == 4, -1, [[1, -1]])
    of = np.stack([graph.nodes["mention"], np.arange(12) == node[:, :1]], 1)  # two sets of nodes

    def own(number):
        real = slice(graph.n_edge[number, 0])
        columns = (graph.senders, graph.receivers, graph.edges["relation"])
        return list(zip(*(c[number, real] for c in columns), strict=True))

    edges = Edges(graph, "dense")
    sums, there = jax.jit(edges.around)(x, of)
    kinds = jax.jit(edges.context, static_argnums=1)(node, 10)
    for i in range(6):
        for k in (0, 1):
            states = [x[i, u] for u, v, _ in own(i) if of[i, k, v]]
            assert there[i, k] == bool(states)
            expected = sum(states) / len(states) ** 0.5 if states else np.zeros(16)
            np.testing.assert_allclose(sums[i, k], expected, rtol=1e-5, atol=1e-6)
        arrives = np.isin(np.arange(10), [r for _, v, r in own(i) if v == node[i, 0]])
        np.testing.assert_allclose(kinds[i, 0], arrives / max(arrives.sum(), 1) ** 0.5, rtol=1e-6)
        assert not kinds[i, 1].any()
