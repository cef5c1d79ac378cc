"""Lexicons as graphs, and the SST-2 files that are made with them."""

import gzip
import itertools
import json
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from keft_jax.config import (
    Config,
    DataConfig,
    FusionConfig,
    KeftError,
    KnowledgeConfig,
    TaskConfig,
)
from keft_jax.data import sst2
from keft_jax.data.generators import GENERATORS
from keft_jax.data.lexicon import (
    AFINN,
    OPINION,
    VADER,
    Lexicon,
    describe,
    make_triples,
    read_lexicons,
    read_opinion,
    read_values,
)
from keft_jax.data.raw import nested
from keft_jax.data.source import read_examples
from keft_jax.kg.io import Report
from keft_jax.kg.store import KG
from keft_jax.train.parts import generate

SHARED = Path(__file__).resolve().parents[1].parent / "shared/data"


def write_lexicons(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "good\t1.9\t0.9\t[2, 2]\nawful\t-3.2\t1\t[-3]\nbad line\n\nodd\tmany\nhuge\t9\n"
    (folder / VADER).write_bytes(gzip.compress(lines.encode() + b"caf\xe9\t1\n"))
    (folder / AFINN).write_text("good\t3\ncan't stand\t-3\nnothing\t0\n")
    with zipfile.ZipFile(folder / OPINION, "w") as archive:
        for sign, words in (("positive", "good\nnaïve\n"), ("negative", "awful\nodd\n")):
            text = f"; a comment\n;\n\n{words}".encode("latin-1")
            archive.writestr(f"opinion_lexicon/{sign}-words.txt", text)
    return folder


def test_three_lexicons(tmp_path):
    lexicons, report = read_lexicons(write_lexicons(tmp_path))
    assert [lexicon.name for lexicon in lexicons] == ["VADER", "AFINN", "opinion lexicon"]
    vader, afinn, opinion = (lexicon.values for lexicon in lexicons)
    assert vader == {"good": 1.9 / 4, "awful": -0.8}
    assert afinn == {"good": 0.6, "can't stand": -0.6, "nothing": 0}
    assert opinion == {"good": 1, "naïve": 1, "awful": -1, "odd": -1}
    assert (report.files, report.malformed_lines) == (4, 4)
    assert [line for _, line, _ in report.malformed] == [3, 5, 6, 7]
    assert report.read == 2 + 3 + 4


def test_each_alone_is_enough_and_none_is_not(tmp_path):
    for i, keep in enumerate((VADER, AFINN, OPINION)):
        folder = write_lexicons(tmp_path / str(i))
        for name in {VADER, AFINN, OPINION} - {keep}:
            (folder / name).unlink()
        assert len(read_lexicons(folder)[0]) == 1
    with pytest.raises(KeftError, match="no lexicon; put vader"):
        read_lexicons(tmp_path)


def test_triples():
    lexicons = [
        Lexicon("A", {"good": 0.5, "fine": 0.2, "odd": -0.1}),
        Lexicon("B", {"odd": 1.0, "nothing": 0.0}),
        Lexicon("C", {"fine": 1.0, "bad": -1.0}, graded=False),
    ]
    assert make_triples(lexicons) == [
        ("bad", "polarity", "negative word"),
        ("fine", "polarity", "positive word"),
        ("fine", "A valence", "slightly positive"),
        ("good", "polarity", "positive word"),
        ("good", "A valence", "clearly positive"),
        ("nothing", "polarity", "neutral word"),
        ("nothing", "B valence", "neutral word"),
        ("odd", "polarity", "positive word"),
        ("odd", "A valence", "slightly negative"),
        ("odd", "B valence", "very positive"),
    ]


def test_strength_is_odd_and_rises():
    values = [i / 20 for i in range(-20, 21)]
    said = list(dict.fromkeys(describe(v) for v in values))
    assert said == [
        *("very negative", "clearly negative", "slightly negative", "neutral word"),
        *("slightly positive", "clearly positive", "very positive"),
    ]
    for v in values:
        other = {"positive": "negative", "negative": "positive"}
        assert " ".join(other.get(w, w) for w in describe(-v).split()) == describe(v)


def test_own_lexicon_takes_its_scale_from_the_file(tmp_path):
    file = tmp_path / "own.tsv"
    file.write_text("\ufeffcheap\t20\nnoisy\t-50\n")
    lexicon = read_values(file, "shop")
    assert lexicon.values == {"cheap": 0.4, "noisy": -1.0}
    kg = KG.from_triples(make_triples([lexicon]))
    assert set(kg.relations) == {"polarity", "shop valence"}


@pytest.mark.parametrize("content", ["", "word\n", "word\tnan\n", "\t1\n"])
def test_a_file_without_words_is_refused(tmp_path, content):
    (tmp_path / "own.tsv").write_text(content)
    with pytest.raises(KeftError, match="no line holds a word and its value"):
        read_values(tmp_path / "own.tsv", "own", Report())


def test_damaged_files_are_told(tmp_path):
    folder = write_lexicons(tmp_path)
    (folder / VADER).write_bytes((folder / VADER).read_bytes()[:-20])
    with pytest.raises(KeftError, match=r"vader_lexicon.txt.gz: cannot be read"):
        read_lexicons(folder)
    (folder / OPINION).write_bytes(b"PK")
    with pytest.raises(KeftError, match=r"not the opinion lexicon"):
        read_opinion(folder / OPINION)
    with zipfile.ZipFile(folder / OPINION, "w") as archive:
        archive.writestr("../opinion_lexicon/positive-words.txt", "good")
    with pytest.raises(KeftError, match=r"no item named"):
        read_opinion(folder / OPINION)


def make_source(folder: Path, train: int = 6000) -> Path:
    (folder / "sentiment/sst2").mkdir(parents=True)
    write_lexicons(folder / "knowledge/lexicons")
    rng = random.Random(0)
    for part, count in (("train", train), ("dev", 20)):
        rows = [f"film {rng.randrange(train)}  is\t{i % 3 % 2}" for i in range(count)]
        (folder / f"sentiment/sst2/{part}.tsv.gz").write_bytes(
            gzip.compress(("\n".join(rows) + "\n").encode())
        )
    return folder


def sst2_config(source: Path, folder: Path) -> Config:
    return Config(
        data=DataConfig(
            generator="sst2",
            source=str(source),
            train=str(folder / "pool.jsonl"),
            select=str(folder / "select_32.jsonl"),
            test=(str(folder / "test.jsonl"),),
            text="sentence",
        ),
        task=TaskConfig(kind="classification"),
        fusion=FusionConfig(kind="none"),
    )


def test_generated_splits(tmp_path):
    config = sst2_config(make_source(tmp_path / "raw"), tmp_path / "out")
    generate(config)
    before = (tmp_path / "out/pool.jsonl").stat().st_mtime_ns
    generate(config)
    assert (tmp_path / "out/pool.jsonl").stat().st_mtime_ns == before  # made once
    parts = {
        name: [" ".join(e.text.split()) for e in read_examples(path, config.data, need=("label",))]
        for name in ("pool", "test", *(f"select_{n}" for n in sst2.SELECT_SIZES))
        if (path := str(tmp_path / f"out/{name}.jsonl"))
    }
    assert len(parts["test"]) == 4020
    for a, b in (("pool", "test"), ("pool", "select_300"), ("select_300", "test")):
        assert not set(parts[a]) & set(parts[b])
    sizes = sst2.SELECT_SIZES
    for small, large in itertools.pairwise(sizes):
        assert parts[f"select_{small}"] == parts[f"select_{large}"][:small]
    assert (tmp_path / "out/kg.tsv").read_text().count("polarity") == 6


def test_every_beginning_is_stratified():
    rows = [{"label": "negative"}] * 30 + [{"label": "positive"}] * 60
    order = nested(rows, key=lambda row: row["label"])
    assert len(order) == 90
    for n in range(1, 91):
        assert abs(sum(r["label"] == "positive" for r in order[:n]) - 2 / 3 * n) <= 1


def test_a_missing_source_is_named(tmp_path):
    for source, reason in (("", "no such folder"), (tmp_path / "raw", "sst2: no such folder")):
        (tmp_path / "raw").mkdir(exist_ok=True)
        config = sst2_config(source, tmp_path / "out")
        config = replace(config, data=replace(config.data, source=str(source)))
        with pytest.raises(KeftError, match=rf"{reason}.*--data.source="):
            generate(config)
    bad = make_source(tmp_path / "bad", 1)
    (bad / "sentiment/sst2/dev.tsv.gz").write_bytes(gzip.compress(b"fine\t1\nno label\n"))
    with pytest.raises(KeftError, match=r"dev.tsv.gz:2: 'no label'; write sentence<tab>0 or 1"):
        generate(sst2_config(bad, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_generator_runs_where_something_is_missing(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setitem(GENERATORS, "sst2", lambda source, folder: ran.append(folder))
    config = sst2_config("", tmp_path)
    config = replace(config, knowledge=KnowledgeConfig(kg=str(tmp_path / "kg")))
    generate(config)
    assert ran == [tmp_path]
    for name in (config.data.train, config.data.select, *config.data.test):
        Path(name).touch()
    Path(config.knowledge.kg).mkdir()  # a graph that is built is a folder
    generate(config)
    elsewhere = replace(config.data, test=("tfds:other:test",))
    generate(replace(config, data=elsewhere))
    assert ran == [tmp_path]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the raw data is not at ../shared/data")
def test_the_real_split(tmp_path):
    """872 dev + 4,000 held-out sentences; the rule that linear baselines are scored by."""
    sst2.generate(str(SHARED), tmp_path)
    read = lambda name: [json.loads(x) for x in (tmp_path / name).read_text().splitlines()]  # noqa: E731
    raw = gzip.decompress((SHARED / "sentiment/sst2/train.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t")[0] for line in raw.rstrip("\n").split("\n")]
    random.Random(20240).shuffle(rows)
    test, pool, select = read("test.jsonl"), read("pool.jsonl"), read("select_300.jsonl")
    assert [r["sentence"] for r in test if r["part"] == "held-out"] == rows[:4000]
    assert sum(r["part"] == "dev" for r in test) == 872
    held = {tuple(r["sentence"].split()) for r in test}
    rest = [r for r in rows[4000:] if tuple(r.split()) not in held]
    mine = {r["sentence"] for r in pool + select}
    assert mine == set(rest)
    assert len(select) == 300
