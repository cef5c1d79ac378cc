"""Rows of the gain table that bring the knowledge in another way: the same data as the row `true`,
seeds, order and number of updates, and first rows of entities, a teacher or a term made of triple
embeddings. Beside each stands the same made of a graph that was shuffled.

The embeddings are trained once for each table, by ordinary link prediction on its graph, and lie in
its directory. A shuffled graph is the same graph with its entities in other places, so the vectors
of a run on it are those of this run in these places: no second run is needed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keft_jax.config import (
    Config,
    DataConfig,
    KeftError,
    KgeConfig,
    KgTeacherConfig,
    OptimConfig,
    TaskConfig,
    TriplesConfig,
    config_hash,
)
from keft_jax.data.features import Dataset, Knowledge
from keft_jax.gain.cost import compare_steps, drop_groups, text_alone
from keft_jax.gain.rows import JUDGED
from keft_jax.kg.store import KG
from keft_jax.kg.triples import TRAIN
from keft_jax.models.fusion import row_width
from keft_jax.train.checkpoint import save_params
from keft_jax.train.given import Given
from keft_jax.train.loop import Trainer, fit
from keft_jax.train.parts import Parts, assemble
from keft_jax.train.run import load_given
from keft_jax.train.triple_parts import TripleParts
from keft_jax.train.vectors import entity_attributes, resolve

Say = Callable[[str], None]
BATCH = 512
NEGATIVES = 256


@dataclass(frozen=True)
class Variant:
    entities: str = ""  # what their rows start as: a model of triples, description or random
    teacher: str = ""  # of mentions: a model of triples
    multi_task: bool = False
    text: Literal["", "verbalise", "visible"] = ""  # facts in the text, and no graph network
    graph: Literal["", "triple_concat", "triple_sum"] = ""  # in the place of graph.kind
    attributes: bool = False  # those of gain.attributes
    shuffled: bool = False  # what is made of the graph's facts is made of the shuffled graph's

    @property
    def model(self) -> str:
        """The triple embeddings that it needs."""
        return self.teacher or (self.entities if self.entities in PRESETS else "")

    @property
    def reads(self) -> str:
        """The row of the table whose data it reads. What is made of the graph before training is
        made of the shuffled one by itself."""
        own = self.text or self.graph or self.attributes
        return "shuffled" if self.shuffled and own else JUDGED


PRODUCTS = KgeConfig(negatives=NEGATIVES, regularizer="n3", strength=0.01)
DISTANCES = KgeConfig(negatives=NEGATIVES, distance="l2", init=0.1)
PRESETS = {
    "transe": dataclasses.replace(DISTANCES, model="transe"),
    "distmult": dataclasses.replace(PRODUCTS, model="distmult"),
    "complex": dataclasses.replace(PRODUCTS, model="complex"),
    "rotate": dataclasses.replace(DISTANCES, model="rotate", scale=6),
}
"""Of each model of triples, how it is trained: the better recipes of configs/kge.py in short."""

VARIANTS = {
    "kge-init": Variant(entities="complex"),
    "kge-init-shuffled": Variant(entities="complex", shuffled=True),
    "description-init": Variant(entities="description"),
    "random-init": Variant(entities="random"),
    "kg-teacher": Variant(teacher="complex"),
    "kg-teacher-shuffled": Variant(teacher="complex", shuffled=True),
    "multi-task": Variant(multi_task=True),
    "multi-task-shuffled": Variant(multi_task=True, shuffled=True),
    **{f"{model}-init": Variant(entities=model) for model in PRESETS},
    "text": Variant(text="verbalise"),
    "text-shuffled": Variant(text="verbalise", shuffled=True),
    "text-visible": Variant(text="visible"),
    "text-visible-shuffled": Variant(text="visible", shuffled=True),
    "triple-concat": Variant(graph="triple_concat"),
    "triple-concat-shuffled": Variant(graph="triple_concat", shuffled=True),
    "triple-sum": Variant(graph="triple_sum"),
    "triple-sum-shuffled": Variant(graph="triple_sum", shuffled=True),
    "attributes": Variant(attributes=True),
    "attributes-shuffled": Variant(attributes=True, shuffled=True),
}


def with_all_models(config: Config) -> Config:
    """The config with a row for each model of triples as what entities start from, and one for
    random numbers: what `keft gain --vary kge` compares."""
    names: tuple[Any, ...] = (*(f"{model}-init" for model in PRESETS), "random-init")
    return _with(config, names)


def with_all_ways(config: Config) -> Config:
    """The config with a row for each way of using the knowledge, each beside the same made of the
    shuffled graph: what `keft gain --vary knowledge` compares. The graph network as the config has
    it is the row `true`; attributes are one way, so the file of knowledge.attributes becomes that
    of gain.attributes."""
    known, gain = config.knowledge, config.gain
    gain = dataclasses.replace(gain, attributes=gain.attributes or known.attributes)
    config = dataclasses.replace(
        config, gain=gain, knowledge=dataclasses.replace(known, attributes="", text="none")
    )
    ways: list[Any] = [
        name
        for name, v in VARIANTS.items()
        if v.text or v.graph or (v.attributes and gain.attributes)
    ]
    return _with(config, ways)


def _with(config: Config, variants: Iterable[Any]) -> Config:
    names = tuple(dict.fromkeys((*config.gain.variants, *variants)))
    return dataclasses.replace(config, gain=dataclasses.replace(config.gain, variants=names))


def preset(model: str, width: int) -> KgeConfig:
    """The section kge of a model whose entities have so many numbers (one less if that is odd)."""
    halved = model in ("complex", "rotate")
    return dataclasses.replace(PRESETS[model], width=max(width // 2, 1) if halved else width)


def vary(config: Config, variant: Variant, run: Callable[[str], str]) -> Config:
    """The table's config with the variant in it. run: directory of a run of a model of triples.
    Raises KeftError where the two do not go together."""
    if variant.text:
        known = dataclasses.replace(text_alone(config).knowledge, text=variant.text)
        return dataclasses.replace(text_alone(config), knowledge=known)
    objective, weight = config.objective, config.gain.term_weight
    entities = run(variant.entities) if variant.entities in PRESETS else variant.entities
    kge = config.kge
    if variant.teacher:
        teacher = KgTeacherConfig(weight=weight, embeddings=run(variant.teacher))
        objective = dataclasses.replace(objective, kg_teacher=teacher)
    if variant.multi_task:
        objective = dataclasses.replace(objective, triples=TriplesConfig(weight=weight))
        kge = preset("complex", row_width(config))
    knowledge = config.knowledge
    if entities:
        knowledge = dataclasses.replace(knowledge, entities=entities, entity_width=0)
    graph = config.graph
    if variant.graph:
        graph = dataclasses.replace(graph, kind=variant.graph)
    if variant.attributes:
        if not config.gain.attributes:
            raise KeftError("gain.attributes = '': the variant `attributes` needs a file of them")
        knowledge = dataclasses.replace(knowledge, attributes=config.gain.attributes)
    return dataclasses.replace(
        config, knowledge=knowledge, objective=objective, kge=kge, graph=graph
    )


class Variants:
    """The trainers of a table's variants. Those that differ in their first rows alone share the
    compiled step of all other rows."""

    def __init__(self, base: Trainer[Parts], workdir: Path, say: Say):
        self.base, self.workdir, self.say = base, workdir, say
        self._own = base.given
        self._made: dict[Variant, tuple[Trainer[Parts], Given]] = {}
        self._trainers = {_program(base.parts.config): base}
        for name in base.parts.config.gain.variants:  # what does not go shows before any training
            vary(base.parts.config, VARIANTS[name], lambda model: model)

    def trainer(self, row: str, seed: int) -> Trainer[Parts]:
        """Ready to train this row's cell. Rows that are no variant have the table's own."""
        if row not in VARIANTS:
            self.base.given = self._own
            return self.base
        kind = dataclasses.replace(VARIANTS[row], shuffled=False)
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        trainer, given = self._made[kind]
        made = VARIANTS[row].shuffled and VARIANTS[row].reads == JUDGED
        as_row = ("shuffled", seed) if made else None
        trainer.given = dataclasses.replace(given, as_row=as_row)
        return trainer

    def reads(self, row: str) -> tuple[str, Knowledge]:
        """The row of the table whose data a row reads, and how they are read."""
        own, variant = self.base.parts.knowledge, VARIANTS.get(row)
        if variant is None:
            return row, own
        if variant.text or variant.attributes:
            own = self.trainer(row, 0).parts.knowledge
        return variant.reads, own

    def cost(self, row: str, train: Dataset) -> float:
        """Step time over that of the row `true`."""
        trainer = self.trainer(row, self.base.parts.config.seed)
        return 1.0 if trainer is self.base else compare_steps(trainer, self.base, train)

    def _make(self, variant: Variant) -> tuple[Trainer[Parts], Given]:
        parts = self.base.parts
        ours = parts.knowledge
        config = resolve(vary(parts.config, variant, self._run))
        has = ours.attributes if config.knowledge.attributes else None
        if variant.attributes:
            has = entity_attributes(config, ours.kg)
        other = assemble(config, ours.kg, ours.vocabulary, parts.labels, ours.vectors, has)
        other = drop_groups(other)
        given, program = load_given(other), _program(config)
        if program not in self._trainers:
            self._trainers[program] = Trainer(other, given)
        return self._trainers[program], given

    def _run(self, model: str) -> str:
        config, kg = self.base.parts.config, self.base.parts.knowledge.kg
        return str(train_triples(config, kg, model, self.workdir, self.say))


def _program(config: Config) -> str:
    """Equal where the compiled steps are."""
    knowledge = dataclasses.replace(
        config.knowledge, entities="", relations="", entity_width=row_width(config)
    )
    return config_hash(dataclasses.replace(config, knowledge=knowledge))


def train_triples(config: Config, kg: KG, model: str, workdir: Path, say: Say) -> Path:
    """Directory of a finished run of link prediction on the graph, made where it is not there."""
    triples = np.stack([kg.heads, kg.rels, kg.tails], 1).astype(np.int32)
    run = Config(
        name=f"kge-{model}",
        seed=config.seed,
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train=config.knowledge.kg),
        kge=preset(model, row_width(config)),
        optim=OptimConfig(
            kind="adagrad",
            tables="rows",
            steps=config.gain.kge_steps,
            batch=min(BATCH, len(triples)),
            learning_rate=0.1,
            warmup=0,
            weight_decay=0,
            eps=1e-20,
            clip=0,
        ),
        mesh=config.mesh,
    )
    name = f"{model}-{config_hash(run)[:8]}-{kg.hash[:8]}"
    folder = workdir / "kge" / name
    if folder.is_dir():
        return folder
    say(f"{model} on {len(triples):,} facts, {run.optim.steps} steps, in {folder}")
    parts = TripleParts(run, kg.names, tuple(kg.relations), kg.names, {TRAIN: triples})
    result = fit(Trainer(parts), parts.ready(triples), None, seed=run.seed)
    part = folder.with_name(f".{name}.new")
    shutil.rmtree(part, ignore_errors=True)
    save_params(part / "best", run.optim.steps, result.best_params)
    parts.save(part)
    os.rename(part, folder)
    say(f"{model}: {result.seconds:.1f} s")
    return folder
