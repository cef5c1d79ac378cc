"""What the knowledge can be expected to be worth, from linear probes over a few resamples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from keft_jax.data.features import Dataset
from keft_jax.gain.baselines import majority_per_pattern, score_single
from keft_jax.gain.cells import Cell, Split
from keft_jax.gain.lookup import ANSWERER, MAJORITY, Questions, answer_by_text, look_up, subset
from keft_jax.gain.probes import Probes
from keft_jax.gain.rows import (
    LINEAR,
    LINEAR_DICTIONARY,
    LINEAR_KNOWLEDGE,
    LINEAR_SHUFFLED,
    REFERENCES,
)
from keft_jax.gain.splits import gold_of
from keft_jax.gain.stats import summarise
from keft_jax.train.parts import Parts

MAX_DRAW = 800
"""Training examples of a probe: what more of them would add, the graph does not change."""
ENOUGH, LITTLE = 0.01, 0.02
"""A mean gain from which one is expected; an upper bound below which little is."""
SPLIT = "sample"
_DRAWS = 1_000  # of the bootstrap
_PROBES = {
    LINEAR: "none",
    LINEAR_DICTIONARY: "dictionary",
    LINEAR_SHUFFLED: "shuffled",
    LINEAR_KNOWLEDGE: "true",
}
NAMES = {
    MAJORITY: "the majority",
    "none": "text alone",
    "dictionary": "text + which entities are linked",
    "candidates": "text + any neighbour",
    "shuffled": "text + the shuffled graph",
    "true": "text + the graph",
}


def expect(parts: Parts, train: Dataset, other: Dataset, seeds: int) -> dict[str, Any]:
    """{"metric", "train", "test", "scores", "gain", "rival", "over_text"}: probes fitted on
    resamples of `train`, scored on `other`; the gain is over the best control."""
    draw = min(parts.config.data.draw or max(int(0.8 * len(train)), 1), MAX_DRAW, len(train))
    kgqa = parts.config.task.kind == "kgqa"
    make = _question_cells if kgqa else _label_cells
    metric = "hits@1" if kgqa else "accuracy"
    cells = make(parts, train, other, draw, seeds, metric)
    clusters = np.array([e.cluster or str(e.id) for e in other.examples])
    split = Split(SPLIT, clusters, np.array([e.pattern for e in other.examples]))
    made = {cell.row for cell in cells}
    controls = [row for row in (*REFERENCES, MAJORITY) if row in made]
    task = parts.config.task.kind
    table = summarise(cells, [split], metric, task=task, draws=_DRAWS, reference_rows=controls)
    rival = min(controls, key=lambda row: _low(table["versus"][row]))
    return {
        "metric": metric,
        "train": draw,
        "test": len(other),
        "seeds": seeds,
        "scores": table["scores"],
        "gain": table["versus"][rival],
        "rival": rival,
        "over_text": table["versus"]["none"],
    }


def _low(value: dict[str, Any]) -> float:
    return value["interval"][0] if value["interval"] else value["mean"]


def _draws(train: Dataset, draw: int, seeds: int) -> Sequence[np.ndarray]:
    return [
        np.sort(np.random.default_rng(seed).permutation(len(train))[:draw]) for seed in range(seeds)
    ]


def _label_cells(
    parts: Parts, train: Dataset, other: Dataset, draw: int, seeds: int, metric: str
) -> list[Cell]:
    probes = Probes(parts, train, {SPLIT: other}, tune_once=True)
    kind = parts.config.task.kind
    gold = [gold_of(e, kind) for e in other.examples]
    cells = []
    for seed, drawn in enumerate(_draws(train, draw, seeds)):
        for probe, row in _PROBES.items():
            said = probes.predict(probe, drawn, seed)[SPLIT]
            cells.append(Cell(row, seed, {SPLIT: {metric: score_single(said, gold)[metric]}}))
        examples = [train.examples[i] for i in drawn]
        said = majority_per_pattern(
            [e.pattern for e in examples],
            [gold_of(e, kind) for e in examples],
            [e.pattern for e in other.examples],
        )
        cells.append(Cell("majority", seed, {SPLIT: {metric: score_single(said, gold)[metric]}}))
    return cells


def _question_cells(
    parts: Parts, train: Dataset, other: Dataset, draw: int, seeds: int, metric: str
) -> list[Cell]:
    knowledge = parts.knowledge
    hops = knowledge.config.hops
    asked = Questions(other, knowledge.kg, hops)
    cells = []
    for seed, drawn in enumerate(_draws(train, draw, seeds)):
        some = subset(train, drawn)
        learnt = Questions(some, knowledge.kg, hops)
        text = answer_by_text(learnt, asked)
        mixed = knowledge.graph_of("shuffled", seed)
        scores = {
            "majority": text[MAJORITY],
            "none": max(text[MAJORITY], text[ANSWERER], key=np.mean),
            "candidates": asked.neighbour(),
            "shuffled": look_up(Questions(some, mixed, hops), Questions(other, mixed, hops)),
            "true": look_up(learnt, asked),
        }
        cells += [
            Cell(row, seed, {SPLIT: {metric: values.astype(np.float32)}})
            for row, values in scores.items()
        ]
    return cells


def judge(found: dict[str, Any], linked: float) -> dict[str, str]:
    """{"kind", "sentence"}: expect a gain, expect little, cannot tell. `linked`: the share of texts
    with a linked entity."""
    gain, rival = found["gain"], NAMES[found["rival"]]
    points = f"{_points(gain)} of {found['metric']} over {rival}"
    low, high = gain["interval"] or (-1.0, 1.0)
    if linked == 0:
        return _verdict("expect little", "no text names an entity of the graph")
    if low > 0 and gain["mean"] >= ENOUGH:
        return _verdict("expect a gain", f"a linear model gains {points}")
    if high >= LITTLE:
        more = "more labelled texts, or `keft gain` itself, would tell"
        return _verdict("cannot tell", f"a linear model gains {points}; {more}")
    over_text = found["over_text"]
    if linked < 0.1:
        why = f"the graph covers {linked:.0%} of the texts"
    elif (over_text["interval"] or (-1.0,))[0] > 0 and found["rival"] != "none":
        same = rival.removeprefix("text + ")
        why = f"what it gains over text alone ({_points(over_text)}) {same} gives as well"
    else:
        why = f"{linked:.0%} of the texts name an entity, but its facts say nothing of the labels"
    return _verdict("expect little", f"{why}; a linear model gains {points}")


def _verdict(kind: str, why: str) -> dict[str, str]:
    return {"kind": kind, "sentence": re.sub(r"\s+", " ", f"{kind}: {why}.")}


def _points(value: dict[str, Any]) -> str:
    edges = [f"{100 * edge:+.1f}" for edge in value["interval"] or ()]
    return f"{100 * value['mean']:+.1f} points" + (f" [{', '.join(edges)}]" if edges else "")
