"""A config without its parts, one after another: from the whole step to the text alone. The step
with a part against the next one without it is what the part costs, and the costs add up."""

from __future__ import annotations

import dataclasses
from typing import Any

from keft_jax.config import (
    DistillConfig,
    EntitiesConfig,
    KgTeacherConfig,
    MlmConfig,
    TriplesConfig,
)
from keft_jax.gain.cost import drop_groups, without_graph
from keft_jax.models.fusion import row_width
from keft_jax.train.given import Given
from keft_jax.train.parts import Parts, assemble

Part = tuple[str, Parts, Given]

TERMS: dict[str, Any] = {
    "kg_teacher": KgTeacherConfig(),
    "triples": TriplesConfig(),
    "entities": EntitiesConfig(),
    "mlm": MlmConfig(),
    "distill": DistillConfig(),
}
"""Fields of the objective, and what they are without the term; those that build on others first."""


def peel(parts: Parts, given: Given) -> list[Part]:
    """(part, the model that has it and all parts behind it, what that is given), the whole first:

    kg_teacher, triples, entities, mlm, distill    terms of the objective, with heads and teachers
    graph     the layers of the graph network
    fusion    vectors of nodes, and how they meet the text
    text      the rest: encoder, head, the task's loss, optimizer
    """
    out: list[Part] = []
    for name, empty in TERMS.items():
        objective = parts.config.objective
        if getattr(objective, name) == empty:
            continue
        out.append((name, parts, given))
        rest = dataclasses.replace(objective, schedules=(), **{name: empty})
        parts, given = _without(parts, given, objective=rest)
    if parts.config.fusion.kind != "none":
        out.append(("graph", parts, given))
        none = dataclasses.replace(parts.config.graph, layers=0)
        out.append(("fusion", *_without(parts, given, graph=none)))
        parts = without_graph(parts)
        given = Given(parts)
    return [*out, ("text", parts, given)]


def _without(parts: Parts, given: Given, **sections: Any) -> tuple[Parts, Given]:
    """Rows of entities stay as long as they are with the term that chose their length."""
    ours, config = parts.knowledge, parts.config
    width = row_width(config) if config.fusion.kind != "none" else 0
    known = dataclasses.replace(config.knowledge, entity_width=width)
    config = dataclasses.replace(config, knowledge=known, **sections)
    less = drop_groups(
        assemble(config, ours.kg, ours.vocabulary, parts.labels, ours.vectors, ours.attributes)
    )
    teacher = given.teacher if config.objective.distill.active else None
    guide = given.guide if config.objective.kg_teacher.weight else None
    return less, Given(less, teacher=teacher, guide=guide)
