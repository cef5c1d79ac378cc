"""Checkpoints that verify, or are not used.

Orbax commits a step whole or not at all, but a flipped bit in its files restores silently wrong,
and another dtype is cast silently. So every committed step gets a manifest beside it, with the size
and the checksum of each file and the shape and dtype of each array, and only a step whose manifest
verifies is ever read:

    <folder>/<number>/        what Orbax wrote
    <folder>/<number>.json    its manifest, written after the step is committed

A step without a manifest was cut off while it was written. A step is deleted manifest first, so one
whose deletion was cut off looks the same.

Of several processes each writes the arrays of its own devices, hashes what it wrote, and hands that
to the first one, which writes the manifest. Each verifies a share of the files, and all hear what
the others found, so that all restore the same step. All call everything here in the same order.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from keft_jax.config import KeftError
from keft_jax.distributed import exchange, is_first
from keft_jax.files import write_atomic
from keft_jax.train.loop import Progress
from keft_jax.train.manifest import (
    checksums,
    describe,
    list_files,
    read,
    refuse_difference,
    seal,
    share,
    verify,
)
from keft_jax.train.state import State

logger = logging.getLogger(__name__)
Warn = Callable[[str], None]

HASHING = 600_000  # milliseconds that one process may hash after another is done
_number_of_save = itertools.count()


class Steps:
    """A folder of numbered steps with manifests, of which the newest `keep` stay.

    Saving is asynchronous: `save` returns when the arrays have left the devices. A thread of its
    own waits until Orbax has committed, hashes the files (1 to 2 GB/s) and writes the manifest, so
    that no process waits for one whose training has stopped; `poll`, called often, raises what went
    wrong there, `wait` and `close` see it through.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int, warn: Warn | None = None):
        self.folder, self.keep = Path(os.path.abspath(folder)), keep
        self.warn = warn or (lambda message: logger.warning("%s", message))
        self._orbax: ocp.CheckpointManager | None = None
        self._certifying: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "manifest")
        self._me, self._processes = jax.process_index(), jax.process_count()
        self._barrier = ocp.multihost.get_barrier_sync_fn()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._orbax is None:
            # Deleting is done here: Orbax would delete a good step before the next has a manifest.
            self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None,
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self.folder.name,  # two managers may save at a time
                    # Named, they wait for each other without the devices.
                    active_processes=set(range(self._processes)),
                ),
            )
            self._orbax = ocp.CheckpointManager(self.folder, options=options)
        return self._orbax

    def save(self, number: int, about: dict[str, Any], **items: Any) -> None:
        """Starts to save arrays (pytrees) and plain data (dicts) by name, after the last save is
        complete. The arrays may be donated as soon as this returns."""
        self.wait()
        trees = {name: item for name, item in items.items() if not isinstance(item, Data)}
        args = {
            name: ocp.args.JsonSave(item.value)
            if isinstance(item, Data)
            else ocp.args.StandardSave(item)
            for name, item in items.items()
        }
        manifest = {"number": number, "about": about, "arrays": describe(trees)}
        # Without force, a number that is not above the last one is skipped silently.
        self._manager.save(number, args=ocp.args.Composite(**args), force=True)
        self._certifying = self._thread.submit(
            self._certify, number, manifest, next(_number_of_save)
        )

    def poll(self) -> None:
        if self._certifying is not None and self._certifying.done():
            self.wait()

    def wait(self) -> None:
        """Until everything saved is committed and has its manifest. Raises what went wrong."""
        if self._certifying is not None:
            future, self._certifying = self._certifying, None
            future.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._orbax is not None:
                self._orbax.close()
                self._orbax = None

    def _certify(self, number: int, manifest: dict[str, Any], save: int) -> None:
        self._manager.wait_until_finished()  # raises what Orbax ran into
        folder = self.folder / str(number)
        files = checksums(folder, share(list_files(folder), self._me, self._processes))
        if self._processes > 1:
            files = self._gather(number, files, save)
        if not is_first():
            return
        # On a network's file system another host may not have seen the folder's new name.
        files |= checksums(folder, list_files(folder).keys() - files.keys())
        write_atomic(self._manifest(number), seal(manifest | {"files": files}))
        good = [n for n in self.numbers() if self._manifest(n).exists()]
        for old in set(self.numbers()) - set(good[: self.keep]):
            self._delete(old)

    def _gather(self, number: int, files: dict[str, Any], save: int) -> dict[str, Any]:
        """What all processes hashed, in the first one; through files, as no arrays can be summed on
        a thread beside the training step."""
        parts = [self.folder / f".{number}.{process}.part" for process in range(self._processes)]
        write_atomic(parts[self._me], json.dumps(files))
        self._barrier(key=f"keft-hashed-{save}", timeout_ms=HASHING)
        if not is_first():
            return {}
        for part in parts:
            files |= json.loads(part.read_text())
            part.unlink()
        return files

    def _manifest(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def _delete(self, number: int) -> None:
        self._manifest(number).unlink(missing_ok=True)
        shutil.rmtree(self.folder / str(number), ignore_errors=True)

    def numbers(self) -> list[int]:
        """Committed steps, newest first, with a manifest or not."""
        if not self.folder.is_dir():
            return []
        found = [int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdecimal()]
        return sorted(found, reverse=True)

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Number and manifest of the newest step that verifies; says why a newer one does not.

        None where there is none, or merely one that was cut off when it was first written. Raises
        KeftError where steps were complete once and none verifies.
        """
        damaged = ""
        for number in json.loads(exchange(json.dumps(self.numbers()))[0]):
            there, reason, manifest = self._check(number)
            if manifest is not None:
                return number, manifest
            if there:
                damaged = damaged or reason
            self.warn(f"{reason}; not used")
        if damaged:
            raise KeftError(
                f"{damaged}, and no other step verifies; copy a good one back, or delete "
                f"{self.folder.parent} and train from scratch"
            )
        return None

    def _check(self, number: int) -> tuple[bool, str, dict[str, Any] | None]:
        """Whether a step has a manifest, what is wrong with it, and the manifest where nothing
        is; the same in all processes, which read a share of the files each."""
        folder, file = self.folder / str(number), self._manifest(number)
        # One process reads it for all: on a network's file system others may see it later.
        own = [file.exists(), *read(folder, file)] if is_first() else []
        there, reason, manifest = json.loads(exchange(json.dumps(own))[0])
        if manifest is not None:
            found = verify(folder, manifest, self._me, self._processes)
            reason = next(filter(None, exchange(found)), "")
        return there, reason, None if reason else manifest

    def clear_after(self, number: int) -> None:
        """Removes what lies above a step that was restored (-1: all), and what was left half
        written by processes that are no more."""
        if is_first() and self.folder.is_dir():
            for other in self.numbers():
                if other > number:
                    self._delete(other)
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            for left in self.folder.glob(".*.part"):
                left.unlink(missing_ok=True)
        exchange("")  # nobody goes on before it is done
        if self._orbax is not None:
            self._orbax.reload()

    def load(self, number: int, **items: Any) -> Any:
        """Arrays onto the shardings of their abstract twins; `Data` gives plain data."""
        args = {
            name: ocp.args.JsonRestore()
            if isinstance(item, Data)
            else ocp.args.StandardRestore(item)
            for name, item in items.items()
        }
        return self._manager.restore(number, args=ocp.args.Composite(**args))


@dataclasses.dataclass
class Data:
    """Marks an item of plain data (what JSON holds) among arrays."""

    value: Any = None


class Checkpoints:
    """What a run resumes from: the state, and the progress of choosing the best."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, warn: Warn | None = None):
        self._steps = Steps(folder, keep, warn)

    def save(self, step: int, state: State, progress: Progress) -> None:
        about = Data(dataclasses.asdict(progress))
        self._steps.save(step, {}, state=_parts_of(state), progress=about)

    def poll(self) -> None:
        self._steps.poll()

    def wait(self) -> None:
        self._steps.wait()

    def close(self) -> None:
        self._steps.close()

    def restore(self, abstract: State) -> tuple[State, Progress] | None:
        """The newest state that verifies, onto the shardings of `abstract`; what is newer is
        removed then. None: start from scratch.

        Raises KeftError where complete steps are there and none verifies, and where a parameter
        has another shape or dtype than in `abstract`.
        """
        found = self._steps.newest()
        if found is None:
            if exchange(str(len(self._steps.numbers())))[0] != "0":
                self._steps.warn(f"{self._steps.folder}: no complete step; starting from scratch")
            self._steps.clear_after(-1)
            return None
        number, manifest = found
        wanted = _parts_of(abstract)
        refuse_difference(self._steps.folder / str(number), manifest, {"state": wanted})
        out = self._steps.load(number, state=wanted, progress=Data())
        self._steps.clear_after(number)
        return State(**out.state), Progress(**out.progress)


def _parts_of(state: State) -> dict[str, Any]:
    """What a state has, by name: a part that this run goes without leaves no trace on disk."""
    return {name: part for name, part in vars(state).items() if part is not None}


class BestParams:
    """The best parameters so far. Each save gets a number of its own, so that saving a training
    step again, as a resumed run does, never touches the copy that is there until the new one is
    committed and has its manifest."""

    def __init__(self, folder: str | os.PathLike[str], warn: Warn | None = None):
        self._steps = Steps(folder, 1, warn)
        self._last: int | None = None  # number of the last save; None: not looked for yet

    def save(self, step: int, params: Any) -> None:
        self._steps.wait()
        if self._last is None:
            self._last = int(exchange(str(max(self._steps.numbers(), default=0)))[0])
        self._last += 1
        self._steps.save(self._last, {"step": step}, params=params)

    def poll(self) -> None:
        self._steps.poll()

    def wait(self) -> None:
        self._steps.wait()

    def close(self) -> None:
        self._steps.close()

    def tidy(self, needed: bool) -> None:
        """Removes what was left half written. needed: a checkpoint says that there are some.
        Raises KeftError where these are damaged or gone."""
        found = self._steps.newest()
        if needed and found is None:
            raise KeftError(
                f"{self._steps.folder}: the best parameters are gone, which the checkpoint knows "
                f"of; copy them back, or delete {self._steps.folder.parent} and train from scratch"
            )
        self._steps.clear_after(found[0] if found else -1)

    def load(self, abstract: Any) -> tuple[int, Any]:
        """(training step, parameters on the shardings of `abstract`). Raises KeftError where there
        are none, none verifies, or they are of another model."""
        self._steps.wait()
        found = self._steps.newest()
        if found is None:
            raise KeftError(
                f"{self._steps.folder}: no parameters yet (they come with the first evaluation); "
                "go on with the same train.py command"
            )
        number, manifest = found
        refuse_difference(self._steps.folder / str(number), manifest, {"params": abstract})
        return manifest["about"]["step"], self._steps.load(number, params=abstract).params


def save_params(folder: str | os.PathLike[str], step: int, params: Any) -> None:
    """Saves the best parameters of a run in place of the ones before, and waits for it."""
    best = BestParams(folder)
    try:
        best.save(step, params)
    finally:
        best.close()


def load_params(folder: str | os.PathLike[str], abstract: Any) -> tuple[int, Any]:
    """See BestParams.load."""
    best = BestParams(folder)
    try:
        return best.load(abstract)
    finally:
        best.close()


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a tree, with the places that its arrays are to lie in."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
