"""A trained run answers: from Python and from the command line, over its own graph and others."""

import json
import sys

import jax
import numpy as np
import pytest
import tiny

import keft_jax
from keft_jax.cli import run
from keft_jax.config import DistillConfig, KeftError, ObjectiveConfig, OptimConfig
from keft_jax.data.features import Knowledge
from keft_jax.kg.store import KG
from keft_jax.predict import ONE
from keft_jax.sharding import make_mesh
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.run import load_run, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    config = tiny.config(folder, optim=OptimConfig(steps=200, batch=16, learning_rate=1e-2))
    summary = train(config, folder / "run", quiet=True)
    return folder, summary


def test_predict(trained):
    folder, summary = trained
    model = keft_jax.load(folder / "run")
    texts = ["where does person3 live ?", "what is the home of person14 ?"]
    records = model.predict(texts)
    assert [r["text"] for r in records] == texts
    assert records[0]["mentions"] == [[11, 18, "person3"]]
    for record in records:
        assert record["answer"] == record["answers"][0][0] and record["answer"] in record["set"]
        probabilities = [p for _, p in record["answers"]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.01
    assert summary["scores"]["test"]["hits@1"] == 1.0  # else the next tests say nothing
    assert [r["answer"] for r in records] == ["town3", "town4"]
    # One at a time and together are the same.
    for text, record in zip(texts, records, strict=True):
        (single,) = model.predict([text])
        assert single["answer"] == record["answer"]
        np.testing.assert_allclose(single["probability"], record["probability"], rtol=1e-4)
    assert model.predict([]) == []


def test_an_updated_graph_changes_the_answer_without_training(trained):
    model = keft_jax.load(trained[0] / "run")
    old = model.kg
    moved = old.remove([("person3", "lives_in", "town3")]).add([("person3", "lives_in", "town7")])
    newcomer = moved.add([("stranger", "lives_in", "town5")])
    texts = ["where does person3 live ?", "where does stranger live ?"]
    assert model.predict(texts[:1], kg=old)[0]["answer"] == "town3"
    assert [r["answer"] for r in model.predict(texts, kg=newcomer)] == ["town7", "town5"]
    with pytest.raises(KeftError, match="relation 'owns'"):
        model.predict(texts, kg=KG.from_triples([("person3", "owns", "town3")]))


def test_evaluate_and_predict_commands(trained, tmp_path, capsys, monkeypatch):
    folder, summary = trained
    assert run(["evaluate", str(folder / "run"), "--data", str(folder / "test.jsonl")]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    for metric, value in summary["scores"]["test"].items():
        assert scores[metric] == pytest.approx(value)
    unlabelled = tmp_path / "texts.jsonl"
    unlabelled.write_text('{"question": "where does person3 live ?"}\n')
    assert run(["predict", str(folder / "run"), "--data", str(unlabelled)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["answer"] == "town3" and len(json.loads(line)["answers"]) == 5
    ask = ["predict", str(folder / "run"), "--data", str(unlabelled)]
    assert run([*ask, "--top", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == json.loads(line)["answers"][:2]
    with pytest.raises(KeftError, match="--known: is for runs on link prediction"):
        run([*ask, "--known"])
    with pytest.raises(KeftError, match="name a file to score"):
        run(["evaluate", str(folder / "run")])
    monkeypatch.setattr(sys, "stdin", open(unlabelled))  # noqa: SIM115
    assert run(["predict", str(folder / "run"), "--data", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "town3"
    sys.stdin.close()


def test_graph_commands(trained, tmp_path, capsys):
    folder, _ = trained
    lines = (folder / "kg.tsv").read_text() + "only\ttwo\n"
    (tmp_path / "facts.tsv").write_text(lines)
    assert run(["kg", "build", str(tmp_path / "facts.tsv"), "--out", str(tmp_path / "kg")]) == 0
    told = capsys.readouterr().err
    assert "29 triples, 30 entities, 2 relations" in told and "facts.tsv:30" in told
    assert run(["kg", "info", str(tmp_path / "kg"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["triples"] == 29 and facts["top_relations"] == {"lives_in": 20, "near": 9}
    assert run(["kg", "info", str(tmp_path / "kg")]) == 0
    assert "29" in capsys.readouterr().out
    build = [
        "kg",
        "build",
        str(tmp_path / "facts.tsv"),
        "--out",
        str(tmp_path / "other"),
        "--strict",
    ]
    with pytest.raises(KeftError, match=r"facts\.tsv:30"):
        run(build)
    assert not (tmp_path / "other").exists()
    with pytest.raises(KeftError, match="did you mean keft kg build"):
        run(["kg", "bild"])


def test_a_distilled_run_answers_and_is_evaluated_without_its_teacher(trained, tmp_path):
    folder, _ = trained
    distill = DistillConfig(teacher=str(folder / "run"), weight=1.0)
    student = tiny.config(folder, objective=ObjectiveConfig(distill=distill))
    summary = train(student, tmp_path / "student", quiet=True)
    model = keft_jax.load(tmp_path / "student")
    assert model.predict(["where does person3 live ?"])[0]["answer"].startswith("town")
    scores = model.evaluate(folder / "test.jsonl")
    for metric, value in summary["scores"]["test"].items():
        assert scores[metric] == pytest.approx(value)


def test_parameters_that_are_no_numbers_are_refused_not_scored(trained, tmp_path):
    folder, _ = trained
    parts, params = load_run(folder / "run", make_mesh(ONE))
    broken = keft_jax.Predictor(parts, jax.tree.map(lambda x: x * np.nan, params))
    what = r"scores of 10 of 10 examples are not finite, first of .*test\.jsonl:1;"
    with pytest.raises(NotFiniteError, match=what) as caught:
        broken.evaluate(folder / "test.jsonl")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    with pytest.raises(NotFiniteError, match="scores of 1 of 1"):
        broken.predict(["where does person3 live ?"])


def test_texts_are_linked_once(trained, monkeypatch):
    model = keft_jax.load(trained[0] / "run")
    linked = []
    link = Knowledge.link
    monkeypatch.setattr(
        Knowledge, "link", lambda self, e: (linked.append(len(e)), link(self, e))[1]
    )
    texts = [f"where does person{i} live ?" for i in range(5)]
    records = model.predict(texts)
    assert linked == [5]
    assert [r["mentions"][0][2] for r in records] == [f"person{i}" for i in range(5)]


def test_what_is_no_run(tmp_path):
    with pytest.raises(KeftError, match="no run's directory"):
        keft_jax.load(tmp_path)


def test_classification(tmp_path, capsys):
    tiny.write_files(tmp_path)
    config = tiny.classification(tmp_path)
    summary = train(config, tmp_path / "run", quiet=True)
    assert set(summary["scores"]["test"]) == {
        *("accuracy", "precision", "recall", "f1", "matthews"),
    }
    (record,) = keft_jax.load(tmp_path / "run").predict(["where does person3 live ?"])
    assert {name for name, _ in record["answers"]} == {"even", "odd"}
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"question": "where does person3 live ?", "label": "prime"}\n')
    with pytest.raises(KeftError, match=r"odd\.jsonl:1: label 'prime' never occurs in training"):
        run(["evaluate", str(tmp_path / "run"), "--data", str(odd)])
    assert capsys.readouterr().out == ""
