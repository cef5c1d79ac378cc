"""Splits of triples with one numbering: what an embedding model trains on and is scored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg import disk, io
from keft_jax.kg.columns import (
    Column,
    line_of,
    map_strings,
    plain_strings,
    read_columns,
    to_arrow,
    to_names,
)
from keft_jax.kg.find import find_ids
from keft_jax.kg.layouts import Layout, Rows, find_layout

TRAIN, SELECT, TEST = "train", "select", "test"


@dataclass(frozen=True)
class Unseen:
    """What of a split train lacks; all of it is kept."""

    entities: int = 0
    relations: int = 0
    triples: int = 0
    """With such an entity or relation."""


@dataclass(frozen=True)
class SplitsReport:
    files: dict[str, io.Report]
    """Of each split: lines read, malformed (left out) and duplicate ones (left out)."""
    unseen: dict[str, Unseen]
    """Of each split but train."""
    names: io.Report | None = None
    """Of the file of names."""
    named: int = 0
    """Entities that the file of names knows."""

    def notes(self) -> list[str]:
        """A line for each thing that the user should know of."""
        notes = []
        for split, report in self.files.items():
            if report.malformed_lines:
                file, line, reason = report.malformed[0]
                notes.append(
                    f"{split}: {report.malformed_lines:,} malformed lines left out, the first "
                    f"{file}:{line}: {reason}"
                )
            if report.duplicates:
                notes.append(f"{split}: {report.duplicates:,} duplicate triples left out")
        for split, unseen in self.unseen.items():
            if unseen.triples:
                notes.append(
                    f"{split}: {unseen.triples:,} triples kept with {unseen.entities:,} entities "
                    f"and {unseen.relations:,} relations that are not in train"
                )
        return notes


@dataclass(frozen=True, eq=False)
class TripleSplits:
    """Triples of a graph in splits; arrays are read-only."""

    entities: Sequence[str]  # id -> identifier
    relations: tuple[str, ...]
    splits: dict[str, np.ndarray]  # int32[t, 3]: head, relation, tail; each triple once
    labels: Sequence[str]  # id -> name to show; the identifier where there is none
    report: SplitsReport = field(repr=False)

    @property
    def n_entities(self) -> int:
        return len(self.entities)

    @property
    def n_relations(self) -> int:
        return len(self.relations)


def read_splits(
    train: str | Path,
    select: str | Path = "",
    tests: Sequence[str | Path] = (),
    *,
    names: str | Path = "",
) -> TripleSplits:
    """Splits "train", "select" and one for each of `tests`, called like its file.

    `train` is a file of triples (see `io.read_triples`), a graph's folder, or a folder of OpenKE
    (`entity2id.txt`, `train2id.txt`, ...), of DGL-KE (`entities.dict` or `.tsv`, `train.txt`, ...)
    or of `train`, `valid` and `test` files of names. A folder's own validation and test files are
    "select" and "test" where none are given. Ids that a folder gives are kept; others follow the
    sorted names over all splits, so neither the order of the lines nor the machine changes them.
    Rows stay in the order of the file. `names`: a file of two columns, entity and name to show.

    Malformed lines of names and duplicates are left out and counted. KeftError, with file:line
    where there is one, for a file that is missing, empty or damaged, an id out of range, twice or
    skipped, a count that is wrong, and `names` that names no entity.
    """
    layout = find_layout(Path(train))
    files = _name_splits(layout, select, tests)
    rows = dict(zip(files, layout.read([*files.values()]), strict=True))
    entities, relations, ids = _number(layout, list(rows.values()))
    reports = {split: report for split, (_, report) in rows.items()}
    splits = {}
    for split, found in zip(rows, ids, strict=True):
        first = _first_of_each(found, len(relations))
        reports[split].duplicates = len(found) - len(first)
        splits[split] = found if len(found) == len(first) else found[first]
        splits[split].flags.writeable = False
    counted = _count_unseen(splits, len(entities), len(relations))
    labels, named, report = entities, 0, None
    if names:
        labels, named, report = _label(Path(names), entities)
    return TripleSplits(
        entities=to_names(entities),
        relations=tuple(relations.to_pylist()),
        splits=splits,
        labels=to_names(labels),
        report=SplitsReport(reports, counted, report, named),
    )


@dataclass(frozen=True)
class KnownTriples:
    """Triples of a file in the numbering of a graph."""

    triples: np.ndarray  # int32[t, 3]: head, relation, tail; each once
    unknown: int
    """Triples left out because the graph has no such entity."""
    notes: list[str]
    """A line for each thing that the user should know of."""


def read_known(path: str | Path, entities: Sequence[str], relations: Sequence[str]) -> KnownTriples:
    """Triples of a file (or of a graph's folder) by the identifiers of a graph that is there.

    KeftError, with file:line, for a relation that it lacks; as `read_splits` for a file that cannot
    be read; and where no triple has two of its entities.
    """
    import pyarrow.compute as pc

    file = Path(path)
    if file.is_dir() and not disk.is_graph(file):
        raise KeftError(f"{file}: a folder; name the file of head, relation, tail in it")
    ((columns, report),) = find_layout(file).read([file])

    def place(row: int) -> str:
        return str(file) if file.is_dir() else f"{file}:{line_of(file, io.TRIPLE, row)}"

    def number(strings: Any, names: Any) -> np.ndarray:
        return np.asarray(pc.fill_null(pc.index_in(strings, value_set=names), -1))

    tables = [to_arrow(names) for names in (entities, relations, entities)]
    pairs = zip(columns, tables, strict=True)
    ids = np.stack([map_strings(x, partial(number, names=names)) for x, names in pairs], axis=1)
    for row in np.flatnonzero(ids[:, 1] < 0)[:1].tolist():
        find_ids([columns[1][row].as_py()], relations, thing="relation", places=[place(row)])
    bad = np.flatnonzero((ids < 0).any(1))
    notes = []
    for row in bad[:1].tolist():
        entity = columns[0 if ids[row, 0] < 0 else 2][row].as_py()
        first = f"the first {place(row)}: {entity!r}"
        if len(bad) == len(ids):
            raise KeftError(
                f"{file}: none of its {len(ids):,} triples has two known entities ({first}, known "
                f"are names like {entities[0]!r}); give identifiers as in training"
            )
        notes.append(
            f"{file}: {len(bad):,} of {len(ids):,} triples LEFT OUT, as an entity that training "
            f"had in no split has no vector, {first}"
        )
    triples = np.delete(ids, bad, axis=0).astype(np.int32)
    kept = _first_of_each(triples, len(relations))
    report.duplicates = len(triples) - len(kept)
    notes += SplitsReport({str(file): report}, {}).notes()
    return KnownTriples(triples[kept], len(bad), notes)


def _name_splits(
    layout: Layout, select: str | Path, tests: Sequence[str | Path]
) -> dict[str, Path]:
    files = {TRAIN: layout.train}
    chosen = Path(select) if select else layout.select
    if chosen:
        files[SELECT] = chosen
    if tests:
        for path in map(Path, tests):
            stem = path.name.removesuffix(".gz").rsplit(".", 1)[0].removesuffix("2id") or TEST
            names = (stem, *(f"{stem}-{i}" for i in range(2, len(tests) + 3)))
            files[next(name for name in names if name not in files)] = path
    elif layout.test:
        files[TEST] = layout.test
    return files


def _number(layout: Layout, rows: Sequence[Rows]) -> tuple[Any, Any, list[np.ndarray]]:
    """Arrow strings of entities and relations, and int32[t, 3] of each split."""
    if layout.entities is not None:
        ids = [np.stack(columns, axis=1) for columns, _ in rows]
        return layout.entities, layout.relations, ids
    ends, kinds = [], []
    for (head, relation, tail), _ in rows:
        ends += [head, tail]
        kinds.append(relation)
    entities, end_ids = _intern(ends)
    relations, kind_ids = _intern(kinds)
    ids = [
        np.stack([end_ids[2 * i], kind_ids[i], end_ids[2 * i + 1]], axis=1)
        for i in range(len(rows))
    ]
    return entities, relations, ids


def _intern(columns: Sequence[Column]) -> tuple[Any, list[np.ndarray]]:
    """The sorted strings of all columns, and int32 places in them for each column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = [chunk for column in columns for chunk in column.chunks]
    whole = pa.chunked_array(chunks).unify_dictionaries()
    strings = whole.chunk(0).dictionary
    order = pc.sort_indices(strings)  # by UTF-8 bytes: the order of code points
    rank = np.empty(len(strings), np.int32)
    rank[np.asarray(order)] = np.arange(len(strings), dtype=np.int32)
    ids = np.concatenate([rank[np.asarray(chunk.indices)] for chunk in whole.chunks])
    ends = np.cumsum([len(column) for column in columns])
    return strings.take(order), np.split(ids, ends[:-1])


def _first_of_each(triples: np.ndarray, n_relations: int) -> np.ndarray:
    """Rising places of the first of equal rows."""
    pairs = triples[:, 0].astype(np.int64) * n_relations + triples[:, 1]
    order = np.lexsort((triples[:, 2], pairs))  # stable
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(pairs[order]) != 0) | (np.diff(triples[order, 2]) != 0)
    return np.sort(order[new])


def _count_unseen(
    splits: dict[str, np.ndarray], n_entities: int, n_relations: int
) -> dict[str, Unseen]:
    known, related = np.zeros(n_entities, bool), np.zeros(n_relations, bool)
    known[splits[TRAIN][:, ::2]] = True
    related[splits[TRAIN][:, 1]] = True
    counts = {}
    for split, triples in splits.items():
        if split == TRAIN:
            continue
        ends, kinds = triples[:, ::2], triples[:, 1]
        new = ~known[ends].all(1) | ~related[kinds]
        counts[split] = Unseen(
            entities=len(np.unique(ends[~known[ends]])),
            relations=len(np.unique(kinds[~related[kinds]])),
            triples=int(new.sum()),
        )
    return counts


def _label(path: Path, entities: Any) -> tuple[Any, int, io.Report]:
    """A name to show for each entity, how many are not its identifier's, what was read."""
    import pyarrow.compute as pc

    report = io.Report()
    keys, texts = (
        plain_strings(column) for column in read_columns(path, ("entity", "name"), report)
    )
    backwards = np.arange(len(keys))[::-1]  # the last line on an entity counts
    found = pc.index_in(entities, value_set=keys.take(backwards))
    named = len(found) - found.null_count
    if not named:
        raise KeftError(
            f"{path}: names none of the {len(entities):,} entities (its first is "
            f"{keys[0].as_py()!r}, theirs {entities[0].as_py()!r}); write entity<tab>name"
        )
    return pc.coalesce(texts.take(backwards).take(found), entities), named, report
