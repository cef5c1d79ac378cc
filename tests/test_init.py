"""`keft init`: what it guesses, what it says, what it refuses."""

import json
import subprocess
import sys

import pytest

from keft_jax.config import KeftError
from keft_jax.data.source import read_examples
from keft_jax.data.tfds_builders import prepare
from keft_jax.init import init
from keft_jax.options import load_config

SHELVES = [f"shelf{i}" for i in range(6)]
KINDS = ("anvil", "basil", "candle", "drill", "easel")
ITEMS = [f"{kind}{end}" for kind in KINDS for end in ("", " pot", " box")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A graph of items on shelves, in two wings."""
    monkeypatch.chdir(tmp_path)
    facts = [f"{item}\tkept_on\t{SHELVES[i % 6]}" for i, item in enumerate(ITEMS)]
    facts += [f"{shelf}\tin_wing\twing{i % 2}" for i, shelf in enumerate(SHELVES)]
    (tmp_path / "kg.tsv").write_text("\n".join(facts))
    return tmp_path


def rows(*make):
    """Two texts on every item."""
    texts = ("please bring me the {} today", "is any {} still there ?")
    pairs = [(t.format(item), i, item) for i, item in enumerate(ITEMS) for t in texts]
    return [dict(f(*pair) for f in make) for pair in pairs]


def write(folder, records):
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, records)))
    return "text.jsonl"


def order(text, i, item):
    return "order", text


def team(text, i, item):
    return "team", ("early", "late")[i % 2]


def answers(text, i, item):
    return "where", [SHELVES[i % 6]]


def about(text, i, item):
    return "item", item


def said(made, what):
    return next(g for g in made.guesses if g.what == what)


def test_labels_by_their_few_values(folder):
    made = init("kg.tsv", write(folder, rows(order, team)), "own.py")
    config = load_config("own.py")
    assert config.task.kind == "classification" and config.task.labels == ("early", "late")
    assert (config.data.text, config.data.label) == ("order", "team")
    assert config.knowledge.link == "string"
    assert "2 values" in said(made, "label").why


def test_answers_are_names_of_the_graph(folder):
    made = init("kg.tsv", write(folder, rows(order, team, answers, about)), "own.py")
    config = load_config("own.py")
    assert config.task.kind == "kgqa" and config.data.answers == "where"
    assert config.data.entity == config.data.cluster == "item"
    assert config.knowledge.link == "given" and config.knowledge.hops == 1
    assert said(made, "task").others == ("label: team",)
    told = init(
        "kg.tsv", "text.jsonl", "own.py", told={"label": "team"}, force=True
    )  # the user knows better
    assert told.columns.task == "classification"


def test_a_table_without_a_header(folder):
    lines = [f"{r['order']}\t{r['team']}" for r in rows(order, team)]
    (folder / "text.tsv").write_text("\n".join(lines))
    init("kg.tsv", "text.tsv", "own.py")
    data = load_config("own.py").data
    assert (data.text, data.label) == ("1", "2")


def test_what_the_graph_leaves_out_is_said(folder):
    facts = (folder / "kg.tsv").read_text()
    (folder / "bad.tsv").write_text("\n".join([facts, "one", "a\t\tb", "x\ty", "z"]))
    made = init("bad.tsv", write(folder, rows(order, team)), "own.py")
    told = said(made, "malformed")
    first = facts.count("\n") + 2
    assert told.value == "4 lines" and told.why.startswith(f"left out: bad.tsv:{first}: 1 field")
    assert told.why.endswith(", ...")
    whole = init("kg.tsv", "text.jsonl", "own.py", force=True)
    assert not [g for g in whole.guesses if g.what == "malformed"]


def test_a_prepared_data_set_in_a_folder_of_its_own(folder):
    write(folder, rows(order, team))
    (folder / "text.jsonl").rename(folder / "train.jsonl")
    prepare("orders", ["train.jsonl"], folder="prepared")
    made = init("kg.tsv", "tfds:orders:train", "own.py", tfds_dir="prepared")
    data = load_config("own.py").data
    assert (data.tfds_dir, data.text, data.label) == ("prepared", "order", "team")
    assert made.columns.records == len(read_examples(data.train, data, need=("label",))) == 30
    with pytest.raises(KeftError, match=r"--tfds-dir prepared: train\.jsonl is not tfds:"):
        init("kg.tsv", "train.jsonl", "own.py", tfds_dir="prepared", force=True)


def test_marked_tokens(folder):
    def tokens(text, i, item):
        return "tokens", text.split()

    def head(text, i, item):
        words = text.split()
        return "h", [item, item, [[words.index(item.split()[0])]]]

    init("kg.tsv", write(folder, rows(tokens, head, team)), "own.py")
    config = load_config("own.py")
    assert config.data.text == "tokens" and config.data.token_spans == ("h",)
    assert config.data.label == "team" and config.knowledge.link == "given"


def test_what_is_written_is_clean(folder):
    init("kg.tsv", write(folder, rows(order, team)), "made/own.py")
    init("kg.tsv", "text.jsonl", "made/large.py", pretrained="some/folder")
    for args in (["check", "--line-length=100"], ["format", "--check", "--line-length=100"]):
        command = [sys.executable, "-m", "ruff", *args, "--no-cache", "made"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert load_config("made/large.py").encoder.pretrained == "some/folder"


@pytest.mark.parametrize(
    ("records", "told", "message"),
    [
        (rows(order, team), {"label": "teem"}, "--label teem: no such column .*order, team"),
        (rows(order), {}, "name one with --label or --answers"),
        (rows(order, team)[:12], {}, "12 examples; .* takes 20 or more"),
        (rows(order, about), {"label": "order"}, "has 300 values; labels are 2 to 200"),
    ],
)
def test_what_cannot_be_guessed_is_one_line(folder, records, told, message):
    if told == {"label": "order"}:
        records = [{**r, "order": f"{r['order']} {i}"} for i, r in enumerate(records * 10)]
    with pytest.raises(KeftError, match=message):
        init("kg.tsv", write(folder, records), "own.py", told=told)
    assert not (folder / "own.py").exists()


def test_nothing_is_overwritten_unasked(folder):
    path = write(folder, rows(order, team))
    (folder / "own.py").write_text("mine")
    with pytest.raises(KeftError, match="exists; name another file, or overwrite it with --force"):
        init("kg.tsv", path, "own.py")
    with pytest.raises(KeftError, match="end its name in"):
        init("kg.tsv", path, "own.txt")
    with pytest.raises(KeftError, match=r"--text none\.jsonl: no such file"):
        init("kg.tsv", "none.jsonl", "other.py")
    assert (folder / "own.py").read_text() == "mine"
