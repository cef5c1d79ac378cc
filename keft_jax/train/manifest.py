"""The manifest of a checkpoint: what was written, so that what is read can be told from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from keft_jax.config import KeftError


def describe(tree: Any) -> dict[str, list[Any]]:
    """path -> [dtype, shape] of every array."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [str(x.dtype), list(x.shape)]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def refuse_difference(folder: Path, manifest: dict[str, Any], abstract: Any) -> None:
    """Raises KeftError naming the first array that is not what `abstract` has in its place."""
    saved, wanted = manifest["arrays"], describe(abstract)

    def text(entry: list[Any] | None) -> str:
        return f"{entry[0]}{entry[1]}" if entry else "absent"

    # A parameter says more than the moments that go with it.
    for path in sorted(saved | wanted, key=lambda p: (not p.startswith("state/params"), p)):
        if saved.get(path) != wanted.get(path):
            raise KeftError(
                f"{folder}: {path} is {text(saved.get(path))} in this checkpoint and "
                f"{text(wanted.get(path))} in the config; give the config it was made with, or "
                "another --workdir"
            )


def checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def list_files(folder: Path) -> dict[str, Path]:
    """relative path -> file, in order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p for p in files}


def share(names: Iterable[str], process: int, processes: int) -> list[str]:
    """The files that one of several processes reads: those that it wrote, or as good as that; the
    first one has what they wrote together."""
    out = []
    for name in names:
        writer = re.search(r"\.process_(\d+)/", name)
        if (int(writer[1]) if writer else 0) % processes == process:
            out.append(name)
    return out


def checksums(folder: Path, names: Iterable[str]) -> dict[str, list[Any]]:
    """relative path -> [bytes, sha256] of these files."""
    return {name: [(folder / name).stat().st_size, checksum(folder / name)] for name in names}


def seal(content: dict[str, Any]) -> str:
    """JSON that carries its own checksum."""
    body = json.dumps(content, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "content": content})


def unseal(data: bytes) -> dict[str, Any] | None:
    """What was sealed; None where it is damaged."""
    try:
        outer = json.loads(data)
        body = json.dumps(outer["content"], sort_keys=True)
        good = outer["sha256"] == hashlib.sha256(body.encode()).hexdigest()
    except (ValueError, TypeError, KeyError):
        return None
    return outer["content"] if good else None


def read(folder: Path, file: Path) -> tuple[str, dict[str, Any] | None]:
    """What keeps the manifest `file` of a step's folder from being read, and what it says."""
    if not file.exists():
        return f"{folder}: cut off while it was written (it has no manifest)", None
    manifest = unseal(file.read_bytes())
    return ("", manifest) if manifest else (f"{file}: damaged manifest", None)


def verify(folder: Path, manifest: dict[str, Any], process: int = 0, processes: int = 1) -> str:
    """What is wrong with a process's share of a step's files; empty: nothing."""
    files, written = list_files(folder), manifest["files"]
    for name in share(written, process, processes):
        size, digest = written[name]
        if name not in files:
            return f"{folder / name}: missing"
        if files[name].stat().st_size != size:
            found = files[name].stat().st_size
            return f"{folder / name}: {found} bytes where {size} were written"
        if checksum(files[name]) != digest:
            return f"{folder / name}: its checksum is not that of what was written"
    extra = sorted(set(files) - set(written))
    return f"{folder / extra[0]}: not among what was written" if extra else ""
