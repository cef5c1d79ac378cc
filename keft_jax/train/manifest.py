"""The manifest of a checkpoint: what was written, so that what is read can be told from it."""

from __future__ import annotations

import hashlib
import json
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


def checksums(folder: Path) -> dict[str, list[Any]]:
    """relative path -> [bytes, sha256]."""
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, checksum(file)]
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


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


def verify(folder: Path, file: Path) -> tuple[str, dict[str, Any] | None]:
    """What is wrong with a step's folder by its manifest `file`, and the manifest where nothing
    is."""
    if not file.exists():
        return f"{folder}: cut off while it was written (it has no manifest)", None
    manifest = unseal(file.read_bytes())
    if manifest is None:
        return f"{file}: damaged manifest", None
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name, (size, digest) in manifest["files"].items():
        if name not in files:
            return f"{folder / name}: missing", None
        if files[name].stat().st_size != size:
            found = files[name].stat().st_size
            return f"{folder / name}: {found} bytes where {size} were written", None
        if checksum(files[name]) != digest:
            return f"{folder / name}: its checksum is not that of what was written", None
    extra = sorted(set(files) - set(manifest["files"]))
    return (f"{folder / extra[0]}: not among what was written", None) if extra else ("", manifest)
