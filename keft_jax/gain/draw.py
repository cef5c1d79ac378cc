"""A handful of examples with their subgraphs and the facts that their answers rest on."""

from __future__ import annotations

from typing import Any

import numpy as np

from keft_jax.data.features import Dataset
from keft_jax.explain import make_explainer
from keft_jax.gain.cells import Cell
from keft_jax.gain.rows import JUDGED, PLAIN
from keft_jax.gain.sections import Drawn
from keft_jax.gain.splits import gold_of, text_of
from keft_jax.tasks.kinds import KINDS
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts


def can_draw(parts: Parts, dataset: Dataset) -> bool:
    """Whether an example has one text and one answer of which a fact can be asked."""
    kind = parts.config.task.kind
    alone = len(dataset.texts) == len(dataset.examples)
    return alone and (kind == "kgqa" or KINDS[kind].single)


def draw_examples(
    trainer: Trainer,
    params: Any,
    dataset: Dataset,
    split: str,
    metric: str,
    true: Cell,
    plain: Cell | None,
    most: int,
) -> list[Drawn]:
    """Examples that the knowledge won (without `plain`: got right), of different patterns first,
    and up to two that it did not; `most` together. `params` are those of the cell `true`."""
    right = true.each(split, metric) > 0.5
    other = np.zeros(len(right), bool) if plain is None else plain.each(split, metric) > 0.5
    missed = _spread(np.flatnonzero(~right), dataset)[: min(2, most // 2)]
    won = _spread(np.flatnonzero(right & ~other), dataset)[: most - len(missed)]
    note = "right with the knowledge" + (", wrong without" if plain is not None else "")
    chosen = [(i, note) for i in won]
    chosen += [(i, "wrong with the knowledge") for i in missed]
    explain = make_explainer(trainer)
    drawn = []
    for number, note in chosen:
        example, found = dataset.examples[number], explain(params, dataset, number)
        weight = np.zeros(len(found.nodes))
        for fact in found.facts:
            for node in (fact.head, fact.tail):
                weight[node] = max(weight[node], fact.importance)
        gold = gold_of(example, trainer.parts.config.task.kind)
        answers = {*gold, found.answer}
        roles = [
            "mention" if mentioned else "answer" if name in answers else "other"
            for name, mentioned in zip(found.nodes, found.mentioned, strict=True)
        ]
        said = {JUDGED: found.answer}
        if plain is not None:
            said[PLAIN] = plain.choice[split][number]
        drawn.append(
            Drawn(
                text=text_of(example),
                gold=list(gold),
                answers=said,
                nodes=list(zip(found.nodes, weight.tolist(), roles, strict=True)),
                edges=[(f.head, f.tail, f.relation, f.importance) for f in found.facts],
                note=note,
            )
        )
    return drawn


def _spread(numbers: np.ndarray, dataset: Dataset) -> list[int]:
    """One of each pattern, then a second one of each, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for number in numbers.tolist():
        pattern = dataset.examples[number].pattern
        seen[pattern] = seen.get(pattern, 0) + 1
        turns.append((seen[pattern], number))
    return [number for _, number in sorted(turns)]
