"""What training is given of a graph beside the batches: what rows of entities and relations start
as, the facts to reason over, and the embeddings that teach. Of each row of the gain table its own:
vectors made from the facts are knowledge, and go with the facts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from keft_jax.config import KeftError, KgeConfig
from keft_jax.data.features import ROWS
from keft_jax.kg.embeddings import Embeddings, align
from keft_jax.models.functional import Model, Tree
from keft_jax.models.mentions import MentionTeacher
from keft_jax.models.pretrained import flat, put
from keft_jax.train.parts import AnyParts, Parts
from keft_jax.train.triple_parts import TripleParts
from keft_jax.train.vectors import TEXTS, read_texts, texts_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guide:
    """The embeddings of a finished run of link prediction, for objective.kg_teacher."""

    config: KgeConfig
    relations: int
    scorer: Tree
    entity: np.ndarray  # f32[entities of our graph, w]; zeros where the run has none
    there: np.ndarray  # bool[entities]

    @property
    def model(self) -> Model:
        return Model(MentionTeacher(self.config, self.relations))


@dataclass(frozen=True)
class Given:
    parts: AnyParts
    teacher: tuple[Parts, Any] | None = None  # another run and its parameters, for distillation
    entities: np.ndarray | None = None  # f32[entities, w]: what their rows start as
    relations: np.ndarray | None = None  # f32[relations, k], likewise
    guide: Guide | None = None
    taken: Tree = field(default_factory=dict)  # parameters of another run: train/start.py
    as_row: tuple[str, int] | None = None  # read as this row of the gain table reads it, by seed,
    # whatever the row of the data; None: as that

    def inputs(self) -> dict[str, str]:
        """sha256 of what is read from elsewhere; "" for what is not."""
        guide = self.guide
        scorer = [] if guide is None else [guide.entity, *jax.tree.leaves(guide.scorer)]
        return {
            "knowledge.entities": _digest([] if self.entities is None else [self.entities]),
            "knowledge.relations": _digest([] if self.relations is None else [self.relations]),
            "objective.kg_teacher.embeddings": _digest(scorer),
            "optim.start": _digest([value for _, value in sorted(flat(self.taken).items())]),
        }

    def start(self, row: str, seed: int) -> Tree:
        """The parameters that start otherwise than they are drawn, a partial tree of f32 arrays."""
        row, seed = self.as_row or (row, seed)
        if isinstance(self.parts, TripleParts):
            return self._start_of_triples()
        out: Tree = {}
        for path, value in flat(self.taken).items():
            put(out, path, value)
        if self.entities is not None:
            own = self._of_row(self.entities, row, seed, self.parts.config.knowledge.entities)
            table = np.zeros(self.parts.model.abstract()["nodes"]["rows"].shape, np.float32)
            table[self.parts.knowledge.row_numbers] = own
            put(out, "nodes/rows", table)
        if self.relations is not None:
            graph = self.parts.config.graph
            for path, struct in flat(self.parts.model.abstract()).items():
                if path.startswith(("exchanges", "head")) and path.endswith(RELATIONS):
                    spread = 0.02  # that of models.functional.normal
                    if path.endswith("value"):  # of glorot
                        spread = (2 / (struct.shape[0] + graph.width // graph.heads)) ** 0.5
                    put(out, path, _project(self.relations, path, struct.shape, spread))
        return out

    def _start_of_triples(self) -> Tree:
        """Link prediction goes on from other embeddings, as Lin et al. start transr from transe."""
        out: Tree = {}
        if self.entities is not None:
            table = np.zeros(self.parts.model.abstract()["entity"].shape, np.float32)
            table[: len(self.entities)] = self.entities
            out["entity"] = table
        if self.relations is not None:
            out["scorer"] = {"relation": self.relations}
        return out

    def frozen(self, row: str, seed: int) -> dict[str, Any]:
        """What the step reads of a row's graph and never changes; the shapes are those of all."""
        row, seed = self.as_row or (row, seed)
        out: dict[str, Any] = {}
        if not isinstance(self.parts, Parts):
            return out
        knowledge, objective = self.parts.knowledge, self.parts.config.objective
        if objective.triples.weight > 0:
            facts = knowledge.triples(row, seed)
            weight = np.float32(len(facts) > 0)
            if not len(facts):
                facts = np.zeros((max(knowledge.kg.n_triples, 1), 3), np.int32)
            out["facts"] = {"triples": facts, "weight": weight}
        if self.guide is not None:
            table = np.concatenate([self.guide.there[:, None], self.guide.entity], 1)
            table = self._of_row(table, row, seed, "a graph's")
            table = np.pad(table, ((0, 1), (0, 0)))  # of padding nodes
            out["guide"] = {
                "params": {"scorer": self.guide.scorer},
                "entity": table[:, 1:],
                "there": table[:, 0] > 0,
            }
        return out

    def _of_row(self, table: np.ndarray, row: str, seed: int, kind: str) -> np.ndarray:
        """The table as a row of the gain table may read it. Names and random numbers tell nothing
        of a graph."""
        assert isinstance(self.parts, Parts)
        spec = ROWS[row]
        draw = {"name": None, "random": None, "description": spec.described}
        whose = draw.get(kind, spec.embedded)
        if whose is None:
            return table
        of = whose(self.parts.knowledge.kg, seed)
        return np.where((of >= 0)[:, None], table[of], np.float32(0))


RELATIONS = ("/relation", "/relation_value")
"""Ends of the paths of tables of relations in the graph network."""


def make_given(
    parts: Parts,
    teacher: tuple[Parts, Any] | None,
    read: Callable[[str], Embeddings],
    guide: Callable[[str], tuple[KgeConfig, Tree, Embeddings]],
) -> Given:
    """read: the embeddings at a path. guide: the section kge, the scorer's parameters and the
    embeddings of a run. Raises KeftError."""
    config, kg = parts.config, parts.knowledge.kg
    settings, taught = config.knowledge, config.objective.kg_teacher
    entities = relations = None
    if settings.entities:
        entities = entity_starts(parts, read)
    if settings.relations == "name":
        relations = read_texts(config, [name.replace("_", " ") for name in kg.relations])
    elif settings.relations:
        where = f"knowledge.relations = {settings.relations!r}"
        relations = _align(read(settings.relations).of_relations(), kg.relations, where)[0]
    if relations is not None:
        relations = _in_model_order(parts, relations)
    one = None
    if taught.weight > 0 and taught.embeddings:
        where = f"objective.kg_teacher.embeddings = {taught.embeddings!r}"
        kge, scorer, embeddings = guide(taught.embeddings)
        if kge.model == "transr":
            raise KeftError(
                f"{where}: transr projects for each relation anew, which this term does not; give "
                "another model's run"
            )
        vectors, there = _align(embeddings, kg.names, where)
        one = Guide(kge, len(embeddings.relations), scorer, vectors, there)
    return Given(parts, teacher, entities, relations, one)


def make_triple_given(parts: TripleParts, read: Callable[[str], Embeddings]) -> Given:
    """As `make_given`, for link prediction. Raises KeftError where the shapes differ."""
    settings, scorer = parts.config.knowledge, parts.model.abstract()["scorer"]
    entities = relations = None
    if settings.entities:
        where = f"knowledge.entities = {settings.entities!r}"
        width = parts.model.abstract()["entity"].shape[1]
        entities = _align(read(settings.entities), parts.entities, where, width)[0]
    if settings.relations:
        where, embeddings = (
            f"knowledge.relations = {settings.relations!r}",
            read(settings.relations),
        )
        width = scorer["relation"].shape[1]
        own = embeddings.of_relations()
        relations = _align(own, parts.relations, where, width)[0]
        if len(scorer["relation"]) > len(relations):
            if "inverse" not in embeddings.extra:
                raise KeftError(
                    f"{where}: has no vectors of inverse relations; train it with "
                    "kge.reciprocal=true, or set kge.reciprocal=false here"
                )
            inverse = dataclasses.replace(own, vectors=embeddings.extra["inverse"])
            turned = _align(inverse, parts.relations, where, width)[0]
            relations = np.concatenate([relations, turned])
    return Given(parts, entities=entities, relations=relations)


def entity_starts(parts: Parts, read: Callable[[str], Embeddings]) -> np.ndarray:
    """f32[entities, w] of unit scale: the mean square of all numbers is 1."""
    config, kg = parts.config, parts.knowledge.kg
    kind = config.knowledge.entities
    if kind in TEXTS:
        return read_texts(config, texts_of(kg, kind))
    width = parts.model.abstract()["nodes"]["rows"].shape[1]
    if kind == "random":
        draw = np.random.default_rng(config.seed).normal(size=(kg.n_entities, width))
        return draw.astype(np.float32)
    where = f"knowledge.entities = {kind!r}"
    vectors, there = _align(read(kind), kg.names, where, width)
    square = np.mean(np.square(vectors[there], dtype=np.float64))
    if not square:
        raise KeftError(f"{where}: vectors of zeros alone; train them first")
    return vectors / np.sqrt(square).astype("f")


def _align(
    embeddings: Embeddings, names: Any, where: str, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    try:
        vectors, there = align(embeddings, names, width)
    except KeftError as error:
        raise KeftError(f"{where}: {error}") from error
    if not there.all():
        logger.warning(
            "%s: has no vector for %d of %d (the first is %r); they start as zeros",
            *(where, int((~there).sum()), len(there), names[int(np.argmin(there))]),
        )
    return vectors, there


def _digest(arrays: list[Any]) -> str:
    out = hashlib.sha256()
    for array in arrays:
        out.update(f"{array.shape}".encode() + np.ascontiguousarray(array, np.float32).tobytes())
    return out.hexdigest() if arrays else ""


def _in_model_order(parts: Parts, vectors: np.ndarray) -> np.ndarray:
    ordered = np.zeros((len(parts.knowledge.vocabulary.relations), vectors.shape[1]), np.float32)
    ordered[parts.knowledge.vocabulary.relations_of(parts.knowledge.kg)] = vectors
    return ordered


def _project(vectors: np.ndarray, path: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """The relations' vectors in a parameter's shape, as spread as it is drawn at first: a random
    projection, which keeps distances (Johnson and Lindenstrauss 1984), and another one for inverse
    relations. What all relations share is taken off: it tells none of them from another."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    vectors = vectors - vectors.mean(0)
    ways = rng.normal(size=(shape[0] // len(vectors), vectors.shape[1], shape[1]))
    table = (vectors @ ways).reshape(shape)
    return (spread * table / max(np.sqrt(np.mean(table**2)), 1e-12)).astype(np.float32)
