"""Records of a file: JSONL, TSV, CSV and plain text, gzipped or not, or from stdin; Parquet.

A line that cannot be read is never dropped silently: it is counted and listed with its place.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from keft_jax.config import KeftError
from keft_jax.parquet import is_parquet, open_parquet

MAX_LINE = 1 << 20
"""Bytes. A longer line is counted as malformed and skipped without being held in memory."""
LISTED = 20
"""Malformed lines that a report lists; all are counted."""
FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".tsv": "tsv", ".csv": "csv", ".txt": "txt",
}  # fmt: skip


@dataclass
class SourceReport:
    """What reading a file came to."""

    path: str = ""
    examples: int = 0
    malformed_lines: int = 0
    malformed: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, line, reason) of the first 20."""

    def add(self, line: int, reason: str) -> None:
        self.malformed_lines += 1
        if len(self.malformed) < LISTED:
            self.malformed.append((self.path, line, reason))

    def summary(self) -> str:
        shown = "; ".join(f"line {line}: {reason}" for _, line, reason in self.malformed[:3])
        more = "; ..." if self.malformed_lines > 3 else ""
        plural = "s" if self.malformed_lines > 1 else ""
        return f"{self.path}: {self.malformed_lines} malformed line{plural} left out: {shown}{more}"


def read_records(
    path: str | Path,
    report: SourceReport,
    *,
    text: str,
    columns: Collection[str] = (),
    lists: Collection[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, record) for every record of a file.

    The suffix tells the format, with or without `.gz`: `.jsonl` (`.ndjson`, `.json`: one object a
    line), `.tsv`, `.csv`, `.txt` (one text a line); `-` is stdin, told by its first line. In
    `.parquet`, never gzipped, the number is the row's.

    Args:
      path: file, or `-`.
      report: gets the lines that hold no record.
      text: name of the field with the text. A number: a table without a header row, with its
        columns named by number from 1.
      columns: fields that the header row of a table, or the schema of Parquet, must have.
      lists: columns of a table whose cells hold several values, with `|` between them.

    Raises:
      KeftError: missing, unreadable or binary file, unknown suffix, a column that is not there.
    """
    if is_parquet(path):
        with open_parquet(require_file(path)) as (names, rows):
            require_fields(columns, names, report.path)
            for number, record in rows:
                yield number, decode(record)
        return
    with ExitStack() as stack:
        stream = _open(path, stack)
        format = _format(path, stream)
        try:
            if format == "txt":
                for number, line, ok in _lines(stream, report):
                    if ok and line.strip():
                        yield number, {text: line}
            elif format == "jsonl":
                yield from _objects(stream, report)
            else:
                yield from _table(_rows(stream, format, report), report, text, columns, lists)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise KeftError(
                f"{report.path}: damaged gzip data ({error}); write or download it anew"
            ) from error


def describe_missing(name: str, there: Iterable[str]) -> str:
    """Why a field was not found: the nearest name, and those that are there."""
    names = [str(item) for item in there]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"no such field{hint} (there are: {shown or 'none'})"


def require_fields(
    needed: Iterable[str], there: Collection[str], place: str, kind: str = "column", or_: str = ""
) -> None:
    """Raises KeftError for the first needed field that is not there."""
    for name in needed:
        if name not in there:
            raise KeftError(
                f"{place}: {kind} {name!r}: {describe_missing(name, there)}; set the data.* field "
                f"to one of them{or_}"
            )


def decode(value: Any) -> Any:
    """The value with the bytes in it as text; those that are not UTF-8 stay bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value


def require_file(path: str | Path) -> Path:
    """The path, where a file is there. Raises KeftError with the nearest name."""
    file = Path(path)
    if not file.is_file():
        raise KeftError(f"{file}: {_why_missing(file)}")
    return file


def _open(path: str | Path, stack: ExitStack) -> io.BufferedReader:
    """The decompressed bytes. Raises KeftError for what is not a text file."""
    raw: BinaryIO
    if str(path) == "-":
        raw = sys.stdin.buffer  # closed by its owner, not here
    else:
        file = require_file(path)
        try:
            raw = stack.enter_context(file.open("rb"))
        except OSError as error:
            raise KeftError(f"{file}: cannot be opened ({error.strerror})") from error
        if file.suffix == ".gz":
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=raw))
            raw = stack.enter_context(io.BufferedReader(cast(io.RawIOBase, unzipped)))
    stream = cast(io.BufferedReader, raw)
    try:
        head = stream.peek(8192)[:8192]
    except gzip.BadGzipFile as error:
        raise KeftError(f"{path}: named .gz but not gzip data; rename it") from error
    except (EOFError, zlib.error) as error:
        raise KeftError(f"{path}: damaged gzip data ({error}); download it anew") from error
    if head.startswith(b"\x1f\x8b"):
        raise KeftError(f"{path}: gzip data; give its name the suffix .gz")
    if b"\0" in head:
        raise KeftError(
            f"{path}: a binary file (NUL bytes) where UTF-8 text is expected; give JSONL, TSV,"
            " CSV, or Parquet as .parquet (UTF-16 text: iconv -f UTF-16 -t UTF-8)"
        )
    return stream


def _why_missing(file: Path) -> str:
    if file.is_dir():
        return "a folder; name a file in it"
    if not file.parent.is_dir():
        return f"no such file; the folder {file.parent} does not exist"
    names = sorted(p.name for p in file.parent.iterdir())
    near = difflib.get_close_matches(file.name, names, 3)
    if near:
        return f"no such file; did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"no such file; {file.parent} holds {shown or 'nothing'}"


def _format(path: str | Path, stream: io.BufferedReader) -> str:
    if str(path) == "-":
        first = stream.peek(8192)[:8192].removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
        return "jsonl" if first.startswith(b"{") else "tsv" if b"\t" in first else "txt"
    file = Path(path)
    suffix = (file.with_suffix("") if file.suffix == ".gz" else file).suffix
    if suffix.lower() not in FORMATS:
        raise KeftError(
            f"{path}: format {suffix or 'without a suffix'} is not known; use .jsonl, .tsv, .csv or"
            " .txt, gzipped with .gz, or .parquet"
        )
    return FORMATS[suffix.lower()]


def _lines(stream: io.BufferedReader, report: SourceReport) -> Iterator[tuple[int, str, bool]]:
    """(line number from 1, text, ok). A line that is not ok is counted as malformed already; of
    its text what can be read."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        reason, text = "", ""
        if len(line) > MAX_LINE and not line.endswith(b"\n"):
            size = len(line)
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
                size += len(line)
            reason = f"a line of {size:,} bytes; the limit is {MAX_LINE:,}"
        else:
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                reason = f"invalid UTF-8 at byte {error.start + 1}; save it as UTF-8"
                text = line.decode(errors="replace")
            if "\0" in text:
                reason = "a NUL byte"
        if reason:
            report.add(number, reason)
        yield number, text.rstrip("\r\n"), not reason


def _objects(
    stream: io.BufferedReader, report: SourceReport
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text, ok in _lines(stream, report):
        if not ok or not text.strip():
            continue
        try:
            record = json.loads(text)
        except RecursionError:
            report.add(number, "JSON nested too deeply")
        except ValueError as error:
            report.add(number, f"not JSON ({error}); write one whole object a line")
        else:
            if isinstance(record, dict):
                yield number, record
            else:
                report.add(number, f"a JSON {type(record).__name__}; write one object a line")


def _table(
    rows: Iterable[tuple[int, list[str]]],
    report: SourceReport,
    text: str,
    columns: Collection[str],
    lists: Collection[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] = []
    for number, cells in rows:
        if not header and text.isdecimal():
            header = [str(i) for i in range(1, len(cells) + 1)]
        elif not header:
            header = [cell.strip() for cell in cells]
            headless = ", or to a column number (from 1) where there is no header row"
            require_fields(columns, header, f"{report.path}:{number}", or_=headless)
            continue
        if len(cells) == len(header):
            pairs = zip(header, cells, strict=True)
            yield number, {k: v.split("|") if k in lists else v for k, v in pairs}
        else:
            report.add(number, f"{len(cells)} columns where the first row has {len(header)}")


def _rows(
    stream: io.BufferedReader, format: str, report: SourceReport
) -> Iterator[tuple[int, list[str]]]:
    """(line of its start, cells). TSV has no quoting; a CSV cell may run over several lines."""
    if format == "tsv":
        for number, text, ok in _lines(stream, report):
            if ok and text.strip():
                yield number, text.split("\t")
        return
    first = last = 0
    broken = False  # a line of the record in progress was malformed, and is counted already

    def feed() -> Iterator[str]:
        nonlocal first, last, broken
        for number, text, ok in _lines(stream, report):
            first, last = first or number, number
            broken |= not ok
            yield text + "\n"

    reader = csv.reader(feed(), strict=True)
    while True:
        first, broken = 0, False
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            until = f", up to line {last}" if last > first else ""
            report.add(first, f"not CSV ({error}{until})")
            continue
        if cells and not broken:
            yield first, cells
