"""How much the graph's answer counts beside the text's."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import (
    ConsistencyConfig,
    EvalConfig,
    FusionConfig,
    KeftError,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
)
from keft_jax.data.features import with_row
from keft_jax.sharding import make_mesh
from keft_jax.tasks.anchors import EntityTyping
from keft_jax.tasks.classification import Classification
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import build
from keft_jax.train.run import load_given, load_run, train
from keft_jax.train.weigh import (
    DEVIATION,
    SCALES,
    fit_scale,
    fit_temperature,
    read_apart,
    scale_of,
)

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
    found = fit_scale(TASK, sure * text, sure * graph, label, weight, 0.7)
    assert found == pytest.approx(knows, abs=0.1)


@pytest.mark.parametrize("expected", [0.0, 0.7])
def test_a_small_split_stays_near_what_is_expected(expected):
    knows = 0.7 - expected  # the other
    found = [fit_scale(TASK, *made(4, knows=knows, seed=seed), expected) for seed in range(8)]
    assert abs(np.mean(found) - expected) < DEVIATION
    large = fit_scale(TASK, *made(1000, knows=knows), expected)
    assert large == pytest.approx(knows, abs=0.1)


def test_padding_changes_nothing():
    text, graph, label, weight = made(200, knows=0.5)
    more = [
        np.concatenate([x, y]) for x, y in zip(made(200, knows=0.5), made(9, knows=0), strict=True)
    ]
    more[3][200:] = 0
    assert fit_scale(TASK, *more, 0.7) == fit_scale(TASK, text, graph, label, weight, 0.7)


def test_labels_of_which_several_hold_are_weighed_too():
    rng = np.random.default_rng(1)
    text, graph = rng.normal(0, 2, (2, 3000, 4)).astype(np.float32)
    label = (rng.random((3000, 4)) < 1 / (1 + np.exp(-text - 0.5 * graph))).astype(np.float32)
    task = EntityTyping(("a", "b", "c", "d"))
    found = fit_scale(task, text, graph, label, np.ones(3000, np.float32), 0.7)
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
    fusion = dataclasses.replace(config.fusion, centred=True, expected_scale=1.2)
    config = dataclasses.replace(config, fusion=fusion)
    summary = train(config, tmp_path / "run", quiet=True)
    parts, params = load_run(tmp_path / "run", make_mesh(config.mesh))
    evaluator = Evaluator(parts)
    read = evaluator.compile(lambda *given: read_apart(*given) | {"sum": given[0].logits})
    rows = evaluator.rows(read, params, parts.ready(parts.read(config.data.select)))
    weight = rows["weight"] * rows["there"]
    offset = -np.average(rows["graph"], axis=0, weights=weight)
    np.testing.assert_allclose(params["head"]["graph_offset"], offset, rtol=1e-5)
    rows["graph"] = np.where(rows["there"][:, None], rows["graph"] + offset, 0)
    scale = fit_scale(parts.task, rows["text"], rows["graph"], rows["label"], weight, 1.2)
    assert float(params["head"]["graph_scale"][0]) == pytest.approx(scale)
    assert summary["graph_scale"] == pytest.approx(scale) != 1
    assert np.abs(rows["graph"]).max() > 0
    np.testing.assert_allclose(rows["sum"], rows["text"] + scale * rows["graph"], rtol=1e-5)
    # A run that starts from it trains at one.
    start = dataclasses.replace(config.optim, start=str(tmp_path / "run"))
    parts = build(dataclasses.replace(config, optim=start))[0]
    fresh = Trainer(parts, load_given(parts)).fresh(0).params["head"]
    assert float(fresh["graph_scale"][0]) == 1 and not fresh["graph_offset"].any()
    np.testing.assert_array_equal(fresh["out"]["kernel"], params["head"]["out"]["kernel"])


def test_texts_of_which_the_graph_says_nothing_do_not_count(tmp_path, monkeypatch):
    trainer, params, select = knowing(apart(tmp_path))
    parts = [made(2000, knows=1.0), made(2000, knows=0.0, seed=1)]
    names = ("text", "graph", "label", "weight")
    rows = {n: np.concatenate([p[i] for p in parts]) for i, n in enumerate(names)}
    rows["there"] = np.arange(4000) < 2000
    rows["example"] = np.arange(4000)
    monkeypatch.setattr(trainer._weigher._evaluator, "rows", lambda *_: rows)
    found = trainer.judge(params, select).params["head"]["graph_scale"]
    assert float(found[0]) == pytest.approx(1.0, abs=0.1)
    rows["there"] = np.ones(4000, bool)
    found = trainer.judge(params, select).params["head"]["graph_scale"]
    assert float(found[0]) < 0.7


def with_rows(config, monkeypatch, text, graph, label, weight, there=None):
    """(judge of these answers, parameters)."""
    trainer, params, select = knowing(config)
    told = {"text": text, "graph": graph, "label": label, "weight": weight}
    told |= {"there": np.ones(len(text), bool) if there is None else there}
    told |= {"example": np.arange(len(text))}
    monkeypatch.setattr(trainer._weigher._evaluator, "rows", lambda *_: told)
    return lambda: trainer.judge(params, select)


def test_a_text_that_is_too_sure_does_not_silence_the_graph(tmp_path, monkeypatch):
    config = apart(tmp_path)
    config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, calibrated=True))
    # What the text says of those that the graph does not know is no measure.
    known, others = made(300, knows=1.0), made(3000, knows=0.0, seed=1)
    text, graph, label, weight = (np.concatenate(pair) for pair in zip(known, others, strict=True))
    text[:300] *= 8
    judge = with_rows(config, monkeypatch, text, graph, label, weight, np.arange(3300) < 300)
    found = float(judge().params["head"]["graph_scale"][0])
    assert found == pytest.approx(8, rel=0.35) and found > SCALES[-1]


def test_a_text_that_knows_its_few_examples_is_not_made_surer():
    text, _, label, weight = made(16, knows=0.0)
    right = 0.1 * text + 5 * np.eye(3, dtype=np.float32)[label]
    assert fit_temperature(TASK, right, label, weight) == 1
    text, _, label, weight = made(4000, knows=0.0)
    assert fit_temperature(TASK, 4 * text, label, weight) == pytest.approx(4, rel=0.3)


def test_what_the_graph_says_of_all_alike_is_taken_off_it(tmp_path, monkeypatch):
    config = apart(tmp_path)
    config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, centred=True))
    text, graph, label, weight = made(300, knows=0.5)
    there = np.arange(300) < 200
    graph[~there] = 0
    shift = np.array([1.5, -0.5, 3.0], np.float32)
    both = [
        with_rows(config, monkeypatch, text, graph + there[:, None] * s, label, weight, there)()
        for s in (0 * shift, shift)
    ]
    heads = [judged.params["head"] for judged in both]
    np.testing.assert_allclose(heads[0]["graph_offset"], -graph[there].mean(0), atol=1e-5)
    np.testing.assert_allclose(heads[1]["graph_offset"], -graph[there].mean(0) - shift, atol=1e-5)
    assert heads[0]["graph_scale"] == heads[1]["graph_scale"]
    for name, values in both[0].rows.items():
        np.testing.assert_allclose(both[1].rows[name], values, rtol=1e-4, err_msg=name)
    # Where it is not, the text answers.
    for name, values in both[0].chosen_by.items():
        np.testing.assert_array_equal(both[0].rows[name][~there], values[~there], err_msg=name)


def test_a_centred_model_answers_as_it_was_judged(tmp_path):
    config = apart(tmp_path)
    config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, centred=True))
    trainer, params, select = knowing(config)
    new, rows, _ = trainer.judge(params, select)
    assert np.abs(new["head"]["graph_offset"]).max() > 0
    wanted = trainer.evaluate(new, select)
    for name, values in rows.items():
        np.testing.assert_allclose(values, wanted[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "value"), [("calibrated", True), ("centred", True), ("expected_scale", 0.0)]
)
def test_what_is_fitted_needs_two_answers_and_a_fit(tmp_path, name, value):
    with pytest.raises(KeftError, match=f"fusion.{name} = {value}: needs fusion.trains=apart"):
        FusionConfig(trains="together", **{name: value})
    config = apart(tmp_path)
    fusion = dataclasses.replace(config.fusion, **{name: value})
    summed = ObjectiveConfig(consistency=ConsistencyConfig(weight=1.0))
    with pytest.raises(KeftError, match=f"fusion.{name} = {value}: .* nothing is fitted"):
        dataclasses.replace(config, fusion=fusion, objective=summed)
    data = dataclasses.replace(config.data, select="")
    with pytest.raises(KeftError, match=f"fusion.{name} = {value}: is fitted on the selection"):
        dataclasses.replace(config, fusion=fusion, data=data)


def test_a_scale_that_is_not_tried_is_not_expected():
    with pytest.raises(KeftError, match=r"fusion.expected_scale = 3\.0: use a number from 0 to 2"):
        FusionConfig(trains="apart", expected_scale=3.0)


def knowing(config):
    """(trainer, parameters whose graph says something, the selection split)."""
    parts, splits = build(config)
    trainer = Trainer(parts)
    params = trainer.fresh(0).model_params
    kernel = params["head"]["around"]["kernel"]
    drawn = jax.random.normal(jax.random.key(3), kernel.shape)
    params["head"]["around"]["kernel"] = jax.device_put(drawn, kernel.sharding)
    return trainer, params, parts.ready(splits.select)


def test_a_step_is_chosen_by_the_text_alone_and_scored_by_both(tmp_path):
    trainer, params, select = knowing(apart(tmp_path))
    new, rows, chosen_by = trainer.judge(params, select)
    for found, scale in ((rows, None), (chosen_by, 0.0)):
        head = new["head"] if scale is None else {**new["head"], "graph_scale": np.zeros(1, "f4")}
        wanted = trainer.evaluate({**new, "head": head}, select)
        for name, values in found.items():
            np.testing.assert_array_equal(values, wanted[name], err_msg=name)
    assert (rows["choice"] != chosen_by["choice"]).any()


def test_the_scale_is_that_of_any_number_of_devices(tmp_path):
    one = apart(tmp_path)
    one = dataclasses.replace(one, fusion=dataclasses.replace(one.fusion, centred=True))
    found = []
    for mesh in (one.mesh, MeshConfig(data=2, fsdp=4)):
        trainer, params, select = knowing(dataclasses.replace(one, mesh=mesh))
        head, old = trainer.judge(params, select).params["head"], params["head"]
        for name in ("graph_scale", "graph_offset"):
            assert head[name].sharding == old[name].sharding
        found.append((float(head["graph_scale"][0]), np.asarray(head["graph_offset"])))
    assert found[0][0] == found[1][0] != 1
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


def test_without_facts_it_is_the_expected_one(tmp_path):
    config = apart(tmp_path)
    fusion = dataclasses.replace(config.fusion, centred=True, expected_scale=0.2)
    trainer, params, select = knowing(dataclasses.replace(config, fusion=fusion))
    empty = with_row(select, trainer.parts.knowledge, "none", 0)
    found = trainer.judge(params, empty).params
    assert scale_of(found) == {"graph_scale": pytest.approx(0.2)}
    assert not np.asarray(found["head"]["graph_offset"]).any()


def test_where_the_sum_is_trained_it_stays_at_one(tmp_path):
    config = apart(tmp_path)
    agree = ObjectiveConfig(consistency=ConsistencyConfig(weight=1.0))
    data = dataclasses.replace(config.data, unlabelled=config.data.train)
    optim = dataclasses.replace(config.optim, unlabelled=8, ema=0.9)
    both = dataclasses.replace(config, objective=agree, data=data, optim=optim)
    trainer, params, select = knowing(both)
    assert trainer.judge(params, select).params is params
    assert scale_of(params) == {"graph_scale": 1}


def test_nothing_is_trained_into_the_scale(tmp_path):
    config = apart(tmp_path)
    parts, splits = build(config)
    trainer, data = Trainer(parts), parts.dataset(splits.train)
    state = trainer.fresh(0)
    batch = trainer.put(data.batch(16, np.arange(8)))
    state, _ = trainer.train_step(state, trainer.frozen(), batch)
    assert float(state.params["head"]["graph_scale"][0]) == 1.0
    weighed = trainer.judge(state.model_params, data).params
    assert float(weighed["head"]["graph_scale"][0]) in SCALES
    assert jax.tree.structure(weighed) == jax.tree.structure(state.model_params)


def test_heads_that_are_not_trained_apart_have_none(tmp_path):
    tiny.write_files(tmp_path)
    parts, splits = build(tiny.classification(tmp_path))
    trainer = Trainer(parts)
    params = trainer.fresh(0).model_params
    assert "graph_scale" not in params["head"]
    assert trainer.judge(params, parts.dataset(splits.train)).params is params
