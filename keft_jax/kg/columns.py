"""Text and Parquet as columns of strings, a block at a time: ten million rows in seconds.

A block all of whose lines are plain is parsed by Arrow; one with an odd line is read line by line,
by the rules and with the account of `kg.io`. Columns are dictionary-encoded, so that millions of
equal names are held once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg import io
from keft_jax.kg.io import Report
from keft_jax.kg.names import Names
from keft_jax.parquet import is_parquet, open_file

BLOCK = 1 << 24  # bytes
ROWS = 1 << 18  # of Parquet, at once
Column = Any
"""A `pyarrow.ChunkedArray` of dictionary-encoded large strings."""


@dataclass(frozen=True)
class Form:
    """How a line becomes fields."""

    delimiters: tuple[str, ...]  # tried in turn on a block of plain lines
    split: Callable[[bytes, int], tuple[list[str], str]]  # fields, what is wrong with them


def _at_spaces(raw: bytes, width: int) -> tuple[list[str], str]:
    return _counted(raw, raw.decode(errors="replace").split(), width)


def _name_first(raw: bytes, width: int) -> tuple[list[str], str]:
    fields, reason = io.split_line(raw, False, width)
    if reason.startswith("1 field,"):  # no tab: the name may hold spaces, the number may not
        return _counted(raw, fields[0].rsplit(None, width - 1), width)
    return fields, reason


def _counted(raw: bytes, fields: list[str], width: int) -> tuple[list[str], str]:
    if len(raw) > io.LONGEST_LINE:
        return [], "longer than 1 MiB"
    wrong = f"{len(fields)} field{'s' * (len(fields) != 1)}, not {width}"
    return fields, wrong * (len(fields) != width)


TABS = Form(("\t",), lambda raw, width: io.split_line(raw, False, width))
COMMAS = Form((",",), lambda raw, width: io.split_line(raw, True, width))
SPACES = Form(("\t", " "), _at_spaces)
"""Fields without spaces, between tabs or spaces."""
NAME_FIRST = Form(("\t", " "), _name_first)
"""A name that may hold spaces, then fields that do not."""


def read_columns(
    path: Path,
    columns: tuple[str, ...],
    report: Report,
    *,
    form: Form | None = None,
    skip: int = 0,
    strict: str = "",
) -> list[Column]:
    """The columns of a file; the form by its name (`.csv`, `.parquet`, else TSV; text may be
    `.gz`), or `form`. `skip` lines at the top belong to someone else.

    Malformed lines as in `io.read_triples`; with `strict`, the remedy, the first is a KeftError.
    KeftError too for a file that is missing, empty, binary, damaged or holds no row at all.
    """
    import pyarrow as pa

    report.files += 1
    account = Report()
    if is_parquet(path):
        blocks = _parquet_blocks(path, columns, account)
    else:
        blocks = _text_blocks(path, columns, account, form or form_of(path), skip)
    chunks = []
    for block in blocks:
        if strict and account.malformed:
            _, line, reason = account.malformed[0]
            raise KeftError(f"{path}:{line}: {reason}; {strict}")
        chunks.append(block)
    report.lines += account.lines
    report.read += account.read
    report.headers += account.headers
    for fault in account.malformed:
        report.reject(path, *fault[1:])
    report.malformed_lines += account.malformed_lines - len(account.malformed)
    if not account.read:
        first = "".join(f"line {line}: {reason}" for _, line, reason in account.malformed[:1])
        raise io.no_rows(path, columns, account.lines > 0, first)
    return [pa.chunked_array([block[i] for block in chunks]) for i in range(len(columns))]


def form_of(path: Path) -> Form:
    return COMMAS if io.is_csv(path) else TABS


def line_of(path: Path, columns: tuple[str, ...], row: int, **more: Any) -> int:
    """The line (from 1) of a row (from 0) that `read_columns` gave."""
    if is_parquet(path):
        return row + 1
    form, skip = more.get("form") or form_of(path), more.get("skip", 0)
    for number, block in _blocks(path, skip):
        for line, _, reason in _lines(block, number, form, len(columns)):
            row -= not reason
            if row < 0:
                return line
    raise IndexError(f"{path}: fewer rows")


def _text_blocks(
    path: Path, columns: tuple[str, ...], report: Report, form: Form, skip: int
) -> Iterator[list[Any]]:
    import pyarrow as pa

    for number, block in _blocks(path, skip):
        if number == 1 and form is COMMAS:
            first, _, rest = block.partition(b"\n")
            fields, reason = form.split(first, len(columns))
            if not reason and tuple(field.lower() for field in fields) in io.HEADERS:
                report.headers += 1
                report.lines += 1
                number, block = 2, rest
        parsed = _parse(block, form, len(columns))
        if parsed is not None:
            report.lines += len(parsed[0])
            report.read += len(parsed[0])
            yield parsed
            continue
        rows = []
        for line, fields, reason in _lines(block, number, form, len(columns)):
            report.lines += 1
            if reason:
                report.reject(path, line, reason)
            else:
                rows.append(fields)
        report.read += len(rows)
        split = zip(*rows, strict=True) if rows else [()] * len(columns)
        yield [pa.array(column, pa.large_string()).dictionary_encode() for column in split]


def _blocks(path: Path, skip: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines); of a line over the limit only the beginning."""
    number = 1
    with io.open_text(path) as file:
        try:
            for _ in range(skip):
                file.readline(io.LONGEST_LINE)
                number += 1
            while block := file.read(BLOCK):
                if number == 1:
                    block = block.removeprefix(b"\xef\xbb\xbf")
                if not block.endswith(b"\n"):
                    rest = file.readline(io.LONGEST_LINE + 2)
                    block += rest
                    while rest and not rest.endswith(b"\n"):
                        rest = file.readline(io.LONGEST_LINE + 2)
                if not block.endswith(b"\n"):
                    block += b"\n"
                yield number, block
                number += block.count(b"\n")
        except (EOFError, zlib.error, OSError) as error:
            raise io.damaged(path, number - 1, error) from error


def _lines(block: bytes, number: int, form: Form, width: int) -> Iterator[io.Fields]:
    for line, raw in enumerate(block.split(b"\n")[:-1], number):
        if raw.strip():
            yield line, *form.split(raw, width)


def _parse(block: bytes, form: Form, width: int) -> list[Any] | None:
    """Dictionary-encoded columns, or None where a line is anything but `width` plain fields."""
    import pyarrow as pa
    from pyarrow import csv

    quoted = form is COMMAS and b'"' in block
    if b"\0" in block or quoted or block.count(b"\r") != block.count(b"\r\n"):
        return None
    names = [str(i) for i in range(width)]
    types = dict.fromkeys(names, pa.large_string())
    for delimiter in form.delimiters:
        try:
            table = csv.read_csv(
                pa.BufferReader(block),
                csv.ReadOptions(column_names=names, block_size=len(block) + 1),
                csv.ParseOptions(delimiter=delimiter, quote_char=False),
                csv.ConvertOptions(column_types=types, null_values=[]),
            )
        except pa.ArrowInvalid:
            continue
        columns = [_encode(column.combine_chunks()) for column in table.columns]
        plain = table.num_rows == block.count(b"\n") and all(_plain(c.dictionary) for c in columns)
        return columns if plain else None
    return None


def _encode(strings: Any) -> Any:
    """Dictionary-encoded, without the spaces around them."""
    import pyarrow.compute as pc

    encoded = strings.dictionary_encode()
    trimmed = pc.utf8_trim_whitespace(encoded.dictionary)
    if trimmed.equals(encoded.dictionary):
        return encoded
    return trimmed.take(encoded.indices).dictionary_encode()


def _plain(strings: Any) -> bool:
    import pyarrow.compute as pc

    sizes = pc.min_max(pc.binary_length(strings)).as_py()
    return len(strings) == 0 or (sizes["min"] > 0 and sizes["max"] < io.LONGEST_LINE // 8)


def _parquet_blocks(path: Path, columns: tuple[str, ...], report: Report) -> Iterator[list[Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    io.require_file(path)
    with open_file(path) as file:
        schema = file.schema_arrow
        chosen = io.choose_columns(path, schema.names, columns)
        for name in chosen:
            kind = schema.field(name).type
            inner = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_integer(inner) or inner in (pa.string(), pa.large_string())):
                raise KeftError(f"{path}: column {name} is {kind}; give text or integers")
        for batch in file.iter_batches(batch_size=ROWS, columns=list(chosen)):
            found = [
                _encode(pc.fill_null(batch.column(name).cast(pa.large_string()), ""))
                for name in chosen
            ]
            empty = np.stack([_is_empty(column) for column in found])
            good: np.ndarray = np.logical_not(empty.any(0))
            for row in np.flatnonzero(~good):
                name = chosen[int(np.argmax(empty[:, row]))]
                report.reject(path, report.lines + int(row) + 1, f"{name} is empty")
            report.lines += len(good)
            report.read += int(good.sum())
            yield found if good.all() else [_keep(column, good) for column in found]


def map_strings(column: Column, function: Callable[[Any], np.ndarray]) -> np.ndarray:
    """`function` of the distinct strings of a column of `read_columns`, for every row."""
    column = column.unify_dictionaries()
    values = function(column.chunk(0).dictionary)
    return np.concatenate([values[np.asarray(chunk.indices)] for chunk in column.chunks])


def _keep(column: Any, good: np.ndarray) -> Any:
    """Some of the rows, and their strings alone."""
    import pyarrow as pa

    return column.filter(pa.array(good)).dictionary_decode().dictionary_encode()


def _is_empty(column: Any) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.equal(column.dictionary, ""))[np.asarray(column.indices)]


def plain_strings(column: Column) -> Any:
    """An Arrow array of large strings, one for each row."""
    import pyarrow as pa

    return pa.concat_arrays([chunk.dictionary_decode() for chunk in column.chunks])


def to_names(strings: Any) -> Names:
    """Packed names of an Arrow array, without a copy where it is of large strings."""
    import pyarrow as pa

    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks()
    strings = strings.cast(pa.large_string())
    _, ends, data = strings.buffers()
    if not len(strings):
        return Names.of([])
    offsets = np.frombuffer(ends, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(data if data is not None else b"", np.uint8)
    return Names(data[offsets[0] : offsets[-1]], offsets - offsets[0])


def to_arrow(strings: Sequence[str]) -> Any:
    """An Arrow array of large strings; of packed names without reading them."""
    import pyarrow as pa

    names = strings if isinstance(strings, Names) else Names.of(strings)
    buffers = (pa.py_buffer(np.ascontiguousarray(part)) for part in (names.offsets, names.data))
    return pa.LargeStringArray.from_buffers(len(names), *buffers)
