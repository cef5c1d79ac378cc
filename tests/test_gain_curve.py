"""A table for each number of labels, graphs made worse, a metric that is no mean over examples."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import tiny
from sklearn.metrics import f1_score

from keft_jax.cli import Gain, read_shares
from keft_jax.config import EvalConfig, GainConfig, KeftError, OptimConfig
from keft_jax.data.rows import ROWS
from keft_jax.gain import run as gain_run
from keft_jax.gain.cells import load_table
from keft_jax.gain.curve import run_examples, write_examples
from keft_jax.gain.run import refuse_config
from keft_jax.options import load_config, with_examples

TESTS = "test", "elsewhere"


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    tiny.write_files(files)
    made = tiny.classification(
        files,
        optim=OptimConfig(steps=6, batch=8, learning_rate=1e-2),
        eval=EvalConfig(every=6, batch=16, metric="f1"),
        gain=GainConfig(
            rows=("none", "true"), corrupt=(0, 0.5), drop=(0.2,), seeds=1, bootstrap=200, explain=0
        ),
    )
    tests = f"{files}/test.jsonl", f"elsewhere={files}/select2.jsonl"
    lines = (files / "test.jsonl").read_text().splitlines()
    (files / "select2.jsonl").write_text("\n".join(lines[:6]))
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, test=tests))
    return {n: with_examples("tiny.py:FOLDER", made, n) for n in ("all", "12")}


@pytest.fixture(scope="module")
def table(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve") / "table"
    return folder, run_examples(configs, folder, quiet=True)


def test_one_report_of_all_numbers(table):
    folder, summary = table
    tables = summary["examples"]
    assert json.loads((folder / "summary.json").read_text()).keys() == summary.keys()
    assert list(tables) == ["12", "all"] and [t["train"] for t in tables.values()] == [12, 40]
    # What is equal is built and compiled once.
    assert [t["compilations"] for t in tables.values()] == [1, 1]
    assert len({t["step_time_ratio"] for t in tables.values()}) == 1
    for name, part in tables.items():
        assert part == json.loads((folder / name / "summary.json").read_text())
        assert list(part["splits"]) == list(TESTS)
    page = (folder / "report.html").read_text()
    assert page.count('class="chart"') == 2 * len(TESTS)
    assert 'href="12/report.html"' in page and "best control" in page
    assert (folder / "gain.png").stat().st_size > 5_000
    inner = (folder / "all" / "report.html").read_text()
    for said in ("One split beside another", "elsewhere", "Wrong facts", "Missing facts"):
        assert said in inner


def test_cells_are_made_once_and_a_number_may_join(table, configs, monkeypatch):
    folder, summary = table

    def never(*args, **kwargs):
        raise AssertionError("a cell was made again")

    monkeypatch.setattr(gain_run, "fit", never)
    again = run_examples({"12": configs["12"]}, folder, quiet=True)
    for n in ("12", "all"):
        assert again["examples"][n]["scores"] == summary["examples"][n]["scores"]
    (folder / "12" / "summary.json").rename(folder / "12" / "gone")
    assert list(write_examples(folder)["examples"]) == ["all"]
    (folder / "12" / "gone").rename(folder / "12" / "summary.json")


def test_f1_of_a_table_is_that_of_scikit_learn(table):
    folder, summary = table
    done = load_table(folder / "12")
    assert done.manifest["metric"] == "f1" and done.manifest["score"] == "macro_f1"
    texts = json.loads((folder / "12" / "examples.json").read_text())
    for split in TESTS:
        gold = [e["gold"] for e in texts[split]]
        for cell in done.cells:
            score = summary["examples"]["12"]["splits"][split]["scores"][cell.row]
            expected = f1_score(gold, cell.choice[split], average="macro")
            assert score["values"][cell.seed] == pytest.approx(expected)


def test_every_level_stands_beside_the_whole_graph(table):
    part = table[1]["examples"]["12"]
    rows = {"corrupt": ["true", "true-corrupt-50"], "drop": ["true", "true-drop-20"]}
    assert {k: [level["row"] for level in v] for k, v in part["perturbed"].items()} == rows
    for levels in part["perturbed"].values():
        assert levels[0]["score"] == part["scores"]["true"]
        for level in levels:
            assert level["score"]["mean"] == part["scores"][level["row"]]["mean"]
            assert level["kind"] == "no verdict" and len(level["gain"]["interval"]) == 2
        assert levels[1]["loss"]["mean"] == pytest.approx(-part["versus"][levels[1]["row"]]["mean"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"metric": "accuracy"}, "metric = 'accuracy'"), ({"rate": 0.5}, "learning_rate = 0.5")],
)
def test_tables_of_another_kind_are_no_curve(table, tmp_path, changed, told):
    for name, change in (("a", {}), ("b", changed)):
        shutil.copytree(table[0] / "12", tmp_path / name)
        file = tmp_path / name / "manifest.json"
        manifest = json.loads(file.read_text()) | change
        manifest["config"]["optim"]["learning_rate"] = manifest.pop("rate", 0.01)
        file.write_text(json.dumps(manifest))
    with pytest.raises(KeftError, match=rf"b: a table with .*{told}, and a has"):
        write_examples(tmp_path)


def test_a_config_file_is_asked_for_each_number(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import tiny, dataclasses\n"
        "def get_config(arg='8'):\n"
        "    n, _, mode = arg.partition(',')\n"
        "    c = tiny.classification('DIR')\n"
        "    steps = 9 if mode else 2 + (0 if n == 'all' else int(n))\n"
        "    return dataclasses.replace(c,\n"
        "        data=dataclasses.replace(c.data, draw=0 if n == 'all' else int(n)),\n"
        "        optim=dataclasses.replace(c.optim, steps=steps))\n"
    )
    config = load_config(f"{file}:8")
    for spec, steps in ((f"{file}", (6, 2)), (f"{file}:8", (6, 2)), (f"{file}:8,own", (9, 9))):
        made = [with_examples(spec, config, n) for n in ("4", "all")]
        assert [m.data.draw for m in made] == [4, 0]
        assert tuple(m.optim.steps for m in made) == steps
    made = with_examples(f"{file}:FOLDER", config, "4")  # an argument that is no number
    assert made.data.draw == 4 and made.optim.steps == config.optim.steps
    for wrong in ("0", "-3", "some"):
        with pytest.raises(KeftError, match="give numbers of examples and all"):
            with_examples(f"{file}", config, wrong)


def test_shares_on_the_command_line(tmp_path):
    config = tiny.classification(tmp_path)
    made = Gain(config, corrupt="0,.1,.30", drop=".6").table().gain
    assert made.rows == ("none", "true")
    assert made.perturbed == ("true-corrupt-10", "true-corrupt-30", "true-drop-60")
    assert set(made.perturbed) <= set(ROWS) and Gain(config).table() is config
    with pytest.raises(KeftError, match=r"--drop \.1,x: .*; give shares"):
        read_shares("drop", ".1,x")
    for share in (0.125, 1.0, -0.1):
        with pytest.raises(KeftError, match=r"gain\.drop = .*whole percents"):
            GainConfig(drop=(share,))


def test_embeddings_of_the_whole_graph_are_refused(tmp_path):
    config = tiny.classification(tmp_path, gain=GainConfig(drop=(0.5,)))
    refuse_config(config)
    knowledge = dataclasses.replace(config.knowledge, entities="runs/kge")
    with pytest.raises(KeftError, match=r"knowledge\.entities = 'runs/kge': .*take away"):
        refuse_config(dataclasses.replace(config, knowledge=knowledge))


def test_page_of_numbers_loads_nothing(table):
    page = (table[0] / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script|<img", page)
    assert np.all([tag in page for tag in ("<h1>", "</html>")])
