"""What the knowledge costs: step time with the graph network over step time without it."""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from keft_jax.config import (
    DistillConfig,
    FusionConfig,
    GroupConfig,
    KgTeacherConfig,
    TriplesConfig,
)
from keft_jax.data.features import Dataset
from keft_jax.data.plan import BatchPlan
from keft_jax.models.functional import paths
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts, assemble


def without_graph(parts: Parts) -> Parts:
    """The same model, task and data without the graph network and without a teacher."""
    config = parts.config

    def without(groups: tuple[GroupConfig, ...]) -> Parts:
        plain = dataclasses.replace(
            config,
            fusion=FusionConfig(kind="none"),
            optim=dataclasses.replace(config.optim, groups=groups),
            knowledge=dataclasses.replace(config.knowledge, entities="", relations=""),
            objective=dataclasses.replace(
                config.objective,
                distill=DistillConfig(),
                schedules=(),
                triples=TriplesConfig(),
                kg_teacher=KgTeacherConfig(),
            ),
        )
        ours = parts.knowledge
        return assemble(plain, ours.kg, ours.vocabulary, parts.labels, ours.vectors)

    # The groups of parameters that it has, in their order.
    there = jax.tree.leaves(paths(without(()).model.abstract()))
    groups = [g for g in config.optim.groups if any(g.match in path for path in there)]
    return without(tuple(groups))


def measure_cost(trainer: Trainer, train: Dataset) -> float | None:
    """Step time over that without the graph network; None where the model has none."""
    if trainer.parts.config.fusion.kind == "none":
        return None
    return compare_steps(trainer, Trainer(without_graph(trainer.parts)), train)


def compare_steps(one: Trainer, other: Trainer, train: Dataset, steps: int = 20) -> float:
    """Median of the ratios of alternating pairs of steps, so that a busy machine slows both."""
    config, trainers = one.parts.config, (one, other)
    plan = BatchPlan(train.lengths, config.optim.batch, config.data.buckets, 0)
    states, times = [t.fresh(0) for t in trainers], np.zeros((steps + 2, 2))
    batches = [t.put(train.batch(*plan.batch(0))) for t in trainers]
    frozen = [t.frozen() for t in trainers]
    for pair in times:
        for i, t in enumerate(trainers):
            begin = time.perf_counter()
            states[i], metrics = t.train_step(states[i], frozen[i], batches[i])
            jax.block_until_ready((states[i], metrics))
            pair[i] = time.perf_counter() - begin
    first, second = times[2:].T  # the ones before compile
    return float(np.median(first / second))
