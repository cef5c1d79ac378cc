"""What the knowledge costs: step time with the graph network, and facts written into the text, over
step time without."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from keft_jax.config import (
    Config,
    DistillConfig,
    EntitiesConfig,
    FusionConfig,
    KgTeacherConfig,
    ObjectiveConfig,
    TriplesConfig,
)
from keft_jax.data.features import Dataset, with_row
from keft_jax.data.plan import BatchPlan, assign_buckets
from keft_jax.models.functional import paths
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import Parts, assemble


def text_alone(config: Config) -> Config:
    """Without the graph network, what needs one, a teacher, and facts in the text."""
    objective = dataclasses.replace(
        config.objective,
        distill=DistillConfig(),
        schedules=(),
        entities=EntitiesConfig(),
        triples=TriplesConfig(),
        kg_teacher=KgTeacherConfig(),
    )
    return with_objective(
        config,
        objective,
        fusion=FusionConfig(kind="none"),
        knowledge=dataclasses.replace(
            config.knowledge, entities="", relations="", attributes="", text="none"
        ),
    )


def with_objective(config: Config, objective: ObjectiveConfig, **sections: Any) -> Config:
    """The config with an objective of fewer terms; texts without labels and the average of the
    parameters go with the last one that reads them."""
    data, optim, consistent = config.data, config.optim, objective.consistency.weight > 0
    others = consistent, objective.mlm.weight, objective.kg_teacher.weight, objective.distill.active
    if not any(others):
        data = dataclasses.replace(data, unlabelled="")
        optim = dataclasses.replace(optim, unlabelled=0)
    if not (consistent or config.eval.ema):
        optim = dataclasses.replace(optim, ema=0.0)
    return dataclasses.replace(config, objective=objective, data=data, optim=optim, **sections)


def drop_groups(parts: Parts) -> Parts:
    """With those groups of `optim` that the model has parameters of, in their order."""
    there, optim = jax.tree.leaves(paths(parts.model.abstract())), parts.config.optim
    groups = tuple(g for g in optim.groups if any(g.match in path for path in there))
    optim = dataclasses.replace(optim, groups=groups)
    return dataclasses.replace(parts, config=dataclasses.replace(parts.config, optim=optim))


def without_graph(parts: Parts) -> Parts:
    """The same model, task and data as `text_alone`."""
    ours, config = parts.knowledge, text_alone(parts.config)
    plain = assemble(config, ours.kg, ours.vocabulary, parts.labels, ours.vectors)
    return drop_groups(plain)


def measure_cost(trainer: Trainer, train: Dataset) -> float | None:
    """Step time over that without the knowledge; None where the model has none."""
    config = trainer.parts.config
    if config.fusion.kind == "none" and config.knowledge.text == "none":
        return None
    return compare_steps(trainer, Trainer(without_graph(trainer.parts)), train)


def compare_steps(one: Trainer, other: Trainer, train: Dataset, steps: int = 20) -> float:
    """Median of the ratios of pairs of steps, now one first, now the other, so that a busy machine
    slows both. Each reads the same examples with what it is given of the graph; packed, examples
    that its own layout has as many of."""
    config, trainers = one.parts.config, (one, other)
    plan = BatchPlan(train.lengths, config.optim.batch, config.data.buckets, 0)
    states, times = [t.fresh(0) for t in trainers], np.zeros((steps + 2, 2))
    length, numbers = plan.batch(0)
    batches = []
    for t in trainers:
        own, needs, knowledge = train, length, t.parts.knowledge
        if knowledge.config != train.knowledge.config:
            own = with_row(train, knowledge, *train.row)
            bucket = assign_buckets(own.lengths[numbers], config.data.buckets).max()
            needs = config.data.buckets[bucket]
        if config.data.pack:
            batches.append(t.put(own.batch(*make_plan(config, own, 0).batch(0))))
        else:
            batches.append(t.put(own.batch(needs, numbers)))
    frozen = [t.frozen() for t in trainers]
    for number, pair in enumerate(times):
        for i in (0, 1) if number % 2 else (1, 0):
            begin = time.perf_counter()
            states[i], metrics = trainers[i].train_step(states[i], frozen[i], batches[i])
            jax.block_until_ready((states[i], metrics))
            pair[i] = time.perf_counter() - begin
    first, second = times[2:].T  # the ones before compile
    return float(np.median(first / second))
