"""Embedding files: vectors by identifier, written so that anyone can read them.

OUT/entities.safetensors    "entity" f32[n, d], "relation" f32[r, k], and what else there is
OUT/entities.tsv            id, identifier, name to show
OUT/relations.tsv           id, identifier
OUT/entity.npy, relation.npy    the same tables for NumPy
OUT/meta.json               the model and the graph; shape, size and sha256 of each file
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from keft_jax.config import KeftError
from keft_jax.files import write_atomic
from keft_jax.kg.columns import to_arrow, to_names
from keft_jax.kg.id_files import read_id_file

FORMAT = "keft_jax.embeddings"
TABLES, ENTITIES, RELATIONS, META = (
    *("entities.safetensors", "entities.tsv", "relations.tsv"),
    "meta.json",
)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of entities, and of relations where there are some, by identifier."""

    names: Sequence[str]
    vectors: np.ndarray  # f32[n, d]
    relations: Sequence[str] = ()
    relation_vectors: np.ndarray | None = None  # f32[r, k]
    labels: Sequence[str] = ()
    """Names to show, one for each entity; (): the identifiers."""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Other tables of the model by name, such as TransR's projections."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """What was embedded, and how: model, distance, hash of the graph."""

    def __post_init__(self) -> None:
        pairs = [("entity", self.names, self.vectors)]
        if self.relation_vectors is not None:
            pairs.append(("relation", self.relations, self.relation_vectors))
        for thing, names, table in pairs:
            check_table(table, len(names), f"{thing} vectors")
        if len(self.labels) not in (0, len(self.names)):
            raise KeftError(f"labels: {len(self.labels)} of {len(self.names)}; give one for each")

    def of_relations(self) -> Embeddings:
        """The relations and their vectors, to `align`. KeftError where there are none."""
        if self.relation_vectors is None:
            raise KeftError("embeddings: without vectors of relations; give a file that has some")
        return Embeddings(self.relations, self.relation_vectors, meta=self.meta)


def check_table(table: np.ndarray, rows: int, place: str) -> None:
    """KeftError where the table is not floats[rows, width of 1 or more]."""
    if table.dtype.kind != "f" and table.dtype.name != "bfloat16":
        remedy = "real and imaginary parts side by side" if table.dtype.kind == "c" else "floats"
        raise KeftError(f"{place}: {table.dtype}; write {remedy}")
    if table.ndim != 2 or not table.size:
        raise KeftError(f"{place}: shape {list(table.shape)}; a table is [rows, width]")
    if len(table) != rows:
        raise KeftError(f"{place}: {len(table):,} rows, but {rows:,} ids; give a row for each id")


def check_finite(table: np.ndarray, names: Sequence[str], place: str) -> None:
    """KeftError that names the first row with a NaN or an infinity."""
    for start in range(0, len(table), 1 << 16):
        good = np.isfinite(table[start : start + (1 << 16)])
        if not good.all():
            row = start + int(np.argmin(good.all(1)))
            at = int(np.argmin(good[row - start]))
            raise KeftError(
                f"{place}: row {row} ({names[row]!r}) has {table[row, at]} at {at}; "
                "train again with a smaller learning rate, or leave the row out"
            )


def write_embeddings(folder: str | Path, embeddings: Embeddings) -> None:
    """Writes the folder, whole or not at all. KeftError where it is there and not empty, where a
    value is not finite, and for an identifier that a line of text cannot hold."""
    out = Path(os.path.abspath(folder))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KeftError(f"{folder}: is there already; name another folder, or remove this one")
    tables = _tables(embeddings)
    texts = {ENTITIES: (embeddings.names, embeddings.labels or embeddings.names)}
    if "relation" in tables:
        texts[RELATIONS] = (embeddings.relations, ())
    for file, (names, _) in texts.items():
        _refuse_unwritable(names, f"{folder}/{file}")
    part = out.parent / f".{out.name}.new-{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
        safetensors.numpy.save_file(tables, part / TABLES, {"format": FORMAT})
        for name in ("entity", "relation"):
            if name in tables:
                np.save(part / f"{name}.npy", tables[name], allow_pickle=False)
        for file, (names, labels) in texts.items():
            write_atomic(part / file, _lines(names, labels))
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _checksum(path)}
            for path in sorted(part.iterdir())
        }
        shapes = {name: list(table.shape) for name, table in tables.items()}
        content = {"format": FORMAT, "layout": 1, "meta": dict(embeddings.meta), "shapes": shapes}
        text = json.dumps({**content, "files": files}, indent=1, ensure_ascii=False)
        write_atomic(part / META, text + "\n")
        os.rename(part, out)  # an empty folder in the way is replaced
    except (OSError, safetensors.SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise KeftError(f"{folder}: cannot write there ({why}); name another") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _tables(embeddings: Embeddings) -> dict[str, np.ndarray]:
    tables = {"entity": embeddings.vectors}
    if embeddings.relation_vectors is not None:
        tables["relation"] = embeddings.relation_vectors
    for name, names in (("entity", embeddings.names), ("relation", embeddings.relations)):
        if name in tables:
            check_finite(tables[name], names, f"{name} vectors")
    for name, table in embeddings.extra.items():
        if name in ("entity", "relation"):
            raise KeftError(f"extra table {name!r}: has the name of the table itself; rename it")
        if not np.isfinite(table).all():
            raise KeftError(f"table {name!r}: has a NaN or an infinity; train again, or drop it")
        tables[name] = table
    return {name: np.ascontiguousarray(t, np.float32) for name, t in tables.items()}


def _refuse_unwritable(names: Sequence[str], place: str) -> None:
    import pyarrow.compute as pc

    strings = to_arrow(names)
    outer = pc.not_equal(pc.utf8_trim_whitespace(strings), strings)
    bad = pc.or_(outer, pc.match_substring_regex(strings, r"[\t\r\n\x00]|^$"))
    for row in np.flatnonzero(np.asarray(bad))[:1].tolist():
        raise KeftError(
            f"{place}: identifier {names[row]!r} of row {row} is empty, or has a tab, a line break "
            "or spaces around it; rename it"
        )
    if pc.count_distinct(strings).as_py() < len(strings):
        twice = pc.filter(c := pc.value_counts(strings), pc.greater(c.field("counts"), 1))
        raise KeftError(f"{place}: identifier {twice[0]['values'].as_py()!r} is there twice")


def _lines(names: Sequence[str], labels: Sequence[str]) -> str:
    rows: Iterable[str] = map("{}\t{}".format, range(len(names)), names)
    if labels:
        shown = (" ".join(label.replace("\0", " ").split()) for label in labels)
        rows = (
            f"{row}\t{label or name}" for row, name, label in zip(rows, names, shown, strict=True)
        )
    return "".join(f"{row}\n" for row in rows)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_embeddings(folder: Path) -> bool:
    """Whether the folder says of itself that `write_embeddings` wrote it, damaged or not."""
    try:
        meta = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and meta.get("format") == FORMAT


def read_embeddings(path: str | Path) -> Embeddings:
    """A folder of `write_embeddings`, or what others write: see `kg.embedding_files`.

    Values are finite, shapes and ids agree, sums are right: else KeftError with the file.
    """
    from keft_jax.kg.embedding_files import read_foreign

    folder = Path(path)
    own = is_embeddings(folder) or all((folder / name).is_file() for name in (META, TABLES))
    return _read_own(folder) if own else read_foreign(folder)


def _read_own(folder: Path) -> Embeddings:
    try:
        content = json.loads((folder / META).read_bytes())
        if (content["format"], content["layout"]) != (FORMAT, 1):
            raise ValueError(f"{content['format']} layout {content['layout']}")
        sums = {name: (f["bytes"], f["sha256"]) for name, f in content["files"].items()}
        shapes, meta = content["shapes"], {k: str(v) for k, v in content["meta"].items()}
        related = RELATIONS in sums
        wanted = (TABLES, ENTITIES, *([RELATIONS] if related else []))
        expected = {name: sums[name] for name in wanted}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KeftError(f"{folder / META}: damaged ({error}); export the embeddings again") from (
            error
        )
    for name, (size, checksum) in expected.items():
        file = folder / name
        if not file.is_file():
            raise KeftError(f"{file}: missing; export the embeddings again")
        if file.stat().st_size != size or _checksum(file) != checksum:
            raise KeftError(f"{file}: not what was written; export the embeddings again")
    tables = safetensors.numpy.load_file(folder / TABLES)
    found = {name: list(table.shape) for name, table in tables.items()}
    if found != shapes or "entity" not in tables or related != ("relation" in tables):
        raise KeftError(
            f"{folder / TABLES}: has {found}, not {shapes}; export the embeddings again"
        )
    names, labels = (to_names(strings) for strings in read_id_file(folder / ENTITIES, "entity"))
    relations: Sequence[str] = ()
    if related:
        relations = to_names(read_id_file(folder / RELATIONS, "relation")[0])
    extra = {k: table for k, table in tables.items() if k not in ("entity", "relation")}
    vectors = tables["entity"]
    check_finite(vectors, names, str(folder / TABLES))
    return Embeddings(names, vectors, relations, tables.get("relation"), labels, extra, meta)


def align(
    embeddings: Embeddings, names: Sequence[str], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """f32[len(names), d] by identifier, and bool[len(names)]: which were found; others are zero.

    KeftError where the vectors are not `width` wide, and where none is found.
    """
    import pyarrow.compute as pc

    d = embeddings.vectors.shape[1]
    if width is not None and width != d:
        raise KeftError(f"embeddings: {d} wide, {width} expected; set the width to {d}")
    found = pc.index_in(to_arrow(names), value_set=to_arrow(embeddings.names))
    rows = np.asarray(pc.fill_null(found, -1))
    there = rows >= 0
    if not there.any() and len(names):
        raise KeftError(
            f"embeddings: have none of the {len(names):,} names (their first is "
            f"{embeddings.names[0]!r}, the first wanted {names[0]!r}); embed the same graph"
        )
    vectors = np.zeros((len(names), d), np.float32)
    vectors[there] = embeddings.vectors[rows[there]]
    return vectors, there
