"""Knowledge is additive and nothing at first: plain BERT, bit for bit, until it is trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from keft_jax.config import FusionConfig, GraphConfig, TaskConfig
from keft_jax.models.fusion import FUSIONS


@functools.cache
def compiled(c, exact):
    # The older emitter of fusions, faster to compile, rounds alike only within one program.
    options = {"xla_cpu_use_fusion_emitters": True} if exact else None
    return jax.jit(toy.model(c).apply, compiler_options=options)


def forward(c, params, batch, exact=False):
    return compiled(c, exact)(params, batch, toy.names())


def plain_of(c):
    return dataclasses.replace(c, fusion=FusionConfig(kind="none"))


def only(params, like):
    """The part of a tree that another tree has."""
    return {k: only(params[k], v) if isinstance(v, dict) else params[k] for k, v in like.items()}


@pytest.mark.parametrize("kind", sorted(FUSIONS))
@pytest.mark.parametrize(("task", "dtype"), [("kgqa", "mixed"), ("classification", "bfloat16")])
def test_equals_bert_at_first_and_without_a_graph(task, kind, dtype):
    c = toy.config(fusion=FusionConfig(kind=kind, layers=(0,)), task=TaskConfig(kind=task))
    c = dataclasses.replace(c, encoder=dataclasses.replace(c.encoder, dtype=dtype))
    params = toy.params(c)
    plain = toy.model(plain_of(c))
    run = functools.partial(forward, exact=True)
    shared = only(params, plain.abstract())

    batch = toy.batch()
    expected = run(plain_of(c), shared, batch)
    out = run(c, params, batch)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.logits, expected.logits)

    # However the knowledge path is trained, an empty graph gives plain BERT.
    trained = toy.trained(c)
    empty = toy.batch(empty=range(16))
    expected = run(plain_of(c), only(trained, plain.abstract()), empty)
    out = run(c, trained, empty)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.logits, expected.logits)
    # ... in a batch where others have one, too; and those others do change.
    some = toy.batch(empty=(3,))
    out, expected = (
        run(c, trained, some),
        run(plain_of(c), only(trained, plain.abstract()), some),
    )
    np.testing.assert_array_equal(out.logits[3], expected.logits[3])
    assert np.abs(np.asarray(out.logits[4] - expected.logits[4])).max() > 1e-3


def test_a_part_starts_alike_in_every_model():
    c = toy.config()
    shared = only(toy.params(c), toy.model(plain_of(c)).abstract())
    jax.tree.map(np.testing.assert_array_equal, shared, toy.params(plain_of(c)))


def permuted_nodes(batch, rng):
    """The same graphs with their real nodes in another order, edges sorted by receiver again."""
    g = jax.tree.map(np.array, batch.graph)
    node = batch.mentions.node.copy()
    for i in range(len(node)):
        k, m = g.n_node[i, 0], g.n_edge[i, 0]
        order = rng.permutation(k)
        place = np.argsort(order)
        for name in g.nodes:
            g.nodes[name][i, :k] = g.nodes[name][i, :k][order]
        s, r = place[g.senders[i, :m]], place[g.receivers[i, :m]]
        by = np.argsort(r, kind="stable")
        g.senders[i, :m], g.receivers[i, :m] = s[by], r[by]
        g.edges["relation"][i, :m] = g.edges["relation"][i, :m][by]
        node[i] = np.where(node[i] >= 0, place[node[i]], -1)
    return batch.replace(graph=g, mentions=batch.mentions.replace(node=node))


def padded(batch, tokens, nodes, edges):
    """The same batch with more padding everywhere."""
    g = batch.graph
    pad = lambda x, width, value: np.pad(  # noqa: E731
        x, [(0, 0), (0, width)] + [(0, 0)] * (x.ndim - 2), constant_values=value
    )
    fill = {"entity": -1, "row": 0, "mention": 0, "pieces": 0}
    senders, receivers = pad(g.senders, edges, 0), pad(g.receivers, edges, 0)
    late = np.arange(senders.shape[1]) >= g.n_edge[:, :1]
    senders, receivers = (np.where(late, g.n_node[:, :1], x) for x in (senders, receivers))
    graph = g._replace(
        nodes={name: pad(x, nodes, fill[name]) for name, x in g.nodes.items()},
        edges={"relation": pad(g.edges["relation"], edges, 0)},
        senders=senders,
        receivers=receivers,
        n_node=g.n_node + [0, nodes],
        n_edge=g.n_edge + [0, edges],
    )
    return batch.replace(
        tokens=pad(batch.tokens, tokens, 7), types=pad(batch.types, tokens, 0), graph=graph
    )


TRIPLES = ("triple_concat", "triple_sum")  # of the others test_graph.py knows dense to be segment


@pytest.mark.parametrize(
    ("kind", "graph", "compute"),
    [
        *(("mention_add", graph, "dense") for graph in ("gcn", "rgat", *TRIPLES)),
        *(("mention_add", graph, "segment") for graph in ("gat", "rgcn", *TRIPLES)),
        *((kind, "rgat", "segment") for kind in sorted(FUSIONS) if kind != "mention_add"),
    ],
)
def test_padding_and_node_order_change_nothing(kind, graph, compute):
    c = toy.config(
        fusion=FusionConfig(kind=kind, layers=(0,)),
        graph=GraphConfig(width=16, heads=4, kind=graph, compute=compute),
    )
    params = toy.trained(c)
    batch = toy.batch()
    expected = forward(c, params, batch).logits
    real = np.asarray(expected) > -1e8
    for other in (
        permuted_nodes(batch, np.random.default_rng(3)),
        padded(batch, tokens=8, nodes=5, edges=9),
    ):
        out = forward(c, params, other).logits
        error = jnp.where(real, jnp.abs(out - expected), 0).max() / jnp.abs(expected[real]).max()
        assert error < 1e-6


@pytest.mark.parametrize("kind", sorted(FUSIONS))
def test_every_knowledge_group_learns_from_the_second_step_on(kind):
    c = toy.config(fusion=FusionConfig(kind=kind, layers=(0,)))
    model, batch, target = toy.model(c), toy.batch(), toy.batch().targets["answer"].answers[:, 0]

    @jax.jit
    def gradient(params):
        def loss(p):
            log_p = jax.nn.log_softmax(model.apply(p, batch, toy.names()).logits)
            return -jnp.take_along_axis(log_p, target[:, None], 1).mean()

        return jax.grad(loss)(params)

    params = toy.params(c)
    first = gradient(params)
    second = gradient(jax.tree.map(lambda p, g: p - 0.1 * g, params, first))
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(second)}
    still = [k for k, v in flat.items() if not np.abs(np.asarray(v)).max() > 0]
    assert still == []
