"""A run of link prediction answers: from Python, from the command line, and as files for others."""

import importlib.util
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import keft_jax
from keft_jax.cli import run
from keft_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    KeftError,
    KgeConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
    to_json,
)
from keft_jax.kg.embeddings import read_embeddings
from keft_jax.kg.find import best_of, suggest
from keft_jax.options import run_main
from keft_jax.train.run import train
from keft_jax.train.triple_parts import build_triples

ROOT = Path(__file__).resolve().parents[1]
N = 40
ENTITIES = [f"e{i:02}" for i in range(N)]


def write_graph(folder):
    """A ring of 40, forwards, backwards and two steps on; the entity `late` is in a test alone."""
    folder.mkdir(parents=True, exist_ok=True)
    ring = [
        (ENTITIES[i], relation, ENTITIES[(i + by) % N])
        for relation, by in (("next", 1), ("before", -1), ("skips", 2))
        for i in range(N)
    ]
    order = np.random.default_rng(0).permutation(len(ring))
    parts = {"train": order[:90], "valid": order[90:100], "test": order[100:]}
    for split, places in parts.items():
        rows = [ring[i] for i in places]
        if split == "test":
            rows.append((ENTITIES[0], "next", "late"))
        write_rows(folder / f"{split}.tsv", rows)
    names = [(e, f"stone {i // 2}" if i < 4 else f"stone of {e}") for i, e in enumerate(ENTITIES)]
    write_rows(folder / "names.tsv", names)


def write_rows(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def make_config(folder, **kge):
    return Config(
        name="ring",
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train=str(folder), names=f"{folder}/names.tsv"),
        kge=KgeConfig(**{"width": 8, "answers": 2, "init": 0.1} | kge),
        optim=OptimConfig(
            kind="adagrad", learning_rate=0.3, weight_decay=0, warmup=0, clip=0, batch=32, steps=40
        ),
        mesh=MeshConfig(data=1),
        eval=EvalConfig(every=20, batch=16),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    write_graph(folder)
    summary = train(make_config(folder), folder / "run", quiet=True)
    return folder, summary, keft_jax.load(folder / "run")


@pytest.fixture
def fails(capsys):
    """Runs keft; gives its one-line error."""

    def call(*argv, main=run, code=2):
        assert run_main(lambda: main([str(word) for word in argv])) == code
        told = capsys.readouterr()
        (line,) = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert told.out == "" and told.err.endswith(f"{line}\n")
        return line.removeprefix("error: ")

    return call


def ask(monkeypatch, text):
    raw = io.BufferedReader(io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))


def test_evaluate(trained, capsys):
    folder, summary, _ = trained
    assert run(["evaluate", str(folder / "run")]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (out["triples"], out["unseen"]) == (21, 1) and out["mrr"] > 0.1
    for name, value in summary["scores"]["test"].items():
        assert out[name] == pytest.approx(value)
    # The split's file, by its name: the same triples and the same filter.
    argv = ["evaluate", str(folder / "run"), "--data", str(folder / "test.tsv"), "--by-relation"]
    assert run(argv) == 0
    same = json.loads(capsys.readouterr().out)
    records = same.pop("relations")
    assert same == out | {"unknown": 0}
    assert sum(record["triples"] for record in records) == 21
    weighted = sum(record["triples"] * record["tail/mrr"] for record in records) / 21
    assert weighted == pytest.approx(out["tail/mrr"])


def test_evaluate_names_each_of_several_splits(trained):
    _, _, model = trained
    splits = dict(model.parts.splits)
    splits["hard"] = splits["test"][:3]
    several = keft_jax.LinkPredictor(replace(model.parts, splits=splits), model._params)
    told = []
    scores = several.evaluate(advance=lambda done, total: told.append((done, total)))
    assert list(scores) == ["test", "hard"] and scores["hard"]["triples"] == 3
    assert sum(done for done, _ in told) == 48 and {total for _, total in told} == {42, 6}
    none = {"train": splits["train"]}
    with pytest.raises(KeftError, match="no test split; give a file"):
        keft_jax.LinkPredictor(replace(model.parts, splits=none), model._params).evaluate()


def test_the_filter_knows_the_file_too(trained, tmp_path):
    _, _, model = trained
    all_tails = [(ENTITIES[5], "next", name) for name in [*ENTITIES, "late"]]
    scores = model.evaluate(write_rows(tmp_path / "all.tsv", all_tails))
    # Every other tail is a known answer.
    assert scores["tail/mrr"] == scores["tail/hits@1"] == scores["tail/mean_rank"] == 1.0
    assert scores["head/mean_rank"] > 1


def test_evaluate_says_what_it_leaves_out(trained, tmp_path, caplog, fails):
    folder, _, model = trained
    rows = [(ENTITIES[i], "next", ENTITIES[i + 1]) for i in range(5)]
    clean = model.evaluate(write_rows(tmp_path / "clean.tsv", rows))
    assert not caplog.messages and clean["unknown"] == 0
    file = write_rows(tmp_path / "odd.tsv", [rows[0], *rows, ("e03", "next", "nobody")])
    assert model.evaluate(file) == clean | {"unknown": 1}
    assert any(
        "1 of 7 triples LEFT OUT" in m and f"{file}:7: 'nobody'" in m for m in caplog.messages
    )
    assert any("1 duplicate triples" in m for m in caplog.messages)

    evaluate = ("evaluate", folder / "run", "--data")
    rows[2] = ("e02", "nxt", "e03")
    line = fails(*evaluate, write_rows(tmp_path / "relation.tsv", rows))
    assert "relation.tsv:3: relation 'nxt'" in line and "did you mean 'next'" in line
    line = fails(*evaluate, write_rows(tmp_path / "other.tsv", [("a", "next", "b")]))
    assert "none of its 1 triples" in line and "other.tsv:1: 'a'" in line and "'e00'" in line
    assert "a folder" in fails(*evaluate, folder)
    assert "--kg: is for runs on text" in fails("evaluate", folder / "run", "--kg", "x")


def score_all(embeddings, given, relation, inverse):
    """f64[n]: ComplEx's scores, from the file of another tool's reader."""
    e, r = (
        x[:, : x.shape[1] // 2].astype(float) + 1j * x[:, x.shape[1] // 2 :]
        for x in (embeddings.vectors, embeddings.extra["inverse" if inverse else "relation"])
    )
    return ((e[given] * r[relation]) @ e.conj().T).real


def test_predict_is_what_the_exported_vectors_say(trained, tmp_path):
    folder, _, model = trained
    out = tmp_path / "vectors"
    assert run(["export", str(folder / "run"), "--out", str(out), "--embeddings"]) == 0
    found = read_embeddings(out)
    assert found.meta["model"] == "complex" and found.meta["kg_hash"] == model.parts.kg_hash
    assert list(found.names) == [*ENTITIES, "late"] and found.labels[9] == "stone of e09"
    assert list(found.relations) == ["before", "next", "skips"]
    params = model._params
    both = np.concatenate([found.relation_vectors, found.extra["inverse"]])
    np.testing.assert_array_equal(both, params["scorer"]["relation"])
    np.testing.assert_array_equal(found.vectors, params["entity"][: N + 1])

    tables = replace(found, extra={**found.extra, "relation": found.relation_vectors})
    queries = [("e07", "next", "?"), ("?", "skips", "e20")]
    for record, (at, relation, inverse) in zip(
        model.predict(queries, top=100, known=True), ((7, 1, False), (20, 2, True)), strict=True
    ):
        scores = score_all(tables, at, relation, inverse)
        order = [ENTITIES.index(a[0]) if a[0] != "late" else N for a in record["answers"]]
        assert sorted(order) == list(range(N + 1)) and not record["unseen"]
        given = [score for _, _, score in record["answers"]]
        assert given == sorted(given, reverse=True)
        np.testing.assert_allclose(given, scores[order], atol=1e-4)
        p = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(record["probabilities"], p[order], atol=1e-4)
    with pytest.raises(KeftError, match="is there already"):
        run(["export", str(folder / "run"), "--out", str(out), "--embeddings"])


def test_known_answers_are_left_out(trained):
    _, _, model = trained
    trained_on = model.parts.splits["train"]
    head, relation, tail = (int(x) for x in trained_on[0])
    query = {"head": ENTITIES[head], "relation": model.parts.relations[relation]}
    (new,) = model.predict([query], top=100)
    (old,) = model.predict([query], top=100, known=True)
    assert ENTITIES[tail] in [a[0] for a in old["answers"]]
    assert ENTITIES[tail] not in [a[0] for a in new["answers"]]
    assert [a for a in old["answers"] if a in new["answers"]] == new["answers"]
    assert [len(model.predict([query], top=k)[0]["answers"]) for k in (1, 3)] == [1, 3]
    assert model.predict([{"head": "late", "relation": "next"}])[0]["unseen"]
    assert model.predict([]) == []


def test_queries_by_file_by_pipe_and_by_name(trained, tmp_path, capsys, monkeypatch):
    folder, _, model = trained
    direct = model.predict([("e05", "next", "?"), (None, "skips", "e09")], top=3)
    tsv = "e05\tnext\t?\n?\tskips\tstone of e09\n"
    lines = '{"head": "e05", "relation": "next"}\n{"relation": "skips", "tail": "e09"}\n'
    (tmp_path / "q.tsv").write_text(tsv)
    (tmp_path / "q.txt").write_text(tsv)
    (tmp_path / "q.jsonl").write_text(lines)
    for source in ("q.tsv", "q.txt", "q.jsonl", tsv, lines):
        data = str(tmp_path / source) if source.startswith("q.") else "-"
        ask(monkeypatch, source)
        assert run(["predict", str(folder / "run"), "--data", data, "--top", "3"]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == direct
    assert [direct[1][key] for key in ("head", "relation", "tail")] == ["?", "skips", "e09"]


BAD = {
    "?\tnext\t?": "stdin:2: asks for both ends",
    "e01\tnext\te02": "stdin:2: has both ends given",
    "e01\t?\te02": "stdin:2: relation is '?'",
    "e01\tnxet\t?": "stdin:2: relation 'nxet': not among the 3 known; did you mean 'next'",
    "e0l\tnext\t?": "stdin:2: entity 'e0l': not among the 41 known; did you mean",
    "E07\tnext\t?": "did you mean 'e07'?",
    "stone 1\tnext\t?": "the name of 2 entities ('e02', 'e03'); give the identifier",
    "e01\tnext": "stdin:2: 2 columns where the first row has 3",
    "e01\tnext\t": "stdin:2: entity is ''",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_queries(trained, monkeypatch, fails, line):
    ask(monkeypatch, f"e01\tnext\t?\n{line}\n")
    assert BAD[line] in fails("predict", trained[0] / "run", "--data", "-")


def test_other_bad_queries(trained, monkeypatch, fails):
    for text, told in (
        ('{"head": "e01"}', "relation is None"),
        ('{"head": 7, "relation": "next"}', "entity is 7"),
        ('{"head": ', "not JSON"),
        ("e01", "is no query"),
        ("", "no query"),
    ):
        ask(monkeypatch, text)
        assert told in fails("predict", trained[0] / "run", "--data", "-")
    ask(monkeypatch, "e01\tnext\t?")
    assert "--top 0" in fails("predict", trained[0] / "run", "--data", "-", "--top", "0")


def test_similar(trained, tmp_path, capsys, monkeypatch, fails):
    folder, _, model = trained
    assert run(["similar", str(folder / "run"), "e11", "--top", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    table = np.asarray(model.embeddings.vectors, float)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosine = unit @ unit[11]
    cosine[11] = -2
    best = np.argsort(-cosine)[:4]
    assert [ENTITIES.index(name) for name, _, _ in found["similar"]] == best.tolist()
    np.testing.assert_allclose([x for *_, x in found["similar"]], cosine[best], atol=1e-5)
    assert (found["entity"], found["measure"]) == ("e11", "cosine")
    out = str(tmp_path / "vectors")
    assert run(["export", str(folder / "run"), "--out", out, "--embeddings"]) == 0
    assert run(["similar", out, "stone of e11", "--top", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert run(["similar", out, "e11", "--top", "4"]) == 0
    shown = capsys.readouterr().out
    assert "cosine" in shown and found["similar"][0][1] in shown
    monkeypatch.delenv("FORCE_COLOR")
    for place in (folder / "run", out):
        assert "did you mean 'e11'" in fails("similar", place, "E11")
    assert "no such" in fails("similar", tmp_path / "nowhere", "e11")


def test_one_relation_at_a_time_is_the_same(trained):
    """TransR, whose candidates are projected for one relation."""
    _, _, model = trained
    kge = KgeConfig(model="transr", width=6, relation_width=4, share=4, reciprocal=False, init=0.5)
    parts = replace(model.parts, config=replace(model.parts.config, kge=kge))
    projected = keft_jax.LinkPredictor(parts, jax.jit(parts.model.init)(jax.random.key(0)))
    queries = [("e01", "next", "?"), ("?", "skips", "e09"), ("e04", "next", "?")]
    together = projected.predict(queries)
    for query, record in zip(queries, together, strict=True):
        (alone,) = projected.predict([query])
        assert [a[0] for a in alone["answers"]] == [a[0] for a in record["answers"]]
    made = projected.embeddings
    assert made.extra["project"].shape == (3, 6, 4) and made.relation_vectors.shape == (3, 4)
    assert "inverse" not in made.extra and made.meta["distance"] == "l2"


def test_numbers_that_are_none_are_refused(trained):
    _, _, model = trained
    broken = keft_jax.LinkPredictor(model.parts, jax.tree.map(lambda x: x * np.nan, model._params))
    for call in (broken.evaluate, lambda: broken.predict([("e01", "next", "?")])):
        with pytest.raises(KeftError, match=r"not finite.*lower optim\.learning_rate") as caught:
            call()
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_a_damaged_run_and_one_of_another_kind(trained, tmp_path, fails):
    folder, _, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(folder / "run", copy)
    target = max((f for f in (copy / "best").rglob("*") if f.is_file()), key=lambda f: f.name)
    target.write_bytes(target.read_bytes()[:-1])
    out = tmp_path / "out"
    for argv in (
        ("evaluate", copy),
        ("similar", copy, "e01"),
        ("export", copy, "--out", out, "--embeddings"),
    ):
        assert "best" in fails(*argv) and not out.exists()
    assert "add --embeddings" in fails("export", folder / "run", "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    text = tmp_path / "text"
    text.mkdir()
    for name in ("config.json", "inputs.json"):
        (text / name).write_text(to_json(tiny.config(tmp_path)))
    assert "a run on text" in fails("similar", text, "e01")
    assert "a run on text" in fails("export", text, "--out", out, "--embeddings")


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("train_links", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where tyro looks for the command's types
    spec.loader.exec_module(module)
    return module.main


def test_training_refuses_bad_folders_and_rates(trained, command, tmp_path, fails):
    folder, _, _ = trained
    file = tiny.write_config(tmp_path / "ring.py", make_config(folder))
    argv = ("--config", file, "--workdir", tmp_path / "new" / "run")
    ids = tmp_path / "openke"
    ids.mkdir()
    write_rows(ids / "entity2id.txt", [("2",), ("a", "0"), ("b", "1")])
    write_rows(ids / "relation2id.txt", [("1",), ("r", "0")])
    write_rows(ids / "train2id.txt", [("3",), ("0 1 0",), ("1 0 0",)])
    there = sorted(tmp_path.rglob("*"))
    given = (*argv, "--data.names=", f"--data.train={ids}")
    assert "train2id.txt:1: says 3 rows, 2 follow" in fails(*given, main=command)
    write_rows(ids / "train2id.txt", [("2",), ("0 1 0",), ("1 2 0",)])
    assert "train2id.txt:3: tail id 2 is out of range" in fails(*given, main=command)
    (ids / "relation2id.txt").unlink()
    assert "relation2id.txt: missing" in fails(*given, main=command)
    write_rows(ids / "relation2id.txt", [("1",), ("r", "0")])
    assert sorted(tmp_path.rglob("*")) == there
    line = fails(*argv, "--optim.learning_rate=1e38", main=command, code=1)
    assert line.startswith("step ") and "lower optim.learning_rate" in line and len(line) < 500
    assert not (tmp_path / "new" / "run" / "summary.json").exists()


def test_duplicates_are_reported(tmp_path, caplog):
    write_graph(tmp_path)
    with (tmp_path / "train.tsv").open("a") as file:
        file.write((tmp_path / "train.tsv").read_text().splitlines()[0] + "\n")
    parts, _ = build_triples(make_config(tmp_path))
    assert len(parts.splits["train"]) == 90
    assert any("train: 1 duplicate triples left out" in m for m in caplog.messages)


def test_suggestions():
    names = [f"number {i}" for i in range(30_000)]
    assert suggest("NUMBER 7", names) == ["number 7"]
    assert suggest("ber 29999", names) == ["number 29999"]
    assert suggest("xyz", names) == [] == suggest("", ["a"])


def test_best_of():
    values = np.array([1.0, 3.0, 3.0, -np.inf, 2.0])
    assert best_of(values, 3) == [1, 2, 4] and best_of(values, 0) == []
    assert best_of(values, 5) == [1, 2, 4, 0, 3]
