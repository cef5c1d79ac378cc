"""How fast the host makes batches: linking, tokenising, subgraphs, padding."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.features import with_row
from keft_jax.data.plan import BatchPlan
from keft_jax.data.source import Example
from keft_jax.train.parts import Parts

MOST = 8192
"""Examples measured."""


def bench_input(parts: Parts, examples: Sequence[Example], repeats: int = 3) -> dict[str, float]:
    """Examples a CPU second (of all threads), in all and by part; the best of the repeats."""
    examples = list(examples[:MOST])
    if not examples:
        raise KeftError("bench --input: no examples; name a data.train with some")
    config = parts.config
    with_row(parts.dataset(examples[:1]), parts.knowledge, config.knowledge.row, config.seed)
    seconds = np.full((repeats, 3), np.inf)
    for i in range(repeats):
        marks = [time.process_time()]
        text = parts.dataset(examples)
        marks.append(time.process_time())
        ready = with_row(text, parts.knowledge, config.knowledge.row, config.seed)
        marks.append(time.process_time())
        batch = min(config.optim.batch, len(examples))
        plan = BatchPlan(ready.lengths, batch, config.data.buckets, config.seed)
        for step in range(len(examples) // batch):
            ready.batch(*plan.batch(step))
        marks.append(time.process_time())
        seconds[i] = np.diff(marks)
    best = seconds[seconds.sum(1).argmin()]
    count = len(examples)
    names = ("text", "subgraphs", "batches")
    parts_of = {f"{n}_us": 1e6 * s / count for n, s in zip(names, best, strict=True)}
    return {"examples": count, "examples_per_cpu_s": count / float(best.sum()), **parts_of}


def with_headroom(rates: dict[str, float], examples_per_s: float) -> dict[str, float]:
    """With how many times the step's examples one core of the host makes: with all that an example
    needs once in a run, and by the batches alone."""
    batches = 1e6 / rates["batches_us"]
    return rates | {
        "headroom": rates["examples_per_cpu_s"] / examples_per_s,
        "headroom_batches": batches / examples_per_s,
    }
