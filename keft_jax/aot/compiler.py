"""libtpu as a compiler alone: devices that are not there, and what it writes to stderr."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from keft_jax.aot.chips import GIB, Topology
from keft_jax.bench.timing import no_cache
from keft_jax.config import KeftError

# No queries for a TPU's metadata, no lock against others; and all that the partitioner has to say:
# by default libtpu keeps its warnings of rematerialization to itself.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "0",
    "TPU_STDERR_LOG_LEVEL": "0",
    "TF_CPP_MIN_LOG_LEVEL": "0",
}
REMATERIALIZATION = "Involuntary full rematerialization"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"\(?([\d.]+)([KMGT])\)?"
_TOO_LARGE = re.compile(rf"{_SIZE} exceeds available HBM {_SIZE}")


class DoesNotFitError(KeftError):
    """The step needs more memory than a chip has."""

    exit_code = 1

    def __init__(self, message: str, needed: float, memory: float):
        super().__init__(message)
        self.needed, self.memory = needed, memory  # bytes
        self.report: dict[str, Any] = {}


def make_devices(topology: Topology) -> list[Any]:
    """The chips of all slices, slice by slice. Raises KeftError where libtpu is missing."""
    if importlib.util.find_spec("libtpu") is None:
        raise KeftError(
            "keft compile: needs libtpu, TPU's compiler (no TPU): pip install -e '.[aot]'"
        )
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from jax.experimental import topologies

    more: dict[str, Any] = dict(topology.chip.settings)
    if topology.slices > 1:
        more["num_slices"] = topology.slices
    with captured_stderr():  # libtpu tells at length that there is no TPU
        jax.devices()  # has read XLA_FLAGS then
    try:
        with captured_stderr(), _without_flags():  # it misses hosts that are not asked for
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name, **more
            )
    except jax.errors.JaxRuntimeError as error:
        raise KeftError(
            f"--topology {topology.name}: libtpu does not take it: {error}; try a smaller one"
        ) from error
    return list(found.devices)


@contextlib.contextmanager
def _without_flags() -> Iterator[None]:
    """libtpu leaves the process at a flag of another platform. Its own are LIBTPU_INIT_ARGS."""
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Lines that the process, not only Python, writes to stderr; complete when the block ends. An
    error shows them."""
    lines: list[str] = []
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def compile_lowered(lowered: Any, topology: Topology) -> tuple[Any, str, list[str]]:
    """(the compiled program, its text, the partitioner's complaints about rematerialization). The
    text is libtpu's own: jaxlib refuses programs that offload gathers to sparse cores (v5p, v6e),
    whose asynchronous instructions it does not know. Raises DoesNotFitError."""
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            captured_stderr() as lines,
            _without_flags(),
            no_cache(),  # what it holds writes nothing
        ):
            compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            text = read_text(Path(folder))
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if found is None:
            print("\n".join(lines), file=sys.stderr)
            raise
        needed, memory = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
        raise DoesNotFitError(
            f"{topology.name}: does not fit: a chip needs {needed / GIB:.2f} GiB and has "
            f"{memory / GIB:.2f}, {(needed - memory) / GIB:.2f} too few; use more chips, "
            "encoder.remat=full, a smaller optim.batch, or mesh.fsdp above 1",
            needed,
            memory,
        ) from error
    return compiled, text, [line for line in lines if REMATERIALIZATION in line]


def read_text(folder: Path) -> str:
    """The optimized module among what the compiler has left there; the one of a partitioned program
    is the longest."""
    found = [path.read_text() for path in folder.glob("*.after_optimizations.txt")]
    if not found:
        raise KeftError(
            "keft compile: this libtpu wrote no text of the program; use the one that the extra "
            "aot installs"
        )
    return max(found, key=len)
