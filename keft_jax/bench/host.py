"""How fast the host makes batches: linking, tokenising, subgraphs, padding."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from keft_jax.config import Config, KeftError
from keft_jax.data.features import Dataset, with_row
from keft_jax.data.source import Example
from keft_jax.data.splits import Splits
from keft_jax.data.unlabelled import Mixed
from keft_jax.train.loop import make_plan
from keft_jax.train.parts import Parts

MOST = 8192
"""Examples measured."""


def bench_input(parts: Parts, examples: Sequence[Example], repeats: int = 3) -> dict[str, float]:
    """Examples a CPU second (of all threads), in all and by part, as training makes them; the best
    of the repeats."""
    examples = list(examples[:MOST])
    if not examples:
        raise KeftError("bench --input: no examples; name a data.train with some")
    config = parts.config
    if len(examples) < config.optim.batch:
        optim = dataclasses.replace(config.optim, batch=len(examples))
        config = dataclasses.replace(config, optim=optim)
    row, count = (config.knowledge.row, config.seed), len(examples)
    with_row(parts.dataset(examples[:1]), parts.knowledge, *row)
    steps, size = count // config.optim.batch, config.optim.batch + config.optim.unlabelled
    seconds = np.full((repeats, 3), np.inf)
    for i in range(repeats):
        marks = [time.process_time()]
        text = parts.training(Splits(examples, [], {}, unlabelled=examples))
        marks.append(time.process_time())
        ready = with_row(text, parts.knowledge, *row)
        marks.append(time.process_time())
        plan = plan_all(config, ready)
        for step in range(steps):
            ready.batch(*plan.batch(step))
        marks.append(time.process_time())
        seconds[i] = np.diff(marks)
    texts = count * (1 if text.rest is None else 2)
    best = seconds[seconds.sum(1).argmin()] / (texts, texts, steps * size)
    names = ("text_us", "subgraphs_us", "batches_us")
    each = {name: 1e6 * float(s) for name, s in zip(names, best, strict=True)}
    return {"examples": count, "examples_per_cpu_s": 1 / float(best.sum()), **each}


def plan_all(config: Config, ready: Dataset) -> Any:
    """Training's plan over all of the examples, drawn or not."""
    if isinstance(ready, Mixed):
        ready = dataclasses.replace(ready, leftover=False)
    data = dataclasses.replace(config.data, draw=0)
    return make_plan(dataclasses.replace(config, data=data), ready, config.seed)


def with_headroom(rates: dict[str, float], examples_per_s: float) -> dict[str, float]:
    """With how many times the step's examples one core of the host makes: with all that an example
    needs once in a run, and by the batches alone."""
    batches = 1e6 / rates["batches_us"]
    return rates | {
        "headroom": rates["examples_per_cpu_s"] / examples_per_s,
        "headroom_batches": batches / examples_per_s,
    }
