"""Frozen layers run once for each text: the gain table is the same, to rounding."""

import dataclasses

import jax
import numpy as np
import pytest
import small_bert
import tiny

from keft_jax.config import EncoderConfig, GainConfig, GroupConfig, MlmConfig, OptimConfig
from keft_jax.data.features import with_row
from keft_jax.gain import run as gain_run
from keft_jax.gain.run import GainRun
from keft_jax.train.loop import fit
from keft_jax.train.parts import build
from keft_jax.train.remember import can_remember

WHOLE = (GroupConfig("encoder/", 0.0),)
LOWER = (GroupConfig("embed/", 0.0), GroupConfig("blocks/0/", 0.0), GroupConfig("encoder/", 0.2))


@pytest.fixture(scope="module", params=[WHOLE, LOWER], ids=["whole", "lower"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    small_bert.write(folder / "bert")
    return tiny.classification(
        folder,
        encoder=EncoderConfig(pretrained=str(folder / "bert"), dropout=0.3),
        optim=OptimConfig(steps=6, batch=8, learning_rate=1e-2, groups=request.param),
        gain=GainConfig(rows=("none", "true"), seeds=2, bootstrap=100),
    )


@pytest.fixture(scope="module")
def table(config, tmp_path_factory):
    return GainRun(config, tmp_path_factory.mktemp("table"), str)


def values(table):
    """Of a cell of each row: probabilities and right answers of the test examples."""
    out = {}
    for row in ("none", "true"):
        train, select, test = (
            with_row(table._remember(s), table.parts.knowledge, row, 0)
            for s in (table.train, table.select, *table.tests.values())
        )
        done = fit(table.trainer, train, select, seed=0)
        out[row] = table.trainer.evaluate(done.best_params, test)
    return out


def test_cells_are_the_same_with_and_without_remembering(table, monkeypatch):
    remembered = values(table)
    states = table._remember(table.train).table.states
    assert states.shape == (40, 16, small_bert.SIZES["hidden_size"])
    monkeypatch.setattr(gain_run, "can_remember", lambda *_: False)
    assert table._remember(table.train).table.states is None
    plain = values(table)
    for row, rows in plain.items():
        np.testing.assert_allclose(remembered[row]["probability"], rows["probability"], rtol=1e-5)
        np.testing.assert_array_equal(remembered[row]["accuracy"], rows["accuracy"])
    assert not np.allclose(plain["none"]["probability"], plain["true"]["probability"], rtol=1e-4)


def test_frozen_layers_have_no_dropout(table):
    parts, trainer = table.parts, table.trainer
    frozen = parts.model.module.frozen
    assert (frozen, parts.model.module.still) == (
        (2, 1) if table.config.optim.groups == WHOLE else (1, 1)
    )
    batch = trainer.put(table.train.batch(16, np.arange(8)))
    params, names = trainer.fresh(0).model_params, trainer.frozen()["names"]
    outputs = [parts.model.apply(params, batch, names, key) for key in (None, jax.random.key(1))]
    same = np.array_equal(outputs[0].tokens, outputs[1].tokens)  # exchanges begin at nothing
    assert same == (frozen == 2)
    assert not np.allclose(outputs[0].logits, outputs[1].logits)  # the head has its own


def test_texts_with_states_are_not_read_again(table):
    parts, trainer = table.parts, table.trainer
    params, names = trainer.fresh(0).model_params, trainer.frozen()["names"]
    batch = table._remember(table.train).batch(16, np.array([0, 1, 2, 3, 20, 21, 22, 23]))

    def say(**change):
        given = trainer.put(dataclasses.replace(batch, **change))
        return np.asarray(parts.model.apply(params, given, names).logits)

    np.testing.assert_allclose(say(), say(states=None), rtol=1e-5)
    np.testing.assert_array_equal(say(), say(tokens=np.ones_like(batch.tokens)))
    assert not np.allclose(say(), say(states=batch.states[::-1]))


def test_a_table_with_other_groups_has_a_model_of_its_own(table, tmp_path):
    optim = dataclasses.replace(table.config.optim, groups=())
    other = table.again(dataclasses.replace(table.config, optim=optim), tmp_path)
    assert other.parts.model.module.frozen == 0 < table.parts.model.module.frozen
    assert other._remember(other.train) is other.train


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("optim", {"groups": ()}),
        ("optim", {"groups": (GroupConfig("embed/", 0.0), GroupConfig("encoder/", 0.1))}),
        ("encoder", {"pretrained": ""}),
        ("knowledge", {"text": "verbalise"}),
        ("data", {"pack": 64}),
        ("gain", {"variants": ("text",)}),
        ("objective", {"mlm": MlmConfig(weight=0.1)}),
    ],
)
def test_what_changes_from_step_to_step_is_not_remembered(config, table, section, change):
    other = dataclasses.replace(getattr(config, section), **change)
    other = dataclasses.replace(table.config, **{section: other})
    model = table.parts.model
    if section == "optim":
        model = build(other)[0].model
    assert can_remember(table.config, table.parts.model)
    assert not can_remember(other, model)
