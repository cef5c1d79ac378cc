"""Splits of triples: the layouts of other tools, one numbering, what is refused."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keft_jax.config import KeftError
from keft_jax.kg import KG, columns, io, read_triples
from keft_jax.kg.columns import line_of, plain_strings, read_columns
from keft_jax.kg.triples import Unseen, read_splits

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "kg"
TRAIN = [("b", "likes", "a"), ("a", "likes", "ç d"), ("a", "knows", "b"), ("b", "likes", "a")]
VALID = [("b", "knows", "a")]
TEST = [("z", "likes", "a"), ("a", "hates", "b")]  # z and hates are not in train
ENTITIES, RELATIONS = ["a", "b", "z", "ç d"], ["hates", "knows", "likes"]


def write(path, rows, separator="\t"):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def facts(found, split):
    rows = found.splits[split].tolist()
    return [(found.entities[h], found.relations[r], found.entities[t]) for h, r, t in rows]


def check(found):
    """The three splits, whatever they were read from."""
    assert facts(found, "train") == TRAIN[:3]
    assert facts(found, "select") == VALID and facts(found, "test") == TEST
    assert found.report.files["train"].duplicates == 1
    assert found.report.unseen["select"] == Unseen()
    assert found.report.unseen["test"] == Unseen(entities=1, relations=1, triples=2)
    assert len(found.report.notes()) == 2
    assert all(x.dtype == np.int32 and not x.flags.writeable for x in found.splits.values())
    assert list(found.labels) == list(found.entities)


def names_folder(folder, end=".txt"):
    for stem, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        write(folder / f"{stem}{end}", rows, "," if "csv" in end else "\t")
    return folder


def openke_folder(folder, separator=" "):
    order = {"entity": ENTITIES[::-1], "relation": RELATIONS[::-1]}
    for thing, names in order.items():
        rows = [(name, i) for i, name in enumerate(names)]
        random.Random(1).shuffle(rows)
        write(folder / f"{thing}2id.txt", [(len(rows),), *rows])
    for stem, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        e, r = order["entity"].index, order["relation"].index
        ids = [(len(rows),), *((e(a), e(b), r(k)) for a, k, b in rows)]
        write(folder / f"{stem}2id.txt", ids, separator)
    return folder


def dglke_folder(folder, *, ids, order=(0, 1, 2), end=".dict"):
    entities, relations = ENTITIES[::-1], RELATIONS[::-1]
    write(folder / f"entities{end}", enumerate(entities))
    write(folder / f"relations{end}", enumerate(relations))
    for stem, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        if ids:
            rows = [(entities.index(a), relations.index(k), entities.index(b)) for a, k, b in rows]
        write(folder / f"{stem}.txt", [[row[i] for i in order] for row in rows])
    return folder


@pytest.mark.parametrize("end", [".txt", ".tsv.gz", ".csv"])
def test_a_folder_of_names_and_its_files(tmp_path, end):
    folder = names_folder(tmp_path / "names", end)
    found = read_splits(folder)
    check(found)
    assert list(found.entities) == ENTITIES and list(found.relations) == RELATIONS
    files = [folder / f"{stem}{end}" for stem in ("train", "valid", "test")]
    single = read_splits(files[0], files[1], [files[2], files[2]])
    assert list(single.splits) == ["train", "select", "test", "test-2"]
    assert all((single.splits[k] == v).all() for k, v in found.splits.items())
    assert list(read_splits(files[0]).splits) == ["train"]


def test_parquet_and_a_graph(tmp_path):
    folder = names_folder(tmp_path / "names")
    rows = [*TRAIN, ("", "likes", "a"), (None, "likes", "b")]
    table = dict(zip(io.TRIPLE, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({"note": [1.5] * len(rows), **table}), tmp_path / "train.parquet")
    found = read_splits(tmp_path / "train.parquet", folder / "valid.txt", [folder / "test.txt"])
    assert facts(found, "train") == TRAIN[:3] and list(found.entities) == ENTITIES
    assert found.report.files["train"].malformed[0][1:] == (5, "head is empty")
    KG.from_triples(TRAIN, aliases={"lonely": ["hermit"]}).save(tmp_path / "kg")
    found = read_splits(tmp_path / "kg", folder / "valid.txt", [folder / "test.txt"])
    assert sorted(facts(found, "train")) == sorted(TRAIN[:3]) and facts(found, "test") == TEST
    assert list(found.entities) == sorted([*ENTITIES, "lonely"])
    pq.write_table(pa.table({**table, "head": [1.0] * len(rows)}), tmp_path / "bad.parquet")
    with pytest.raises(KeftError, match="column head is double; give text or integers"):
        read_splits(tmp_path / "bad.parquet")


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_openke_keeps_its_ids(tmp_path, separator):
    folder = openke_folder(tmp_path / "openke", separator)
    found = read_splits(folder)
    check(found)
    assert list(found.entities) == ENTITIES[::-1] and list(found.relations) == RELATIONS[::-1]
    more = read_splits(folder, tests=[folder / "test2id.txt", write(tmp_path / "extra.tsv", TEST)])
    assert list(more.splits) == ["train", "select", "test", "extra"]
    assert (more.splits["extra"] == found.splits["test"]).all()
    write(folder / "valid2id.txt", [(0,)])
    assert list(read_splits(folder).splits) == ["train", "test"]


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_dglke_keeps_its_ids_in_any_order_of_columns(tmp_path, ids, order):
    folder = dglke_folder(tmp_path / "dglke", ids=ids, order=order)
    if ids:  # so few entities could be relations too: more of them settle which column is which
        with (folder / "entities.dict").open("a") as file:
            file.write("4\te4\n5\te5\n")
        for column in (0, 2):
            row = [5 if order[i] == column else 2 if order[i] != 1 else 0 for i in range(3)]
            with (folder / "train.txt").open("a") as file:
                file.write("\t".join(map(str, row)) + "\n")
    found = read_splits(folder)
    assert facts(found, "train")[:3] == TRAIN[:3] and facts(found, "test") == TEST
    assert list(found.entities)[:4] == ENTITIES[::-1]
    assert list(found.relations) == RELATIONS[::-1]


def test_numbers_that_are_names_and_ids_are_refused(tmp_path):
    write(tmp_path / "entities.tsv", [(0, 1), (1, 0)])
    write(tmp_path / "relations.tsv", [(0, 0)])
    write(tmp_path / "train.txt", [(0, 0, 1)])
    with pytest.raises(KeftError, match=r"both names and ids of entities.tsv, and differ"):
        read_splits(tmp_path)
    assert read_splits(tmp_path / "train.txt").n_entities == 2


def test_the_order_of_lines_changes_no_id_and_names_are_shown(tmp_path):
    folder = names_folder(tmp_path / "names")
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join(lines[::-1]))  # without a last line end
    names = write(tmp_path / "n.tsv.gz", [("a", "x"), ("a", "Anna"), ("no one", "N"), ("z", "Zoë")])
    found = read_splits(folder, names=names)
    assert list(found.entities) == ENTITIES and set(facts(found, "train")) == set(TRAIN)
    assert list(found.labels) == ["Anna", "b", "Zoë", "ç d"] and found.report.named == 2
    with pytest.raises(KeftError, match=r"names none of the 4 entities \(its first is 'q', theirs"):
        read_splits(folder, names=write(tmp_path / "o.tsv", [("q", "x")]))


def test_blocks_read_as_lines_do(tmp_path, monkeypatch):
    """The columnar reader agrees with the one by lines, wherever a block ends."""
    rng = random.Random(0)
    odd = ["", "  ", "a\tb", "a\tb\tc\td", "a\t\tc", "a\0\tb\tc", "x\ty\rz\tw", "\ta\tb\tc"]
    good = [f" e{i % 7}\tr{i % 3} \te {i % 5}" for i in range(60)]
    body = [line.encode() for line in rng.sample(good + odd * 2, 76)]
    body[10:10] = [b"\xff\tb\tc", b"q\t" + b"v" * (1 << 20) + b"\tz", b"crlf\tr\tend\r"]
    path = tmp_path / "odd.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(body))
    rows, expected = read_triples(path)
    for block in (1, 40, 500, 1 << 24):
        monkeypatch.setattr(columns, "BLOCK", block)
        report = io.Report()
        found = read_columns(path, io.TRIPLE, report)
        texts = zip(*(plain_strings(column).to_pylist() for column in found), strict=True)
        assert list(texts) == rows and report == expected
    place = rows.index(("crlf", "r", "end"))
    assert line_of(path, io.TRIPLE, place) == 13
    quoted = tmp_path / "quoted.csv"
    quoted.write_text('subject,predicate,object\na, "b, c",d\ne,f,g\n')
    report = io.Report()
    found = read_columns(quoted, io.TRIPLE, report)
    assert plain_strings(found[1]).to_pylist() == ["b, c", "f"] and report.headers == 1
    assert report == read_triples(quoted)[1]


@pytest.mark.parametrize(
    ("name", "rows", "what"),
    [
        ("train2id.txt", ["2", "0 1 0", "9 1 0"], r"train2id.txt:3: head id 9 is out of ra"),
        ("train2id.txt", ["1", "0 1 -1"], r":2: relation id -1 is out of range; relation2"),
        ("test2id.txt", ["3", "0 1 0"], r"test2id.txt:1: says 3 rows, 1 follow"),
        ("test2id.txt", ["1", "0 1 0", "0 2 0"], r"test2id.txt:1: says 1 rows, 2 follow"),
        ("train2id.txt", ["0 1 0"], r"train2id.txt:1: '0 1 0' where the number of rows"),
        ("train2id.txt", ["1", "0 1"], r"train2id.txt:2: 2 fields, not 3; write head tail"),
        ("train2id.txt", ["1", "0 x 0"], r":2: tail 'x' is no integer id; write ids"),
        ("train2id.txt", ["0"], r"train2id.txt:1: says 0 rows; give some triples"),
        ("train2id.txt", [], r"train2id.txt: empty"),
        ("relation2id.txt", None, r"relation2id.txt: missing \(it looks like a folder of O"),
        ("entity2id.txt", ["2", "a\t0", "b\t0"], r"entity2id.txt: id 0 is on lines 2 and 3"),
        ("entity2id.txt", ["2", "a\t0", "b\t2"], r"entity2id.txt:3: id 2, but there are 2"),
        ("entity2id.txt", ["2", "a\t0", "a\t1"], r"entity 'a' is on lines 2 and 3"),
        ("entity2id.txt", ["2", "a\t0", "b\tx"], r"entity2id.txt:3: 'x' is no integer id"),
        ("entity2id.txt", ["5", "a\t0"], r"entity2id.txt:1: says 5 rows, 1 follow"),
    ],
)
def test_a_broken_openke_folder(tmp_path, name, rows, what):
    folder = openke_folder(tmp_path / "openke")
    (folder / name).unlink()
    if rows is not None:
        (folder / name).write_text("".join(f"{row}\n" for row in rows))
    with pytest.raises(KeftError, match=what) as error:
        read_splits(folder)
    assert "\n" not in str(error.value)


def test_other_broken_input(tmp_path):
    folder = dglke_folder(tmp_path / "dglke", ids=False)
    write(folder / "test.txt", [TEST[0], ("a", "likes", "stranger")])
    with pytest.raises(KeftError, match=r"test.txt:2: tail 'stranger' is not in entities.dict"):
        read_splits(folder)
    (folder / "relations.dict").unlink()
    with pytest.raises(KeftError, match=r"relations.dict: missing \(it looks like a folder of DGL"):
        read_splits(folder)
    folder = names_folder(tmp_path / "names")
    write(folder / "train.txt.gz", TRAIN)
    with pytest.raises(KeftError, match=r"has train.txt and train.txt.gz; leave one"):
        read_splits(folder)
    with pytest.raises(KeftError, match=r"has no train.txt"):
        read_splits(tmp_path)
    with pytest.raises(KeftError, match="ids without names; give the folder"):
        read_splits(openke_folder(tmp_path / "openke") / "train2id.txt")
    with pytest.raises(KeftError, match="empty"):
        read_splits(write(tmp_path / "empty.tsv", [()]))
    with pytest.raises(KeftError, match="no such file"):
        read_splits(folder / "valid.txt", tmp_path / "nowhere.tsv")


def test_real_data():
    folder = SHARED / "FB15k-237"
    if not folder.is_dir():
        pytest.skip(f"{folder}: FB15k-237 is not there")
    found = read_splits(folder, names=folder / "entity2text.txt.gz")
    assert (found.n_entities, found.n_relations) == (14_541, 237)
    sizes = {split: len(triples) for split, triples in found.splits.items()}
    assert sizes == {"train": 272_115, "select": 17_535, "test": 20_466}
    assert found.report.unseen["test"].triples == 28 and found.report.named == 14_541
    assert list(found.entities) == sorted(found.entities)
    assert found.labels[found.entities.find("/m/0106dv")] == "Waco"
