"""The parts of a run on triples alone: link prediction."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from keft_jax.config import Config, KeftError, to_json
from keft_jax.data.splits import Splits
from keft_jax.data.triples import (
    Known,
    TripleDataset,
    fingerprint_triples,
    make_triple_dataset,
)
from keft_jax.data.vocabulary import round_up
from keft_jax.files import write_atomic
from keft_jax.kg import disk
from keft_jax.kg.embeddings import Embeddings
from keft_jax.kg.names import Names
from keft_jax.kg.triples import SELECT, TRAIN, read_splits
from keft_jax.models.functional import Model
from keft_jax.models.kge import TripleModel
from keft_jax.sharding import place, replicated
from keft_jax.tasks.link_prediction import LinkPrediction

logger = logging.getLogger(__name__)

FOLDER = "triples"
ROWS = 256  # tables have a multiple of so many rows: up to so many devices cut them evenly


@dataclass(frozen=True)
class TripleParts:
    """See `parts.Parts`: the same, for a graph without text."""

    config: Config
    entities: Sequence[str]
    relations: tuple[str, ...]
    names: Sequence[str]  # of entities, to show
    splits: dict[str, np.ndarray]  # i32[t, 3]: head, relation, tail

    labels: tuple[str, ...] = ()
    consistency = None
    beside = reasoning = linked = None

    @cached_property
    def task(self) -> LinkPrediction:
        return LinkPrediction(self.config.kge, self.entities)

    @cached_property
    def model(self) -> Model:
        rows = round_up(len(self.entities), ROWS)
        size = (len(self.entities), rows, len(self.relations))
        return Model(TripleModel(self.config.kge, *size))

    @cached_property
    def trained_on(self) -> Known:
        return self._known(self.splits[TRAIN])

    @cached_property
    def known(self) -> Known:
        """All triples of all splits: what ranks are filtered by."""
        return self._known(np.concatenate(list(self.splits.values())))

    def known_with(self, triples: np.ndarray) -> Known:
        return self._known(np.concatenate([*self.splits.values(), triples]))

    def _known(self, triples: np.ndarray) -> Known:
        return Known.of(triples, len(self.entities), len(self.relations))

    def frozen(self, mesh: Mesh) -> dict[str, Any]:
        """What the step reads beside the batch."""
        if not self.config.kge.filtered:
            return {"names": {}}
        return {"names": {}, "known": place(self.trained_on.answers, replicated(mesh))}

    def training(self, splits: Splits) -> np.ndarray:
        return splits.train

    def dataset(self, triples: np.ndarray) -> np.ndarray:
        """As they are: nothing in them can be wrong any more."""
        return triples

    def given(self, triples: np.ndarray) -> TripleDataset:
        return self.ready(triples)

    def ready(self, triples: np.ndarray) -> TripleDataset:
        kge = self.config.kge
        return make_triple_dataset(
            triples,
            self.trained_on,
            (self.entities, self.relations),
            answers=kge.answers,
            block=kge.share if kge.model == "transr" else 1,
            seed=self.config.seed,
        )

    @cached_property
    def kg_hash(self) -> str:
        """sha256 of all names and triples."""
        digest = hashlib.sha256(b"keft triples 1")
        for strings in (self.entities, self.relations):
            packed = strings if isinstance(strings, Names) else Names.of(strings)
            digest.update(packed.offsets.astype("<i8").tobytes() + packed.data.tobytes())
        for name, triples in self.splits.items():
            digest.update(f"{name} {fingerprint_triples(triples)}".encode())
        return digest.hexdigest()

    def inputs(self) -> dict[str, str]:
        """Of what the run is made, as hashes."""
        return {"knowledge.kg": self.kg_hash}

    def cover(self, dataset: TripleDataset) -> dict[str, Any]:
        """Triples of a split, and those with an entity that training never saw."""
        seen = np.zeros(len(self.entities), bool)
        seen[self.splits[TRAIN][:, ::2]] = True
        known = seen[dataset.triples[:, ::2]].all(1)
        return {"examples": len(dataset.triples), "unseen": int((~known).sum())}

    def describe(self) -> list[str]:
        """What is about to be trained, in lines."""
        train = self.splits[TRAIN]
        rest = ", ".join(f"{len(t):,} {s}" for s, t in self.splits.items() if s != TRAIN)
        return [
            f"graph      {len(self.entities):,} entities, {len(self.relations):,} relations, "
            f"{len(train):,} triples to train on{'; ' + rest if rest else ''}"
        ]

    def save(self, folder: Path) -> None:
        """Everything but the parameters; config.json last, so that its presence means the rest."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"split.{place}": split for place, split in enumerate(self.splits.values())}
        strings = (
            ("entities", self.entities),
            ("relations", self.relations),
            ("names", self.names),
        )
        for name, values in strings:
            packed = values if isinstance(values, Names) else Names.of(values)
            arrays |= {f"{name}.bytes": packed.data, f"{name}.offsets": packed.offsets}
        disk.write(folder / FOLDER, arrays, {"splits": list(self.splits), "hash": self.kg_hash})
        write_atomic(folder / "config.json", to_json(self.config))


def build_triples(config: Config) -> tuple[TripleParts, Splits]:
    """Parts and splits from the config's files. Raises KeftError."""
    data = config.data
    read = read_splits(data.train, data.select, data.test, names=data.names)
    for note in read.report.notes():
        logger.warning("%s: %s", data.train, note)
    splits = dict(read.splits)
    _refuse_trained_on(splits, config)
    parts = TripleParts(config, read.entities, read.relations, read.labels, splits)
    tests = {name: t for name, t in splits.items() if name not in (TRAIN, SELECT)}
    nothing: Any = np.zeros((0, 3), np.int32)
    return parts, Splits(splits[TRAIN], splits.get(SELECT, nothing), tests)


def _refuse_trained_on(splits: dict[str, np.ndarray], config: Config) -> None:
    """Counts what a split shares with train; raises KeftError where it is all of it."""
    size = 1 + max(int(triples.max(initial=0)) for triples in splits.values())

    def number(triples: np.ndarray) -> np.ndarray:
        head, relation, tail = triples.astype(np.int64).T
        return (relation * size + head) * size + tail

    trained = number(splits[TRAIN])
    for name, triples in splits.items():
        if name == TRAIN or not len(triples):
            continue
        shared = int(np.isin(number(triples), trained).sum())
        if shared == len(triples):
            raise KeftError(
                f"data.{'select' if name == SELECT else 'test'}: all {shared} triples of {name} "
                f"are in {config.data.train} too; what is trained on shows nothing, give others"
            )
        if shared:
            logger.warning("%s: %d of %d triples are in train too", name, shared, len(triples))


def load_triples(config: Config, folder: Path) -> TripleParts:
    """The parts of a run's directory. Raises KeftError where something is missing or damaged."""
    if config.task.kind != "link_prediction":
        raise KeftError(f"{folder}: a run on text; give one of link prediction, or embeddings")
    arrays, meta = disk.read(folder / FOLDER, verify=True)
    try:
        strings = {
            name: Names(arrays[f"{name}.bytes"], arrays[f"{name}.offsets"])
            for name in ("entities", "relations", "names")
        }
        splits = {split: arrays[f"split.{i}"] for i, split in enumerate(meta["splits"])}
    except KeyError as error:
        raise KeftError(f"{folder / FOLDER}: {error} is missing; train again") from error
    relations = tuple(strings["relations"])
    return TripleParts(config, strings["entities"], relations, strings["names"], splits)


def vectors_of(parts: TripleParts, params: Any) -> Embeddings:
    """All vectors of a run. The vectors of inverses of relations and the projections of transr are
    in `extra`, as "inverse" and "project"."""
    kge = parts.config.kge
    tables = jax.tree.map(np.asarray, jax.device_get(params))
    scorer, count = tables["scorer"], len(parts.relations)
    extra = {"project": scorer["project"]} if "project" in scorer else {}
    if len(scorer["relation"]) > count:
        extra["inverse"] = scorer["relation"][count:]
    products = kge.model in ("distmult", "complex")
    meta = {
        "model": kge.model,
        "width": str(kge.width),
        "distance": "product" if products else kge.distance,
        "scale": str(kge.scale),
        "kg_hash": parts.kg_hash,
    }
    return Embeddings(
        parts.entities,
        tables["entity"][: len(parts.entities)],
        parts.relations,
        scorer["relation"][:count],
        parts.names,
        extra,
        meta,
    )
