"""The training objective: a weighted sum of loss terms. Terms that see the batch in the same way
share one forward pass of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from zlib import crc32

import jax
import jax.numpy as jnp

from keft_jax.config import KeftError, ObjectiveConfig, ScheduleConfig
from keft_jax.data.batch import Batch, token_mask
from keft_jax.models.functional import Model
from keft_jax.models.fusion import Output
from keft_jax.models.layers import fold
from keft_jax.models.mentions import candidates, divergence
from keft_jax.models.packed import gather_masks
from keft_jax.tasks.entities import EntityPrediction
from keft_jax.tasks.task import Task
from keft_jax.train.distill import diverge, match_attention, match_states

Frozen = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


class View(Protocol):
    """Shows the model the batch; see tasks/task.py."""

    term: str
    each: int

    def prepare(self, batch: Any, key: jax.Array | None, frozen: Frozen) -> Any: ...


class Shown(View, Protocol):
    """A view of the task's batches with a term of its own (train/consistency.py)."""

    def make_term(self) -> Term: ...


@dataclass(frozen=True)
class Term:
    """`loss` is a sum over the batch as `view` prepared it; `total` depends on the batch alone and
    is taken over the whole global batch, so that accumulated parts add up to the big batch."""

    name: str
    weight: float
    view: View
    loss: Callable[[Output, Frozen, Batch], Any]  # or (loss, {name: another sum})
    total: Callable[[Batch], jax.Array]
    teacher: Model | None = None  # whose output for the view the loss reads as frozen["taught"]
    inner: bool = False  # it reads the states of all layers and the last attention
    factor: Callable[[Frozen], jax.Array] | None = None  # on the weight; None: it is constant


def factor_of(config: ObjectiveConfig, name: str) -> Callable[[Frozen], jax.Array] | None:
    """The schedule of a term's weight, or of `temperature`; None where it is constant. It reads
    `frozen["done"]`: 0 at the first step, 1 at the last."""

    def of(schedule: ScheduleConfig) -> Callable[[Frozen], jax.Array]:
        def factor(frozen: Frozen) -> jax.Array:
            done = frozen["done"]
            way = done if schedule.kind == "linear" else (1 - jnp.cos(jnp.pi * done)) / 2
            return schedule.start + (schedule.end - schedule.start) * way

        return factor

    return next((of(schedule) for schedule in config.schedules if schedule.of == name), None)


def task_term(task: Task, weight: float, view: View | None = None) -> Term:
    """view: of another than the task itself. Logits that are to be trained by themselves have a
    loss each."""

    def loss(output: Output, frozen: Frozen, batch: Batch) -> jax.Array:
        target: Any = batch.targets[task.term]
        if not output.alone:
            return task.loss(output.logits, target)
        own = [
            task.loss(logits, dataclasses.replace(target, weight=target.weight * there_b))
            for logits, there_b in output.alone
        ]
        return sum(own[1:], start=own[0])

    return Term(
        name="task",
        weight=weight,
        view=view or task,
        loss=loss,
        total=task.total,
    )


def beside_term(task: Task, weight: float) -> Term:
    """Another task on the same texts, or on queries that it draws, with its head beside the main
    one."""
    return dataclasses.replace(task_term(task, weight), name=task.term)


def entities_term(linked: EntityPrediction, weight: float) -> Term:
    """In the forward pass of the masked language modelling that it is of."""
    return Term(
        name=linked.term,
        weight=weight,
        view=linked.masks,
        loss=lambda output, frozen, batch: linked.loss(output.entities, batch.targets[linked.term]),
        total=linked.total,
    )


def distill_terms(config: ObjectiveConfig, teacher: Model, task: Task, view: View) -> list[Term]:
    """The parts of `objective.distill` that have a weight, each a mean over all real examples,
    labelled or not. The teacher's parameters are `frozen["teacher"]`; it runs without dropout, once
    for all parts, and takes no gradient."""
    settings, factor = config.distill, factor_of(config, "temperature")

    def outputs(output: Output, frozen: Frozen, batch: Batch) -> jax.Array:
        temperature = settings.temperature * (factor(frozen) if factor else 1)
        taught, _ = task.distributions(frozen["taught"].logits, batch)
        own, weight = task.distributions(output.logits, batch)
        each = weight * diverge(taught, own, temperature)
        each_u = each.reshape(len(each), -1).sum(1)
        return jnp.where(batch.example[:: task.each] >= 0, each_u, 0).sum()

    def hidden(output: Output, frozen: Frozen, batch: Batch) -> jax.Array:
        states = frozen["taught"].states
        each = match_states(states, output.projected, token_mask(batch), settings.hidden_loss)
        return jnp.where(batch.example >= 0, each, 0).sum()

    def attention(output: Output, frozen: Frozen, batch: Batch) -> jax.Array:
        own: Any = output.attention
        each = match_attention(frozen["taught"].attention, own, token_mask(batch))
        return jnp.where(batch.example >= 0, each, 0).sum()

    def units(batch: Batch) -> jax.Array:
        return (batch.example[:: task.each] >= 0).sum()

    def rows(batch: Batch) -> jax.Array:
        return (batch.example >= 0).sum()

    parts = (
        Term("distill", settings.weight, view, outputs, units, teacher),
        Term("hidden", settings.hidden, view, hidden, rows, teacher, inner=True),
        Term("attention", settings.attention, view, attention, rows, teacher, inner=True),
    )
    return [term for term in parts if term.weight > 0]


def kg_teacher_term(guide: Model | None, view: View, weight: float, temperature: float) -> Term:
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

    return Term("kg_teacher", weight, view, loss, lambda batch: (batch.mentions.node >= 0).sum())


def make_terms(
    config: ObjectiveConfig,
    task: Task,
    teacher: Model | None,
    beside: Task | None = None,
    reasoning: Task | None = None,
    guide: Model | None = None,
    linked: EntityPrediction | None = None,
    *,
    consistency: Shown | None = None,
) -> tuple[Term, ...]:
    """A term whose weight is 0 is not built; a schedule multiplies a weight. beside: the masked
    language modelling of `objective.mlm`. reasoning: that of `objective.triples`. guide: the
    teacher of `objective.kg_teacher`, where a finished run is. consistency: that of
    `objective.consistency`, which then shows the task's terms their batches."""
    view: View = consistency or task
    terms: list[Term] = []
    if config.task > 0:
        terms.append(task_term(task, config.task, view))
    if config.distill.active:
        if teacher is None:
            raise ValueError("objective.distill needs a teacher model")
        terms += distill_terms(config, teacher, task, view)
    if consistency is not None:
        terms.append(consistency.make_term())
    if config.mlm.weight > 0:
        if beside is None:
            raise ValueError("objective.mlm needs its task")
        terms.append(beside_term(beside, config.mlm.weight))
    if config.entities.weight > 0:
        if linked is None:
            raise ValueError("objective.entities needs its task")
        terms.append(entities_term(linked, config.entities.weight))
    if config.kg_teacher.weight > 0:
        heat = config.kg_teacher.temperature
        terms.append(kg_teacher_term(guide, view, config.kg_teacher.weight, heat))
    if config.triples.weight > 0:
        if reasoning is None:
            raise ValueError("objective.triples needs its task")
        terms.append(beside_term(reasoning, config.triples.weight))
    known = [term.name for term in terms] + ["temperature"] * (config.distill.weight > 0)
    for schedule in config.schedules:
        if schedule.of not in known:
            raise KeftError(
                f"objective.schedules.of = {schedule.of!r}: this run has no such term; it has "
                f"{', '.join(known)}"
            )
    return tuple(dataclasses.replace(t, factor=factor_of(config, t.name)) for t in terms)


class Objective:
    """`totals(batch)`, then the loss of any part of that batch."""

    def __init__(self, model: Model, terms: tuple[Term, ...]):
        self.model, self.terms = model, terms
        self.each = max(term.view.each for term in terms)  # rows of a unit of the batch

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
        frozen = {**frozen, "params": jax.lax.stop_gradient(params)}
        seen: dict[str, Output] = {}
        asked: dict[str, Any] = {"inner": True} if any(t.inner for t in self.terms) else {}
        for term in self.terms:
            name = term.view.term
            shown, renumbered = map(gather_masks, views[name])
            if name not in seen:
                own_key = self._key(name, key)
                drop = own_key if part is None or key is None else fold(own_key, part)
                seen[name] = self.model.apply(
                    params, renumbered, frozen["names"], drop, head=name, **asked
                )
            if term.teacher and "taught" not in frozen:  # all its terms share one view
                taught = term.teacher.apply(frozen["teacher"], shown, frozen["names"], **asked)
                frozen = {**frozen, "taught": jax.lax.stop_gradient(taught)}
            own, more = term.loss(seen[name], frozen, shown), {}
            if isinstance(own, tuple):
                own, more = own
            weight = term.weight * (term.factor(frozen) if term.factor else 1)
            loss = loss + weight * own / totals[term.name]
            metrics[f"loss/{term.name}"] = (own, totals[term.name])
            for thing, value in more.items():
                metrics[f"{term.name}/{thing}"] = (value, totals[term.name])
        metrics["loss/total"] = (loss, jnp.ones(()))
        return loss, metrics
