"""Several processes that are one run: how they find each other, agree, and stop together.

All run the same program on the same global arrays, each for the devices of its own host; the first
one writes what is not an array. Nothing here is of any cost, or of any use, to a single process.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keft_jax.config import KeftError
from keft_jax.sharding import MESH_AXES, place

logger = logging.getLogger(__name__)

NAMES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
"""What may be given for each process: the option of train.py, or this variable."""
PATIENCE = 30
"""Seconds that a process which ends with an error waits for the others, which hang by then."""
FRAME = 1024  # bytes: what is exchanged is padded to a power of two of these


class JoinError(KeftError):
    """The other processes are not there, which may be otherwise the next time."""

    exit_code = 1


def join(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Joins the processes of a run, before anything else asks JAX for its devices.

    All three are given, by option or variable, or none: then a TPU pod, SLURM, Open MPI and an
    indexed job of Kubernetes are known by their own variables, and elsewhere the process is alone.
    `processes` of 1: alone, whatever is around.

    Args:
      coordinator: host:port of process 0.
      process: number of this one, from 0 on.

    Raises:
      KeftError: some are given and others not, or the others cannot be reached.
    """
    given = {"coordinator": coordinator or None, "processes": processes, "process": process}
    given = {k: env.get(NAMES[k]) if v is None else v for k, v in given.items()}
    if given["processes"] is not None and _whole(given, "processes", 1) == 1:
        return
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        there = next(name for name in given if given[name] is not None)
        raise KeftError(
            f"--{there} = {given[there]}: given without "
            f"{' and '.join(f'--{name} ({NAMES[name]})' for name in missing)}; give all three to "
            "every process, or none where TPU, SLURM or Kubernetes tell them"
        )
    cluster = "" if not missing else _find_cluster(env)
    if missing and not cluster:
        return
    if not missing:
        count, number = _whole(given, "processes", 2), _whole(given, "process", 0)
        if number >= count:
            raise KeftError(f"--process = {number}: count from 0 to {count - 1}")
    # A SIGTERM is for the run to take (stop_signals); JAX's own handler would keep it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if missing:
            jax.distributed.initialize(shutdown_timeout_seconds=PATIENCE)
        else:
            jax.distributed.initialize(
                str(given["coordinator"]),
                count,
                number,
                # Else SLURM would leave this process one of its host's devices.
                cluster_detection_method="deactivate",
                shutdown_timeout_seconds=PATIENCE,
            )
    except (ValueError, RuntimeError) as error:
        if cluster == "TPU" and "should be defined" in str(error):
            return  # a host without a pod around it
        where = f"in {cluster}" if cluster else f"at {given['coordinator']}"
        raise JoinError(
            f"joining the other processes {where}: {error}; give --coordinator, --processes and "
            "--process, or --processes 1 for a run by itself"
        ) from error
    if jax.process_index() > 0:
        logging.getLogger("keft_jax").setLevel(logging.ERROR)  # the first one says it for all


def _whole(given: Mapping[str, object], name: str, least: int) -> int:
    value = str(given[name])
    if not value.isdecimal() or int(value) < least:
        raise KeftError(f"--{name} = {value}: use a whole number from {least} on")
    return int(value)


def _find_cluster(env: Mapping[str, str]) -> str:
    """The name of what started this process with others; empty: nothing that JAX knows how to ask.
    One whose variables say that it is alone is not asked."""

    def several(name: str) -> bool:
        return int(env.get(name) or 1) > 1

    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return "TPU" if "," in hosts or several("MEGASCALE_NUM_SLICES") else ""
    if several("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in env:
        return "SLURM"
    if several("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "TPU" if chips and env.get("JAX_PLATFORMS", "tpu").startswith("tpu") else ""


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """What each process gives, by its number. All have to call it, in the same order."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    frame = FRAME
    while frame < np.max(sizes):
        frame *= 2
    table = multihost_utils.process_allgather(np.pad(data, (0, frame - len(data))))
    return [bytes(row[:size]).decode() for row, size in zip(table, sizes, strict=True)]


def on_first(action: Callable[[], object]) -> None:
    """Calls it in the first process, while the others wait; a KeftError there is raised in all."""
    error: KeftError | None = None
    if is_first():
        try:
            action()
        except KeftError as caught:
            error = caught
    told = exchange("" if error is None else str(error))[0]
    if error is not None:
        raise error
    if told:
        raise KeftError(told)


def refuse_unlike(values: Mapping[str, str]) -> None:
    """Raises KeftError in all processes where one has other values than the first."""
    tables = [json.loads(text) for text in exchange(json.dumps(dict(values)))]
    for number, table in enumerate(tables):
        for name in sorted(tables[0] | table):
            if table.get(name) != tables[0].get(name):
                raise KeftError(
                    f"{name}: process {number} has {table.get(name)!r} and process 0 "
                    f"{tables[0].get(name)!r}; give every host the same files, options and versions"
                )


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and control-C ask to stop after the step; a second control-C is not caught."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread can take signals
        return
    asked = False
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: Any) -> None:
        nonlocal asked  # no lock: a second signal may come in the middle of this
        asked = True
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """Whether any process was asked to stop, told to all of them after the same step.

    Each has its flag in an array that is cut over all devices. The step sums it among its metrics,
    which are looked at one step late in any case: no process waits for another, and all read the
    same sum. On one process there is no such array, and the flag is read as it is.
    """

    def __init__(self, asked: Callable[[], bool], mesh: Mesh):
        self._asked, self._mesh = asked, mesh
        self._told = False
        self._flags: dict[bool, dict[str, jax.Array]] = {}

    def sent(self) -> dict[str, jax.Array]:
        """What the step reads among `frozen`."""
        if jax.process_count() == 1:
            return {}
        asked = self._asked()
        if asked not in self._flags:
            whole = np.full(self._mesh.size, asked, np.float32)
            cut = NamedSharding(self._mesh, PartitionSpec(MESH_AXES))
            self._flags[asked] = {"stop": place(whole, cut)}
        return self._flags[asked]

    def told(self, scalars: dict[str, float]) -> None:
        """Takes the sum from a step's metrics."""
        self._told |= scalars.pop("stop", 0.0) > 0

    def __bool__(self) -> bool:
        return self._told if jax.process_count() > 1 else self._asked()
