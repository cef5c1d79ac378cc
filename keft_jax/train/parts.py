"""A config turned into its parts: graph, vocabulary, task, model; saved beside the checkpoints so
that a run can be loaded without the files it was made from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jax.sharding import Mesh

from keft_jax.config import REST, Config, KeftError, from_json, to_json
from keft_jax.data.features import (
    Dataset,
    Knowledge,
    make_dataset,
    with_row,
)
from keft_jax.data.generators import GENERATORS
from keft_jax.data.source import Example, read_examples
from keft_jax.data.splits import Splits, read_splits, split_path
from keft_jax.data.tfds import PREFIX
from keft_jax.data.tokenize import load_tokenizer, save_tokenizer, train_wordpiece
from keft_jax.data.unlabelled import mix
from keft_jax.data.vocabulary import Vocabulary, round_up
from keft_jax.files import write_atomic
from keft_jax.kg.attributes import Attributes, read_attributes
from keft_jax.kg.io import build_kg
from keft_jax.kg.store import KG
from keft_jax.kg.verbalise import phrase
from keft_jax.models.functional import Model
from keft_jax.models.fusion import FusedModel, Sizes
from keft_jax.models.pretrained import locate, read_vocab_size
from keft_jax.sharding import place, replicated
from keft_jax.tasks.entities import EntityPrediction
from keft_jax.tasks.kinds import KINDS, Made, labels_of
from keft_jax.tasks.mlm import MaskedLM
from keft_jax.tasks.reasoning import Reasoning
from keft_jax.tasks.task import Task
from keft_jax.train.consistency import Consistency
from keft_jax.train.triple_parts import TripleParts, build_triples
from keft_jax.train.vectors import (
    TEXTS,
    entity_attributes,
    entity_vectors,
    read_texts,
    resolve,
    texts_of,
)

logger = logging.getLogger(__name__)

LARGE_TABLE = 1 << 20  # rows
VECTORS, ATTRIBUTES = "vectors.npy", "attributes.tsv"


@dataclass(frozen=True)
class Parts:
    config: Config
    knowledge: Knowledge
    task: Task
    model: Model
    labels: tuple[str, ...]

    @property
    def beside(self) -> Task | None:
        """The masked language modelling of `objective.mlm`."""
        if self.config.objective.mlm.weight == 0:
            return None
        ours = self.knowledge.vocabulary
        return MaskedLM.of(self.config, ours.tokenizer, len(ours.entities), self.task.each)

    @property
    def linked(self) -> EntityPrediction | None:
        """The prediction of entities of `objective.entities`."""
        objective = self.config.objective
        if objective.entities.weight == 0:
            return None
        return EntityPrediction(self.beside or self.task, objective.mlm.entity_share)

    @property
    def consistency(self) -> Consistency | None:
        """The texts without labels of `objective.consistency`."""
        settings, tokenizer = self.config.objective.consistency, self.knowledge.vocabulary.tokenizer
        if settings.weight == 0:
            return None
        return Consistency(self.model, self.task, tokenizer, settings)

    @property
    def reasoning(self) -> Reasoning | None:
        """The link prediction of `objective.triples`."""
        settings = self.config.objective.triples
        if settings.weight == 0:
            return None
        entities = self.knowledge.vocabulary.entities
        return Reasoning(self.config.kge, entities, settings.batch)

    @property
    def _tasks(self) -> list[Task]:
        return [self.task] if self.beside is None else [self.task, self.beside]

    def dataset(self, examples: Sequence[Example]) -> Dataset:
        return make_dataset(examples, self.knowledge, self._tasks, self.config.data.buckets[-1])

    def training(self, splits: Splits) -> Dataset:
        """`dataset` of the training examples, with the texts of data.unlabelled beside them."""
        train, data = self.dataset(splits.train), self.config.data
        if not data.unlabelled:
            return train
        leftover, settings = data.unlabelled == REST, self.config.objective.consistency
        return mix(
            train,
            splits.train if leftover else splits.unlabelled,
            self._tasks,
            self.labels,
            data.buckets[-1],
            leftover=leftover,
            consistent=settings.weight > 0,
            swap=settings.swap,
        )

    def read(self, path: str) -> list[Example]:
        """The labelled examples of a file."""
        return read_examples(path, self.config.data, need=KINDS[self.config.task.kind].needs)

    def ready(self, examples: Sequence[Example]) -> Dataset:
        """A split with what the config's row is given of the graph."""
        return self.given(self.dataset(examples))

    def given(self, dataset: Dataset) -> Dataset:
        row, seed = self.config.knowledge.row, self.config.seed
        return with_row(dataset, self.knowledge, row, seed)

    def frozen(self, mesh: Mesh) -> dict[str, Any]:
        """What the step reads beside the batch."""
        return {"names": place(self.knowledge.names, replicated(mesh))}

    @property
    def kg_hash(self) -> str:
        return self.knowledge.kg.hash

    def inputs(self) -> dict[str, str]:
        """Of what the run is made beside its examples, as hashes."""
        vocabulary, own = self.knowledge.vocabulary.tokenizer.to_str(), self.knowledge.attributes
        out = {"knowledge.kg": self.kg_hash, "vocabulary": digest(vocabulary)}
        return out | ({"knowledge.attributes": digest("".join(own.lines()))} if own else {})

    def save(self, folder: Path) -> None:
        save_parts(self, folder)

    def with_kg(self, kg: KG) -> Parts:
        """The same model over another graph, or another version of its own."""
        ours, config = self.knowledge, self.config
        tokenizer = ours.vocabulary.tokenizer
        known = None if ours.vectors is None else (ours.kg, ours.vectors)
        vectors = entity_vectors(config, kg, tokenizer, pad_vocab(tokenizer), known)
        starts = self._starts(kg) if config.knowledge.entities in TEXTS else None
        knowledge = Knowledge(
            kg, ours.vocabulary, config.knowledge, vectors, starts, ours.attributes
        )
        task = KINDS[config.task.kind].make(Made(config, kg, tokenizer, self.labels))
        return Parts(self.config, knowledge, task, self.model, self.labels)

    def _starts(self, kg: KG) -> np.ndarray | None:
        """f32[entities, w]: what the rows of entities that the model has not met would have started
        as, zeros for the others; None where it has met all."""
        met = self.knowledge.vocabulary.rows_of(kg) > 0
        if met.all():
            return None
        texts = texts_of(kg, self.config.knowledge.entities)
        new = read_texts(self.config, [t for t, m in zip(texts, met, strict=True) if not m])
        starts = np.zeros((kg.n_entities, new.shape[1]), np.float32)
        starts[~met] = new
        return starts


def load_kg(config: Config) -> KG:
    """The config's graph: a folder of ours, or built from text files; one without triples where
    the config names none."""
    source = config.knowledge.kg
    if not source:
        return KG.from_triples([])
    if Path(source).is_dir():
        for name in ("aliases", "descriptions"):
            value = getattr(config.knowledge, name)
            if value:
                raise KeftError(
                    f"knowledge.{name} = {value!r}: the folder {source} has its own; give them to "
                    f"`keft kg build --{name}`"
                )
        return KG.load(source)
    settings = config.knowledge
    kg, report = build_kg(
        [source],
        aliases=settings.aliases or None,
        descriptions=settings.descriptions or None,
    )
    if report.malformed_lines:
        file, line, reason = report.malformed[0]
        logger.warning(
            "%s: %d malformed lines left out, the first one %s:%d: %s",
            *(source, report.malformed_lines, file, line, reason),
        )
    return kg


def pad_vocab(tokenizer: tokenizers.Tokenizer) -> int:
    """Rows of a word table: they divide over the devices."""
    return round_up(tokenizer.get_vocab_size(), 128)


def pad_rows(rows: int) -> int:
    """Of the table of entities: a large one divides over up to 4,096 devices."""
    return round_up(rows, 4096 if rows > LARGE_TABLE else 128)


def assemble(
    config: Config,
    kg: KG,
    vocabulary: Vocabulary,
    labels: tuple[str, ...],
    vectors: np.ndarray | None = None,
    attributes: Attributes | None = None,
) -> Parts:
    knowledge = Knowledge(kg, vocabulary, config.knowledge, vectors, attributes=attributes)
    model = make_model(config, knowledge, labels)
    task = KINDS[config.task.kind].make(Made(config, kg, vocabulary.tokenizer, labels))
    return Parts(config, knowledge, task, model, labels)


def make_model(config: Config, knowledge: Knowledge, labels: Sequence[str]) -> Model:
    ours, attributes = knowledge.vocabulary, knowledge.attributes
    sizes = Sizes(
        vocab=pad_vocab(ours.tokenizer),
        pieces=ours.tokenizer.get_vocab_size(),
        rows=pad_rows(max(len(ours.entities) + 1, config.knowledge.entity_rows)),
        relations=max(len(ours.relations), 1),
        labels=max(len(labels), 1),
        entities=len(ours.entities),
        attributes=attributes.width if attributes else 0,
    )
    return Model(FusedModel(config, sizes))


AnyParts = Parts | TripleParts


def build_any(config: Config) -> tuple[AnyParts, Splits]:
    """As `build`, for configs without text too."""
    return build_triples(config) if config.task.kind == "link_prediction" else build(config)


def build(config: Config) -> tuple[Parts, Splits]:
    """Parts made from the config's files, and the examples; the vocabulary and the labels are those
    of the training examples."""
    if config.task.kind == "link_prediction":
        raise KeftError("task.kind = 'link_prediction': has no text, which is needed here")
    config = resolve(config)
    generate(config)
    splits = read_splits(config.data, KINDS[config.task.kind].needs)
    examples, kg = splits.train, load_kg(config)
    tokenizer = make_tokenizer(config, examples, kg)
    labels = config.task.labels or labels_of(config.task.kind, examples)
    vocabulary = Vocabulary(tokenizer, kg.names, kg.relations)
    vectors = entity_vectors(config, kg, tokenizer, pad_vocab(tokenizer))
    attributes = entity_attributes(config, kg)
    return assemble(config, kg, vocabulary, labels, vectors, attributes), splits


def make_tokenizer(
    config: Config, examples: Sequence[Example], kg: KG | None = None
) -> tokenizers.Tokenizer:
    """That of `data.vocab`, else of the pre-trained folder, else one trained on the examples, and
    on the names of the graph where knowledge.text, or a row of gain.variants, writes these too."""
    given, pretrained = config.data.vocab, config.encoder.pretrained
    if not (given or pretrained):
        texts = [text for e in examples for text in (e.text, e.pair, *e.choices) if text]
        written = config.knowledge.text != "none"
        written |= any(row.startswith("text") for row in config.gain.variants)
        names = [*kg.names, *map(phrase, kg.relations)] if kg and written else []
        return train_wordpiece(texts, config.data.vocab_size, names=names)
    tokenizer = load_tokenizer(given or locate(pretrained))
    if given and pretrained:
        _refuse_other_numbers(tokenizer, config)
    if pretrained:
        pieces, rows = tokenizer.get_vocab_size(), read_vocab_size(locate(pretrained))
        if pieces > rows:
            raise KeftError(
                f"{given or pretrained}: a tokenizer of {pieces} pieces, and the word table of "
                f"{pretrained} has {rows} rows; give the tokenizer that it was trained with"
            )
    return tokenizer


def _refuse_other_numbers(tokenizer: tokenizers.Tokenizer, config: Config) -> None:
    """Raises KeftError where a piece has another number than in the pre-trained folder, whose word
    table it would then read at another word's row."""
    folder = locate(config.encoder.pretrained)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return  # weights alone
    theirs = load_tokenizer(folder)
    for piece, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        there = theirs.token_to_id(piece)
        if there != number:
            raise KeftError(
                f"data.vocab = {config.data.vocab!r}: its piece {piece!r} is {number}, and "
                f"{'unknown' if there is None else there} in {folder}; leave data.vocab empty"
            )


def generate(config: Config) -> None:
    """Runs the config's generator where something that it makes is missing."""
    data = config.data
    if not data.generator or data.train.startswith(PREFIX):
        return
    files = [data.train, data.select, *map(split_path, data.test), config.knowledge.kg]
    files += [config.knowledge.attributes, config.gain.attributes]
    made = [f for f in files if f and not f.startswith(PREFIX)]  # the rest is of `keft tfds`
    if not all(Path(f).exists() for f in made):
        GENERATORS[data.generator](data.source, Path(data.train).parent)


def save_parts(parts: Parts, folder: Path) -> None:
    """Everything but the parameters; config.json last, so that its presence means the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(parts.knowledge.vocabulary.tokenizer, folder / "tokenizer.json")
    write_atomic(folder / "labels.json", json.dumps(parts.labels, ensure_ascii=False))
    parts.knowledge.kg.save(folder / "kg")
    if parts.knowledge.vectors is not None:
        content = io.BytesIO()
        np.save(content, parts.knowledge.vectors, allow_pickle=False)
        write_atomic(folder / VECTORS, content.getvalue())
    if parts.knowledge.attributes is not None:
        write_atomic(folder / ATTRIBUTES, "".join(parts.knowledge.attributes.lines()))
    write_atomic(folder / "config.json", to_json(parts.config))


def load_parts(folder: Path) -> Parts:
    """The parts of the directory of a run on text. Raises KeftError where it is not one."""
    config = load_run_config(folder)
    if config.task.kind == "link_prediction":
        raise KeftError(f"{folder}: a run of link prediction, which has no text; give another run")
    kg = KG.load(folder / "kg")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    labels = tuple(json.loads((folder / "labels.json").read_text()))
    vectors = None
    if config.knowledge.vectors != "none":
        vectors = _load_vectors(folder / VECTORS, (kg.n_entities, config.encoder.width))
    attributes = None
    if config.knowledge.attributes:
        attributes, _ = read_attributes(folder / ATTRIBUTES, kg)
    vocabulary = Vocabulary(tokenizer, kg.names, kg.relations)
    return assemble(config, kg, vocabulary, labels, vectors, attributes)


def _load_vectors(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """f16[entities, d], left on the disk."""
    try:
        vectors = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise KeftError(f"{file}: cannot be read ({error}); train or export anew") from error
    if vectors.shape != shape:
        raise KeftError(
            f"{file}: {vectors.shape} numbers where the graph and the encoder have {shape}; train "
            "or export anew"
        )
    return vectors


def load_run_config(folder: Path) -> Config:
    file = folder / "config.json"
    if not file.is_file():
        raise KeftError(f"{folder}: no run's directory (no config.json); give what train.py made")
    return from_json(file.read_text(), str(file))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
