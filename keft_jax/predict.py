"""A trained run, ready to answer: from Python, and behind `keft predict` and `keft evaluate`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from keft_jax.config import MeshConfig
from keft_jax.data.batch import Batch
from keft_jax.data.features import Dataset, with_row
from keft_jax.data.plan import eval_batches
from keft_jax.data.source import Example, examples_from, read_examples
from keft_jax.kg.store import KG
from keft_jax.sharding import make_mesh
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts
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
        self._ready: dict[str, tuple[Trainer, Any]] = {}

    @property
    def kg(self) -> KG:
        """The graph that the run was trained with."""
        return self._own.knowledge.kg

    def _on(self, kg: KG | None) -> tuple[Trainer, Any]:
        """The compiled functions for a graph."""
        key = "" if kg is None else kg.hash
        if key not in self._ready:
            trainer = Trainer(self._own if kg is None else self._own.with_kg(kg))
            names = trainer.frozen()["names"]

            def top(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
                logits = trainer.parts.model.apply(params, batch, names).logits
                return jax.lax.top_k(jax.nn.softmax(logits), min(MOST, logits.shape[-1]))

            self._ready[key] = trainer, jax.jit(top)
        return self._ready[key]

    def predict(
        self, texts: Iterable[str | Mapping[str, Any] | Example], kg: KG | None = None
    ) -> list[dict[str, Any]]:
        """One record for each text (or dict with the fields of the run's data config):

        {"text", "answer", "probability", "answers": [[name, probability], ...] best first,
        "set": the names that together are the answer (100 at most),
        "mentions": [[start, end, entity], ...]}

        Raises KeftError for a text that cannot be read and for a graph with unknown relations.
        """
        items = list(texts)
        given = [item for item in items if not isinstance(item, Example)]
        examples = (
            [item for item in items if isinstance(item, Example)]
            if not given
            else examples_from(given, self._own.config.data)
        )
        if not examples:
            return []
        trainer, top = self._on(kg)
        dataset, parts = self._dataset(trainer, examples), trainer.parts
        out: list[dict[str, Any]] = [{} for _ in examples]
        config = parts.config
        for length, numbers in eval_batches(
            dataset.lengths, trainer.eval_batch, config.data.buckets
        ):
            batch = trainer.put(dataset.batch(length, numbers))
            values, ids = (np.asarray(x) for x in top(self._params, batch))
            for row, number in enumerate(numbers):
                if number >= 0:
                    answers = [
                        (parts.task.choices[int(i)], float(p))
                        for i, p in zip(ids[row], values[row], strict=True)
                    ]
                    out[number] = self._record(dataset, int(number), answers, parts)
        return out

    def _record(
        self, dataset: Dataset, number: int, answers: list[tuple[str, float]], parts: Parts
    ) -> dict[str, Any]:
        example, best = dataset.examples[number], answers[0]
        names = parts.knowledge.kg.names
        mentions = [
            [m.start, m.end, names[e]]
            for m in parts.knowledge.link([example])[0]
            for e in m.entities
        ]
        share = parts.config.task.set_threshold if parts.config.task.kind == "kgqa" else 1.0
        return {
            "text": example.text,
            "answer": best[0],
            "probability": round(best[1], 6),
            "answers": [[name, round(p, 6)] for name, p in answers[:TOP]],
            "set": [name for name, p in answers if p >= share * best[1]],
            "mentions": mentions,
        }

    def _dataset(self, trainer: Trainer, examples: Sequence[Example]) -> Dataset:
        parts = trainer.parts
        row, seed = parts.config.knowledge.row, parts.config.seed
        return with_row(parts.dataset(examples), parts.knowledge, row, seed)

    def evaluate(self, path: str | os.PathLike[str], kg: KG | None = None) -> dict[str, Any]:
        """The task's metrics on a labelled file, with the number of examples and the share of
        them that has a linked entity. Raises KeftError for a file that cannot be read and a label
        that training never saw."""
        trainer, _ = self._on(kg)
        dataset = self._dataset(trainer, trainer.parts.read(str(path)))
        scores = trainer.parts.task.summarise(trainer.evaluate(self._params, dataset))
        linked = float((dataset.seeds[:, 0] >= 0).mean())
        return {"examples": len(dataset), "linked": linked, **scores}

    def read(self, path: str | os.PathLike[str]) -> list[Example]:
        """Texts to predict; labels need not be there."""
        return read_examples(str(path), self._own.config.data)


def load(run: str | os.PathLike[str]) -> Predictor:
    """The trained model of a run's directory. Raises KeftError where it is none."""
    return Predictor(*load_run(run, make_mesh(ONE)))
