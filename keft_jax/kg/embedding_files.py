"""Embeddings that other tools wrote: DGL-KE, OpenKE's JSON, NumPy and safetensors, word2vec text.

A table's rows are named by a file beside it: `entities.tsv` or `.dict` (`id<TAB>name`), or
`entity2id.txt` (OpenKE). Pickle is never loaded, so PyTorch's own files are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from keft_jax.config import KeftError
from keft_jax.kg import disk, io
from keft_jax.kg.columns import to_names
from keft_jax.kg.embeddings import Embeddings, check_finite, check_table
from keft_jax.kg.id_files import first_line, read_id_file
from keft_jax.kg.names import Names

_PICKLED = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
_TEXT = (".txt", ".vec", ".tsv")
_STEMS = {"entity": "entities", "relation": "relations"}
_ROLES = {  # OpenKE's names of the two tables; of ComplEx the real part, then the imaginary one
    "entity": (
        ("ent_embeddings.weight",),
        ("ent_re_embeddings.weight", "ent_im_embeddings.weight"),
    ),
    "relation": (
        ("rel_embeddings.weight",),
        ("rel_re_embeddings.weight", "rel_im_embeddings.weight"),
    ),
}


def read_foreign(path: Path) -> Embeddings:
    """`path`: DGL-KE's folder or `*_entity.npy`, another `.npy` or a `.safetensors`, OpenKE's
    `.json`, or text of `name v1 v2 ...` (`.txt`, `.vec`, `.tsv`, `.gz`). KeftError in one line."""
    if not path.exists():
        raise KeftError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        path = _table_of(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    kind = kind.lower()
    if kind in _PICKLED:
        raise KeftError(
            f"{path}: may hold a pickle, which can run code and is never loaded; save the tables "
            "as .safetensors or .npy"
        )
    if kind in _TEXT:
        return _read_text(path)
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".json": _read_openke}
    if kind not in readers:
        known = ", ".join((*readers, *_TEXT))
        raise KeftError(f"{path}: of an unknown kind; give a folder of embeddings, or {known}")
    return readers[kind](path)


def _table_of(folder: Path) -> Path:
    """The one table of entities in a folder."""
    if disk.is_graph(folder):
        raise KeftError(f"{folder}: a graph, not embeddings; name a folder of vectors")
    found = sorted(
        path
        for pattern in ("*entity.npy", "*.safetensors", "*.json", "*.vec")
        for path in folder.glob(pattern)
        if path.name not in ("config.json", "meta.json")
    )
    if not found:
        pickled = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICKLED)
        if pickled:
            return pickled[0]  # refused by name
        raise KeftError(f"{folder}: without embeddings; export some, or name the file itself")
    if len(found) > 1:
        both = " and ".join(path.name for path in found[:2])
        raise KeftError(f"{folder}: has {both}; name the one that is meant")
    return found[0]


def _names_beside(table: Path, thing: str) -> tuple[Path, Names, Names]:
    """The file that names the rows of a table, its names, and names to show."""
    folder, stem = table.parent, _STEMS[thing]
    found = [
        folder / name
        for name in (
            *(f"{table.stem}{end}" for end in (".tsv", ".dict") if thing == "entity"),
            *(f"{stem}{end}" for end in (".tsv", ".dict", ".tsv.gz", ".dict.gz")),
            *(f"{thing}2id.txt", f"{thing}2id.txt.gz", *_mapped(folder, thing)),
        )
        if (folder / name).is_file()
    ]
    found = list(dict.fromkeys(found))
    if not found:
        raise KeftError(
            f"{table}: no {stem}.tsv beside it to name its rows; put one there, id<tab>name on "
            "each line (DGL-KE writes it into its data folder)"
        )
    if len(found) > 1:
        both = " and ".join(path.name for path in found[:2])
        raise KeftError(f"{folder}: {both} both name rows; leave one of them")
    names, labels = read_id_file(found[0], thing)
    return found[0], to_names(names), to_names(labels)


def _mapped(folder: Path, thing: str) -> tuple[str, ...]:
    """The name of the id file that DGL-KE's config.json gives. KeftError where it leads out."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise KeftError(f"{path}: no JSON ({error}); copy it again, or remove it") from error
    name = content.get(f"{thing[0]}map_file", "") if isinstance(content, dict) else ""
    if not isinstance(name, str) or Path(name).name != name:
        raise KeftError(f"{path}: {thing[0]}map_file {name!r} is no file's name; put it beside")
    return (name,) if name else ()


def _read_npy(path: Path) -> Embeddings:
    extra = {}
    tables = {"entity": _load_npy(path)}
    prefix, found, _ = path.name.rpartition("entity.npy")
    if found:
        related = path.with_name(f"{prefix}relation.npy")
        if related.is_file():
            tables["relation"] = _load_npy(related)
        for projection in (f"{prefix}projection.npy", f"{prefix[:-1]}projection.npy"):
            if prefix and path.with_name(projection).is_file():
                extra["projection"] = _load_npy(path.with_name(projection))
                break
    return _named(path, tables, extra)


def _load_npy(path: Path) -> np.ndarray:
    try:
        # Mapped first: a header that promises more than there is must not take the memory.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        if "object" in str(error).lower():
            raise KeftError(f"{path}: Python objects; save an array of floats") from error
        raise KeftError(f"{path}: no .npy file, or cut off ({error}); save it again") from error


def _read_safetensors(path: Path) -> Embeddings:
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise KeftError(f"{path}: no safetensors file, or cut off ({why}); save it again") from (
            error
        )
    if "entity" not in tensors:
        flat = [name for name, tensor in tensors.items() if tensor.ndim == 2]
        if len(flat) != 1:
            have = ", ".join(sorted(tensors)) or "nothing"
            raise KeftError(f"{path}: has {have}; call the entities' table entity")
        tensors["entity"] = tensors.pop(flat[0])
    tables = {name: tensors.pop(name) for name in _STEMS if name in tensors}
    return _named(path, tables, tensors)


def _read_openke(path: Path) -> Embeddings:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise KeftError(f"{path}: no JSON, or cut off ({error}); save it again") from error
    content = content if isinstance(content, dict) else {}
    tables = {}
    for thing, choices in _ROLES.items():
        keys = next((keys for keys in choices if keys[0] in content), None)
        if keys is None and thing == "entity":
            raise KeftError(
                f"{path}: without ent_embeddings.weight; give the file of OpenKE's save_parameters"
            )
        parts = [_matrix(content.pop(key, None), f"{path}: {key}") for key in keys or ()]
        if len({len(part) for part in parts}) > 1:
            raise KeftError(f"{path}: {' and '.join(keys or ())} differ in rows; save them again")
        if parts:
            tables[thing] = np.concatenate(parts, axis=1)
    extra = {
        key: _matrix(value, f"{path}: {key}")
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], list)
    }
    return _named(path, tables, extra)


def _matrix(rows: Any, place: str) -> np.ndarray:
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise KeftError(f"{place}: no list of rows; save it again")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise KeftError(f"{place}: row {number} has {len(row)} values, not {len(rows[0])}")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused by its row
            return np.array(rows, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise KeftError(f"{place}: {error}; give numbers alone") from error


def _named(path: Path, tables: dict[str, np.ndarray], extra: dict[str, np.ndarray]) -> Embeddings:
    """Tables with the names that lie beside them, checked."""
    names: dict[str, Sequence[str]] = {}
    labels: Sequence[str] = ()
    for thing in tables:
        file, names[thing], shown = _names_beside(path, thing)
        place = f"{path}: {thing} table"
        check_table(tables[thing], len(names[thing]), f"{place} (named by {file.name})")
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            tables[thing] = tables[thing].astype(np.float32, copy=False)
        check_finite(tables[thing], names[thing], place)
        labels = shown if thing == "entity" else labels
    return Embeddings(
        names=names["entity"],
        vectors=tables["entity"],
        relations=names.get("relation", ()),
        relation_vectors=tables.get("relation"),
        labels=labels,
        extra=extra,
    )


def _read_text(path: Path) -> Embeddings:
    """`name v1 v2 ...`; a first line of two integers, rows and width, is word2vec's."""
    head = first_line(path).split()
    header = len(head) == 2 and all(field.isdecimal() for field in head)
    rows, width = (int(field) for field in head) if header else (0, len(head) - 1)
    if width < 1:
        raise KeftError(f"{path}:1: no vector; write name v1 v2 ... on each line")
    lines: dict[str, int] = {}
    vectors = []
    with io.open_text(path) as file:
        for number, raw in io.number_lines(file, path):
            if not raw.strip() or (header and number == 1):
                continue
            place = f"{path}:{number}"
            try:
                name, *fields = raw.decode().strip().rsplit(None, width)
                with np.errstate(over="ignore"):
                    vector = np.array([float(field) for field in fields], np.float32)
            except UnicodeDecodeError as error:
                raise KeftError(f"{place}: not UTF-8; write the names in UTF-8") from error
            except ValueError as error:
                raise KeftError(f"{place}: {error}; write name v1 ... v{width}") from error
            if len(vector) != width:
                raise KeftError(f"{place}: {len(vector)} values, not {width}; make them equal")
            if not np.isfinite(vector).all():
                raise KeftError(f"{place}: {name!r} has a value that is not finite; leave it out")
            if lines.setdefault(name, number) != number:
                raise KeftError(f"{place}: {name!r} is on line {lines[name]} too; leave one out")
            vectors.append(vector)
    if header and rows != len(vectors):
        raise KeftError(f"{path}:1: says {rows:,} rows, {len(vectors):,} follow; copy it again")
    if not vectors:
        raise KeftError(f"{path}: no vector; write name v1 v2 ... on each line")
    return Embeddings(Names.of(lines), np.stack(vectors))
