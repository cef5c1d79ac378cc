"""Tags, spans and choices from files to answers, through the compiled evaluation; marks around
mentions."""

import dataclasses
import itertools
import json
import random

import jax
import numpy as np
import optax
import pytest
import tiny

from keft_jax.config import (
    EncoderConfig,
    EvalConfig,
    FusionConfig,
    KeftError,
    MeshConfig,
    OptimConfig,
    TaskConfig,
)
from keft_jax.data.source import Example
from keft_jax.doctor import examine
from keft_jax.predict import Predictor, mentions_of
from keft_jax.tasks.anchors import EntityTyping, mark
from keft_jax.tasks.choice import Choice
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.parts import build
from keft_jax.train.state import State
from keft_jax.train.step import make_train_step

FIELDS = {
    "tagging": {"text": "tokens", "tags": "tags"},
    "span": {"text": "context", "pair": "question", "answer_spans": "answers"},
    "choice": {"choices": "choices"},
    "relation": {"spans": "spans"},
}
COUNT = 27


def make(kind, rng):
    p, q = rng.sample(tiny.PEOPLE, 2)
    towns = rng.sample(tiny.TOWNS, rng.randrange(2, 5))
    if kind == "tagging":
        names = [p, "met", q] * rng.randrange(1, 5) + ["in", towns[0]]
        tag = {"p": "B-PER", "t": "B-LOC"}
        return {"tokens": names, "tags": [tag.get(name[0], "O") for name in names]}
    if kind == "span":
        context = ", ".join(f"{p} met {rng.choice(tiny.TOWNS)}" for _ in range(rng.randrange(1, 9)))
        answers = [[context.rindex("town"), "town"]] if rng.random() < 0.6 else []
        return {"context": context, "question": "who ?", "answers": answers}
    if kind == "choice":
        return {"question": f"where is {p} ?", "choices": towns, "label": rng.randrange(2)}
    text = f"{p} lives in {towns[0]}"
    spans = [[len(text) - len(towns[0]), len(text), towns[0]], [0, len(p), p]]
    return {"question": text, "label": "lives", "spans": spans}


def parts_of(kind, folder, **sections):
    """Of a config over files of this kind, without a graph network."""
    tiny.write_files(folder)
    rng = random.Random(3)
    for name in ("train", "select", "test"):
        lines = [json.dumps(make(kind, rng)) + "\n" for _ in range(COUNT)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    base = tiny.config(folder)
    config = tiny.config(
        folder,
        task=TaskConfig(kind=kind, stride=4, answer_length=3),
        data=dataclasses.replace(base.data, **FIELDS[kind]),
        encoder=EncoderConfig(layers=1, width=16, heads=2, mlp=16, max_length=16, dropout=0.0),
        fusion=FusionConfig(kind="none"),
        **{"mesh": MeshConfig(data=8), "eval": EvalConfig(batch=16), **sections},
    )
    return build(config)


def drawn(parts, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype("f"), parts.model.abstract())


@pytest.mark.parametrize("kind", ["tagging", "span", "choice"])
def test_neither_order_nor_company_nor_devices_change_a_result(kind, tmp_path):
    parts, splits = parts_of(kind, tmp_path)
    params, task = drawn(parts), parts.task
    (test,) = splits.tests.values()
    evaluator = Evaluator(parts)
    whole = evaluator.evaluate(params, parts.ready(test))
    assert len({str(said) for said in task.said(whole)}) > 1
    order = np.random.default_rng(0).permutation(len(test))[: len(test) - 6]
    part = evaluator.evaluate(params, parts.ready([test[i] for i in order]))
    for name, values in part.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, whole[name][order], rtol=1e-4, atol=1e-4)
        elif name != "example":
            assert list(values) == list(whole[name][order]), name
    scores = task.summarise(whole)
    assert set(task.metrics) | ({"f1"} if kind != "choice" else set()) <= set(scores)
    # On one device, as answers.
    predictor = Predictor(parts, params)
    records = predictor.predict(test)
    assert predictor.predict(test[3:4])[0].keys() == records[3].keys()
    for record, example, said in zip(records, test, task.said(whole), strict=True):
        assert record["text"] == example.text
        for start, end, entity in record["mentions"]:
            assert example.text[start:end] == entity
        if kind == "tagging":
            shown = [f"{example.text[a:b]} ({name})" for a, b, name, _ in record["entities"]]
            assert "; ".join(shown) == said
        elif kind == "span":
            assert record["answer"] == said and said in example.text
        else:
            assert record["answer"] == example.choices["ABCD".index(said)]
            assert sum(p for _, p in record["answers"]) == pytest.approx(1, abs=1e-4)
            assert len(record["answers"]) == len(example.choices)


def test_choices_are_rows_with_subgraphs_of_their_own(tmp_path):
    parts, splits = parts_of("choice", tmp_path)
    dataset = parts.ready(splits.train)
    names = parts.knowledge.kg.names
    assert parts.labels == ("A", "B", "C", "D") and dataset.each == 4
    for i, example in enumerate(splits.train):
        for k, text in enumerate(dataset.texts[4 * i : 4 * i + 4]):
            linked = {names[e] for e in dataset.seeds[4 * i + k] if e >= 0}
            there = k < len(example.choices)
            assert dataset.table.targets["choice"].there[4 * i + k] == there
            person = example.text.split()[2]
            assert linked == ({example.choices[k], person} if there else set())
            assert text.text.endswith(example.text) == there
    many = dataclasses.replace(splits.train[0], choices=("a", "b", "c", "d", "e"))
    with pytest.raises(KeftError, match="5 choices where the model reads 2 to 4"):
        parts.task.rows([many])


def test_choices_without_a_row_weigh_nothing():
    task = Choice("ABC")
    examples = [
        Example(0, "?", choices=("x", "y"), label="B"),
        Example(1, "?", choices=("x", "y", "z")),
    ]
    rows, owner = task.rows(examples)
    assert list(owner) == [0, 0, 0, 1, 1, 1]
    target = task.targets(rows, None)
    logits = np.array([[1.0, 2.0, -1e9], [0.0, 0.0, 5.0]], np.float32)
    expected = np.log(np.exp(1) + np.exp(2)) - 2
    assert float(task.loss(logits, target)) == pytest.approx(expected, rel=1e-5)
    batch = type("B", (), {"targets": {"choice": target}})
    assert float(task.total(batch)) == 1  # of two questions, one is labelled


def test_accumulated_choices_equal_the_whole_batch(tmp_path):
    parts, splits = parts_of("choice", tmp_path)
    batch = parts.ready(splits.train).batch(16, np.arange(8))
    objective = Objective(parts.model, make_terms(parts.config.objective, parts.task, None))
    tx = optax.sgd(1.0)
    params = drawn(parts)
    state = State(
        step=0,
        params=params,
        opt_state=tx.init(params),
        tables={},
        key=jax.random.key_data(jax.random.key(0)),
    )
    frozen = {"names": None, "learning_rate": np.float32(1)}
    losses, norms = [], []
    for accumulate in (1, 4):
        optim = OptimConfig(batch=8, accumulate=accumulate)
        step = make_train_step(objective, tx, optim)
        metrics = jax.jit(lambda *given, step=step: step(*given)[1])(state, frozen, batch)
        losses.append(float(metrics["loss/total"][0]))
        norms.append(float(metrics["grad_norm"][0]))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
    assert losses[0] > 0 and norms[0] > 0


def test_marks_leave_text_and_mentions_as_they_are():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab ") for _ in range(rng.randrange(4, 14)))
        a, b, c, d = sorted(rng.sample(range(len(text) + 1), 4))
        own = rng.choice([[(a, b, "x"), (c, d, "y")], [(a, b, "x"), (b, d, "y")]])  # adjacent too
        rng.shuffle(own)
        others = [(*sorted(rng.sample(range(len(text) + 1), 2)), "z") for _ in range(5)]
        spans = (*own, *others)  # inside of them, around them, across their ends
        marked = mark(Example(0, text, spans=spans), 2)
        # What the pieces say is the text's own is all of it.
        pieces = itertools.pairwise([*marked.pieces, (0, len(text))])
        bare = [marked.text[here : here + end - there] for (here, there), (_, end) in pieces]
        assert "".join(bare) == text
        for (start, end, _), (s, e, _) in zip(spans, marked.spans, strict=True):
            assert (marked.origin(s), marked.origin(e - 1)) == (start, end - 1)
            inside = [i for i in range(s, e) if marked.text[i] not in "@#"]
            shown = dict.fromkeys(marked.origin(i) for i in inside)
            assert set(range(start, end)) <= set(shown)
        for (s, e, _), sign in zip(marked.spans[:2], "@#", strict=True):
            assert marked.text[s - 2 : s] == f"{sign} " and marked.text[e : e + 2] == f" {sign}"
            assert not set(marked.text[s:e]) & set("@#")  # marks stand outside
    with pytest.raises(KeftError, match="overlap; mark them apart"):
        mark(Example(0, "abcd", spans=((0, 3, "x"), (2, 4, "y"))), 2)
    with pytest.raises(KeftError, match="1 mentions where 2 are needed"):
        mark(Example(0, "abcd", spans=((0, 3, "x"),)), 2)


def test_mentions_of_marked_texts_stand_in_the_text_as_given(tmp_path):
    parts, splits = parts_of("relation", tmp_path)
    dataset = parts.ready(splits.train)
    assert all(" @" in text.text for text in dataset.texts)
    for example, mentions in zip(splits.train, mentions_of(dataset), strict=True):
        assert {tuple(m) for m in mentions} == set(example.spans)


def test_all_types_above_one_half_are_listed():
    task = EntityTyping([f"t{i}" for i in range(5)])
    logits = np.array([[3.0, 2.0, 1.0, -1.0, 0.5], [-1.0] * 5], np.float32)
    rows = {k: np.asarray(v) for k, v in task.guess(logits, None).items()}
    many, none = task.answers(rows, None, 2)
    assert many["set"] == ["t0", "t1", "t2", "t4"] == [name for name, _ in many["answers"]]
    assert many["answer"] == "t0" and many["probability"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert none["set"] == [] == none["answers"] and none["answer"] == "t0"


def test_doctor_and_last_layers_are_refused_by_name(tmp_path):
    tiny.write_files(tmp_path)
    with pytest.raises(KeftError, match="kind = 'span': has no one label"):
        examine(tiny.config(tmp_path, task=TaskConfig(kind="span")))
    last = {"kind": "interaction", "layers": (-1,)}
    with pytest.raises(KeftError, match=r"never reaches the words, which tagging reads"):
        tiny.config(tmp_path, task=TaskConfig(kind="tagging"), fusion=FusionConfig(**last))
    last["kind"] = "mention_add"
    with pytest.raises(KeftError, match=r"never reaches \[CLS\], which choice reads"):
        tiny.config(tmp_path, task=TaskConfig(kind="choice"), fusion=FusionConfig(**last))
