"""Triples and names from text and Parquet, with an account of every line that cannot be read."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from keft_jax.config import KeftError
from keft_jax.kg import disk
from keft_jax.kg.store import KG, Triple
from keft_jax.parquet import is_parquet, open_parquet

LONGEST_LINE = 1 << 20  # bytes
_KEPT = 20  # malformed lines that a report lists; all are counted
TRIPLE = ("head", "relation", "tail")
ATTRIBUTE = ("entity", "attribute", "value")
HEADERS = {
    TRIPLE,
    ATTRIBUTE,
    ("subject", "predicate", "object"),
    ("subject", "relation", "object"),
    ("source", "relation", "target"),
    ("h", "r", "t"),
}

Fields = tuple[int, list[str], str]
"""Line from 1, its fields, and what is wrong with them ("": nothing)."""


@dataclass
class Report:
    """What was read, and what was not."""

    files: int = 0
    lines: int = 0
    """Lines that are not blank."""
    read: int = 0
    """Lines that hold what they should."""
    malformed_lines: int = 0
    malformed: list[tuple[str, int, str]] = field(default_factory=list)
    """The first 20 of them: (file, line, reason)."""
    headers: int = 0
    """First lines of CSV files that name the columns."""
    duplicates: int = 0
    """Triples that were there already (build_kg)."""

    def reject(self, path: Path, line: int, reason: str) -> None:
        self.malformed_lines += 1
        if len(self.malformed) < _KEPT:
            self.malformed.append((str(path), line, reason))


def read_triples(path: str | Path, *, strict: bool = False) -> tuple[list[Triple], Report]:
    """Triples of a file (head, relation, tail): `.csv`, `.parquet` (columns of these names or the
    others of `HEADERS`, else the first three), TSV by any other name; text may be `.gz`.

    A malformed line (not three non-empty fields, not UTF-8, longer than 1 MiB, NUL bytes) is
    counted and listed; with `strict` the first one is a KeftError with file:line. KeftError too
    for a file that is missing, empty, binary or holds no triple at all. Blank lines are skipped,
    and fields lose the spaces around them.
    """
    report = Report()
    rows = list(_read_rows(Path(path), TRIPLE, strict, report))
    return cast("list[Triple]", rows), report


def build_kg(
    sources: str | Path | Iterable[str | Path],
    *,
    aliases: str | Path | None = None,
    descriptions: str | Path | None = None,
    strict: bool = False,
) -> tuple[KG, Report]:
    """A graph of all sources; `aliases` and `descriptions` are such files of two columns,
    entity and other name or entity and text (the last one counts). Errors as `read_triples`."""
    if isinstance(sources, str | Path):
        sources = [sources]
    report = Report()
    triples: list[Triple] = []
    for source in sources:
        rows = _read_rows(Path(source), TRIPLE, strict, report)
        triples += cast("Iterator[Triple]", rows)
    if not report.files:
        raise KeftError("sources: none given; name one or more files of triples")
    others: dict[str, list[str]] = {}
    if aliases is not None:
        for entity, alias in _read_rows(Path(aliases), ("entity", "alias"), strict, report):
            others.setdefault(entity, []).append(alias)
    texts: dict[str, str] = {}
    if descriptions is not None:
        rows = _read_rows(Path(descriptions), ("entity", "description"), strict, report)
        texts = {entity: text for entity, text in rows}
    kg = KG.from_triples(triples, aliases=others, descriptions=texts)
    report.duplicates = len(triples) - kg.n_triples
    return kg, report


def _read_rows(
    path: Path, columns: tuple[str, ...], strict: bool, report: Report
) -> Iterator[tuple[str, ...]]:
    """Rows with a field for each column, as they are read."""
    return (fields for _, fields in read_fields(path, columns, report, strict=strict))


def read_fields(
    path: Path, columns: tuple[str, ...], report: Report, *, strict: bool = False
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line from 1, a field for each column) of a file as `read_triples` reads it."""
    report.files += 1
    lines_before, rows, first_bad = report.lines, 0, ""
    read = _parquet_fields if is_parquet(path) else _text_fields
    for number, fields, reason in read(path, columns, report):
        if not reason:
            rows += 1
            report.read += 1
            yield number, tuple(fields)
            continue
        if strict:
            raise KeftError(f"{path}:{number}: {reason}; put it right, or leave out --strict")
        first_bad = first_bad or f"line {number}: {reason}"
        report.reject(path, number, reason)
    if not rows:
        hint = "; names of two columns belong in --aliases" if columns == TRIPLE else ""
        raise no_rows(path, columns, report.lines > lines_before, first_bad, hint)


def no_rows(
    path: Path, columns: tuple[str, ...], lines: bool, first_bad: str, hint: str = ""
) -> KeftError:
    """What to say of a file without a row; `lines`: whether it has any that is not blank."""
    shape = ("," if is_csv(path) else "<tab>").join(columns)
    if not lines:
        return KeftError(f"{path}: empty; write {shape} on each line")
    what = f"no line is {shape} ({first_bad or 'only a header'})"
    return KeftError(f"{path}: {what}; write {len(columns)} fields on each line{hint}")


def _text_fields(path: Path, columns: tuple[str, ...], report: Report) -> Iterator[Fields]:
    comma = is_csv(path)
    with open_text(path) as file:
        for number, raw in number_lines(file, path):
            if not raw.strip():
                continue
            report.lines += 1
            fields, reason = split_line(raw, comma, len(columns))
            header = number == 1 and comma and tuple(f.lower() for f in fields) in HEADERS
            if header and not reason:
                report.headers += 1
            else:
                yield number, fields, reason


def _parquet_fields(path: Path, columns: tuple[str, ...], report: Report) -> Iterator[Fields]:
    require_file(path)
    with open_parquet(path) as (names, rows):
        chosen = choose_columns(path, names, columns)
        for number, row in rows:
            report.lines += 1
            values = [row[name] for name in chosen]
            odd = [v for v in values if not isinstance(v, str | int | None)]
            fields = ["" if v is None else str(v).strip() for v in values]
            reason = f"a {type(odd[0]).__name__} where text is expected" if odd else ""
            if not reason and not all(fields):
                reason = f"{chosen[fields.index('')]} is empty"
            yield number, fields, reason


def choose_columns(path: Path, names: Sequence[str], columns: tuple[str, ...]) -> Sequence[str]:
    """Which columns of a Parquet file are meant: by name, else the first ones."""
    known = (header for header in (columns, *HEADERS) if set(header) <= set(names))
    chosen = next((h for h in known if len(h) == len(columns)), names[: len(columns)])
    if len(chosen) < len(columns):
        raise KeftError(
            f"{path}: has the columns {', '.join(names) or 'none'}; give {', '.join(columns)}"
        )
    return chosen


def is_csv(path: Path) -> bool:
    return path.name.removesuffix(".gz").lower().endswith(".csv")


def split_line(raw: bytes, comma: bool, width: int) -> tuple[list[str], str]:
    """The fields of a line, and what is wrong with them ("": nothing)."""
    if len(raw) > LONGEST_LINE:
        return [], "longer than 1 MiB"
    if b"\0" in raw:
        return [], "has NUL bytes"
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return [], f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})"
    text = text.rstrip("\r\n")
    if comma:
        try:
            fields = next(csv.reader([text], strict=True, skipinitialspace=True))
        except csv.Error as error:
            return [], f"not CSV ({error})"
    else:
        fields = text.split("\t")
    fields = [item.strip() for item in fields]
    if len(fields) != width:
        rival = "\t" if comma else ","
        hint = ""
        if len(fields) == 1 and text.count(rival) == width - 1:
            hint = ", separated by tabs (is it .tsv?)" if comma else ", by commas (is it .csv?)"
        return fields, f"{len(fields)} field{'s' * (len(fields) != 1)}, not {width}{hint}"
    if not all(fields):
        return fields, f"field {fields.index('') + 1} is empty"
    return fields, ""


def number_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; of one over the limit only the beginning, so that memory stays bounded."""
    number = 0
    try:
        while raw := file.readline(LONGEST_LINE + 2):
            number += 1
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            rest = raw
            while not rest.endswith(b"\n") and len(rest) == LONGEST_LINE + 2:
                rest = file.readline(LONGEST_LINE + 2)
            yield number, raw
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(path, number, error) from error


def damaged(path: Path, line: int, error: Exception) -> KeftError:
    """What to say where reading broke off behind a line."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return KeftError(f"{path}: cannot be read after line {line} ({error})")
    return KeftError(f"{path}: damaged gzip after line {line} ({error}); copy it again")


def require_file(path: Path) -> None:
    if not path.exists():
        raise KeftError(f"{path}: no such file; check the path")
    if path.is_dir():
        remedy = "it is a graph already, use it as it is" if disk.is_graph(path) else "name files"
        raise KeftError(f"{path}: a folder, not a file of triples; {remedy}")


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where it is .gz. KeftError where it cannot be text."""
    require_file(path)
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        packed = path.suffix.lower() == ".gz"
        if not magic:
            raise KeftError(f"{path}: empty; give one entry on each line")
        if packed and magic != b"\x1f\x8b":
            raise KeftError(f"{path}: not gzip although it is called .gz; rename it")
        if not packed and magic == b"\x1f\x8b":
            raise KeftError(f"{path}: gzip; call it {path.name}.gz")
        opened = cast("IO[bytes]", gzip.open(path) if packed else path.open("rb"))  # noqa: SIM115
    except OSError as error:
        raise KeftError(f"{path}: cannot be read ({error.strerror}); check the rights") from error
    try:
        _refuse_binary(opened, path)
    except BaseException:
        opened.close()
        raise
    return opened


def _refuse_binary(file: IO[bytes], path: Path) -> None:
    try:
        head = file.read(1 << 14)
        file.seek(0)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise KeftError(f"{path}: damaged gzip ({error}); copy it again") from error
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise KeftError(f"{path}: UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    text = head.decode(errors="replace")
    odd = sum(c == "�" or (c < " " and c not in "\t\r\n") for c in text)
    if odd > max(8, 0.1 * len(text)):
        raise KeftError(
            f"{path}: binary, or text that is not UTF-8 (begins with {head[:8].hex(' ')}); "
            "give tab- or comma-separated UTF-8 text"
        )
