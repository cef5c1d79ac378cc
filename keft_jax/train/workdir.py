"""A run's directory belongs to one config, one set of data and one process at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keft_jax.config import Config, KeftError, config_hash
from keft_jax.distributed import exchange, on_first
from keft_jax.files import write_atomic
from keft_jax.train.parts import ATTRIBUTES, VECTORS, load_run_config
from keft_jax.train.triple_parts import FOLDER

FREE = ("checkpoint.", "mesh.", "gain.", "watch.", "eval.batch", "optim.skip", "name")
"""Fields, or sections, that may change when a run is resumed: none changes what is computed, but
for rounding on another mesh."""
OWN = (
    *("tokenizer.json", "labels.json", "inputs.json", "kg", "compiled"),
    *(VECTORS, ATTRIBUTES, FOLDER),
)
"""What may stand in a directory without config.json: a run stopped while it was being made."""


def default_workdir(config: Config, stem: str) -> Path:
    """`runs/<stem>-<hash of the config>`: the same command finds its own run again."""
    return Path("runs") / f"{stem}-{config_hash(config)[:8]}"


def refuse_other_run(config: Config, folder: Path) -> None:
    """Raises KeftError where the directory is something else than this config's run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise KeftError(f"--workdir {folder}: a file; name a folder")
    if not (folder / "config.json").is_file():
        others = [p.name for p in folder.iterdir() if p.name[0] != "." and p.name not in OWN]
        if others:
            raise KeftError(
                f"--workdir {folder}: holds other things than a run ({sorted(others)[0]}); name "
                "another --workdir"
            )
        return
    here, there = flatten(config), flatten(load_run_config(folder))
    differ = [k for k in here if here[k] != there[k] and not k.startswith(FREE)]
    if differ:
        shown = ", ".join(f"{k} = {there[k]!r} (now {here[k]!r})" for k in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise KeftError(
            f"--workdir {folder}: holds a run with {shown}{more}; name another --workdir"
        )


def refuse_other_inputs(inputs: Mapping[str, str], folder: Path) -> None:
    """Raises KeftError where the run was begun with other data than is there now."""
    file = folder / "inputs.json"
    if not (file.is_file() and (folder / "config.json").is_file()):
        return
    before = json.loads(file.read_text())
    for name, value in inputs.items():
        if before.get(name, "") != value:
            raise KeftError(
                f"{name}: not what it was when {folder} was begun; put it back, or name another "
                "--workdir"
            )


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of every field."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        out |= flatten(value, f"{path}{field.name}.") if inner else {f"{path}{field.name}": value}
    return out


def refuse_unshared(folder: Path) -> None:
    """Raises KeftError where the processes of a run do not write to one and the same folder."""
    file = folder / ".shared"
    on_first(lambda: write_atomic(file, secrets.token_hex(8)))
    found = exchange(file.read_text() if file.is_file() else "")
    for process, own in enumerate(found):
        if own != found[0]:
            raise KeftError(
                f"--workdir {folder}: process {process} does not see there what process 0 wrote; "
                "give a folder on a file system that all hosts share (NFS, Lustre, GCS FUSE)"
            )


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Makes the directory and holds it: two processes in one would spoil both. The lock goes with
    the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise KeftError(
            f"--workdir {folder}: cannot write there ({error.strerror}); name another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KeftError(
                f"--workdir {folder}: another process trains there; wait for it, or name another"
            ) from None
        for left in folder.glob(".*.part"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        for left in (*folder.glob(".*.new-*"), *folder.glob(".*.old-*")):  # of kg/disk.py
            shutil.rmtree(left, ignore_errors=True)
        yield
