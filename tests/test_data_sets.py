"""Data sets made from raw files: what their splits share, what their graphs hold."""

import gzip
import importlib.util
import json
import os
import random
import re
import typing as ty
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import raw_data

from keft_jax.config import DataConfig, KeftError, read_arg, with_mode
from keft_jax.data import fewrel, semeval, squad, wikigold, wordnet
from keft_jax.data import typing as types
from keft_jax.data.generators import GENERATORS
from keft_jax.data.raw import set_apart, without
from keft_jax.data.source import read_examples
from keft_jax.kg.io import read_triples
from keft_jax.options import load_config_file
from keft_jax.tasks.kinds import labels_of

ROOT = Path(__file__).resolve().parents[1]
APART = ("typing", "squad", "wikigold")  # by `cluster`
SETS = ("sst2", "fewrel", "semeval", "typing", "commonsense", "squad", "wikigold", "cola")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return raw_data.write_all(tmp_path_factory.mktemp("raw") / "raw")


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def text_of(row: dict) -> tuple:
    found = row.get("tokens") or [row.get("sentence") or row["question"] + row.get("context", "")]
    return tuple(" ".join(found).lower().split())


def make(name: str, source: Path, folder: Path) -> dict[str, list[dict]]:
    GENERATORS[name](str(source), folder)
    return {file.stem: read(file) for file in sorted(folder.glob("*.jsonl"))}


def test_every_generator_can_be_asked_for():
    annotation = ty.get_type_hints(DataConfig)["generator"]
    assert set(ty.get_args(annotation)) == {"", *GENERATORS}


def groups_of(name: str, rows: list[dict]) -> set[str]:
    """What no two files may share, beside texts."""
    if name == "fewrel":  # in any role
        return {row[side][1] for row in rows for side in "ht"}
    return {row["cluster"] for row in rows if name in APART}


@pytest.mark.parametrize("name", SETS)
def test_splits(name, raw, tmp_path):
    """No text is in two files; selection splits lie in each other; a second run writes the same;
    what the recipe names is there, and its fields can be read."""
    parts = make(name, raw, tmp_path / "a")
    selects = sorted((p for p in parts if p.startswith("select")), key=lambda p: len(parts[p]))
    if name == "squad":  # those of another part that have an answer
        for part in ("pool", "select", "test"):
            answered = parts.pop(f"answered-{part}")
            assert answered == [row for row in parts[part] if row["answers"]] != []
    for small in selects[:-1]:
        assert parts[small] == parts[selects[-1]][: len(parts[small])]
        del parts[small]
    assert len(parts) == 3 + (name == "cola")
    texts = {part: {text_of(row) for row in rows} for part, rows in parts.items()}
    names = sorted(parts)
    for i, one in enumerate(names):
        assert texts[one]
        for other in names[:i]:
            assert not texts[one] & texts[other]
            groups = [groups_of(name, parts[part]) for part in (one, other)]
            assert not groups[0] & groups[1]
    for arg in ("", *([":answered"] if name == "squad" else [])):
        config = load_config_file(str(ROOT / f"configs/{name}.py{arg}"))
        for path in (config.data.train, config.data.select, *config.data.test):
            assert read_examples(tmp_path / "a" / Path(path).name, config.data)
    for path in (config.knowledge.kg, config.knowledge.aliases, config.knowledge.descriptions):
        assert not path or (tmp_path / "a" / Path(path).name).is_file()
    make(name, raw, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_groups_stay_whole():
    rows = [(random.Random(i).randrange(40), i) for i in range(300)]
    parts = set_apart(rows, lambda row: row[0], 100, 30)
    groups = [{row[0] for row in part} for part in parts]
    assert sorted(row for part in parts for row in part) == sorted(rows)
    assert all(part == [row for row in rows if row in part] for part in parts)
    assert not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])
    largest = max(Counter(row[0] for row in rows).values())
    assert 100 <= len(parts[0]) < 100 + largest and 30 <= len(parts[1]) < 30 + largest
    assert without(rows, parts[0], lambda row: row[0]) == [r for r in rows if r not in parts[0]]


def test_nouns(raw):
    nouns = wordnet.read_nouns(raw)
    said = [nouns.lemma(word) for word in ("dogs", "Mice", "old dogs", "rock stars", "zzz")]
    assert said == ["dog", "mouse", "dog", "rock_star", None]
    assert set(nouns.names.values()) == {
        *("thing.n.01", "animal.n.01", "dog.n.01", "hound.n.01", "mouse.n.01", "rock star.n.01")
    }
    assert set(nouns.triples(["hound"])) == {
        ("hound", "sense", "hound.n.01"),
        *(("hound", "kind of", f"{above}.n.01") for above in ("dog", "animal", "thing")),
        ("hound.n.01", "hypernym", "dog.n.01"),
        ("dog.n.01", "hypernym", "animal.n.01"),
        ("animal.n.01", "hypernym", "thing.n.01"),
    }
    assert dict(nouns.descriptions(["animal"])) == {
        "animal": "animal: lives",
        "animal.n.01": "animal: lives",
        "thing.n.01": "thing: what is",
    }


def test_named_graph(raw, tmp_path):
    """Each entity has one name, and no two the same."""
    make("wikigold", raw, tmp_path)
    triples, _ = read_triples(tmp_path / "kg.tsv")
    names = {name for head, _, tail in triples for name in (head, tail)}
    assert len(names) == raw_data.COUNT
    pairs = [line.split("\t") for line in (tmp_path / "aliases.tsv").read_text().splitlines()]
    assert {name for name, _ in pairs} == names
    for name in names:
        label = name.partition(" (")[0]
        assert name == label or [name, label] in pairs
    assert {"actor film", "relation P1"} <= {relation for _, relation, _ in triples}


def test_types_without_their_edges(raw, tmp_path):
    parts = make("typing", raw, tmp_path)
    triples, _ = read_triples(tmp_path / "kg.tsv")
    assert not {relation for _, relation, _ in triples} & set(types.TYPE_LIKE)
    for row in parts["test"]:
        assert row["answers"] == sorted({t for fine in row["fine"] if (t := types.group(fine))})
    said = {types.group(name) for name in ("Tamil languages", "lake", "no such class")}
    assert said == {"language", "water", None}


BROKEN = {
    "semeval": (
        "relation/semeval2010-task8/TRAIN_FILE.TXT.gz",
        '1\t"no marks"\nOther\n\n\n',
        ":1: ",
    ),
    "typing": ("typing/fewrel-typing/valid.jsonl.gz", '{"tokens": ["a"]}\n', ":1: no record"),
    "commonsense": ("mcqa/commonsenseqa/dev_rand_split.jsonl.gz", '{"question": 3}\n', ":1: no q"),
    "squad": (squad.FILE, '{"data": [{}]}', "not SQuAD's JSON"),
    "wikigold": (wikigold.FILE, "one O\ntwo B-X\n", ":2: 'two B-X'"),
    "cola": ("glue/cola/in_domain_dev.tsv.gz", "s\t1\t\tfine\ns\t7\t\tbad\n", ":2: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named(name, raw, tmp_path):
    part, text, said = BROKEN[name]
    for file in raw.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(raw)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(raw)).symlink_to(file)
    (tmp_path / part).unlink()
    with pytest.raises(KeftError, match="no such file"):
        GENERATORS[name](str(tmp_path), tmp_path / "out")
    (tmp_path / part).write_bytes(gzip.compress(text.encode()))
    with pytest.raises(KeftError, match=f"{Path(part).name}.*{said}"):
        GENERATORS[name](str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out/pool.jsonl").exists()


def test_an_answer_that_is_not_there_is_named(tmp_path):
    answer = {"text": "rain", "answer_start": 3}
    asked = {"question": "what?", "id": "q7", "answers": [answer], "is_impossible": False}
    data = {"data": [{"title": "t", "paragraphs": [{"context": "the rain", "qas": [asked]}]}]}
    file = tmp_path / "squad.json.gz"
    file.write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(
        KeftError, match=r"squad.json.gz: question q7: 'rain' does not stand at .* 3"
    ):
        squad.read_questions(file)


def test_arguments_of_recipes():
    assert [read_arg(a) for a in ("300", "all", "32,frozen", "all,scratch")] == [
        *((300, ""), (0, ""), (32, "frozen"), (0, "scratch"))
    ]
    for bad in ("", "0", "few", "-3", "300,", "300,froze"):
        if bad != "300,":
            with pytest.raises(KeftError, match="give a number of labelled texts"):
                read_arg(bad)
    config = load_config_file(f"{ROOT}/configs/semeval.py:300")
    frozen, scratch = (with_mode(config, mode) for mode in ("frozen", "scratch"))
    scales = {group.match: group.scale for group in frozen.optim.groups}
    assert scales["embed/"] == scales["encoder/"] == 0 and frozen.encoder == config.encoder
    assert not scratch.encoder.pretrained and scratch.encoder.layers == 4
    assert not any(g.match.startswith(("embed", "encoder")) for g in scratch.optim.groups)
    assert with_mode(config, "") is config


def test_no_fact_joins_the_two_of_a_sentence(raw, tmp_path):
    parts = make("fewrel", raw, tmp_path)
    pairs = {(row["h"][1], row["t"][1]) for rows in parts.values() for row in rows}
    triples, _ = read_triples(tmp_path / "kg.tsv")
    assert (
        not {(h, t) for head, _, tail in triples for h, t in ((head, tail), (tail, head))} & pairs
    )
    assert len(triples) == 3 * raw_data.COUNT


def test_the_real_fewrel(shared):
    """No entity of the test stands elsewhere in any role; it is that of the linear baselines."""
    linear = baselines(shared)
    rows = fewrel.read_sentences(shared / "data")
    rest, test = fewrel.split(rows, fewrel.TEST_SENTENCES)
    assert not groups_of("fewrel", rest) & groups_of("fewrel", test)
    assert {row["relation"] for row in test} == {row["relation"] for row in rest}
    pool, theirs = linear.entity_disjoint_split(rows)
    assert [row["tokens"] for row in test] == [row["tokens"] for row in theirs]
    assert [row["tokens"] for row in rest] == [row["tokens"] for row in pool]


def test_the_real_semeval(shared):
    """The test sentences, the pool and the lemmas are those of the linear baselines."""
    linear, data = baselines(shared), shared / "data"
    nouns = wordnet.read_nouns(data)
    rows = semeval.read_sentences(data, nouns.lemma)
    pool, select, test = semeval.split(rows)
    raw_text = linear.read(data / "relation/semeval2010-task8/TRAIN_FILE.TXT.gz")
    theirs = re.findall(r'\d+\t"(.*)"\r?\n(.*)\r?\n', raw_text)
    random.Random(linear.SPLIT_SEED).shuffle(theirs)
    plain = [re.sub("</?e[12]>", "", sentence) for sentence, _ in theirs]
    assert [row["sentence"] for row in test] == plain[-1500:]
    assert [row["label"] for row in test] == [label.strip() for _, label in theirs[-1500:]]
    labels = load_config_file(str(ROOT / "configs/semeval.py")).task.labels
    assert {row["label"] for row in test} <= set(labels)
    assert not {semeval.words(r) for r in test} & {semeval.words(r) for r in pool + select}
    assert {row["sentence"] for row in pool + select} <= set(plain[:-1500])
    assert len(pool) + len(select) > 6480
    first = {lemma: of[0] for lemma, of in nouns.senses.items()}
    for row in rows[::50]:
        for (start, end, _), lemma in zip(row["spans"], row["lemmas"], strict=True):
            phrase = row["sentence"][start:end]
            assert linear.noun_lemma(phrase, first, nouns.irregular) == lemma


def test_every_class_of_the_real_typing_data(shared):
    """The map names no class that is not there."""
    fine: set[str] = set()
    for part in ("train", "valid"):
        file = shared / f"data/typing/fewrel-typing/{part}.jsonl.gz"
        for line in gzip.decompress(file.read_bytes()).decode().splitlines():
            fine.update(json.loads(line)["types"])
    assert not set(types.GROUPS) - fine
    assert len(set(types.GROUPS.values())) == 14


class NoGraph:
    """In the place of Wikidata, which takes seconds to read."""

    def __init__(self, raw: Path):
        self.name = str

    def facts(self) -> list[tuple[str, str, str]]:
        return []

    def in_words(self, facts: list) -> list:
        return facts

    def descriptions(self, known: set[str]) -> list:
        return []


@pytest.mark.parametrize("name", ["sst2", "cola", "typing", "wikigold"])
def test_the_real_labels_and_texts(name, shared, tmp_path, monkeypatch):
    """No test label is unknown to the pool or the recipe, and no text is in two parts."""
    monkeypatch.setattr(types, "Wikidata", NoGraph)
    monkeypatch.setattr(wikigold, "write_named_graph", lambda raw, folder: None)
    parts = make(name, shared / "data", tmp_path)
    config = load_config_file(str(ROOT / f"configs/{name}.py"))

    def labels(path: str) -> set[str]:
        examples = read_examples(tmp_path / Path(path).name, config.data)
        return set(labels_of(config.task.kind, examples))

    known = set(config.task.labels) or labels(config.data.train)
    for path in (config.data.select, *config.data.test):
        assert labels(path) <= known
    texts: dict[str, set[tuple]] = {"pool": set(), "select": set(), "test": set()}
    for part, rows in parts.items():
        kind = part.partition("_")[0]
        texts[kind if kind in texts else "test"] |= set(map(text_of, rows))
    assert len(set.union(*texts.values())) == sum(map(len, texts.values()))


def baselines(shared: Path):
    """The module of linear baselines."""
    file = shared / "baselines/linear.py"
    if not file.is_file():
        pytest.skip("no linear baselines beside the checkout")
    spec = importlib.util.spec_from_file_location("linear_baselines", file)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ):  # it sets numbers of threads
        spec.loader.exec_module(module)
    return module
