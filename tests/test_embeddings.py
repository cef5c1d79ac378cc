"""Embedding files: ours, those of other tools, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from keft_jax.config import KeftError
from keft_jax.kg import embeddings as module
from keft_jax.kg.embeddings import Embeddings, align, is_embeddings, read_embeddings
from keft_jax.kg.names import Names

NAMES, KINDS = ["/m/1", "a b", "京"], ["likes", "knows"]
RNG = np.random.default_rng(0)
TABLE, KIND_TABLE = (RNG.normal(size=(n, 4)).astype(np.float32) for n in (3, 2))


def example(**more):
    parts = {"relations": KINDS, "relation_vectors": KIND_TABLE, **more}
    return Embeddings(NAMES, TABLE, **parts)


def write(folder, embeddings=None):
    module.write_embeddings(folder, embeddings or example())
    return folder


def dglke(folder, ids="entities.tsv", *, table=TABLE):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "toy_TransE_entity.npy", table)
    (folder / ids).write_text("2\t京\n0\t/m/1\n1\ta b\n")
    return folder


def check(found, *, related=True):
    assert list(found.names) == NAMES
    np.testing.assert_array_equal(found.vectors, TABLE)
    assert found.vectors.dtype == np.float32
    if related:
        assert list(found.relations) == KINDS
        np.testing.assert_array_equal(found.relation_vectors, KIND_TABLE)
    else:
        assert found.relation_vectors is None


def test_written_is_read_again_bit_for_bit(tmp_path):
    extra = {"projection": np.zeros((2, 4, 4), np.float32)}
    labels = ["One\tor\nmore", "", "Peking"]
    written = example(labels=labels, extra=extra, meta={"model": "transr", "graph": "ab"})
    folder = write(tmp_path / "out", written)
    found = read_embeddings(folder)
    check(found)
    assert is_embeddings(folder) and dict(found.meta) == {"model": "transr", "graph": "ab"}
    assert list(found.labels) == ["One or more", "a b", "Peking"]
    np.testing.assert_array_equal(found.extra["projection"], extra["projection"])
    # the NumPy and the safetensors file with the TSV are formats of their own
    for name in ("entity.npy", "entities.safetensors"):
        check(read_embeddings(folder / name))
    np.testing.assert_array_equal(np.load(folder / "relation.npy"), KIND_TABLE)
    assert (folder / "entities.tsv").read_text() == (
        "0\t/m/1\tOne or more\n1\ta b\ta b\n2\t京\tPeking\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = write(tmp_path / "again", found)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    check(read_embeddings(write(tmp_path / "bare", Embeddings(NAMES, TABLE))), related=False)


def test_dglke(tmp_path):
    folder = dglke(tmp_path / "dglke")
    check(read_embeddings(folder), related=False)
    check(read_embeddings(folder / "toy_TransE_entity.npy"), related=False)
    np.save(folder / "toy_TransE_relation.npy", KIND_TABLE.astype(np.float64))
    np.save(folder / "toy_TransEprojection.npy", np.ones((2, 16)))
    (folder / "relations.tsv").write_text("0\tlikes\n1\tknows\n")
    found = read_embeddings(folder)
    check(found)
    assert found.extra["projection"].shape == (2, 16)
    named = dglke(tmp_path / "named", "mine.txt")
    (named / "config.json").write_text(json.dumps({"emap_file": "mine.txt"}))
    check(read_embeddings(named), related=False)
    (named / "config.json").write_text(json.dumps({"emap_file": "../named/mine.txt"}))
    with pytest.raises(KeftError, match=r"emap_file '../named/mine.txt' is no file's name"):
        read_embeddings(named)


def test_openke_json(tmp_path):
    (tmp_path / "entity2id.txt").write_text("3\na b\t1\n/m/1 0\n京\t2\n")
    (tmp_path / "relation2id.txt").write_text("2\nlikes\t0\nknows\t1\n")
    rows = {"ent_embeddings.weight": TABLE, "rel_embeddings.weight": KIND_TABLE}
    content = {name: table.tolist() for name, table in rows.items()}
    path = tmp_path / "transe.json"
    path.write_text(json.dumps({**content, "zero_const": [0.0], "margin": 5.0}))
    check(read_embeddings(path))
    halves = {
        f"{thing}_{part}_embeddings.weight": table[:, side].tolist()
        for thing, table in (("ent", TABLE), ("rel", KIND_TABLE))
        for part, side in (("re", slice(2)), ("im", slice(2, 4)))
    }
    path.write_text(json.dumps(halves))
    check(read_embeddings(tmp_path))  # the only table of the folder
    content["ent_embeddings.weight"][1] = [1.0]
    path.write_text(json.dumps(content))
    with pytest.raises(KeftError, match="row 1 has 1 values, not 4"):
        read_embeddings(path)
    path.write_text(json.dumps(content)[:-9])
    with pytest.raises(KeftError, match="no JSON, or cut off"):
        read_embeddings(path)
    path.write_text("[1]")
    with pytest.raises(KeftError, match=r"without ent_embeddings.weight"):
        read_embeddings(path)


@pytest.mark.parametrize("head", ["", "3 4\n"])
def test_text(tmp_path, head):
    rows = [
        " ".join([name, *map(repr, row)])
        for name, row in zip(NAMES, TABLE.astype(float).tolist(), strict=True)
    ]
    path = tmp_path / "v.txt"
    path.write_text(head + "\n".join(rows) + "\n")
    check(read_embeddings(path), related=False)
    at = 4 if head else 3
    for bad, what in (
        ("京 1 2 3", rf":{at}: 3 values, not 4"),
        ("京 1 2 x 3", rf":{at}: could not convert string to float: 'x'"),
        ("京 1 2 nan 3", rf":{at}: '京' has a value that is not finite"),
        (rows[0], rf":{at}: '/m/1' is on line {at - 2} too"),
    ):
        path.write_text(head + "\n".join([*rows[:2], bad]))
        with pytest.raises(KeftError, match=what):
            read_embeddings(path)
    path.write_text("9 4\n" + "\n".join(rows))
    with pytest.raises(KeftError, match=r"v.txt:1: says 9 rows, 3 follow"):
        read_embeddings(path)


def spoil(row, value):
    table = TABLE.copy()
    table[row, 2] = value
    return table


@pytest.mark.parametrize(
    ("table", "what"),
    [
        (spoil(1, np.nan), r"entity.npy: entity table: row 1 \('a b'\) has nan at 2"),
        (spoil(2, np.inf), r"row 2 \('京'\) has inf at 2"),
        (np.full((3, 4), 1e300), r"row 0 \('/m/1'\) has inf at 0"),
        (TABLE[:2], r"\(named by entities.tsv\): 2 rows, but 3 ids; give a row for each id"),
        (TABLE[:, 0], r"shape \[3\]; a table is \[rows, width\]"),
        (TABLE.astype(np.int64), r"int64; write floats"),
        (TABLE.astype(np.complex64), r"complex64; write real and imaginary parts side by side"),
        (TABLE.astype(object), r"entity.npy: Python objects; save an array of floats"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, table, what):
    with pytest.raises(KeftError, match=what) as error:
        read_embeddings(dglke(tmp_path / "x", table=table))
    assert "\n" not in str(error.value)


def test_bad_id_files_and_truncated_tables(tmp_path):
    folder = dglke(tmp_path / "x")
    ids = folder / "entities.tsv"
    for text, what in (
        ("0\ta\n1\tb\n3\tc\n", r"entities.tsv:3: id 3, but there are 3"),
        ("0\ta\n1\tb\n1\tc\n", r"entities.tsv: id 1 is on lines 2 and 3"),
        ("a\t0\nb\t1\nc\t2\n", r"entities.tsv:1: 'a' is no integer id; write id<tab>entity"),
        ("0\ta\n1\ta\n2\tc\n", r"entity 'a' is on lines 1 and 2"),
    ):
        ids.write_text(text)
        with pytest.raises(KeftError, match=what):
            read_embeddings(folder)
    ids.unlink()
    with pytest.raises(KeftError, match=r"no entities.tsv beside it to name its rows; put one"):
        read_embeddings(folder)
    table = folder / "toy_TransE_entity.npy"
    table.write_bytes(table.read_bytes()[:-3])
    with pytest.raises(KeftError, match=r"entity.npy: no .npy file, or cut off"):
        read_embeddings(table)
    whole = safetensors.numpy.save({"a": TABLE, "b": TABLE})
    (tmp_path / "t.safetensors").write_bytes(whole[:-3])
    with pytest.raises(KeftError, match=r"t.safetensors: no safetensors file, or cut off"):
        read_embeddings(tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").write_bytes(whole)
    with pytest.raises(KeftError, match="has a, b; call the entities' table entity"):
        read_embeddings(tmp_path / "t.safetensors")


@pytest.mark.parametrize("name", ["model.pt", "transe.ckpt", "x.pkl", "m.bin"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(KeftError, match=rf"{name}: may hold a pickle.*; save the tables as"):
            read_embeddings(path)


def test_a_damaged_folder_of_ours(tmp_path):
    folder = write(tmp_path / "out")
    for name in ("entities.safetensors", "entities.tsv", "meta.json"):
        path, good = folder / name, (folder / name).read_bytes()
        for bad in (good[:-9], good[:-9] + b"#" + good[-8:]):
            path.write_bytes(bad)
            with pytest.raises(KeftError, match=rf"{name}: .*; export the embeddings again"):
                read_embeddings(folder)
        path.unlink()
        with pytest.raises(KeftError):
            read_embeddings(folder)
        path.write_bytes(good)
    check(read_embeddings(folder))


def test_nothing_is_half_written(tmp_path, monkeypatch):
    for bad, what in (
        (Embeddings(NAMES, spoil(1, np.nan)), r"row 1 \('a b'\) has nan"),
        (Embeddings(["a", "b\tc", "d"], TABLE), r"identifier 'b\\tc' of row 1"),
        (Embeddings(["a", "b ", "d"], TABLE), r"identifier 'b ' of row 1"),
        (Embeddings(["a", "b", "a"], TABLE), r"identifier 'a' is there twice"),
        (example(extra={"x": np.array([np.nan])}), "table 'x': has a NaN"),
    ):
        with pytest.raises(KeftError, match=what):
            write(tmp_path / "out", bad)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", fail)
        with pytest.raises(KeftError, match=r"cannot write there \(No space left"):
            write(tmp_path / "out")
    assert not [*tmp_path.iterdir()]
    write(tmp_path / "out")
    with pytest.raises(KeftError, match="is there already"):
        write(tmp_path / "out")
    with pytest.raises(KeftError, match="3 rows, but 2 ids"):
        Embeddings(["a", "b"], TABLE)


def test_align_goes_by_identifier():
    wanted = Names.of(["京", "new", "/m/1"])
    vectors, found = align(example(), wanted, 4)
    assert found.tolist() == [True, False, True] and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([TABLE[2], 0 * TABLE[0], TABLE[0]]))
    vectors, found = align(example().of_relations(), ["knows"])
    np.testing.assert_array_equal(vectors, KIND_TABLE[1:])
    with pytest.raises(KeftError, match="4 wide, 8 expected; set the width to 4"):
        align(example(), wanted, 8)
    with pytest.raises(KeftError, match=r"none of the 1 names .* the first wanted 'q'"):
        align(example(), ["q"])
    with pytest.raises(KeftError, match="without vectors of relations"):
        Embeddings(NAMES, TABLE).of_relations()
