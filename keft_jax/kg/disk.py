"""A folder of arrays: whole or not at all, every file with its size and checksum."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keft_jax.config import KeftError
from keft_jax.files import write_atomic

FORMAT = "keft_jax.kg"
LAYOUT = 1
_REMEDY = "build it again (keft kg build)"


def is_graph(folder: Path) -> bool:
    """Whether the folder says of itself that it is a graph, damaged or not."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and meta.get("format") == FORMAT


def write(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, object]) -> None:
    """Writes arrays and meta.json to a sibling, then renames it into place.

    A graph that is there already is moved aside first and deleted last, so a crash leaves the old
    one or the new one whole. KeftError where `folder` is anything else than a graph or empty.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not is_graph(folder):
        if not folder.is_dir():
            raise KeftError(f"{folder}: a file, not a folder; name another place for the graph")
        if any(folder.iterdir()):
            raise KeftError(f"{folder}: holds other things than a graph; name another place")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        mark = secrets.token_hex(4)
        new = folder.parent / f".{folder.name}.new-{mark}"
        new.mkdir()
    except OSError as error:
        raise KeftError(f"{folder}: cannot write there ({error.strerror}); name another") from error
    try:
        files = {}
        for name, array in arrays.items():
            path = new / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                _flush(file)
            files[path.name] = {
                "bytes": path.stat().st_size,
                "shape": list(array.shape),
                "dtype": array.dtype.str,
                "sha256": _checksum(path),
            }
        content = {"format": FORMAT, "layout": LAYOUT, **meta, "files": files}
        write_atomic(new / "meta.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        _flush_folder(new)
        _swap(new, folder, folder.parent / f".{folder.name}.old-{mark}")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _flush_folder(folder.parent)


def _swap(new: Path, folder: Path, old: Path) -> None:
    if not is_graph(folder):
        os.rename(new, folder)  # an empty folder in the way is replaced
        return
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)


def read(folder: Path, *, verify: bool) -> tuple[dict[str, np.ndarray], dict]:
    """Memory-mapped arrays by name, and meta.json. KeftError names the file that is not right."""
    if not folder.exists():
        raise KeftError(f"{folder}: no such folder; make it with keft kg build")
    if not folder.is_dir():
        raise KeftError(f"{folder}: a file, not a graph's folder; make one with keft kg build")
    path = folder / "meta.json"
    if not path.exists():
        raise KeftError(f"{folder}: not a graph (no meta.json); make one with keft kg build")
    try:
        meta = json.loads(path.read_bytes())
        layout, files = meta["layout"], dict(meta["files"])
        ok = meta["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise KeftError(f"{path}: damaged, or not of a graph ({error}); {_REMEDY}") from error
    if not ok or layout != LAYOUT:
        raise KeftError(
            f"{path}: {meta['format']} layout {layout}, this version reads {FORMAT} layout "
            f"{LAYOUT}; {_REMEDY}"
        )
    arrays = {}
    for name, entry in files.items():
        arrays[name.removesuffix(".npy")] = _map(folder / name, entry, verify)
    return arrays, meta


def _map(path: Path, entry: dict, verify: bool) -> np.ndarray:
    if not path.is_file():
        raise KeftError(f"{path}: missing; {_REMEDY}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise KeftError(f"{path}: {size:,} bytes, {entry['bytes']:,} were written; {_REMEDY}")
    if verify and _checksum(path) != entry["sha256"]:
        raise KeftError(f"{path}: its checksum is not the one that was written; {_REMEDY}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise KeftError(f"{path}: damaged ({error}); {_REMEDY}") from error
    if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
        raise KeftError(
            f"{path}: {array.dtype.str}{list(array.shape)}, {entry['dtype']}{entry['shape']} was "
            f"written; {_REMEDY}"
        )
    return np.asarray(array)  # still mapped, without memmap's slow indexing


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
