"""The gain table from files to report: resumable cell by cell, one compilation, mergeable."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from keft_jax.config import GainConfig, KeftError, OptimConfig
from keft_jax.data.tokenize import save_tokenizer, train_wordpiece
from keft_jax.gain import run as gain_run
from keft_jax.gain.cells import Cell, load_table
from keft_jax.gain.draw import draw_examples
from keft_jax.gain.finish import merge_tables
from keft_jax.gain.rows import DEFINITION
from keft_jax.gain.run import run_gain
from keft_jax.gain.splits import audit_splits, given, make_split
from keft_jax.train.loop import NotFiniteError

ROWS = ("none", "untyped", "shuffled", "true")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    return tiny.config(
        folder,
        optim=OptimConfig(steps=24, batch=8, learning_rate=1e-2),
        gain=GainConfig(rows=ROWS, seeds=2, bootstrap=200, explain=2, learning_rates=(1e-2, 1e-3)),
    )


@pytest.fixture(scope="module")
def table(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gain") / "table"
    return folder, run_gain(config, folder, quiet=True)


@pytest.fixture(scope="module")
def shared_runner(config, tmp_path_factory):
    return gain_run.GainRun(config, tmp_path_factory.mktemp("runner"), str)


@pytest.fixture
def runner(shared_runner, tmp_path):
    """A table in a folder of its own; all of them share one compiled step."""
    shared_runner.workdir = tmp_path
    return shared_runner


def test_summary(table, config):
    folder, summary = table
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["task"] == "kgqa" and summary["metric"] == "hits@1"
    assert summary["split"] == "test" and summary["seeds"] == 2
    assert set(summary["scores"]) == {"majority", "char_ngram", *ROWS}
    for row in summary["scores"].values():
        low, high = row["interval"]
        assert low <= row["mean"] <= high and len(row["values"]) == 2
    assert summary["compilations"] == 1
    assert summary["step_time_ratio"] > 0 and summary["coverage"]["test"]["linked"] == 1.0
    assert summary["leaks"]["selection"]["verdict"] == "ok"
    assert summary["leaks"]["vocabulary"]["value"] is False
    for name in ("gain", "verdict", "config_hash", "kg_hash", "data_hash"):
        assert summary[name]
    page = (folder / "report.html").read_text()
    assert "person" in page and "lives_in" in page
    assert (folder / "gain.png").stat().st_size > 10_000


def test_every_row_has_the_same_trials(table):
    folder, _ = table
    for row in ROWS:
        first, second = (Cell.load(folder / "cells" / f"{row}-{seed}.npz") for seed in (0, 1))
        assert first.info["trials"] == 2 and second.info["trials"] == 1
        assert first.info["learning_rate"] == second.info["learning_rate"]


def test_every_cell_has_every_metric(table):
    for cell in load_table(table[0]).cells:
        assert set(cell.metrics["test"]) == {"hits@1", "mrr", "precision", "recall", "set_f1"}


def diverge_at(monkeypatch, *bad):
    """Fits that cost nothing more, but for the learning rates that diverge."""
    tried = []
    fit = gain_run.fit

    def made(trainer, train, select, *, seed, learning_rate):
        tried.append(learning_rate)
        if learning_rate in bad:
            raise NotFiniteError("step 3: loss/total is nan")
        return fit(trainer, train, select, seed=seed, learning_rate=learning_rate)

    monkeypatch.setattr(gain_run, "fit", made)
    return tried


def test_a_diverging_learning_rate_is_left_out(runner, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(runner, "say", said.append)
    sets = [runner.train, runner.select, *runner.tests.values()]
    tried = diverge_at(monkeypatch, 1e-2)
    first = runner._train("none", 0, sets)
    assert first.info["diverged"] == [1e-2] and first.info["learning_rate"] == 1e-3
    assert tried == [1e-2, 1e-3] and first.info["trials"] == 2
    assert "none, seed 0: learning rate 0.01 is left out: step 3" in said[0]
    # What the first seed chose diverges with the second: the next lower one.
    dataclasses.replace(first, info=first.info | {"learning_rate": 1e-2}).save(tmp_path / "cells")
    second = runner._train("none", 1, sets)
    assert tried[2:] == [1e-2, 1e-3] and second.info["learning_rate"] == 1e-3
    tried = diverge_at(monkeypatch, 1e-2, 1e-3)
    with pytest.raises(KeftError, match=r"none, seed 0: diverges at every .* 0\.01, 0\.001;"):
        runner._train("none", 0, sets)


def test_drawn_examples_claim_no_more_than_is_known(table, runner, tmp_path):
    drawn = json.loads((table[0] / "drawn.json").read_text())
    assert drawn and all("none" in d["answers"] for d in drawn)
    sets = [given(d, runner.parts) for d in (runner.train, runner.select, *runner.tests.values())]
    cell = runner._train("true", 0, sets)
    drawn = json.loads((tmp_path / "drawn.json").read_text())
    right = cell.metrics["test"]["hits@1"] > 0.5
    notes = {d["note"] for d in drawn}
    assert notes <= {"right with the knowledge", "wrong with the knowledge"}
    assert ("right with the knowledge" in notes) == right.any()


def test_no_example_is_drawn_unasked(table, runner):
    true = Cell.load(table[0] / "cells" / "true-0.npz")
    given = runner.trainer, None, runner.tests["test"], "test", "hits@1", true, true
    assert draw_examples(*given, most=0) == []


def test_an_empty_field_names_no_slice(runner):
    test, parts = runner.tests["test"], runner.parts
    texts = enumerate(test.examples)
    valued = [dataclasses.replace(e, slices=("yes" if i < 3 else "",)) for i, e in texts]
    test = dataclasses.replace(test, examples=valued)
    data = dataclasses.replace(parts.config.data, slices=("chosen",))
    config = dataclasses.replace(parts.config, data=data)
    split = make_split("test", test, dataclasses.replace(parts, config=config))
    ours = {k: mask.sum() for k, mask in split.slices.items() if k.startswith("chosen")}
    assert ours == {"chosen=yes": 3}


def test_what_is_left_is_told_by_cells_of_its_kind(runner):
    missing = [("majority", 0), ("none", 0), ("true", 0)]
    assert "majority" in runner.cheap.rows
    assert runner._left({True: [1.0]}, missing) == ""
    assert runner._left({True: [1.0]}, missing[:1]) == "; about 0.0 min left"
    assert runner._left({True: [1.0], False: [50.0, 70.0]}, missing) == "; about 2.0 min left"


def test_selection_on_a_reported_split_is_seen_by_its_examples(runner, config):
    train, select = runner.train.examples, runner.select.examples
    tests = {
        "select": runner.tests["test"],
        "other": runner.parts.dataset(select[3:] + select[:3]),
    }
    leaks = audit_splits(runner.parts, train, select, tests)
    assert leaks["selection"]["verdict"] == "leak"
    assert "examples of other, which" in leaks["selection"]["note"]
    given_vocabulary = dataclasses.replace(
        runner.parts,
        config=dataclasses.replace(
            config, data=dataclasses.replace(config.data, vocab="tokenizer.json")
        ),
    )
    leaks = audit_splits(given_vocabulary, train, select, runner.tests)
    assert leaks["vocabulary"]["verdict"] == "not applicable"
    assert leaks["selection"]["verdict"] == "ok"


def test_resumes_cell_by_cell(table, config, monkeypatch):
    folder, summary = table
    ran = []
    fit = gain_run.fit

    def counted(trainer, train, select, *, seed, learning_rate):
        ran.append((seed, learning_rate))
        return fit(trainer, train, select, seed=seed, learning_rate=learning_rate)

    monkeypatch.setattr(gain_run, "fit", counted)
    before = Cell.load(folder / "cells" / "true-1.npz")
    (folder / "cells" / "true-1.npz").unlink()
    again = run_gain(config, folder, quiet=True)
    assert ran == [(1, before.info["learning_rate"])]
    after = Cell.load(folder / "cells" / "true-1.npz")
    for metric, values in before.metrics["test"].items():
        np.testing.assert_array_equal(values, after.metrics["test"][metric])
    assert again["scores"] == summary["scores"]
    assert run_gain(config, folder, quiet=True)["scores"] == summary["scores"]
    assert len(ran) == 1


def test_another_config_is_refused(table, config):
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, weight_decay=0.5))
    with pytest.raises(KeftError, match=r"weight_decay = 0\.01, this one has 0\.5"):
        run_gain(other, table[0], quiet=True)


def test_another_tokenizer_is_refused(config, tmp_path):
    file, folder = tmp_path / "tokenizer.json", tmp_path / "table"
    given = dataclasses.replace(config, data=dataclasses.replace(config.data, vocab=str(file)))

    def claim(words):
        save_tokenizer(train_wordpiece([words], 128), file)
        gain_run.GainRun(given, folder, str)._claim()
        return json.loads((folder / "manifest.json").read_text())

    manifest = claim("where is it")
    assert claim("where is it") == manifest
    with pytest.raises(KeftError, match=r"data_hash\.vocabulary = "):
        claim("where is she")
    # A table that is older than a field goes on where that has its default.
    older = json.loads(json.dumps(manifest))
    del older["config"]["optim"]["ema"], older["config"]["gain"]["attributes"]
    (folder / "manifest.json").write_text(json.dumps(older))
    assert claim("where is it") == manifest
    del older["config"]["data"]["vocab"]
    (folder / "manifest.json").write_text(json.dumps(older))
    with pytest.raises(KeftError, match=r"data\.vocab = '', this one has"):
        claim("where is it")
    # One whose rows meant something else does not.
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": 1}))
    with pytest.raises(KeftError, match=f"rows .* = 1, this one has {DEFINITION}"):
        claim("where is it")


def test_tables_merge(table, config, tmp_path):
    folder, summary = table
    for name, keep in (
        ("a", ("none", "true", "majority")),
        ("b", ("untyped", "shuffled", "none", "true")),
    ):
        done = load_table(folder)
        cells = [cell for cell in done.cells if cell.row in keep]
        dataclasses.replace(done, cells=cells).save(tmp_path / name)
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    merged = merge_tables([tmp_path / "a", tmp_path / "b"], tmp_path / "joint", quiet=True)
    for row in (*ROWS, "majority"):
        assert merged["scores"][row]["values"] == summary["scores"][row]["values"]
    assert "char_ngram" not in merged["scores"]
    assert (tmp_path / "joint" / "report.html").is_file()
