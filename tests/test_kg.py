"""The store and its files: ids, versions, what is written, what is refused."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keft_jax.config import KeftError
from keft_jax.kg import KG, build_kg, describe, read_triples
from keft_jax.kg.names import Names

FACTS = [
    ("Paris", "capital_of", "France"),
    ("Lyon", "located_in", "France"),
    ("France", "borders", "Spain"),
    ("北京", "located_in", "中国"),
    ("Paris", "located_in", "France"),
    ("Ω", "is", "Ω"),
]
ALIASES = {"Paris": ["City of Light", "Paname", "Paname", "Paris"], "Atlantis": ["Lost City"]}
NOTES = {"Paris": "A city.\nOn the Seine.", "Nemo": "No one."}


def graph(**more):
    return KG.from_triples(FACTS, aliases=ALIASES, descriptions=NOTES, **more)


def facts_of(kg):
    rows = zip(kg.heads, kg.rels, kg.tails, strict=True)
    return {(kg.names[h], kg.relations[r], kg.names[t]) for h, r, t in rows}


def test_ids_and_hash_do_not_depend_on_order_or_version():
    shuffled = FACTS * 2
    random.Random(0).shuffle(shuffled)
    aliases = {name: some[::-1] for name, some in reversed(ALIASES.items())}
    other = KG.from_triples(shuffled, aliases=aliases, descriptions=NOTES, version=7)
    kg = graph()
    assert list(kg.names) == list(other.names) == sorted(kg.names)
    assert kg.hash == other.hash and kg.version != other.version
    for change in (
        KG.from_triples(FACTS[1:], aliases=ALIASES, descriptions=NOTES),
        KG.from_triples(FACTS, aliases={}, descriptions=NOTES),
        KG.from_triples(FACTS, aliases=ALIASES),
    ):
        assert change.hash != kg.hash


def test_index_lists_every_triple_from_both_ends():
    rng = np.random.default_rng(0)
    raw = [(f"e{a}", f"r{b}", f"e{c}") for a, b, c in rng.integers(0, 12, (200, 3))]
    kg = KG.from_triples(raw)
    assert facts_of(kg) == set(raw) and kg.n_triples == len(set(raw))
    keys = list(zip(kg.heads.tolist(), kg.rels.tolist(), kg.tails.tolist(), strict=True))
    assert keys == sorted(keys)
    for e in range(kg.n_entities):
        out = range(kg.out_offsets[e], kg.out_offsets[e + 1])
        into = kg.in_triples[kg.in_offsets[e] : kg.in_offsets[e + 1]].tolist()
        assert list(out) == [i for i, (h, _, _) in enumerate(keys) if h == e]
        assert set(into) == {i for i, (_, _, t) in enumerate(keys) if t == e}
        assert into == sorted(into, key=lambda i: (keys[i][1], keys[i][0]))
        assert kg.degrees[e] == len(out) + len(into)
    with pytest.raises(ValueError, match="read-only"):
        kg.heads[0] = 1


def test_names_aliases_and_descriptions():
    kg = graph()
    assert kg.aliases(kg.id("Paris")) == ("City of Light", "Paname")  # not its own name, once each
    assert kg.aliases(kg.id("Lyon")) == () and kg.description(kg.id("Lyon")) == ""
    assert kg.description(kg.id("Paris")) == NOTES["Paris"]
    surfaces, entity = kg.alias_table()
    assert dict(zip(surfaces, entity.tolist(), strict=True))["Lost City"] == kg.id("Atlantis")
    assert kg.degrees[kg.id("Nemo")] == 0 and kg.find("nemo") is None
    with pytest.raises(KeftError, match=r"entity 'Pariss': not in the graph .* did you mean 'Pari"):
        kg.id("Pariss")
    with pytest.raises(KeftError, match="did you mean 'borders'"):
        kg.relation_id("border")


def test_packed_names_act_like_a_list():
    strings = ["", "a", "北京", "ﬁ", "𝔸b"]
    names = Names.of(strings)
    assert list(names) == strings and names[-1] == "𝔸b" and names[1:3] == strings[1:3]
    assert [names.find(s) for s in strings] == list(range(5)) and names.find("zz") is None
    with pytest.raises(IndexError):
        names[5]
    with pytest.raises(KeftError, match="surrogate"):
        Names.of(["\ud800"])
    with pytest.raises(KeftError, match="1 character or more"):
        KG.from_triples([("a", "", "b")])


def test_versions():
    kg = graph()
    more = kg.add([("Aachen", "located_in", "Germany"), FACTS[0]])
    assert more.version == 2 and facts_of(more) == {*FACTS, ("Aachen", "located_in", "Germany")}
    assert more.aliases(more.id("Paris")) == kg.aliases(kg.id("Paris"))
    assert more.description(more.id("Nemo")) == "No one."
    less = kg.remove([FACTS[2]])
    assert facts_of(less) == set(FACTS) - {FACTS[2]} and list(less.names) == list(kg.names)
    assert less.add([FACTS[2]]).hash == kg.hash and less.add([FACTS[2]]).version == 3
    with pytest.raises(KeftError, match=r"remove \('Paris', 'borders', 'Spain'\): no such fact"):
        kg.remove([("Paris", "borders", "Spain")])
    with pytest.raises(KeftError, match="tails: ids"):
        kg.replace_triples([0], [0], [99])


def test_saved_is_loaded_mapped_and_equal(tmp_path):
    for kg in (graph(version=4), KG.from_triples([]), graph().add([("x", "y", "z")])):
        kg.save(tmp_path / "kg")  # over the one before
        again = KG.load(tmp_path / "kg", verify=True)
        assert again.version == kg.version and again.hash == kg.hash
        again.__dict__.pop("hash")
        assert again.hash == kg.hash and list(again.names) == list(kg.names)
        np.testing.assert_array_equal(again.in_triples, kg.in_triples)
    assert [p.name for p in tmp_path.iterdir()] == ["kg"]


def test_a_failed_save_leaves_the_old_graph(tmp_path, monkeypatch):
    graph().save(tmp_path / "kg")
    calls = []

    def fail(*args, **more):
        calls.append(args)
        if len(calls) == 5:
            raise OSError("disk full")
        return original(*args, **more)

    original = np.save
    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        KG.from_triples([("a", "b", "c")]).save(tmp_path / "kg")
    assert KG.load(tmp_path / "kg", verify=True).hash == graph().hash
    assert [p.name for p in tmp_path.iterdir()] == ["kg"]


def test_save_replaces_graphs_only(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(KeftError, match="mine: holds other things than a graph"):
        graph().save(tmp_path / "mine")
    with pytest.raises(KeftError, match=r"notes.txt: a file, not a folder"):
        graph().save(tmp_path / "mine" / "notes.txt")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_load_names_what_is_damaged(tmp_path):
    with pytest.raises(KeftError, match="no such folder"):
        KG.load(tmp_path / "none")
    with pytest.raises(KeftError, match="not a graph"):
        KG.load(tmp_path)
    for name in ("heads.npy", "names.bytes.npy", "meta.json"):
        graph().save(tmp_path / "kg")
        whole = (tmp_path / "kg" / name).read_bytes()
        (tmp_path / "kg" / name).write_bytes(whole[:-3])
        with pytest.raises(KeftError, match=rf"{name}: .*; build it again"):
            KG.load(tmp_path / "kg")
        if name != "meta.json":
            flipped = whole[:-1] + bytes([whole[-1] ^ 1])
            (tmp_path / "kg" / name).write_bytes(flipped)
            with pytest.raises(KeftError, match="checksum"):
                KG.load(tmp_path / "kg", verify=True)
        (tmp_path / "kg" / name).unlink()
        with pytest.raises(KeftError, match=r"missing|not a graph"):
            KG.load(tmp_path / "kg")
        (tmp_path / "kg" / name).write_bytes(whole)
    meta = json.loads((tmp_path / "kg" / "meta.json").read_text())
    (tmp_path / "kg" / "meta.json").write_text(json.dumps({**meta, "layout": 99}))
    with pytest.raises(KeftError, match="layout 99"):
        KG.load(tmp_path / "kg")


def test_reads_tsv_csv_and_gzip(tmp_path):
    lines = ["\t".join(fact) for fact in FACTS]
    (tmp_path / "a.tsv").write_text("\ufeff" + "\r\n".join([*lines, "", ""]), encoding="utf-8")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    quoted = "".join(f'"{h}", {r},"{t}"\n' for h, r, t in FACTS)
    (tmp_path / "a.csv").write_text("head,relation,tail\n" + quoted, encoding="utf-8")
    (tmp_path / "train.txt.gz").write_bytes((tmp_path / "a.tsv.gz").read_bytes())
    for name in ("a.tsv", "a.tsv.gz", "train.txt.gz", "a.csv"):
        facts, report = read_triples(tmp_path / name, strict=True)
        assert facts == FACTS and report.read == 6 and not report.malformed
    (tmp_path / "names.tsv").write_text("Paris\tPaname\nParis\tCity, of Light\n")
    (tmp_path / "notes.csv").write_text('Paris,"a, b"\n')
    kg, report = build_kg(
        [tmp_path / "a.tsv", tmp_path / "a.csv"],
        aliases=tmp_path / "names.tsv",
        descriptions=tmp_path / "notes.csv",
    )
    assert report.files == 4 and report.duplicates == 6 and kg.n_triples == 6
    assert kg.aliases(kg.id("Paris")) == ("City, of Light", "Paname")
    assert kg.description(kg.id("Paris")) == "a, b"


def test_reads_parquet(tmp_path):
    file = tmp_path / "a.parquet"

    def write(names, rows):
        pq.write_table(pa.table({n: [row[i] for row in rows] for i, n in enumerate(names)}), file)

    write(("source", "tail", "relation", "head"), [(7, t, r, h) for h, r, t in FACTS])
    assert read_triples(file, strict=True)[0] == FACTS
    write(("a", "b", "c", "d"), [(*fact, 1.5) for fact in FACTS])
    assert read_triples(file, strict=True)[0] == FACTS
    write(("from", "how", "to"), [(1, "r", 2), (1, None, 3), (1, " ", 4)])
    facts, report = read_triples(file)
    assert facts == [("1", "r", "2")]
    assert [line[1:] for line in report.malformed] == [(2, "how is empty"), (3, "how is empty")]
    with pytest.raises(KeftError, match=r"a.parquet:2: how is empty"):
        read_triples(file, strict=True)
    write(("a", "b"), [("x", "y")])
    with pytest.raises(KeftError, match=r"has the columns a, b; give head, relation, tail"):
        read_triples(file)
    kg, _ = build_kg(_written(tmp_path / "kg.tsv", "x\tr\ty\n"), aliases=file)
    assert kg.aliases(kg.id("x")) == ("y",)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(KeftError, match=r"a.parquet: no Parquet, or damaged"):
        read_triples(file)


def _written(path, text):
    path.write_text(text)
    return path


def test_malformed_lines_are_counted_and_listed(tmp_path):
    path = tmp_path / "mixed.tsv"
    bad = [b"x" * 10_000_000, b"c\tr\t\xff", b"a\t \tb", b"a\0\tr\tb", b"a\tr\tb\tc"]
    path.write_bytes(b"\n".join([b"a\tr\tb", *bad, b"z\tr\ty"]) + b"\n")
    facts, report = read_triples(path)
    assert facts == [("a", "r", "b"), ("z", "r", "y")]
    assert report.malformed_lines == 5 and report.lines == 7
    reasons = ["longer than 1 MiB", "not UTF-8", "field 2 is empty", "NUL", "4 fields, not 3"]
    for (file, line, reason), number, part in zip(
        report.malformed, range(2, 7), reasons, strict=True
    ):
        assert file == str(path) and line == number and part in reason and len(reason) < 100
    with pytest.raises(KeftError, match=r"mixed.tsv:2: longer than 1 MiB"):
        read_triples(path, strict=True)
    path.write_bytes(b"a\tr\tb\n" + b"one field\n" * 500)
    _, report = read_triples(path)
    assert report.malformed_lines == 500 and len(report.malformed) == 20


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("e.tsv", b"", "empty"),
        ("b.tsv", b"\n \n", "empty"),
        ("two.tsv", b"a\tb\nc\td\n", "line 1: 2 fields, not 3.*--aliases"),
        ("comma.tsv", b"a,r,b\n", "is it .csv"),
        ("bin.tsv", bytes(range(256)) * 20, "binary"),
        ("wide.tsv", "a\tr\tb\n".encode("utf-16"), "UTF-16"),
        ("long.tsv", b"x" * 3_000_000, "longer than 1 MiB"),
        ("not.tsv.gz", b"a\tr\tb\n", "not gzip"),
        ("packed.tsv", gzip.compress(b"a\tr\tb\n", mtime=0), "call it packed.tsv.gz"),
        ("cut.tsv.gz", gzip.compress(random.Random(0).randbytes(9000), mtime=0)[:4000], "damaged"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KeftError, match=says) as caught:
        build_kg(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_missing_path_and_folder_are_refused(tmp_path):
    with pytest.raises(KeftError, match=r"none.tsv: no such file"):
        read_triples(tmp_path / "none.tsv")
    with pytest.raises(KeftError, match="a folder"):
        read_triples(tmp_path)
    with pytest.raises(KeftError, match="none given"):
        build_kg([])


def test_describe():
    told = describe(graph())
    assert told["entities"] == 9 and told["triples"] == 6 and told["isolated_entities"] == 2
    assert told["aliases"] == 3 and told["top_relations"]["located_in"] == 3
    assert told["degree_quantiles"]["1"] == 4 and told["ambiguous_names"] == 0
    assert json.loads(json.dumps(told)) == told
    twice = KG.from_triples([("a", "r", "b")], aliases={"a": ["x", "b"], "b": ["x"]})
    assert describe(twice)["ambiguous_names"] == 2
    assert describe(KG.from_triples([]))["degree_mean"] == 0
