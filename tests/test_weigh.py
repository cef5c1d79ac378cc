"""How much the graph's answer counts beside the text's."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import EvalConfig, FusionConfig, OptimConfig
from keft_jax.predict import load
from keft_jax.tasks.anchors import EntityTyping
from keft_jax.tasks.classification import Classification
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import build
from keft_jax.train.run import load_run, train
from keft_jax.train.weigh import DEVIATION, SCALES, USUAL, fit_scale, read_apart

TASK = Classification(("no", "yes", "perhaps"))
TEXT = 2.0


def made(examples: int, *, knows: float, seed: int = 0):
    """(text, graph, label, weight): labels drawn from text + knows * graph, which is what the
    graph's answer is worth."""
    rng = np.random.default_rng(seed)
    text, graph = rng.normal(0, TEXT, (2, examples, 3)).astype(np.float32)
    p = np.exp(text + knows * graph)
    p /= p.sum(1, keepdims=True)
    label = (p.cumsum(1) > rng.random((examples, 1))).argmax(1).astype(np.int32)
    return text, graph, label, np.ones(examples, np.float32)


@pytest.mark.parametrize("knows", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sure", [0.1, 1.0, 4.0])
def test_a_large_split_finds_what_the_graph_is_worth(knows, sure):
    text, graph, label, weight = made(4000, knows=knows)
    # Both more or less sure than they should be: it is the ratio that decides.
    assert fit_scale(TASK, sure * text, sure * graph, label, weight) == pytest.approx(
        knows, abs=0.1
    )


def test_a_small_split_stays_near_the_usual():
    found = [fit_scale(TASK, *made(4, knows=0.0, seed=seed)) for seed in range(8)]
    assert fit_scale(TASK, *made(1000, knows=0.0)) == 0
    assert np.mean(found) > USUAL - DEVIATION


def test_padding_changes_nothing():
    text, graph, label, weight = made(200, knows=0.5)
    more = [
        np.concatenate([x, y]) for x, y in zip(made(200, knows=0.5), made(9, knows=0), strict=True)
    ]
    more[3][200:] = 0
    assert fit_scale(TASK, *more) == fit_scale(TASK, text, graph, label, weight)


def test_labels_of_which_several_hold_are_weighed_too():
    rng = np.random.default_rng(1)
    text, graph = rng.normal(0, 2, (2, 3000, 4)).astype(np.float32)
    label = (rng.random((3000, 4)) < 1 / (1 + np.exp(-text - 0.5 * graph))).astype(np.float32)
    task = EntityTyping(("a", "b", "c", "d"))
    found = fit_scale(task, text, graph, label, np.ones(3000, np.float32))
    assert found == pytest.approx(0.5, abs=0.1)


def apart(folder):
    tiny.write_files(folder)
    return dataclasses.replace(
        tiny.classification(folder),
        fusion=FusionConfig(kind="cross_attention", layers=(0,), trains="apart"),
        optim=OptimConfig(steps=4, batch=8, learning_rate=1e-2),
        eval=EvalConfig(every=2, batch=16),
    )


def test_a_run_keeps_the_scale_that_it_was_chosen_with(tmp_path):
    config = apart(tmp_path / "data")
    summary = train(config, tmp_path / "run", quiet=True)
    predictor = load(tmp_path / "run")
    parts, params = load_run(tmp_path / "run", predictor._on(None)[0].mesh)
    evaluator = predictor._on(None)[0]
    rows = evaluator.rows(
        evaluator.compile(read_apart), params, parts.ready(parts.read(config.data.select))
    )
    scale = fit_scale(parts.task, rows["text"], rows["graph"], rows["label"], rows["weight"])
    assert float(params["head"]["graph_scale"][0]) == pytest.approx(scale)
    assert np.abs(rows["graph"]).max() > 0
    assert summary["graph_scale"] == pytest.approx(scale)


def test_nothing_is_trained_into_the_scale(tmp_path):
    config = apart(tmp_path)
    parts, splits = build(config)
    trainer, data = Trainer(parts), parts.dataset(splits.train)
    state = trainer.fresh(0)
    batch = trainer.put(data.batch(16, np.arange(8)))
    state, _ = trainer.train_step(state, trainer.frozen(), batch)
    assert float(state.params["head"]["graph_scale"][0]) == 1.0
    weighed = trainer.weigh(state.model_params, data)
    assert float(weighed["head"]["graph_scale"][0]) in SCALES
    assert jax.tree.structure(weighed) == jax.tree.structure(state.model_params)


def test_heads_that_are_not_trained_apart_have_none(tmp_path):
    tiny.write_files(tmp_path)
    parts, splits = build(tiny.classification(tmp_path))
    trainer = Trainer(parts)
    params = trainer.fresh(0).model_params
    assert "graph_scale" not in params["head"]
    assert trainer.weigh(params, parts.dataset(splits.train)) is params
