"""The training objective: a weighted sum of loss terms. Terms that see the batch in the same way
share one forward pass of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp

from keft_jax.config import ObjectiveConfig
from keft_jax.data.batch import Batch
from keft_jax.models.functional import Model
from keft_jax.models.fusion import Output
from keft_jax.models.layers import fold
from keft_jax.models.mentions import candidates, divergence
from keft_jax.tasks.task import Task

Frozen = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


@dataclass(frozen=True)
class Term:
    """`loss` is a sum over the batch as `view` prepared it; `total` depends on the batch alone and
    is taken over the whole global batch, so that accumulated parts add up to the big batch."""

    name: str
    weight: float
    view: Task  # shows the model the batch
    loss: Callable[[Output, Frozen, Batch], jax.Array]
    total: Callable[[Batch], jax.Array]


def task_term(task: Task, weight: float) -> Term:
    return Term(
        name="task",
        weight=weight,
        view=task,
        loss=lambda output, frozen, batch: task.loss(output.logits, batch.targets[task.term]),
        total=task.total,
    )


def beside_term(task: Task, weight: float) -> Term:
    """Another task on the same texts, with its head beside the main one."""
    return dataclasses.replace(task_term(task, weight), name=task.term)


def reasoning_term(task: Task, weight: float) -> Term:
    """A task on queries that its own view draws."""
    return Term(
        name=task.term,
        weight=weight,
        view=task,
        loss=lambda output, frozen, batch: task.loss(output.logits, batch.targets[task.term]),
        total=task.total,
    )


def distill_term(teacher: Model, task: Task, weight: float, temperature: float) -> Term:
    """KL(teacher || student) of the softened distributions, times temperature squared (Hinton et
    al. 2015), over all real examples, labelled or not. The teacher's parameters are
    `frozen["teacher"]`; it runs without dropout and takes no gradient."""

    def loss(output: Output, frozen: Frozen, batch: Batch) -> jax.Array:
        taught = teacher.apply(frozen["teacher"], batch, frozen["names"]).logits
        log_t = jax.nn.log_softmax(jax.lax.stop_gradient(taught) / temperature)
        log_s = jax.nn.log_softmax(output.logits / temperature)
        each = (jnp.exp(log_t) * (log_t - log_s)).sum(-1)
        return temperature**2 * jnp.where(batch.example >= 0, each, 0).sum()

    return Term("distill", weight, task, loss, lambda batch: (batch.example >= 0).sum())


def kg_teacher_term(guide: Model | None, task: Task, weight: float, temperature: float) -> Term:
    """KL(teacher || student), a sum over mentions, of which entities a mention is related to:
    models/mentions.py. guide: the teacher, whose parameters and vectors are `frozen["guide"]`;
    None: the model's own scorer, trained jointly, which takes no gradient from here."""

    def loss(output: Output, frozen: Frozen, batch: Batch) -> jax.Array:
        taught, there_bn, fed = output.taught, None, jnp.ones(())
        if guide is None:
            fed = frozen["facts"]["weight"]  # a teacher without facts has nothing to say
        else:
            ours, entity_bn = frozen["guide"], batch.graph.nodes["entity"]
            there_bn, entity_bnw = ours["there"][entity_bn], ours["entity"][entity_bn]
            taught = guide.apply(ours["params"], entity_bnw, batch.mentions.node, temperature)
            taught = jax.lax.stop_gradient(taught)
        each_bm = divergence(taught, output.related, candidates(batch, there_bn))
        return fed * each_bm.sum()

    return Term("kg_teacher", weight, task, loss, lambda batch: (batch.mentions.node >= 0).sum())


def make_terms(
    config: ObjectiveConfig,
    task: Task,
    teacher: Model | None,
    beside: Task | None = None,
    reasoning: Task | None = None,
    guide: Model | None = None,
) -> tuple[Term, ...]:
    """A term whose weight is 0 is not built. beside: the masked language modelling of
    `objective.mlm`. reasoning: that of `objective.triples`. guide: the teacher of
    `objective.kg_teacher`, where a finished run is."""
    terms = []
    if config.task > 0:
        terms.append(task_term(task, config.task))
    if config.distill.weight > 0:
        if teacher is None:
            raise ValueError("objective.distill needs a teacher model")
        settings = config.distill
        terms.append(distill_term(teacher, task, settings.weight, settings.temperature))
    if config.mlm.weight > 0:
        if beside is None:
            raise ValueError("objective.mlm needs its task")
        terms.append(beside_term(beside, config.mlm.weight))
    if config.kg_teacher.weight > 0:
        heat = config.kg_teacher.temperature
        terms.append(kg_teacher_term(guide, task, config.kg_teacher.weight, heat))
    if config.triples.weight > 0:
        if reasoning is None:
            raise ValueError("objective.triples needs its task")
        terms.append(reasoning_term(reasoning, config.triples.weight))
    return tuple(terms)


class Objective:
    """`totals(batch)`, then the loss of any part of that batch."""

    def __init__(self, model: Model, terms: tuple[Term, ...]):
        self.model, self.terms = model, terms
        self.each = terms[0].view.each  # rows of a unit of the batch

    def views(self, batch: Batch, frozen: Frozen, key: jax.Array | None) -> dict[str, Batch]:
        """The batch as each kind of term is shown it. What a task draws for an example is the same
        in whatever accumulated part that lies."""
        out: dict[str, Batch] = {}
        for term in self.terms:
            name = term.view.term
            if name not in out:
                own_key = self._key(name, key)
                out[name] = term.view.prepare(batch, fold(own_key, crc32(b"prepare")), frozen)
        return out

    def _key(self, name: str, key: jax.Array | None) -> jax.Array | None:
        """Randomness of its own for each view but the first, so that a further term does not shift
        another's dropout."""
        first = self.terms[0].view.term
        return key if name == first else fold(key, crc32(name.encode()))

    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        return {
            term.name: jnp.maximum(term.total(batch).astype(jnp.float32), 1) for term in self.terms
        }

    def __call__(
        self,
        params: Any,
        frozen: Frozen,
        batch: Batch,
        totals: dict[str, jax.Array],
        key: jax.Array | None,
        part: jax.Array | int | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch from all parameters, none of them in a table of rows."""
        views = {name: (shown, shown) for name, shown in self.views(batch, frozen, key).items()}
        return self.of_views(params, frozen, views, totals, key, part)

    def of_views(
        self,
        params: Any,
        frozen: Frozen,
        views: dict[str, tuple[Batch, Batch]],
        totals: dict[str, jax.Array],
        key: jax.Array | None,
        part: jax.Array | int | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """views: (as the terms read it, as this model reads it). part: number of an accumulated
        part of the batch; its dropout is its own."""
        loss, metrics = jnp.zeros(()), {}
        seen: dict[str, Output] = {}
        for term in self.terms:
            name = term.view.term
            shown, renumbered = views[name]
            if name not in seen:
                own_key = self._key(name, key)
                drop = own_key if part is None or key is None else fold(own_key, part)
                seen[name] = self.model.apply(params, renumbered, frozen["names"], drop, head=name)
            own = term.loss(seen[name], frozen, shown)
            loss = loss + term.weight * own / totals[term.name]
            metrics[f"loss/{term.name}"] = (own, totals[term.name])
        metrics["loss/total"] = (loss, jnp.ones(()))
        return loss, metrics
