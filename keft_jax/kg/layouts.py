"""Folders of triples as other tools lay them out: whose it is, its names, its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg import disk, io
from keft_jax.kg.columns import SPACES, Column, line_of, map_strings, read_columns, to_arrow
from keft_jax.kg.id_files import (
    NOT_INT,
    check_count,
    find_file,
    first_line,
    read_count,
    read_id_file,
    to_ints,
)
from keft_jax.kg.store import KG

Rows = tuple[Sequence[Column | np.ndarray], io.Report]
"""Head, relation and tail: strings, or int32 ids of the layout's own names."""
_TEXT, _TABLE = (".txt", ".tsv"), (".txt", ".tsv", ".csv", ".parquet")
_VALID = ("valid", "dev", "val", "validation")


@dataclass(frozen=True)
class Layout:
    """Where the triples are, and how they are read."""

    train: Path
    select: Path | None
    test: Path | None
    read: Callable[[Sequence[Path]], list[Rows]]
    """Of several files, the first of which is train's."""
    entities: Any = None
    """Arrow strings: names in the order of the ids that the folder gives; None: it gives none."""
    relations: Any = None


def find_layout(path: Path) -> Layout:
    """A file of triples, a graph of ours, or a folder of OpenKE, DGL-KE or files of names."""
    if not path.is_dir():
        if "2id." in path.name:
            raise KeftError(f"{path}: ids without names; give the folder that it lies in")
        return Layout(path, None, None, _read_named)
    if disk.is_graph(path):
        return Layout(path, None, None, _read_named)
    if any(find_file(path, (f"{stem}2id",), (".txt",)) for stem in ("entity", "relation", "train")):
        return _openke(path)
    if any(find_file(path, (stem,), (".dict", ".tsv")) for stem in ("entities", "relations")):
        return _dglke(path)
    return Layout(*_splits(path), _read_named)


def _splits(folder: Path) -> tuple[Path, Path | None, Path | None]:
    train = find_file(folder, ("train",), _TABLE)
    if train is None:
        raise KeftError(
            f"{folder}: has no train.txt, .tsv, .csv or .parquet (or .gz), and is neither a graph "
            "nor a folder of OpenKE or DGL-KE; name the file of triples itself"
        )
    return train, find_file(folder, _VALID, _TABLE), find_file(folder, ("test",), _TABLE)


def _need(folder: Path, stem: str, suffixes: tuple[str, ...], because: str) -> Path:
    found = find_file(folder, (stem,), suffixes)
    if found is None:
        raise KeftError(
            f"{folder / stem}{suffixes[0]}: missing ({because}); put it there, or name the file of "
            "triples itself where it holds names"
        )
    return found


def _read_named(paths: Sequence[Path]) -> list[Rows]:
    return [_read_graph(path) if disk.is_graph(path) else _read_text(path) for path in paths]


def _read_text(path: Path) -> Rows:
    report = io.Report()
    return read_columns(path, io.TRIPLE, report), report


def _read_graph(path: Path) -> Rows:
    import pyarrow as pa

    kg = KG.load(path)
    if not kg.n_triples:
        raise KeftError(f"{path}: a graph without facts; add some (keft kg build)")
    entities, relations = to_arrow(kg.names), to_arrow(kg.relations)
    columns = [
        pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array(ids), names)])
        for ids, names in ((kg.heads, entities), (kg.rels, relations), (kg.tails, entities))
    ]
    return columns, io.Report(files=1, lines=kg.n_triples, read=kg.n_triples)


def _openke(folder: Path) -> Layout:
    why = "it looks like a folder of OpenKE"
    files = [_need(folder, f"{thing}2id", (".txt",), why) for thing in ("entity", "relation")]
    vocabulary = _Vocabulary.load(*files)

    def read(path: Path) -> Rows:
        fields = first_line(path).split("\t")
        if len(fields) == 3 and not all(field.strip().isdecimal() for field in fields):
            columns, report = _read_text(path)  # what else is held against it may have names
            return vocabulary.resolve(path, columns, io.TRIPLE, _Reading(True, (0, 1, 2))), report
        count, shape, report = read_count(path), ("head", "tail", "relation"), io.Report()
        if not count:
            raise KeftError(f"{path}:1: says 0 rows; give some triples")
        form: dict[str, Any] = {"form": SPACES, "skip": 1}
        columns = read_columns(path, shape, report, strict=f"write {' '.join(shape)}", **form)
        check_count(path, count, report.read)
        reading = _Reading(False, (0, 2, 1))
        return vocabulary.resolve(path, columns, shape, reading, **form), report

    train = _need(folder, "train2id", (".txt",), why)
    own = (find_file(folder, (f"{stem}2id",), (".txt",)) for stem in ("valid", "test"))
    # OpenKE wants the file even where there is nothing to put in.
    select, test = (path if path and read_count(path) else None for path in own)
    names = (vocabulary.entities, vocabulary.relations)
    return Layout(train, select, test, lambda paths: [*map(read, paths)], *names)


def _dglke(folder: Path) -> Layout:
    why = "it looks like a folder of DGL-KE"
    files = [_need(folder, thing, (".dict", ".tsv"), why) for thing in ("entities", "relations")]
    vocabulary = _Vocabulary.load(*files)

    def read(paths: Sequence[Path]) -> list[Rows]:
        found = [_read_text(path) for path in paths]
        reading = vocabulary.guess(paths[0], found[0][0])
        return [
            (vocabulary.resolve(path, columns, io.TRIPLE, reading), report)
            for path, (columns, report) in zip(paths, found, strict=True)
        ]

    return Layout(*_splits(folder), read, vocabulary.entities, vocabulary.relations)


@dataclass(frozen=True)
class _Reading:
    """What the three columns of a file are."""

    by_name: bool
    order: tuple[int, int, int]  # the columns of head, relation, tail


@dataclass(frozen=True)
class _Vocabulary:
    """Names in the order of the ids that a folder gives them."""

    entities: Any
    relations: Any
    files: tuple[Path, Path]

    @classmethod
    def load(cls, entities: Path, relations: Path) -> _Vocabulary:
        names = read_id_file(entities, "entity")[0], read_id_file(relations, "relation")[0]
        return cls(*names, (entities, relations))

    def guess(self, path: Path, columns: Sequence[Column]) -> _Reading:
        """The reading that fits most rows: names before ids, head before tail, and the relation
        in the middle where that is open. KeftError where both names and ids fit, and differ."""
        readings = [
            _Reading(by_name, order)
            for by_name in (True, False)
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2))
        ]
        faults = [int(self._bad(self._ids(columns, reading)).any(0).sum()) for reading in readings]
        best, other = int(np.argmin(faults)), 3 + int(np.argmin(faults[3:]))
        if faults[best] == faults[other] == 0 and not np.array_equal(
            self._ids(columns, readings[best]), self._ids(columns, readings[other])
        ):
            raise KeftError(
                f"{path}: its numbers are both names and ids of {self.files[0].name}, and differ; "
                "name this file itself (its fields are names then), or give other names"
            )
        return readings[best]

    def resolve(
        self,
        path: Path,
        columns: Sequence[Column],
        shape: tuple[str, ...],
        reading: _Reading,
        **form: Any,
    ) -> list[np.ndarray]:
        """int32 head, relation, tail. KeftError, with its line, for the first that is unknown."""
        ids = self._ids(columns, reading)
        bad = self._bad(ids)
        for row in np.flatnonzero(bad.any(0))[:1].tolist():
            part = int(np.argmax(bad[:, row]))
            what, text = io.TRIPLE[part], columns[reading.order[part]][row].as_py()
            place = f"{path}:{line_of(path, shape, row, **form)}"
            size, file = self._sizes()[part], self.files[part % 2].name
            if reading.by_name:
                raise KeftError(f"{place}: {what} {text!r} is not in {file}; add it there")
            if ids[part, row] == NOT_INT:
                raise KeftError(f"{place}: {what} {text!r} is no integer id; write ids alone")
            raise KeftError(
                f"{place}: {what} id {text} is out of range; {file} has 0 to {size - 1}"
            )
        return list(ids.astype(np.int32))

    def _sizes(self) -> tuple[int, int, int]:
        return len(self.entities), len(self.relations), len(self.entities)

    def _ids(self, columns: Sequence[Column], reading: _Reading) -> np.ndarray:
        """int64[3, t]; -1 is an unknown name."""
        found = []
        for place, names in zip(
            reading.order, (self.entities, self.relations, self.entities), strict=True
        ):
            ids = partial(_find, names=names) if reading.by_name else to_ints
            found.append(map_strings(columns[place], ids))
        return np.stack(found)

    def _bad(self, ids: np.ndarray) -> np.ndarray:
        return (ids < 0) | (ids >= np.array(self._sizes())[:, None])


def _find(strings: Any, names: Any) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.index_in(strings, value_set=names), -1)).astype(np.int64)
