"""Splits of their own files, or set aside from the training file by whole clusters."""

import json
import random
from collections import Counter

import pytest

from keft_jax.config import DataConfig, KeftError
from keft_jax.data.source import Example
from keft_jax.data.splits import HELD_OUT, read_splits, set_aside, split_names
from keft_jax.gain.audit import normalise


def examples(sizes, prefix="topic"):
    """Clusters of these sizes; their examples stand apart from one another."""
    out = [
        Example(0, f"{prefix} {i} question {j}", cluster=f"{prefix}{i}")
        for i, size in enumerate(sizes)
        for j in range(size)
    ]
    random.Random(1).shuffle(out)
    return out


@pytest.mark.parametrize("seed", range(20))
def test_whole_clusters_go_to_one_part_and_shares_are_met(seed):
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 5, 40]) for _ in range(rng.randrange(20, 200))]
    found = examples(sizes, f"s{seed}-")
    shares = {"select": rng.uniform(0, 0.4), "test": rng.uniform(0, 0.4)}
    parts = set_aside(found, shares)
    assert sorted(e.text for p in parts.values() for e in p) == sorted(e.text for e in found)
    clusters = {name: {e.cluster for e in part} for name, part in parts.items()}
    assert sum(map(len, clusters.values())) == len(sizes)  # each in one part
    for name, share in shares.items():
        over = len(parts[name]) - share * len(found)
        assert -0.5 <= over < max(sizes) - 0.5 + 1e-9
    place = {e.text: i for i, e in enumerate(found)}
    for part in parts.values():  # in the order of the file
        assert [place[e.text] for e in part] == sorted(place[e.text] for e in part)


def test_the_order_of_the_file_changes_nothing():
    found = examples([3, 1, 4, 1, 5, 9, 2, 6])
    shares = {"select": 0.3, "test": 0.2}
    parts = set_aside(found, shares)
    again = set_aside(found[::-1], shares)
    assert {n: Counter(e.text for e in p) for n, p in parts.items()} == {
        n: Counter(e.text for e in p) for n, p in again.items()
    }


def test_equal_texts_stay_together_where_there_is_no_cluster():
    """Whatever their case and their spaces."""
    forms = (str, str.upper, " {} ".format, lambda text: text.replace(" ", "  "))
    found = [
        Example(i, forms[i % 4](f"text {i % 50}"), pair=forms[i % 3](f"pair {i % 2}"))
        for i in range(400)
    ]
    parts = set_aside(found, {"select": 0.25, "test": 0.25})
    texts = {
        name: {(normalise(e.text), normalise(e.pair)) for e in part} for name, part in parts.items()
    }
    assert not texts["select"] & texts["test"] and not texts["train"] & texts["select"]
    assert [len(parts[n]) for n in ("select", "test", "train")] == [104, 104, 192]


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "all.jsonl"
    rows = [{"question": f"q{i}", "answers": ["a"], "cluster": f"c{i % 10}"} for i in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_read_splits(file):
    splits = read_splits(DataConfig(train=str(file), select_share=0.2, test_share=0.1))
    sizes = {name: len(part) for name, part in splits}
    assert sizes == {"train": 70, "select": 20, HELD_OUT: 10}
    again = read_splits(DataConfig(train=str(file), select=str(file), test_share=0.1))
    assert {n: len(part) for n, part in again} == {"train": 90, "select": 100, HELD_OUT: 10}
    plain = read_splits(DataConfig(train=str(file), test=(str(file),)))
    assert {name: len(part) for name, part in plain} == {"train": 100, "select": 0, "all": 100}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": ""}, "data.train = '': name the file"),
        ({"select_share": 0.001}, r"data.select_share = 0.001: sets no example of .*all.jsonl"),
        ({"test_share": 0.001}, r"data.test_share = 0.001: sets no example"),
        ({"select_share": 0.5, "test_share": 0.499}, "leave none of the 100 examples"),
        ({"select_share": 1.0}, "data.select_share = 1.0: use a share"),
        ({"select_share": -0.1}, "use a share"),
        ({"select_share": 0.5, "test_share": 0.5}, "leaves nothing to train on"),
        ({"select_share": 0.5, "select": "x"}, "data.select_share = 0.5: data.select = 'x'"),
        ({"test_share": 0.5, "test": ("x",)}, "data.test_share = 0.5: data.test"),
        ({"test": ("a/b.jsonl", "c/b.tsv")}, "a/b.jsonl and c/b.tsv have one name"),
    ],
)
def test_what_cannot_be_split_is_told(file, options, says):
    with pytest.raises(KeftError, match=says):
        read_splits(DataConfig(**({"train": str(file)} | options)))


def test_names_of_splits():
    paths = ("a/valid.jsonl.gz", "tfds:set/config:1.0.0:test", "x.y.tsv")
    assert list(split_names(paths)) == ["valid", "test", "x"]
