"""Every way in which a file can be wrong is named with its place; nothing is dropped silently."""

import dataclasses
import gzip
import io
import json
import logging
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keft_jax.config import DataConfig, KeftError
from keft_jax.data import records
from keft_jax.data.records import SourceReport
from keft_jax.data.source import examples_from, read_examples

GOOD = b'{"question": "who?", "answers": ["Ann", "Bob", "Ann"], "pattern": "p", "cluster": 7}\n'


def read(tmp_path, name, content, data=None, **options):
    file = tmp_path / name
    file.write_bytes(content)
    return read_examples(file, data or DataConfig(), **options)


def refuse(tmp_path, name, content, data=None, **options):
    """The one-line message with which a file is refused."""
    with pytest.raises(KeftError) as caught:
        read(tmp_path, name, content, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".csv"])
@pytest.mark.parametrize("zipped", [False, True])
def test_formats_agree(tmp_path, suffix, zipped):
    rows = [("who is é?", "Ann|Bob", "x"), ("東京 where?", "C", "y")]
    if suffix == ".jsonl":
        keys = ("question", "answers", "label")
        items = [dict(zip(keys, (q, a.split("|"), b), strict=True)) for q, a, b in rows]
        text = "".join(json.dumps(item) + "\r\n" for item in items)
    else:
        mark = "\t" if suffix == ".tsv" else ","
        text = "".join(mark.join(row) + "\n" for row in [("question", "answers", "label"), *rows])
    content = b"\xef\xbb\xbf" + text.encode()
    if zipped:
        suffix, content = suffix + ".gz", gzip.compress(content)
    found = read(tmp_path, "a" + suffix, content, need=("answers", "label"))
    assert [(e.id, e.text, "|".join(e.answers), e.label) for e in found] == [
        (i, *row) for i, row in enumerate(rows)
    ]


def test_values_become_texts(tmp_path):
    (example,) = read(tmp_path, "a.jsonl", GOOD)
    assert example.answers == ("Ann", "Bob")
    assert example.cluster == "7" and example.label is None
    assert example.where == f"{tmp_path / 'a.jsonl'}:1"
    labels = [e.label for e in examples_from([{"question": "a", "label": x} for x in (0, True)])]
    assert labels == ["0", "true"]


def test_malformed_lines_are_counted_with_their_place(tmp_path, caplog):
    bad = [
        b'{"question":', b"\xff\xfe{}", b"[1]", b"x" * 10_000_000, b'{"question": "a\\ud800"}',
        b'{"qestion": "a"}', b'{"question": " "}', b'{"question": ["a", 3]}', b"[" * 100_000,
        b'{"question": "a\x00"}',
    ]  # fmt: skip
    filler = GOOD * 120  # so that the NUL byte does not stand where binary files are told
    report = SourceReport()
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, "a.jsonl", filler + b"\n".join([*bad, GOOD]), report=report)
    assert len(found) == report.examples == 121
    assert report.malformed_lines == len(bad)
    assert [line for _, line, _ in report.malformed] == [121 + i for i in range(len(bad))]
    reasons = [reason for _, _, reason in report.malformed]
    for reason, part in zip(
        reasons,
        ("not JSON", "UTF-8 at byte 1", "list", "10,000,001 bytes", "surrogate", "'qestion'",
         "empty", "a int in the list", "nested", "NUL"),
        strict=True,
    ):  # fmt: skip
        assert part in reason
    assert f"{len(bad)} malformed lines" in caplog.text and "line 121" in caplog.text


def test_only_the_first_malformed_lines_are_listed(tmp_path):
    report = SourceReport()
    read(tmp_path, "a.jsonl", b"{\n" * 500 + GOOD, report=report)
    assert report.malformed_lines == 500 and len(report.malformed) == records.LISTED


def test_files_that_hold_nothing(tmp_path):
    assert "no example" in refuse(tmp_path, "a.jsonl", b"")
    assert "no example" in refuse(tmp_path, "a.tsv", b"question\tlabel\n\n")
    assert "binary" in refuse(tmp_path, "a.jsonl", b"\x7fELF\0\0")
    assert "a.jsonl.gz: named .gz" in refuse(tmp_path, "a.jsonl.gz", GOOD)
    assert "suffix .gz" in refuse(tmp_path, "a.jsonl", gzip.compress(GOOD))
    assert "damaged gzip" in refuse(tmp_path, "b.jsonl.gz", gzip.compress(GOOD * 9999)[:-9])
    assert "format .pdf" in refuse(tmp_path, "a.pdf", GOOD)


def test_a_wrong_field_is_named_with_the_right_one(tmp_path):
    message = refuse(tmp_path, "a.jsonl", GOOD, DataConfig(text="qestion"))
    assert "a.jsonl:1" in message and "did you mean 'question'" in message and "pattern" in message
    table = b"question\tlabl\nfoo\t1\n"
    assert "did you mean 'labl'" in refuse(tmp_path, "a.tsv", table, need=("label",))
    assert read(tmp_path, "a.tsv", table)[0].label is None
    assert "data.pair" in refuse(tmp_path, "a.jsonl", GOOD, DataConfig(pair="second"))


def test_missing_paths_name_what_is_near(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    for path, part in (
        (tmp_path / "trian.jsonl", "did you mean train.jsonl"),
        (tmp_path / "no" / "train.jsonl", "does not exist"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(KeftError, match=part):
            read_examples(path, DataConfig())


def test_tables_without_a_header_go_by_number(tmp_path):
    table = b'a "quoted\t1\nb\t0\nonly one column\n'
    report = SourceReport()
    found = read(tmp_path, "a.tsv", table, DataConfig(text="1", label="2"), report=report)
    assert [(e.text, e.label) for e in found] == [('a "quoted', "1"), ("b", "0")]
    assert report.malformed_lines == 1


def test_csv_cells_over_lines_and_damage_between(tmp_path):
    report = SourceReport()
    table = b'question,label\n"a,\nb",1\n"c\n\xff",2\nd,3\n"e" f,4\ng,5\n'
    found = read(tmp_path, "a.csv", table, report=report)
    assert [(e.text, e.label, e.where[-1]) for e in found] == [
        ("a,\nb", "1", "2"), ("d", "3", "6"), ("g", "5", "8"),
    ]  # fmt: skip
    assert [line for _, line, _ in report.malformed] == [5, 7]


@pytest.mark.parametrize(
    "text", ['{"question": "hi"}\n', "question\tlabel\nhi\t1\n", "hi\n"], ids=["json", "tsv", "txt"]
)
def test_stdin_is_told_by_its_first_line(monkeypatch, text):
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(text.encode())))
    monkeypatch.setattr(sys, "stdin", stdin)
    (example,) = read_examples("-", DataConfig())
    assert example.text == "hi" and example.where.startswith("stdin:")
    assert not stdin.buffer.closed


def test_given_mentions():
    brackets = DataConfig(brackets=True, entity="")
    (example,) = examples_from(["what did [Tom Hanks] and [Ann] do"], brackets)
    assert example.text == "what did Tom Hanks and Ann do"
    assert [(example.text[a:b], name) for a, b, name in example.spans] == [
        ("Tom Hanks", "Tom Hanks"),
        ("Ann", "Ann"),
    ]
    item = {"question": "what did [tom] do", "topic": "Tom Hanks"}
    (example,) = examples_from([item], DataConfig(brackets=True, entity="topic"))
    assert example.spans == ((9, 12, "Tom Hanks"),)
    names = ["oslo", "Norway", "Bergen"]
    (example,) = examples_from(
        [{"question": "Oslo in Norway", "topic": names}], DataConfig(entity="topic")
    )
    assert example.spans == ((0, 4, "oslo"), (8, 14, "Norway"), (0, 14, "Bergen"))


SPANS = DataConfig(spans="at")


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv"])
def test_given_spans(tmp_path, name):
    text, at = " Mr Hanks was in Oslo", [[1, 9, "Tom Hanks"], [17, 21, "Oslo"]]
    rows = [(text, at), ("nobody was there", [])]
    lines = [json.dumps({"question": t, "at": spans}) for t, spans in rows]
    if name == "a.tsv":
        lines = ["question\tat"] + [f"{t}\t{json.dumps(spans)}" for t, spans in rows]
    found = read(tmp_path, name, "\n".join(lines).encode(), SPANS)
    assert [e.spans for e in found] == [tuple(tuple(span) for span in at), ()]
    assert found[0].text == text and found[0].text[1:9] == "Mr Hanks"


def test_bad_spans_are_malformed_lines(tmp_path):
    bad = [
        ([[0, 99, "Oslo"]], "[0, 99] where 0 <= start < end <= 4"),
        ([[-1, 2, "Oslo"]], "[-1, 2] where"),
        ([[2, 2, "Oslo"]], "[2, 2] where"),
        ([[0, 4]], "[0, 4] where [start, end, entity name] is expected"),
        ([["0", 4, "Oslo"]], "['0', 4, 'Oslo'] where [start"),
        ([[0, True, "Oslo"]], "[0, True, 'Oslo'] where [start"),
        ([[0, 4, " "]], "[0, 4, ' '] where [start"),
        (["Oslo"], "'Oslo' where [start"),
        ({"start": 0}, "a dict where [[start"),
        (3, "a int where [[start"),
        ("[[0, 4,", "not JSON"),
    ]
    lines = [json.dumps({"question": "Oslo", "at": at}) for at, _ in bad]
    lines += ['{"question": "Oslo"}', json.dumps({"question": "Oslo", "at": [[0, 4, "Oslo"]]})]
    report = SourceReport()
    (example,) = read(tmp_path, "a.jsonl", "\n".join(lines).encode(), SPANS, report=report)
    assert example.spans == ((0, 4, "Oslo"),)
    assert [line for _, line, _ in report.malformed] == list(range(1, len(bad) + 2))
    reasons = [reason for _, _, reason in report.malformed]
    for reason, (_, part) in zip(reasons, bad, strict=False):
        assert part in reason and "data.spans = 'at'" in reason and "\n" not in reason
    assert "no such field" in reasons[-1]
    with pytest.raises(KeftError, match=r"input:1: data.spans"):
        examples_from([{"question": "Oslo", "at": [[3, 1, "Oslo"]]}], SPANS)
    with pytest.raises(KeftError, match=r"data\.spans = 'at': .*give one of these"):
        DataConfig(spans="at", brackets=True)


def test_a_list_of_tokens_is_a_text(tmp_path):
    (example,) = examples_from([{"question": ["Who", "is", "it", "?"]}])
    assert example.text == "Who is it ?"


TOKENS = DataConfig(text="tokens", label="name", token_spans=("h", "t"))


def relation(h, t=("b", "Q2", [[0]]), tokens=("Ann", "met", "old", "Bob", "'s", "dog")):
    return {"tokens": list(tokens), "name": "met", "h": h, "t": t}


@pytest.mark.parametrize("form", ["lists", "json"])
def test_token_spans_cover_their_tokens(form):
    item = relation(["old bob", "Q7", [[2, 3], [0]]], ["dog", "Q9", [[5]]])
    if form == "json":
        item |= {name: json.dumps(item[name]) for name in ("h", "t")}
    (example,) = examples_from([item], TOKENS)
    assert example.text == "Ann met old Bob 's dog"
    assert [(example.text[a:b], entity) for a, b, entity in example.spans] == [
        ("old Bob", "Q7"),
        ("dog", "Q9"),
    ]


def test_bad_token_spans_are_malformed_lines(tmp_path):
    bad = [
        (relation(["x", "Q1", [[6]]]), "[6] where token numbers from 0 to 5"),
        (relation(["x", "Q1", [[-1, 0]]]), "[-1, 0] where token numbers"),
        (relation(["x", "Q1", [[True]]]), "[True] where token numbers"),
        (relation(["x", "Q1", [["0"]]]), "['0'] where token numbers"),
        (relation(["x", "Q1", [[]]]), "where [name, entity, [[token numbers], ...]] is expected"),
        (relation(["x", "Q1", []]), "where [name, entity"),
        (relation(["x", "Q1"]), "where [name, entity"),
        (relation(["x", " ", [[0]]]), "where [name, entity"),
        (relation(["x", None, [[0]]]), "where [name, entity"),
        (relation("[1"), "not JSON"),
        (relation(""), "where [name, entity"),
        (relation(None), "None where [name, entity"),
        (relation(["x", "Q1", [[0]]]) | {"tokens": "Ann met Bob"}, "a str where data.token_spans"),
        (relation(["x", "Q1", [[0]]], tokens=["", "a"]), "[0] is an empty token"),
        ({"tokens": ["a"], "h": ["a", "Q1", [[0]]]}, "'t': no such field"),
    ]
    good = relation(["Ann", "Q1", [[0]]])
    lines = [json.dumps(record) for record, _ in bad] + [json.dumps(good)]
    report = SourceReport()
    (example,) = read(tmp_path, "a.jsonl", "\n".join(lines).encode(), TOKENS, report=report)
    assert example.spans == ((0, 3, "Q1"), (0, 3, "Q2"))
    assert [line for _, line, _ in report.malformed] == list(range(1, len(bad) + 1))
    for (_, _, reason), (_, part) in zip(report.malformed, bad, strict=True):
        assert part in reason and "\n" not in reason


def write_parquet(file, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), file, **options)


ROWS = [
    {"question": "who é?", "answers": ["Ann", "Bob"], "label": 1, "ok": True, "topic": None},
    {"question": None, "answers": [], "label": 2, "ok": False, "topic": "x"},
    {"question": "where?", "answers": None, "label": None, "ok": None, "topic": "x"},
]


def test_parquet_reads_as_jsonl_does(tmp_path, monkeypatch):
    monkeypatch.setattr("keft_jax.parquet.BATCH", 2)
    write_parquet(tmp_path / "a.parquet", ROWS)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = DataConfig(cluster="topic", pattern="ok", slices=("topic", "label"))
    reports = SourceReport(), SourceReport()
    found, wanted = (
        [dataclasses.replace(e, where=e.where[-1]) for e in read_examples(file, data, report=r)]
        for file, r in zip((tmp_path / "a.parquet", tmp_path / "a.jsonl"), reports, strict=True)
    )
    assert found == wanted and [e.where for e in found] == ["1", "3"]
    assert found[0].label == "1" and found[0].pattern == "true" and found[0].cluster == ""
    assert [r.malformed[0][1:] for r in reports] == [(2, "data.text = 'question': empty")] * 2


def test_parquet_that_is_not_right(tmp_path):
    file = tmp_path / "a.parquet"
    write_parquet(file, [ROWS[0]] * 500, compression="none", write_page_checksum=True)
    whole = file.read_bytes()
    with pytest.raises(KeftError, match=r"column 'labl': no such field; did you mean 'label'.*ok"):
        read_examples(file, DataConfig(label="labl"), need=("label",))
    for content in (b"", b"PAR1", whole[:-9], whole[: len(whole) // 2], b"x" * len(whole)):
        assert "a.parquet: no Parquet, or damaged" in refuse(tmp_path, "a.parquet", content)
    place = whole.index("who é?".encode()) + 1
    flipped = whole[:place] + b"!" + whole[place + 1 :]
    assert "damaged" in refuse(tmp_path, "a.parquet", flipped)
    with pytest.raises(KeftError, match=r"b.parquet: no such file; did you mean a.parquet"):
        read_examples(tmp_path / "b.parquet", DataConfig())
    assert "as .parquet" in refuse(tmp_path, "a.parquet.gz", gzip.compress(whole))
    write_parquet(file, [{"question": b"caf\xc3\xa9"}, {"question": b"\xff"}])
    report = SourceReport()
    (example,) = read_examples(file, DataConfig(), report=report)
    assert example.text == "café" and report.malformed[0][1] == 2


def test_examples_in_memory_are_refused_one_by_one():
    with pytest.raises(KeftError, match=r"input:2: .*did you mean 'questio'"):
        examples_from(["a", {"questio": "b", "answers": "c"}])
    with pytest.raises(KeftError, match="input:1: a int"):
        examples_from([3])  # type: ignore[list-item]


def test_real_data(shared):
    data = DataConfig(brackets=True, pattern="qtype", cluster="topic")
    found = read_examples(shared / "data/kgqa/metaqa/1hop-valid.jsonl.gz", data, need=("answers",))
    assert len(found) > 500 and all(len(e.spans) == 1 and e.answers for e in found)
    assert all("[" not in e.text for e in found)
    data = DataConfig(text="1", label="2")
    found = read_examples(shared / "data/sentiment/sst2/dev.tsv.gz", data, need=("label",))
    assert {e.label for e in found} == {"0", "1"}
    found = read_examples(shared / "data/relation/fewrel/fewrel.jsonl.gz", TOKENS, need=("label",))
    assert len(found) > 1000 and all(len(e.spans) == 2 for e in found)
    start, end, entity = found[0].spans[0]
    assert (found[0].text[start:end], entity) == ("Song for a Future Generation", "Q7561099")
