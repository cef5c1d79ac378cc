"""Compiled training steps, timed one by one, several models in turn."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from keft_jax.data.batch import Batch
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.loop import Trainer

BURST = 5
"""Steps that are sent to an accelerator one after another, as in training, where none waits for the
loss of the one before."""


class Steps:
    """The training step of one model with a state of its own; each call takes the next batch."""

    def __init__(self, trainer: Trainer, batches: Sequence[Batch]):
        self.trainer, self._frozen = trainer, trainer.frozen()
        self._batches = [trainer.put(batch) for batch in batches]
        self._state = trainer.fresh(trainer.parts.config.seed)
        step: Any = trainer.train_step
        with no_cache():
            cpu, begin = time.process_time(), time.perf_counter()
            self.compiled = step.lower(self._state, self._frozen, self._batches[0]).compile()
            self.compile_s = time.perf_counter() - begin
            self.compile_cpu_s = time.process_time() - cpu
        self.loss, self._done = float("nan"), 0
        self.burst = 1 if self.trainer.mesh.devices.flat[0].platform == "cpu" else BURST

    @property
    def bytes(self) -> float | None:
        """That a step reads and writes on a device by the compiler's cost analysis: operands and
        results of all instructions, the body of a loop once. None where it tells none."""
        found = self.compiled.cost_analysis()
        found = found[0] if isinstance(found, list) and found else found
        return (found or {}).get("bytes accessed")

    def __call__(self) -> tuple[float, float]:
        """(CPU seconds of this process, wall seconds) of a step, the mean of `burst`, whose last
        loss is fetched. Waiting for it here is what makes the seconds their own."""
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(self.burst):
            batch = self._batches[self._done % len(self._batches)]
            self._state, metrics = self.compiled(self._state, self._frozen, batch)
            self._done += 1
        self.loss = float(metrics["loss/total"][0])
        jax.block_until_ready(self._state)
        spent = time.process_time() - cpu, time.perf_counter() - wall
        if not np.isfinite(self.loss):
            raise NotFiniteError(f"step {self._done}: loss/total is {self.loss}; lower the rate")
        return spent[0] / self.burst, spent[1] / self.burst


def time_in_turn(steps: Sequence[Steps], count: int, warmup: int) -> np.ndarray:
    """f64[count, models, 2]: CPU and wall seconds. The models take turns, from the first to the
    last and then back, so that a machine that gets busier slows each of a pair as often."""
    gc.collect()
    times = np.zeros((warmup + count, len(steps), 2))
    for number, row in enumerate(times):
        for i in range(len(steps))[:: -1 if number % 2 else 1]:
            row[i] = steps[i]()
    return times[warmup:]


@contextlib.contextmanager
def no_cache() -> Iterator[None]:
    """Compiles anew, whatever JAX_COMPILATION_CACHE_DIR holds."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
