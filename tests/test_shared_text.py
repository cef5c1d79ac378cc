"""The text model of a seed, trained once for all rows: the gain table is the same, to rounding."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny

from keft_jax.config import (
    EvalConfig,
    FusionConfig,
    GainConfig,
    GraphConfig,
    GroupConfig,
    MeshConfig,
    OptimConfig,
)
from keft_jax.data.features import with_row
from keft_jax.gain import run as gain_run
from keft_jax.gain.cells import load_table
from keft_jax.gain.run import GainRun
from keft_jax.gain.shared_text import can_share
from keft_jax.models.pretrained import flat
from keft_jax.train.loop import Trainer, fit
from keft_jax.train.parts import build, make_model

STILL = (GroupConfig("embed/word", 0.0), GroupConfig("exchanges/", 0.0))
QUICK = (*STILL, GroupConfig("head/around", 30.0), GroupConfig("nodes/", 1.0, from_step=2))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    tiny.add_strangers(folder)
    config = tiny.classification(
        folder,
        graph=GraphConfig(kind="rgat", layers=1, width=8, heads=2),
        optim=OptimConfig(steps=6, batch=8, learning_rate=2e-2, clip=0.1, groups=QUICK),
        eval=EvalConfig(every=2, batch=16),
        mesh=MeshConfig(data=1),
        gain=GainConfig(rows=("none", "shuffled", "true"), seeds=2, bootstrap=100),
    )
    encoder = dataclasses.replace(config.encoder, dropout=0.3, layers=2)
    fusion = FusionConfig(kind="cross_attention", layers=(-1,), trains="apart")
    return dataclasses.replace(config, encoder=encoder, fusion=fusion)


def made(config, folder):
    table = GainRun(config, folder, str)
    table.run()
    return table, {(c.row, c.seed): c for c in load_table(folder).cells}


@pytest.fixture(scope="module")
def shared(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    table, cells = made(config, folder)
    assert table.shared is not None
    return folder, cells


def test_what_is_taken_off_the_graph_is_of_the_graph(config, tmp_path, monkeypatch):
    fusion = dataclasses.replace(config.fusion, centred=True, calibrated=True)
    gain = dataclasses.replace(config.gain, rows=("none", "true"), seeds=1)
    config = dataclasses.replace(config, fusion=fusion, gain=gain)
    table, shared = made(config, tmp_path / "shared")
    assert table.shared is not None
    monkeypatch.setattr(gain_run, "can_share", lambda *_: False)
    for key, one in made(config, tmp_path / "plain")[1].items():
        assert one.choice == shared[key].choice and one.curve == shared[key].curve
        ours, theirs = one.metrics["test"], shared[key].metrics["test"]
        np.testing.assert_array_equal(ours["accuracy"], theirs["accuracy"], err_msg=str(key))
        scale = shared[key].info.get("graph_scale")
        assert one.info.get("graph_scale") == (scale and pytest.approx(scale)), key


def test_cells_are_those_of_rows_that_are_trained_one_by_one(config, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(gain_run, "can_share", lambda *_: False)
    table, plain = made(config, tmp_path)
    assert table.shared is None and shared[1].keys() == plain.keys() and len(plain) > 6
    scales = set()
    for key, one in plain.items():
        other = shared[1][key]
        np.testing.assert_array_equal(
            one.metrics["test"]["accuracy"], other.metrics["test"]["accuracy"], err_msg=str(key)
        )
        assert one.choice == other.choice and one.curve == other.curve
        for name in {"best_step", "select", "graph_scale"} & one.info.keys():
            assert one.info[name] == pytest.approx(other.info[name]), (key, name)
        scales.add(one.info.get("graph_scale"))
    assert len(scales) > 2
    accuracy = {row: plain[row, 0].metrics["test"]["accuracy"] for row in ("none", "true")}
    assert (accuracy["none"] != accuracy["true"]).any()


def test_cells_that_are_added_are_those_of_a_table_made_at_once(config, shared, tmp_path):
    folder, cells = shared
    shutil.copytree(folder, tmp_path / "table")
    for added in ("true-1", "linear-shuffled-1"):
        (tmp_path / "table" / "cells" / f"{added}.npz").unlink()
    _, again = made(config, tmp_path / "table")
    for key, one in cells.items():
        values = again[key].metrics["test"]["accuracy"]
        np.testing.assert_array_equal(one.metrics["test"]["accuracy"], values, err_msg=str(key))


def test_the_model_is_the_one_that_is_trained_whole(config, tmp_path, monkeypatch):
    """Dropout, clipping, groups and all: another order of rounding is all that differs."""
    table = GainRun(config, tmp_path, str)
    learned, learn = [], table.shared._learn
    monkeypatch.setattr(table.shared, "_learn", lambda *a: learned.append(a[2]) or learn(*a))
    for row, seed in (("none", 1), ("true", 1), ("shuffled", 1), ("true", 0)):
        train, select, test = (
            with_row(one, table.parts.knowledge, row, seed)
            for one in (table.train, table.select, *table.tests.values())
        )
        given = {"seed": seed, "learning_rate": 2e-2}
        shared, whole = (
            table.shared.fit(train, select, **given),
            fit(table.trainer, train, select, **given),
        )
        assert shared.progress == whole.progress
        for (path, a), b in zip(
            flat(shared.best_params).items(), flat(whole.best_params).values(), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=path)
        rows = table.shared.evaluate(shared.best_params, test)
        wanted = table.trainer.evaluate(whole.best_params, test)
        np.testing.assert_allclose(rows["probability"], wanted["probability"], rtol=1e-4)
    assert learned == [1, 0]


def test_a_table_of_another_draw_takes_over_the_compiled_steps(config, shared, tmp_path):
    table = GainRun(config, tmp_path / "all", str)
    data = dataclasses.replace(config.data, draw=20)
    other = table.again(dataclasses.replace(config, data=data), tmp_path / "few")
    assert other.shared is not table.shared
    assert other.shared._graph.train_step is table.shared._graph.train_step
    assert other.shared._graph.parts.config.data.draw == 20


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("fusion", {"trains": "by_turns"}),
        ("fusion", {"layers": (0,)}),
        ("optim", {"groups": (GroupConfig("exchanges/", 0.0),)}),
        ("optim", {"groups": (GroupConfig("embed/word", 0.0),)}),
        ("optim", {"groups": (*STILL, GroupConfig("encoder/", 0.0))}),
        ("optim", {"accumulate": 2}),
        ("optim", {"skip": 1}),
        ("optim", {"start": "run"}),
        ("optim", {"ema": 0.9}),
        ("knowledge", {"text": "verbalise"}),
        ("optim", {"steps": 10**7}),
        ("gain", {"learning_rates": (1e-2, 1e-3)}),
        ("data", {"pack": 64}),
        ("mesh", {"data": 8}),
    ],
)
def test_what_differs_between_rows_or_cannot_be_kept_is_not_shared(config, section, change):
    parts, splits = build(config)

    def shares(config):
        model = make_model(config, parts.knowledge, parts.labels)
        trainer = Trainer(dataclasses.replace(parts, config=config, model=model))
        data = parts.dataset(splits.train)
        return can_share(trainer, data, data, [data])

    other = dataclasses.replace(getattr(config, section), **change)
    rest = {"eval": EvalConfig(every=2, batch=16, ema=True)} if "ema" in change else {}
    assert shares(config) and not shares(dataclasses.replace(config, **{section: other}, **rest))
