"""How a head that reads text and graph learns both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from keft_jax.config import EvalConfig, FusionConfig, GroupConfig, KeftError, OptimConfig
from keft_jax.data.features import with_row
from keft_jax.models.heads import GRAPH_SILENT, TEXT_SILENT, add_graph
from keft_jax.train.loop import Trainer, fit
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.parts import build
from keft_jax.train.weigh import read_apart


def gradients(folder, kind, trains):
    """(loss, gradients) of a model that already reads something of the graph, on the rows `true`
    and `none`; no dropout."""
    config = tiny.classification(folder)
    fusion = FusionConfig(kind=kind, layers=(0,), trains=trains)
    parts, splits = build(dataclasses.replace(config, fusion=fusion))
    trainer, data = Trainer(parts), parts.dataset(splits.train)
    params = trainer.fresh(0).model_params
    kernel = params["head"]["around"]["kernel"]
    params["head"]["around"]["kernel"] = jax.random.normal(jax.random.key(3), kernel.shape)
    objective = Objective(parts.model, make_terms(config.objective, parts.task, None))

    def loss(params, batch):
        return objective(params, trainer.frozen(), batch, objective.totals(batch), None)[0]

    step = jax.jit(jax.value_and_grad(loss))
    for row in ("true", "none"):
        batch = with_row(data, parts.knowledge, row, 0).batch(16, np.arange(8))
        yield step(params, trainer.put(batch))


@pytest.mark.parametrize(
    ("kind", "trains"),
    [("cross_attention", "together"), ("cross_attention", "apart"), ("interaction", "apart")],
)
def test_apart_the_text_learns_what_it_would_without_a_graph(tmp_path, kind, trains):
    tiny.write_files(tmp_path)
    (loss, true), (plain_loss, plain) = gradients(tmp_path, kind, trains)
    text = [true["encoder"], true["head"]["out"]], [plain["encoder"], plain["head"]["out"]]
    equal = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=1e-4, atol=1e-6)), *text)
    assert all(jax.tree.leaves(equal)) == (trains == "apart")
    assert not np.allclose(loss, plain_loss)
    assert np.abs(true["head"]["around"]["kernel"]).max() > 1e-4
    assert not np.any(plain["head"]["around"]["kernel"])


def test_apart_a_text_that_the_graph_does_not_know_is_answered_as_without_one(tmp_path):
    """Whatever the clipping, and whichever step is best."""
    tiny.write_files(tmp_path)
    tiny.add_strangers(tmp_path)
    config = dataclasses.replace(
        tiny.classification(tmp_path),
        fusion=FusionConfig(kind="cross_attention", layers=(0,), trains="apart"),
        optim=OptimConfig(
            steps=12,
            batch=8,
            learning_rate=2e-2,
            clip=0.05,
            groups=(GroupConfig("exchanges/", 0.0), GroupConfig("head/around", 30.0)),
        ),
        eval=EvalConfig(every=2, batch=16),
    )
    parts, splits = build(config)
    trainer, found = Trainer(parts), {}
    train, select = parts.dataset(splits.train), parts.dataset(splits.select)
    (test,) = (parts.dataset(one) for one in splits.tests.values())
    for row in ("none", "true"):
        sets = [with_row(one, parts.knowledge, row, 0) for one in (train, select, test)]
        done = fit(trainer, *sets[:2], seed=0)
        rows = trainer._evaluator.rows(
            trainer._evaluator.compile(read_apart), done.best_params, sets[2]
        )
        found[row] = done.progress.best_step, done.best_params, rows
    (step, plain, none), (same_step, params, true) = found["none"], found["true"]
    assert step == same_step
    np.testing.assert_array_equal(none["text"], true["text"])
    jax.tree.map(np.testing.assert_array_equal, plain["encoder"], params["encoder"])
    assert not none["there"].any() and 0 < true["there"].sum() < len(true["there"])
    assert np.abs(true["graph"][true["there"]]).min() > 0
    assert not true["graph"][~true["there"]].any()


def test_by_turns_either_side_is_silent_in_training_alone():
    logits, delta = jnp.full((4096, 1), 1.0), jnp.full((4096, 1), 10.0)
    there = jnp.arange(4096)[:, None] % 2 == 0

    def said(trains, rate, key):
        return np.asarray(add_graph(logits, delta, there, None, trains, rate, key).logits)

    both = np.where(there, 11.0, 1.0)
    key = jax.random.key(0)
    for given in (("by_turns", 0.1, None), ("by_turns", 0.0, key), ("together", 0.1, key)):
        np.testing.assert_array_equal(said(*given), both)
    drawn = said("by_turns", 0.1, key)
    assert (drawn[1::2] == 1).all()  # without a graph the text is never silent
    shares = [(drawn[::2] == value).mean() for value in (10, 1, 11)]
    rest = 1 - TEXT_SILENT - GRAPH_SILENT
    np.testing.assert_allclose(shares, [TEXT_SILENT, GRAPH_SILENT, rest], atol=0.04)


def test_apart_is_for_heads_that_can_take_the_two_apart(tmp_path):
    with pytest.raises(KeftError, match=r"fusion\.trains = 'apart': what kgqa reads"):
        tiny.config(tmp_path, fusion=FusionConfig(layers=(0,), trains="apart"))
