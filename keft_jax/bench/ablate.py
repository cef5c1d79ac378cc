"""A config without its parts, one after another: from the whole step to the text alone. The step
with a part against the next one without it is what the part costs, and the costs add up."""

from __future__ import annotations

import dataclasses
from typing import Any

from keft_jax.config import ObjectiveConfig
from keft_jax.gain.cost import drop_groups, with_objective, without_graph
from keft_jax.models.fusion import row_width
from keft_jax.train.given import Given
from keft_jax.train.parts import Parts, assemble

Part = tuple[str, Parts, Given]

TERMS = ("kg_teacher", "triples", "entities", "mlm", "distill", "consistency")
"""Fields of the objective; those that build on others first."""
WEIGHTS = ("weight", "hidden", "attention")


def peel(parts: Parts, given: Given) -> list[Part]:
    """(part, the model that has it and all parts behind it, what that is given), the whole first:

    TERMS     of the objective, with their heads and teachers
    graph     the layers of the graph network
    fusion    vectors of nodes, and how they meet the text
    text      the rest: encoder, head, the task's loss, optimizer
    """
    out: list[Part] = []
    for name in TERMS:
        less = _less(parts.config.objective, name)
        if less != parts.config.objective:
            out.append((name, parts, given))
            parts, given = _without(parts, given, dataclasses.replace(less, schedules=()))
    if parts.config.fusion.kind != "none":
        out.append(("graph", parts, given))
        none = dataclasses.replace(parts.config.graph, layers=0)
        out.append(("fusion", *_without(parts, given, parts.config.objective, graph=none)))
        parts = without_graph(parts)
        given = Given(parts)
    return [*out, ("text", parts, given)]


def _less(objective: ObjectiveConfig, name: str) -> ObjectiveConfig:
    """The objective with that term's weights at 0."""
    term = getattr(objective, name)
    zeros = {weight: 0.0 for weight in WEIGHTS if hasattr(term, weight)}
    return dataclasses.replace(objective, **{name: dataclasses.replace(term, **zeros)})


def _without(
    parts: Parts, given: Given, objective: ObjectiveConfig, **sections: Any
) -> tuple[Parts, Given]:
    """Rows of entities stay as long as they are with the term that chose their length."""
    ours, config = parts.knowledge, parts.config
    width = row_width(config) if config.fusion.kind != "none" else 0
    known = dataclasses.replace(config.knowledge, entity_width=width)
    config = with_objective(config, objective, knowledge=known, **sections)
    less = drop_groups(
        assemble(config, ours.kg, ours.vocabulary, parts.labels, ours.vectors, ours.attributes)
    )
    teacher = given.teacher if objective.distill.active else None
    guide = given.guide if objective.kg_teacher.weight else None
    return less, Given(less, teacher=teacher, guide=guide)
