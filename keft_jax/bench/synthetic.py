"""Examples and a graph made of random numbers, in the shapes of a config that names no files. They
go through the real pipeline, so that a batch has every array that the model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from keft_jax.config import Config, DistillConfig
from keft_jax.data.source import Example
from keft_jax.data.tokenize import SPECIAL
from keft_jax.data.vocabulary import Vocabulary
from keft_jax.kg.store import KG
from keft_jax.sharding import make_mesh
from keft_jax.train.parts import Parts, assemble

SYNTHETIC = "synthetic"
"""objective.distill.teacher: the same model with random parameters."""
RELATIONS, NAME_WORDS = 32, 2
ENTITIES = 2048
"""A table of their rows is trained; more of them make every step's optimizer dearer."""


def make_synthetic(config: Config, count: int, seed: int = 0) -> tuple[Parts, list[Example]]:
    """Parts and `count` texts of the longest bucket's full length, each with `knowledge.mentions`
    mentions whose neighbourhoods fill the budget of nodes and edges."""
    rng = np.random.default_rng(seed)
    words = make_words(config.data.vocab_size)
    kg = make_ring(rng, words, config.knowledge.nodes)
    vocabulary = Vocabulary(make_vocabulary(words), kg.names, kg.relations)
    labels = config.task.labels or ("a", "b")
    parts = assemble(config, kg, vocabulary, labels)
    return parts, [make_example(rng, number, config, words, kg, labels) for number in range(count)]


def make_teacher(parts: Parts) -> Parts:
    """A teacher of the student's size, knowledge and task."""
    ours, config = parts.knowledge, parts.config
    objective = dataclasses.replace(config.objective, distill=DistillConfig(), schedules=())
    config = dataclasses.replace(config, objective=objective)
    return assemble(config, ours.kg, ours.vocabulary, parts.labels, ours.vectors, ours.attributes)


def draw(teacher: Parts) -> Any:
    """Its parameters, on the config's mesh."""
    model, config = teacher.model, teacher.config
    make = jax.jit(model.init, out_shardings=model.shardings(make_mesh(config.mesh)))
    return make(jax.random.key(config.seed + 1))


def make_words(vocab_size: int) -> list[str]:
    return [f"w{i}" for i in range(vocab_size - len(SPECIAL))]


def make_vocabulary(words: Sequence[str]) -> tokenizers.Tokenizer:
    """A word is a piece."""
    pieces = {piece: i for i, piece in enumerate((*SPECIAL, *words))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def make_ring(rng: np.random.Generator, words: Sequence[str], nodes: int) -> KG:
    """Entities in a ring, each with two facts about each of the next nodes / 2: wherever one
    starts, the neighbours fill a budget and know each other."""
    size = min(ENTITIES, len(words) // NAME_WORDS)
    names = [" ".join(words[NAME_WORDS * i : NAME_WORDS * (i + 1)]) for i in range(size)]
    reach = max(1, min(nodes // 2, (size - 1) // 2))
    relation = rng.integers(0, RELATIONS, (size, reach, 2))
    return KG.from_triples(
        (names[head], f"r{relation[head, step, copy]}", names[(head + 1 + step) % size])
        for head in range(size)
        for step in range(reach)
        for copy in range(2)
    )


def make_example(
    rng: np.random.Generator,
    number: int,
    config: Config,
    words: Sequence[str],
    kg: KG,
    labels: Sequence[str],
) -> Example:
    length = config.data.buckets[-1] - 2  # [CLS] and [SEP] make it full
    text = [words[i] for i in rng.integers(0, len(words), length)]
    ends = np.cumsum([len(word) + 1 for word in text]) - 1
    at = np.sort(rng.choice(length, min(config.knowledge.mentions, length), replace=False))
    entity = rng.integers(0, kg.n_entities, len(at) + 1)
    spans = tuple(
        (int(ends[a] - len(text[a])), int(ends[a]), kg.names[int(e)])
        for a, e in zip(at, entity, strict=False)
    )
    return Example(
        id=number,
        text=" ".join(text),
        label=labels[number % len(labels)],
        answers=(kg.names[int(entity[-1])],),
        spans=spans if config.fusion.kind != "none" else (),
        where=f"synthetic:{number}",
    )
