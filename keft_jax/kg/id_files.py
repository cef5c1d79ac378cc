"""Files that give names their ids: `entity2id.txt` of OpenKE, `entities.dict` of DGL-KE, ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg import io
from keft_jax.kg.columns import NAME_FIRST, TABS, line_of, plain_strings, read_columns

NOT_INT = np.iinfo(np.int64).min
_FROM_0 = "number them from 0, each once"


def find_file(folder: Path, stems: tuple[str, ...], suffixes: tuple[str, ...]) -> Path | None:
    """The one file of that name, `.gz` too, or None. KeftError where there are several."""
    found = [
        path
        for stem in stems
        for suffix in suffixes
        for path in (folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.gz")
        if path.is_file()
    ]
    if len(found) > 1:
        both = " and ".join(path.name for path in found[:2])
        raise KeftError(f"{folder}: has {both}; leave one of them, or name the file itself")
    return found[0] if found else None


def to_ints(strings: Any) -> np.ndarray:
    """int64[n] of Arrow strings; NOT_INT where one is no integer of at most 18 digits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    number = pc.match_substring_regex(strings, r"^-?[0-9]{1,18}$")
    return np.asarray(
        pc.fill_null(pc.if_else(number, strings, None).cast(pa.int64()), NOT_INT)
    ).astype(np.int64)


def read_id_file(path: Path, thing: str) -> tuple[Any, Any]:
    """(names, labels) as Arrow strings in the order of their ids.

    `*2id.txt`: a count, then `name<TAB>id` (or spaces); any other: `id<TAB>name`, or with a third
    column of names to show, which is `names` where there is none. KeftError with file:line where an
    id is no integer, out of range, or there twice, where a name is, and where the count is wrong.
    """
    names, labels, lines = _read(path, thing)
    again = np.flatnonzero(_repeated(names))
    if len(again):
        name = names[int(again[0])].as_py()
        both = " and ".join(str(line) for line in sorted(lines(again[:2])))
        raise KeftError(f"{path}: {thing} {name!r} is on lines {both}; give each name one id")
    return names, labels


def _read(path: Path, thing: str) -> tuple[Any, Any, Any]:
    counted = "2id." in path.name
    columns: tuple[str, ...] = (thing, "id") if counted else ("id", thing)
    if not counted and first_line(path).count("\t") == 2:
        columns = ("id", thing, "label")
    more = {"form": NAME_FIRST if counted else TABS, "skip": int(counted)}
    shape = "<tab>".join(columns)
    size = read_count(path) if counted else None
    if size == 0:
        raise KeftError(f"{path}:1: says 0; {_FROM_0}")
    found = read_columns(path, columns, io.Report(), strict=f"write {shape}", **more)  # type: ignore[arg-type]
    texts = {name: plain_strings(column) for name, column in zip(columns, found, strict=True)}
    ids, names = to_ints(texts["id"]), texts[thing]

    def line(row: int) -> int:
        return line_of(path, columns, int(row), **more)

    if size is not None:
        check_count(path, size, len(ids))
    for row in np.flatnonzero((ids < 0) | (ids >= len(ids)))[:1]:
        text = texts["id"][int(row)].as_py()
        if ids[row] == NOT_INT:
            raise KeftError(f"{path}:{line(row)}: {text!r} is no integer id; write {shape}")
        raise KeftError(
            f"{path}:{line(row)}: id {text}, but there are {len(ids)} of {thing} names, so one is "
            f"left out; {_FROM_0}"
        )
    order = np.argsort(ids, kind="stable")
    for place in np.flatnonzero(np.diff(ids[order]) == 0)[:1]:
        both = " and ".join(str(line(row)) for row in order[place : place + 2])
        raise KeftError(f"{path}: id {ids[order[place]]} is on lines {both}; {_FROM_0}")
    names = names.take(order)
    labels = texts["label"].take(order) if "label" in texts else names
    return names, labels, lambda places: [line(order[place]) for place in places]


def _repeated(strings: Any) -> np.ndarray:
    """bool[n]: the places of the first string that is there again."""
    encoded = strings.dictionary_encode()
    ids = np.asarray(encoded.indices)
    if len(encoded.dictionary) == len(ids):
        return np.zeros(len(ids), bool)
    return ids == np.argmax(np.bincount(ids) > 1)


def first_line(path: Path) -> str:
    with io.open_text(path) as file:
        return file.readline(io.LONGEST_LINE).decode(errors="replace").lstrip("﻿").rstrip("\r\n")


def read_count(path: Path) -> int:
    """The number of rows that the first line promises."""
    text = first_line(path).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise KeftError(f"{path}:1: {text[:40]!r} where the number of rows belongs; write it there")
    return int(text)


def check_count(path: Path, promised: int, rows: int) -> None:
    if promised != rows:
        raise KeftError(
            f"{path}:1: says {promised:,} rows, {rows:,} follow; put the count right, or copy the "
            "whole file"
        )
