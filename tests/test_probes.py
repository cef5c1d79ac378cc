"""Linear probes and look-up: they see the knowledge where there is some, and none elsewhere."""

import json

import numpy as np
import pytest

from keft_jax.config import Config, DataConfig, FusionConfig, KnowledgeConfig, TaskConfig
from keft_jax.data.source import Example
from keft_jax.gain.lookup import (
    LOOK_UP,
    NEIGHBOUR,
    ORACLE,
    Questions,
    list_options,
    measure_ceilings,
)
from keft_jax.gain.probes import Probes, fit_probe, read_text
from keft_jax.gain.rows import LINEAR, LINEAR_DICTIONARY, LINEAR_KNOWLEDGE, LINEAR_SHUFFLED
from keft_jax.kg.store import KG
from keft_jax.train.parts import build

TEXTS = ("please bring the {} here", "is a {} still there ?", "we sold a {} today")
ROWS = (LINEAR, LINEAR_DICTIONARY, LINEAR_SHUFFLED, LINEAR_KNOWLEDGE)


def make(folder, kind, **knowledge):
    """48 items on 4 shelves in 2 wings; asked for are the wing (a label) or the shelf."""
    rng = np.random.default_rng(0)
    items = [f"item{i:03}" for i in range(48)]
    shelf = dict(zip(items, rng.integers(0, 4, len(items)).tolist(), strict=True))
    facts = [f"{item}\ton\tshelf{n}" for item, n in shelf.items()]
    facts += [f"{item}\tsold_by\tshop{i % 3}" for i, item in enumerate(items)]
    facts += [f"shelf{n}\tin\twing{n % 2}" for n in range(4)]
    (folder / "kg.tsv").write_text("\n".join(facts))
    for name, part in (("train", items[:32]), ("test", items[32:])):
        rows = [
            {
                "text": text.format(item),
                "label": f"wing{shelf[item] % 2}",
                "answers": [f"shelf{shelf[item]}"],
                "cluster": item,
            }
            for text in TEXTS
            for item in part
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts, splits = build(
        Config(
            task=TaskConfig(kind=kind),
            data=DataConfig(
                train=f"{folder}/train.jsonl",
                test=(f"{folder}/test.jsonl",),
                text="text",
                vocab_size=256,
            ),
            knowledge=KnowledgeConfig(kg=f"{folder}/kg.tsv", nodes=16, edges=64, **knowledge),
            fusion=FusionConfig(kind="cross_attention"),
        )
    )
    tests = {name: parts.dataset(examples) for name, examples in splits.tests.items()}
    return parts, parts.dataset(splits.train), tests


@pytest.fixture(scope="module", params=[1, 2])
def hops(request):
    return request.param


def test_facts_carry_over_to_new_entities(tmp_path, hops):
    parts, train, tests = make(tmp_path, "classification", hops=hops)
    probes, drawn = Probes(parts, train, tests), np.arange(len(train))
    gold = np.array([e.label for e in tests["test"].examples])
    said = {row: np.array(probes.predict(row, drawn, 0)["test"]) for row in ROWS}
    score = {row: float((answers == gold).mean()) for row, answers in said.items()}
    assert score[LINEAR_KNOWLEDGE] == 1.0
    assert max(score[row] for row in ROWS[:3]) < 0.75, score
    again = probes.predict(LINEAR_KNOWLEDGE, drawn, 0)["test"]
    assert again == said[LINEAR_KNOWLEDGE].tolist()


def test_few_or_equal_labels_are_no_error():
    one = fit_probe([[["a"], ["b"]]], np.array(["x", "x"]), np.array(["0", "1"]))
    assert one([[["a"], ["c"], []]]) == ["x", "x", "x"]
    two = fit_probe([[["a"], ["b"]]], np.array(["x", "y"]), np.array(["0", "1"]))
    assert two([[["a"], ["b"]]]) == ["x", "y"]
    empty = fit_probe([[[], []], [[], []]], np.array(["x", "y"]), np.array(["0", "1"]))
    assert len(empty([[["a"]], [["b"]]])) == 1


def test_knowledge_that_tells_nothing_is_left_out():
    """Tuning has the text alone among its choices."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    text = [["good" if y else "bad", f"w{i % 7}"] for i, y in enumerate(label)]
    noise = [[f"f{k}" for k in rng.integers(0, 40, 30)] for _ in label]
    names, clusters = np.where(label, "x", "y"), np.arange(60).astype(str)
    settings = {}
    fitted = fit_probe([text[:40], noise[:40]], names[:40], clusters[:40], settings)
    assert settings["joined"][0] == 0
    assert fitted([text[40:], noise[40:]]) == names[40:].tolist()
    often = rng.integers(0, 9, 60)
    facts = [
        ["on a"] * int(n) + (["on b"] if y else ["on c"]) for n, y in zip(often, label, strict=True)
    ]
    settings = {}
    fitted = fit_probe([noise[:40], facts[:40]], names[:40], clusters[:40], settings)
    assert settings["joined"][0] > 0
    assert fitted([noise[40:], facts[40:]]) == names[40:].tolist()


def test_marked_mentions_are_masked_in_order():
    example = Example(0, "Ada wrote to Bob .", spans=((13, 16, "b"), (0, 3, "a")))
    features = read_text(example, roles=True)
    assert {"ada", "pair <1> wrote", "pair to <0>", "between wrote", "order [1, 0]"} <= set(
        features
    )
    assert {"between ^ wrote", "between to $", "<1> ends ada", "<0> ends bob"} <= set(features)
    assert read_text(example, roles=False) == ["ada", "wrote", "to", "bob", "."]


def test_walks_and_where_they_end():
    kg = KG.from_triples([("a", "r", "b"), ("b", "s", "c"), ("d", "r", "b"), ("a", "r", "e")])
    a, b, c, d, e = range(5)
    r, s = range(2)
    assert list_options(kg, [a], 1) == {(r,): {b, e}}
    assert list_options(kg, [a], 2) == {(r,): {b, e}, (r, s): {c}, (r, r + 2): {d}}
    assert list_options(kg, [c], 2) == {(s + 2,): {b}, (s + 2, r + 2): {a, d}}


def test_the_best_walk_may_be_a_long_one(tmp_path):
    facts = [("ann", "met", f"{n} men") for n in (3, 4, 5, 6)] + [("3 men", "like", "tea")]
    (tmp_path / "kg.tsv").write_text("\n".join(map("\t".join, facts)))
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "ann", "answers": ["3 men", "tea"]}))
    for hops, best in ((1, 0.25), (2, 1.0)):
        config = Config(
            data=DataConfig(train=f"{tmp_path}/t.jsonl", vocab_size=64),
            knowledge=KnowledgeConfig(kg=f"{tmp_path}/kg.tsv", hops=hops),
            fusion=FusionConfig(kind="cross_attention"),
        )
        parts, splits = build(config)
        asked = Questions(parts.dataset(splits.train), parts.knowledge.kg, hops)
        assert asked.oracle().tolist() == [best]


def test_ceilings_of_questions(tmp_path):
    parts, train, tests = make(tmp_path, "kgqa", hops=1)
    found = measure_ceilings(parts, train, np.arange(len(train)), tests)["test"]
    assert found["examples"] == {"all": 48, "covered": 48, "unambiguous": 48}
    assert found["rows"][ORACLE]["all"] == found["rows"][LOOK_UP]["all"] == 1.0
    assert found["rows"][NEIGHBOUR]["all"] == 0.5
