"""Where metrics go: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from keft_jax.files import write_atomic


class MetricsFile:
    """metrics.jsonl: one object a line, `{"step": 3, "loss/total": 2.5, ...}`, one line a step.

    What a step reports in several calls is gathered until the next one; `flush` writes it.
    """

    def __init__(self, path: Path, step: int):
        """Goes on after `step`: lines of later steps, and one that was cut off, are dropped."""
        kept = []
        if path.exists():
            for line in path.read_text("utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    break  # cut off in the middle: it was the last one
        write_atomic(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._step, self._values = step, {}  # type: int, dict[str, float | None]

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if step != self._step:
            self.flush()
        self._step = step
        # JSON has no NaN and no infinity.
        self._values |= {k: v if math.isfinite(v) else None for k, v in scalars.items()}

    def flush(self) -> None:
        if self._values:
            self._file.write(json.dumps({"step": self._step, **self._values}) + "\n")
            self._file.flush()
            self._values = {}

    def close(self) -> None:
        self.flush()
        self._file.close()


class TensorBoard:
    """Event files that TensorBoard shows; events after `step` are marked as replaced."""

    def __init__(self, folder: Path, step: int):
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        # One event for all: four of add_scalar cost a millisecond of every step.
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._writer.file_writer.add_summary(Summary(value=values), step)

    def close(self) -> None:
        self._writer.close()
