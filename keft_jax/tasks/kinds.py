"""The kinds of task, in one table: what each is made of, and what an example must have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import tokenizers

from keft_jax.config import Config, KeftError
from keft_jax.data.annotations import LETTERS
from keft_jax.data.source import Example
from keft_jax.kg.store import KG
from keft_jax.tasks.anchors import EntityTyping, RelationClassification
from keft_jax.tasks.choice import Choice
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.kgqa import KGQA
from keft_jax.tasks.mlm import MaskedLM
from keft_jax.tasks.span import SpanAnswering
from keft_jax.tasks.tagging import Tagging
from keft_jax.tasks.task import Task

MAX_ENTITIES = 200_000  # that an answer task scores at every step


@dataclass(frozen=True)
class Made:
    """What a task is made of."""

    config: Config
    kg: KG
    tokenizer: tokenizers.Tokenizer
    labels: Sequence[str]


def _kgqa(made: Made) -> Task:
    if made.kg.n_entities > MAX_ENTITIES:
        raise KeftError(
            f"knowledge.kg = {made.config.knowledge.kg!r}: {made.kg.n_entities} entities, more "
            f"than the {MAX_ENTITIES} that kgqa scores at every step; give a smaller graph"
        )
    return KGQA(made.kg, made.config.task.set_threshold)


def _span(made: Made) -> Task:
    config = made.config
    return SpanAnswering(made.tokenizer, config.data.buckets[-1], config.task)


def _label(example: Example) -> Iterable[str]:
    return () if example.label is None else (example.label,)


@dataclass(frozen=True)
class Kind:
    make: Callable[[Made], Task]
    needs: tuple[str, ...] = ()
    """Roles of data.* beside the text that an example to train on or to score must have."""
    labels: Callable[[Example], Iterable[str]] | None = None
    """The labels of an example. None: the task has none."""
    single: bool = False
    """One label for each example: cheap models of labels stand in its gain table."""


KINDS: dict[str, Kind] = {
    "kgqa": Kind(_kgqa, ("answers",)),
    "classification": Kind(lambda made: Classification(made.labels), ("label",), _label, True),
    "relation": Kind(lambda made: RelationClassification(made.labels), ("label",), _label, True),
    "typing": Kind(lambda made: EntityTyping(made.labels), ("answers",), lambda e: e.answers),
    "tagging": Kind(
        lambda made: Tagging(made.labels, made.config.data.buckets[-1]),
        ("tags",),
        lambda e: (tag for *_, tag in e.tags),
    ),
    "span": Kind(_span, ("pair", "answer_spans")),
    "choice": Kind(
        lambda made: Choice(made.labels), ("choices", "label"), lambda e: LETTERS[: len(e.choices)]
    ),
    "mlm": Kind(lambda made: MaskedLM.of(made.config, made.tokenizer, made.kg.n_entities)),
}


def labels_of(kind: str, examples: Iterable[Example]) -> tuple[str, ...]:
    """All labels of some examples, sorted; empty for a task without labels."""
    of = KINDS[kind].labels
    return () if of is None else tuple(sorted({label for e in examples for label in of(e)}))
