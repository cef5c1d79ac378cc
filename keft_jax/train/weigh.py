"""What a selection split says of a model, and of one whose text and graph have learned alone
(`fusion.trains=apart`) how much the graph's answer counts: fitted there, as in stacking (Wolpert
1992).

Both are sure of what they have seen in training, so their sum would trust the graph as much where
its facts tell nothing of the labels as where they tell all.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from keft_jax.data.batch import LabelTarget
from keft_jax.distributed import exchange
from keft_jax.models.functional import Tree
from keft_jax.models.fusion import Output
from keft_jax.models.heads import GRAPH_OFFSET, GRAPH_SCALE
from keft_jax.models.pretrained import flat
from keft_jax.sharding import fetch, place
from keft_jax.tasks.task import Task
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.rows import at, put_at

SCALES = np.linspace(0.0, 2.0, 41, dtype=np.float32)
TEMPERATURES = np.geomspace(0.05, 20.0, 25, dtype=np.float32)
DEVIATION = 0.3
"""Of the scale from fusion.expected_scale, before anything is seen."""


class Judged(NamedTuple):
    """Parameters on a selection split."""

    params: Tree
    rows: dict[str, np.ndarray]  # of each example, by these parameters
    chosen_by: dict[str, np.ndarray]  # likewise, what tells which step is the best
    """Of text and graph that have learned alone: of the text alone, so that its parameters are
    those of a model without a graph, and its answers too where the graph has nothing to say."""


class Weigher:
    """Judges a model whose head reads text and graph apart, and sets its scale and its offset."""

    def __init__(self, evaluator: Evaluator):
        self._evaluator, self._task = evaluator, evaluator.parts.task
        self._step = evaluator.compile(read_apart)
        self._fusion = evaluator.parts.config.fusion

    def __call__(self, params: Tree, select: Any) -> Judged:
        """With the scale that fits this split best; with the one that is expected where the graph
        says nothing of it. Raises NotFiniteError."""
        rows = self._evaluator.rows(self._step, params, select)
        there, label, weight = rows["there"], rows["label"], rows["weight"]
        graph, scale, sure = rows["graph"], self._fusion.expected_scale, 1.0
        offset = np.zeros(graph.shape[1], np.float32)
        if (weight * there).any() and graph.any():
            if GRAPH_OFFSET in flat(params):
                offset -= np.average(graph, axis=0, weights=weight * there)
                graph = np.where(there[:, None], graph + offset, 0)
            given = label, weight * there
            if self._fusion.calibrated:
                sure = fit_temperature(self._task, rows["text"], *given)
            scale = sure * fit_scale(self._task, rows["text"] / sure, graph, *given, scale)
        # What the first process finds, for all.
        scale, *found = json.loads(exchange(json.dumps([scale, *offset.tolist()]))[0])
        params = _set(params, {GRAPH_SCALE: [scale], GRAPH_OFFSET: found})
        target: Any = LabelTarget(label=label, weight=weight)

        def score(logits: np.ndarray) -> dict[str, np.ndarray]:
            found = jax.device_get(_score(self._task, logits, target))
            return dict(self._task.merge(found | {"example": rows["example"]}, select))

        text = score(rows["text"])
        return Judged(params, score(rows["text"] + np.float32(scale) * graph), text)


def _set(params: Tree, values: dict[str, list[float]]) -> Tree:
    """With these values at the paths that are there."""
    old, there = flat(params), {}
    for path in old.keys() & values.keys():
        there[path] = place(np.array(values[path], old[path].dtype), old[path].sharding)
    return put_at(params, there)


def scale_of(params: Tree) -> dict[str, float]:
    """{"graph_scale": that of these parameters, 1 before they are judged}, to be reported; empty
    where they have none."""
    there = GRAPH_SCALE in flat(params)
    return {"graph_scale": float(fetch(at(params, GRAPH_SCALE))[0])} if there else {}


def read_apart(output: Output, target: Any) -> dict[str, jax.Array]:
    """Text's and graph's logits, f32[b, c], labels and their weights f32[b], and whether the graph
    says something, bool[b]: the others' sharpness is not that of the sum."""
    (text, _), (graph, there_b) = output.alone
    own = {"label": target.label, "weight": target.weight}
    return {"text": text, "graph": graph, "there": there_b, **own}


def fit_scale(
    task: Task,
    text: np.ndarray,
    graph: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    expected: float,
) -> float:
    """The scale of `graph` f32[n, c] at which `text + scale * graph`, at the temperature that suits
    it best, has the smallest loss, a normal prior around the expected scale added. label, weight:
    the target's, [n, ...] and f32[n]."""
    target: Any = LabelTarget(label=label, weight=weight)
    pairs = np.stack(np.meshgrid(SCALES, TEMPERATURES, indexing="ij"), -1)
    found = np.asarray(_losses(task, pairs.reshape(-1, 2), text, graph, target), np.float64)
    best = found.reshape(pairs.shape[:2]).min(1)
    return float(SCALES[np.argmin(best + ((SCALES - expected) / DEVIATION) ** 2 / 2)])


def fit_temperature(task: Task, logits: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Of `logits` f32[n, c], the temperature with the smallest loss: 1 or more, since a model that
    fits its few examples is not to be made surer. label, weight: as above."""
    target: Any = LabelTarget(label=label, weight=weight)
    least = TEMPERATURES[TEMPERATURES >= 1]
    pairs = np.stack([np.zeros_like(least), least], -1)
    return float(least[np.argmin(_losses(task, pairs, logits, logits, target))])


@partial(jax.jit, static_argnums=0)
def _score(task: Task, logits_nc: jax.Array, target: Any) -> dict[str, jax.Array]:
    return task.score(logits_nc, target)


@partial(jax.jit, static_argnums=0)
def _losses(
    task: Task, pairs_p2: jax.Array, text_nc: jax.Array, graph_nc: jax.Array, target: Any
) -> jax.Array:
    """f32[p]: of each (scale, temperature)."""

    def one(pair: jax.Array) -> jax.Array:
        scale, temperature = pair
        return task.loss((text_nc + scale * graph_nc) / temperature, target)

    return jax.lax.map(one, pairs_p2)
