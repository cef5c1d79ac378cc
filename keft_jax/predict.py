"""A trained run, ready to answer: from Python, and behind `keft predict` and `keft evaluate`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from keft_jax.config import KeftError, MeshConfig
from keft_jax.data.batch import Batch, Names
from keft_jax.data.features import Dataset, with_row
from keft_jax.data.plan import eval_batches
from keft_jax.data.source import Example, examples_from, read_examples
from keft_jax.export import is_export, load_export
from keft_jax.kg.store import KG
from keft_jax.link import LinkPredictor, load_links
from keft_jax.sharding import make_mesh
from keft_jax.train.evaluator import Evaluator, refuse_not_finite
from keft_jax.train.parts import Parts, load_run_config
from keft_jax.train.run import load_run

TOP = 5  # answers that a prediction lists
MOST = 100  # answers that its set can hold
ONE = MeshConfig(data=1)  # a handful of texts needs one device


class Predictor:
    """The best parameters of a run over its own graph, or over any other with its relations.

    A graph may be updated or swapped without training: entities that the model never met have no
    row of their own and are read by their name and their facts.
    """

    def __init__(self, parts: Parts, params: Any):
        config = dataclasses.replace(parts.config, mesh=ONE)
        self._own = dataclasses.replace(parts, config=config)
        self._params = params
        self._ready: dict[str, tuple[Evaluator, Any]] = {}

    @property
    def kg(self) -> KG:
        """The graph that the run was trained with."""
        return self._own.knowledge.kg

    def _on(self, kg: KG | None) -> tuple[Evaluator, Any]:
        """The compiled functions for a graph."""
        key = "" if kg is None else kg.hash
        if key not in self._ready:
            evaluator = Evaluator(self._own if kg is None else self._own.with_kg(kg))
            # Behind the entities stand spare rows, which are never an answer.
            model, most = evaluator.parts.model, min(MOST, len(evaluator.parts.task.choices))

            def top(params: Any, batch: Batch, names: Names) -> tuple[jax.Array, jax.Array]:
                logits = model.apply(params, batch, names).logits
                return jax.lax.top_k(jax.nn.softmax(logits), most)

            self._ready[key] = evaluator, jax.jit(top)
        return self._ready[key]

    def predict(
        self,
        texts: Iterable[str | Mapping[str, Any] | Example],
        kg: KG | None = None,
        *,
        top: int = TOP,
    ) -> list[dict[str, Any]]:
        """One record for each text (or dict with the fields of the run's data config):

        {"text", "answer", "probability", "answers": `top` [name, probability], best first,
        "set": the names that together are the answer (100 at most),
        "mentions": [[start, end, entity], ...]}

        Raises KeftError for a text that cannot be read and for a graph with unknown relations,
        NotFiniteError where the model's outputs are no numbers.
        """
        if not 1 <= top <= MOST:
            raise KeftError(f"--top {top}: use 1 to {MOST}")
        items = list(texts)
        given = [item for item in items if not isinstance(item, Example)]
        examples = (
            [item for item in items if isinstance(item, Example)]
            if not given
            else examples_from(given, self._own.config.data)
        )
        if not examples:
            return []
        if not self._own.task.choices:
            raise KeftError(
                f"task.kind = {self._own.config.task.kind!r}: has no answers to give; `keft "
                "evaluate` scores it, `keft export` writes a folder that transformers loads"
            )
        evaluator, best_of = self._on(kg)
        dataset, parts = self._dataset(evaluator.parts, examples), evaluator.parts
        out: list[dict[str, Any]] = [{} for _ in examples]
        config = parts.config
        for length, numbers in eval_batches(dataset.lengths, evaluator.batch, config.data.buckets):
            batch = evaluator.put(dataset.batch(length, numbers))
            best = best_of(self._params, batch, evaluator.names)
            values, ids = (np.asarray(x)[numbers >= 0] for x in best)
            real = [int(number) for number in numbers if number >= 0]
            refuse_not_finite(values, [dataset.examples[number] for number in real])
            for row, number in enumerate(real):
                answers = [
                    (parts.task.choices[int(i)], float(p))
                    for i, p in zip(ids[row], values[row], strict=True)
                ]
                out[number] = self._record(dataset, number, answers, parts, top)
        return out

    def _record(
        self,
        dataset: Dataset,
        number: int,
        answers: list[tuple[str, float]],
        parts: Parts,
        top: int,
    ) -> dict[str, Any]:
        example, best = dataset.examples[number], answers[0]
        names = parts.knowledge.kg.names
        mentions = [
            [m.start, m.end, names[e]] for m in dataset.mentions[number] for e in m.entities
        ]
        share = parts.config.task.set_threshold if parts.config.task.kind == "kgqa" else 1.0
        return {
            "text": example.text,
            "answer": best[0],
            "probability": round(best[1], 6),
            "answers": [[name, round(p, 6)] for name, p in answers[:top]],
            "set": [name for name, p in answers if p >= share * best[1]],
            "mentions": mentions,
        }

    def _dataset(self, parts: Parts, examples: Sequence[Example]) -> Dataset:
        row, seed = parts.config.knowledge.row, parts.config.seed
        return with_row(parts.dataset(examples), parts.knowledge, row, seed)

    def evaluate(self, path: str | os.PathLike[str], kg: KG | None = None) -> dict[str, Any]:
        """The task's metrics on a labelled file, with the number of examples and the share of
        them that has a linked entity. Raises KeftError for a file that cannot be read and a label
        that training never saw, NotFiniteError as `predict`."""
        evaluator, _ = self._on(kg)
        parts = evaluator.parts
        dataset = self._dataset(parts, parts.read(str(path)))
        scores = parts.task.summarise(evaluator.evaluate(self._params, dataset))
        linked = float(dataset.linked.mean())
        return {"examples": len(dataset), "linked": linked, **scores}

    def read(self, path: str | os.PathLike[str]) -> list[Example]:
        """Texts to predict; labels need not be there."""
        return read_examples(str(path), self._own.config.data)


def load(run: str | os.PathLike[str]) -> Predictor | LinkPredictor:
    """The trained model of a run's directory, or of what `keft export` made of one. Raises
    KeftError where it is neither."""
    if is_export(Path(run)):
        return Predictor(*load_export(run, make_mesh(ONE)))
    if load_run_config(Path(run)).task.kind == "link_prediction":
        return load_links(run)
    return Predictor(*load_run(run, make_mesh(ONE)))
