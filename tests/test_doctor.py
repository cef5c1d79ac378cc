"""`keft doctor`: honest about graphs that help and graphs that do not."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from rich.console import Console

from keft_jax.config import Config, FusionConfig, KeftError, TaskConfig
from keft_jax.doctor import examine
from keft_jax.doctor.expect import expect, judge
from keft_jax.doctor.show import show
from keft_jax.init import init
from keft_jax.options import load_config
from keft_jax.train.parts import build


@pytest.fixture
def words(tmp_path, monkeypatch):
    """120 sentences whose label is the kind of the one word that tells; some words are known."""
    monkeypatch.chdir(tmp_path)
    kinds = {f"word{i}": ("good", "bad")[i % 7 % 2] for i in range(60)}
    texts = [f"it was {w} {e}" for e in ("indeed", "they said") for w in kinds]
    lines = [f"{t}\t{kinds[t.split()[2]]}\t{t.split()[2]}" for t in texts]
    (tmp_path / "text.tsv").write_text("\n".join(["text\tlabel\tcluster", *lines]))
    (tmp_path / "helps.tsv").write_text("\n".join(f"{w}\tis\t{k} word" for w, k in kinds.items()))
    nothing = [f"{w}\tis\tthing {i // 2 % 5}" for i, w in enumerate(kinds)]
    (tmp_path / "nothing.tsv").write_text("\n".join(nothing))
    (tmp_path / "other.tsv").write_text("apple\tis\tfruit\npear\tis\tfruit\n")
    return tmp_path


@pytest.mark.parametrize(
    ("kg", "kind", "why"),
    [
        ("helps", "expect a gain", "a linear model gains"),
        ("nothing", "expect little", "its facts say nothing|a linear model gains"),
        ("other", "expect little", "no text names an entity"),
    ],
)
def test_verdicts(words, kg, kind, why):
    init(f"{kg}.tsv", "text.tsv", "own.py")
    report = examine(load_config("own.py"), cost=False, say=lambda text: None)
    verdict = report["verdict"]
    # 40 sentences cannot rule out a gain of two points: the sentence must not say that they do.
    assert verdict["kind"] in (kind, "cannot tell" if kg == "nothing" else kind), verdict
    assert report["coverage"]["train"]["linked"] == (kg != "other")
    page = io.StringIO()
    show(report, Console(file=page, width=200))
    assert page.getvalue().strip().endswith(verdict["sentence"])
    json.dumps(report, default=float)


def test_leaks_are_looked_for_among_all_training_examples(words, monkeypatch):
    monkeypatch.setattr("keft_jax.doctor.MAX_TRAIN", 30)
    init("helps.tsv", "text.tsv", "own.py")
    head, *lines = (words / "text.tsv").read_text().split("\n")
    for name, some in (("select", lines[40:]), ("test", lines[-20:])):
        (words / f"{name}.tsv").write_text("\n".join([head, *some]))
    files = {"select": "select.tsv", "test": ("test.tsv",), "select_share": 0, "test_share": 0}
    config = load_config("own.py")
    config = replace(config, data=replace(config.data, **files))
    report = examine(config, seeds=1, cost=False, say=lambda text: None)
    assert report["sampled"] == ["30 of 120 examples of train"]
    for check in ("shared texts", "shared topics", "near duplicates"):
        assert report["leaks"][f"{check}/test"]["value"] == 1.0, check
    assert report["leaks"]["selection"]["verdict"] == "leak"


def test_the_majority_is_a_control(words, monkeypatch):
    """Of labels that nothing tells, a gain is not expected over it."""
    monkeypatch.setitem(expect.__globals__, "REFERENCES", ())  # which do as well here
    init("helps.tsv", "text.tsv", "own.py")
    parts, splits = build(load_config("own.py"))
    noise = np.where(np.random.default_rng(0).random(120) < 0.7, "good", "bad").tolist()
    both = [*splits.train, *splits.select, *splits.tests["held_out"]]
    both = [replace(e, id=n, label=noise[n]) for n, e in enumerate(both)]
    found = expect(parts, parts.dataset(both[:60]), parts.dataset(both[60:]), seeds=5)
    assert found["rival"] == "majority"
    assert judge(found, 1.0)["kind"] != "expect a gain"


def test_questions_have_a_ceiling_and_a_cost(tmp_path):
    tiny.write_files(tmp_path)
    report = examine(tiny.config(tmp_path), seeds=2, say=lambda text: None)
    assert report["ceiling"]["rows"]["oracle relation + look-up"]["all"] == 1.0
    assert report["expect"]["scores"]["true"]["mean"] == 1.0
    assert report["verdict"]["kind"] == "expect a gain"
    cost = report["cost"]
    assert 0 < cost["step_s"] < cost["run_s"] < cost["gain_s"]
    page = io.StringIO()
    show(report, Console(file=page, width=200))
    assert "ceiling" in page.getvalue() and "keft gain about" in page.getvalue()


@pytest.mark.parametrize(
    ("gain", "linked", "rival", "kind", "why"),
    [
        ((0.05, 0.02, 0.08), 0.9, "none", "expect a gain", r"\+5.0 points \[\+2.0, \+8.0\]"),
        ((0.005, -0.001, 0.01), 0.03, "none", "expect little", "covers 3% of the texts"),
        ((0.0, -0.01, 0.01), 0.9, "shuffled", "expect little", "the shuffled graph gives as well"),
        ((0.0, -0.01, 0.01), 0.9, "majority", "expect little", "the majority gives as well"),
        ((0.0, -0.01, 0.01), 0.9, "none", "expect little", "say nothing of the labels"),
        ((0.02, -0.02, 0.06), 0.9, "none", "cannot tell", "would tell"),
    ],
)
def test_judgement(gain, linked, rival, kind, why):
    mean, low, high = gain
    over_text = {"mean": 0.04, "interval": [0.02, 0.06]}
    found = {
        "metric": "accuracy",
        "gain": {"mean": mean, "interval": [low, high]},
        "rival": rival,
        "over_text": over_text if rival != "none" else {"mean": mean, "interval": [low, high]},
    }
    verdict = judge(found, linked)
    assert verdict["kind"] == kind
    assert re.search(why, verdict["sentence"]), verdict["sentence"]


def test_nothing_to_look_at():

    with pytest.raises(KeftError, match="there is no graph"):
        examine(Config(task=TaskConfig(kind="classification"), fusion=FusionConfig(kind="none")))
    with pytest.raises(KeftError, match="has no one label"):
        examine(Config(task=TaskConfig(kind="mlm"), fusion=FusionConfig(kind="none")))
