"""A trained run, ready to answer: from Python, and behind `keft predict` and `keft evaluate`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError, MeshConfig
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example, examples_from, read_examples
from keft_jax.export import is_export, load_export
from keft_jax.kg.store import KG
from keft_jax.link import LinkPredictor, load_links
from keft_jax.sharding import make_mesh
from keft_jax.tasks.task import MOST
from keft_jax.train.evaluator import Evaluator, Step
from keft_jax.train.parts import Parts, load_run_config
from keft_jax.train.run import load_run

TOP = 5  # answers that a prediction lists
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
        self._ready: dict[str, tuple[Evaluator, Step]] = {}

    @property
    def kg(self) -> KG:
        """The graph that the run was trained with."""
        return self._own.knowledge.kg

    def _on(self, kg: KG | None) -> tuple[Evaluator, Step]:
        """The compiled functions for a graph: of evaluation and of prediction. All graphs of about
        one size share them."""
        key = "" if kg is None else kg.hash
        if key in self._ready:
            return self._ready[key]
        if kg is None:
            evaluator = Evaluator(self._own)
            task = evaluator.parts.task
            guess = evaluator.compile(lambda output, target: task.guess(output.logits, target))
        else:
            evaluator, guess = self._on(None)
            evaluator = evaluator.over(self._own.with_kg(kg))
        self._ready[key] = evaluator, guess
        return self._ready[key]

    def predict(
        self,
        texts: Iterable[str | Mapping[str, Any] | Example],
        kg: KG | None = None,
        *,
        top: int = TOP,
    ) -> list[dict[str, Any]]:
        """One record for each text (or dict with the fields of the run's data config):

        {"text", what the task answers, "mentions": [[start, end, entity], ...]}

        Most answer with {"answer", "probability", "answers": `top` [name, probability], best first,
        "set": the names that together are the answer (100 at most)}; docs/tasks.md has them all.
        Places are in characters of the text as it was given; mentions in choices are not listed.

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
        evaluator, guess = self._on(kg)
        dataset, task = evaluator.parts.ready(examples), evaluator.parts.task
        answers = task.answers(evaluator.rows(guess, self._params, dataset), dataset, top)
        return [
            {"text": example.text, **answer, "mentions": mentions}
            for example, answer, mentions in zip(
                examples, answers, mentions_of(dataset), strict=True
            )
        ]

    def evaluate(self, path: str | os.PathLike[str], kg: KG | None = None) -> dict[str, Any]:
        """The task's metrics on a labelled file, with the number of examples and the share of
        them that has a linked entity. Raises KeftError for a file that cannot be read and a label
        that training never saw, NotFiniteError as `predict`."""
        evaluator, _ = self._on(kg)
        parts = evaluator.parts
        dataset = parts.ready(parts.read(str(path)))
        scores = parts.task.summarise(evaluator.evaluate(self._params, dataset))
        linked = float(dataset.linked.mean())
        return {"examples": len(dataset), "linked": linked, **scores}

    def read(self, path: str | os.PathLike[str]) -> list[Example]:
        """Texts to predict; labels need not be there."""
        return read_examples(str(path), self._own.config.data)


def mentions_of(dataset: Dataset) -> list[list[list[Any]]]:
    """[start, end, entity] of each example's mentions, in its own text."""
    names = dataset.knowledge.kg.names
    found: list[dict[tuple[int, int, str], None]] = [{} for _ in dataset.examples]
    of_texts = zip(dataset.texts, dataset.text_owner, dataset.mentions, strict=True)
    for text, owner, mentions in of_texts:
        for mention in mentions:
            start, last = text.origin(mention.start), text.origin(mention.end - 1)
            if start is not None and last is not None:
                for entity in mention.entities:
                    found[owner][start, last + 1, names[entity]] = None
    return [[list(mention) for mention in mentions] for mentions in found]


def load(run: str | os.PathLike[str]) -> Predictor | LinkPredictor:
    """The trained model of a run's directory, or of what `keft export` made of one. Raises
    KeftError where it is neither."""
    if is_export(Path(run)):
        return Predictor(*load_export(run, make_mesh(ONE)))
    if load_run_config(Path(run)).task.kind == "link_prediction":
        return load_links(run)
    return Predictor(*load_run(run, make_mesh(ONE)))
