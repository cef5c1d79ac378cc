"""Words and mentions that are masked whole, and a graph that does not tell of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from keft_jax.config import (
    EntitiesConfig,
    FusionConfig,
    KgeConfig,
    MlmConfig,
    ObjectiveConfig,
    TaskConfig,
    TriplesConfig,
)
from keft_jax.data.batch import Mentions, TextTarget, edge_mask, node_mask
from keft_jax.data.tokenize import train_wordpiece
from keft_jax.tasks.entities import EntityPrediction, by_frequency
from keft_jax.tasks.hidden import hide
from keft_jax.tasks.mlm import MaskedLM
from keft_jax.train.objective import Objective, make_terms

WORDS = train_wordpiece(["alphabet betatron gammas delta epsilon zeta"] * 3, 200)
PIECES = sorted(WORDS.get_vocab().items(), key=lambda item: item[1])
INNER = np.array([piece.startswith("##") for piece, _ in PIECES])
SHARE = 0.5


def texts(b=256, length=40, seed=0):
    """Words of one to four pieces, and mentions of whole words, halves of words and overlaps."""
    rng = np.random.default_rng(seed)
    batch = toy.batch(seed, b=b, length=length)
    full = rng.integers(12, length + 1, b).astype(np.int32)
    inner = rng.random((b, length)) < 0.4
    outer_ids, inner_ids = np.flatnonzero(~INNER)[5:], np.flatnonzero(INNER)
    tokens = np.where(inner, rng.choice(inner_ids, (b, length)), rng.choice(outer_ids, (b, length)))
    tokens[:, 0] = WORDS.token_to_id("[CLS]")
    tokens[:, 1] = outer_ids[0]
    tokens[np.arange(b), full - 1] = WORDS.token_to_id("[SEP]")
    tokens *= np.arange(length) < full[:, None]
    start = np.stack([rng.integers(1, 5, b), rng.integers(5, 9, b)], 1).astype(np.int32)
    end = np.minimum(start + rng.integers(1, 4, (b, 2)), full[:, None] - 1).astype(np.int32)
    return dataclasses.replace(
        batch,
        tokens=tokens.astype(np.int32),
        length=full,
        mentions=Mentions(start=start, end=end, node=batch.mentions.node),
        targets={"mlm": TextTarget(weight=np.ones(b, np.float32))},
    )


def masks(mask, rate=0.3, **more):
    settings = MlmConfig(mask=mask, rate=rate, entity_share=SHARE)
    return MaskedLM(WORDS, rate, settings=settings, hops=2, **more)


@functools.cache
def prepare(mask):
    return jax.jit(masks(mask).prepare)


def chosen(shown, shape):
    """bool[b, l]: tokens that are predicted."""
    target, out = shown.targets["mlm"], np.zeros(shape, bool)
    rows, slots = np.nonzero(np.asarray(target.weight))
    out[rows, np.asarray(target.position)[rows, slots]] = True
    return out


@pytest.mark.parametrize("mask", ["word", "entity"])
def test_units_go_together(mask):
    batch = texts()
    shown = prepare(mask)(batch, jax.random.key(3))
    picked = chosen(shown, batch.tokens.shape)
    inner = INNER[batch.tokens]
    for i, j in zip(*np.nonzero(inner), strict=True):
        assert picked[i, j] == picked[i, j - 1], "half a word"
    shares = []
    for i, slot in np.ndindex(batch.mentions.start.shape):
        start, end = batch.mentions.start[i, slot], batch.mentions.end[i, slot]
        inside = picked[i, start:end]
        if mask == "entity":
            assert inside.all() or not inside.any(), "half a mention"
        shares.append(inside.any())
    if mask == "entity":  # of those that have room
        assert 0.3 < np.mean(shares) < SHARE + 0.1

    # As many as are asked for, and no more; only texts without any unit that fits have fewer.
    open_bl = (batch.tokens > 0) & ~np.isin(batch.tokens, [2, 3])
    wanted = np.maximum(np.round(0.3 * open_bl.sum(1)), 1)
    assert (picked.sum(1) <= wanted).all() and not (picked & ~open_bl).any()
    assert picked.sum() > 0.95 * wanted.sum()

    # The tokens of a unit are all masked, all replaced or all as they were.
    masked = np.asarray(shown.tokens) == WORDS.token_to_id("[MASK]")
    both = inner & picked
    both[:, 0] = False
    rows, columns = np.nonzero(both)
    differ = masked[rows, columns] != masked[rows, columns - 1]
    assert differ.mean() < 0.02  # a random piece may be [MASK]
    assert abs(masked[picked].mean() - 0.8) < 0.05


@pytest.mark.parametrize("mask", ["word", "entity"])
def test_the_masks_are_the_example_s_own(mask):
    batch = texts()
    one = prepare(mask)(batch, jax.random.key(0))
    order = np.random.default_rng(0).permutation(len(batch.tokens))
    other = prepare(mask)(jax.tree.map(lambda x: x[order], batch), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(one.tokens)[order], other.tokens)
    bare = dataclasses.replace(batch.mentions, node=np.full_like(batch.mentions.node, -1))
    without = prepare(mask)(dataclasses.replace(batch, mentions=bare), jax.random.key(0))
    np.testing.assert_array_equal(one.tokens, without.tokens)  # whatever the graph


def test_what_is_hidden_is_gone():
    """What is left of a graph is what the other mentions reach without the hidden entity."""
    batch = toy.batch(seed=2, b=32, n=12, e=10)
    hidden = np.random.default_rng(0).random(batch.mentions.node.shape) < 0.5
    hidden &= batch.mentions.node >= 0
    out = jax.device_get(jax.jit(hide, static_argnums=2)(batch, jnp.asarray(hidden), 2))
    real, real_e = np.asarray(node_mask(out.graph)), np.asarray(edge_mask(out.graph))
    was_e = np.asarray(edge_mask(batch.graph))
    entity, before = np.asarray(out.graph.nodes["entity"]), batch.graph.nodes["entity"]
    for i in range(32):
        gone = {before[i, n] for n in batch.mentions.node[i][hidden[i]]}
        edges = {
            (before[i, s], before[i, r], q)
            for s, r, q in zip(
                batch.graph.senders[i][was_e[i]],
                batch.graph.receivers[i][was_e[i]],
                batch.graph.edges["relation"][i][was_e[i]],
                strict=True,
            )
        }
        left = {before[i, n] for n in batch.mentions.node[i] if n >= 0} - gone
        if not gone:
            left = set(before[i, : batch.graph.n_node[i, 0]])
        for _ in range(2):
            left |= {r for s, r, _ in edges if s in left} - gone
        assert set(entity[i][real[i]]) == left and (entity[i][~real[i]] == -1).all()
        assert {
            (entity[i, s], entity[i, r], q)
            for s, r, q in zip(
                np.asarray(out.graph.senders)[i][real_e[i]],
                np.asarray(out.graph.receivers)[i][real_e[i]],
                np.asarray(out.graph.edges["relation"])[i][real_e[i]],
                strict=True,
            )
        } == {e for e in edges if {e[0], e[1]} <= left}
        receivers = np.asarray(out.graph.receivers)[i]
        assert (np.diff(receivers) >= 0).all()
        for slot, node in enumerate(np.asarray(out.mentions.node)[i]):
            old = batch.mentions.node[i, slot]
            assert (node >= 0) == (old >= 0 and before[i, old] in left)
            assert node < 0 or entity[i, node] == before[i, old]
        pieces = np.asarray(out.graph.nodes["pieces"])[i]
        assert not pieces[~real[i]].any() and (pieces[real[i]].sum(1) > 0).all()


def knowing(fusion):
    """A config with all three terms."""
    return toy.config(
        task=TaskConfig(kind="mlm"),
        fusion=FusionConfig(kind=fusion, layers=(0,)),
        kge=KgeConfig(width=4),
        objective=ObjectiveConfig(
            mlm=MlmConfig(mask="entity", entity_share=SHARE, rate=0.3),
            entities=EntitiesConfig(weight=0.5, candidates=32),
            triples=TriplesConfig(weight=0.1, batch=16),
        ),
    )


def test_a_masked_mention_is_not_read_off_its_node():
    """Whatever the hidden entity's name, row and edges are, its masked tokens look alike."""
    c, batch = knowing("cross_attention"), texts(b=16, length=24, seed=5)
    params, model = jax.tree.map(jnp.asarray, toy.trained(c)), toy.model(c)
    task = masks("entity", entities=c.objective.entities, rows=200)
    rng = np.random.default_rng(1)

    def other(batch, touched):
        """The batch with everything else about the nodes in `touched` [b, n]."""
        nodes = dict(batch.graph.nodes)
        nodes["pieces"] = np.where(
            touched[..., None], rng.integers(5, 200, nodes["pieces"].shape), nodes["pieces"]
        )
        nodes["row"] = np.where(touched, rng.integers(1, 200, touched.shape), nodes["row"])
        at = np.take_along_axis(touched, batch.graph.senders, 1)
        at |= np.take_along_axis(touched, batch.graph.receivers, 1)
        edges = {"relation": np.where(at, 0, batch.graph.edges["relation"])}
        graph = batch.graph._replace(nodes=nodes, edges=edges)
        return dataclasses.replace(batch, graph=graph)

    def logits(batch):
        shown = task.prepare(batch, jax.random.key(2))
        output = model.apply(params, shown, toy.names())
        return output.logits, output.entities[..., 1:], shown.targets

    run = jax.jit(logits)
    told, _, targets = run(batch)
    asked = np.asarray(targets["entities"].weight) > 0
    assert asked.sum() > 4
    hidden = np.zeros(batch.graph.nodes["entity"].shape, bool)
    rows, slots = np.nonzero(asked)
    hidden[rows, batch.mentions.node[rows, slots]] = True
    changed, _, _ = run(other(batch, hidden))
    np.testing.assert_array_equal(told, changed)
    seen = np.zeros_like(hidden)
    seen[:, :2] = True
    assert (np.asarray(run(other(batch, seen & ~hidden))[0]) != np.asarray(told)).any()


def test_entities_are_told_apart():
    """The right one stands first among candidates, each of which is there once, and among all."""
    c, batch = knowing("mention_add"), texts(b=16, length=24, seed=5)
    task = masks("entity", entities=c.objective.entities, rows=200)
    linked, model = EntityPrediction(task, SHARE), toy.model(c)
    params = jax.tree.map(jnp.asarray, toy.trained(c))
    rows = params["nodes"]["rows"]

    @jax.jit
    def run(params, batch, key=None):
        shown = task.prepare(batch, key)
        output = model.apply(params, shown, toy.names(), head="entities")
        return output.logits, shown.targets["entities"]

    logits, target = jax.device_get(run(params, batch, jax.random.key(2)))
    where = np.nonzero(target.weight)
    assert (batch.mentions.node[where] >= 0).all()
    drawn = set(target.candidate[target.there])
    for own, there in zip(target.row[where], logits[where] > -1e8, strict=True):
        assert there.sum() == 1 + len(drawn - {own})
    assert float(linked.loss(jnp.asarray(logits), target)) > 0

    logits, target = jax.device_get(run(params, batch))
    assert target.candidate is None and logits.shape[-1] == len(rows)
    told = jax.device_get(linked.score(jnp.asarray(logits), target))
    perfect = jax.nn.one_hot(target.row, len(rows)) * 9
    best = jax.device_get(linked.score(perfect, target))
    assert linked.summarise(best)["hits@1"] == 1.0 >= linked.summarise(told)["hits@1"]
    count = np.arange(len(rows)) % 7
    bands = by_frequency(best, count)
    assert sum(v for k, v in bands.items() if k.startswith("asked")) == target.weight.sum()


def test_the_term_shares_the_forward_pass_of_the_masks():
    c, batch = knowing("mention_add"), texts(b=16, length=24, seed=5)
    params, frozen = toy.trained(c), {"names": toy.names(), "step": jnp.zeros((), jnp.int32)}
    told = {}
    for weight in (0.5, 0.0):
        settings = dataclasses.replace(c.objective.entities, weight=weight)
        objective = dataclasses.replace(c.objective, entities=settings)
        config = dataclasses.replace(c, objective=objective)
        objective = dataclasses.replace(objective, triples=TriplesConfig())
        task = masks("entity", entities=settings if weight else None, rows=200)
        terms = make_terms(objective, task, None, linked=EntityPrediction(task, SHARE))
        whole = Objective(toy.model(config), terms)
        own = {k: v for k, v in params.items() if k in whole.model.abstract()}
        run = jax.jit(whole)
        told[weight] = run(own, frozen, batch, whole.totals(batch), jax.random.key(1))
    assert set(told[0.5][1]) - set(told[0.0][1]) == {"loss/entities"}
    both = told[0.5][1]
    np.testing.assert_array_equal(both["loss/task"][0], told[0.0][1]["loss/task"][0])
    own, total = both["loss/entities"]
    np.testing.assert_allclose(told[0.5][0], told[0.0][0] + 0.5 * own / total, rtol=1e-6)
