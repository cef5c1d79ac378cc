"""Vectors of entities and relations: names or descriptions, read by a pre-trained text model."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    KeftError,
    TaskConfig,
    from_json,
)
from keft_jax.data.tokenize import encode, load_tokenizer
from keft_jax.kg.attributes import Attributes, read_attributes
from keft_jax.kg.embeddings import read_embeddings
from keft_jax.kg.store import KG
from keft_jax.models import pretrained
from keft_jax.models.encoder import Encoder
from keft_jax.models.functional import Model
from keft_jax.models.fusion import row_width
from keft_jax.models.kge import entity_width
from keft_jax.models.pretrained import load_weights, locate, read_vocab_size
from keft_jax.train.triple_parts import FOLDER

logger = logging.getLogger(__name__)

TEXTS = ("name", "description")
"""What can stand for an entity."""
LONGEST = 64
"""Tokens of a description that are read."""
BATCH = 64


class _Mean(nnx.Module):
    """Mean of the last layer's states."""

    def __init__(self, config: Config, vocab: int):
        self.encoder = Encoder(config.encoder, vocab)

    def __call__(self, tokens_bl: jax.Array, length_b: jax.Array) -> jax.Array:
        mask_bl = jnp.arange(tokens_bl.shape[1]) < length_b[:, None]
        x_bld = self.encoder.embed(tokens_bl, jnp.zeros_like(tokens_bl), None)
        x_bld = self.encoder.run(x_bld, mask_bl, None, 0, self.encoder.config.layers)
        total_bd = jnp.where(mask_bl[..., None], x_bld.astype(jnp.float32), 0).sum(1)
        return total_bd / jnp.maximum(length_b, 1)[:, None]


def entity_vectors(
    config: Config,
    kg: KG,
    tokenizer: tokenizers.Tokenizer,
    vocab: int,
    known: tuple[KG, np.ndarray] | None = None,
) -> np.ndarray | None:
    """f16[entities, d] of unit length, or None where `knowledge.vectors` asks for none.

    Args:
      vocab: rows of the model's word table.
      known: another graph and its vectors; texts that it has are not encoded again.

    Raises:
      KeftError: the folder `encoder.pretrained` is not there.
    """
    kind = config.knowledge.vectors
    if kind == "none":
        return None
    texts = texts_of(kg, kind)
    have: dict[str, np.ndarray] = {}
    if known is not None:
        have = dict(zip(texts_of(known[0], kind), known[1], strict=True))
    new = sorted(set(texts) - have.keys(), key=len)
    if new:
        logger.info("encoding %d entity %ss", len(new), kind)
        have |= dict(zip(new, _encode(config, new, tokenizer, vocab), strict=True))
    return np.stack([have[text] for text in texts])


def entity_attributes(config: Config, kg: KG) -> Attributes | None:
    """Those of `knowledge.attributes`; None where it names no file. Raises KeftError."""
    path = config.knowledge.attributes
    if not path:
        return None
    attributes, report = read_attributes(path, kg)
    if report.malformed_lines:
        file, line, reason = report.malformed[0]
        logger.warning(
            "%s: %d malformed lines left out, the first one %s:%d: %s",
            *(path, report.malformed_lines, file, line, reason),
        )
    if attributes.unknown:
        logger.warning(
            "%s: %d rows are on entities that the graph has not", path, attributes.unknown
        )
    return attributes


def read_texts(config: Config, texts: Sequence[str]) -> np.ndarray:
    """f32[texts, d] of unit scale (length sqrt(d)), of `knowledge.text_model`. Raises KeftError."""
    folder = config.knowledge.text_model or config.encoder.pretrained
    sizes = pretrained.read_sizes(locate(folder), EncoderConfig())
    reader = Config(
        task=TaskConfig(kind="mlm"),
        data=DataConfig(buckets=(8,)),  # of no use here, and shorter than any encoder's
        encoder=replace(sizes, pretrained=folder),
        fusion=FusionConfig(kind="none"),
    )
    tokenizer = load_tokenizer(locate(folder))
    different = sorted(set(texts), key=len)
    logger.info("encoding %d names or descriptions", len(different))
    vectors = _encode(reader, different, tokenizer, read_vocab_size(locate(folder)))
    number = {text: i for i, text in enumerate(different)}
    scale = np.sqrt(vectors.shape[1])
    return scale * vectors[[number[text] for text in texts]].astype(np.float32)


def resolve(config: Config) -> Config:
    """The config with what its folders tell: the sizes of `encoder.pretrained`, and the width of
    what rows of entities start as. Raises KeftError where these do not fit."""
    config = pretrained.resolve(config)
    known = config.knowledge
    width = _start_width(config)
    if width:
        if known.entity_width not in (0, width):
            raise KeftError(
                f"knowledge.entity_width = {known.entity_width}: {known.entities!r} has vectors of "
                f"{width} numbers; leave it out"
            )
        config = replace(config, knowledge=replace(known, entity_width=width))
    ours, theirs = row_width(config), entity_width(config.kge)
    if config.objective.triples.weight > 0 and ours != theirs:
        raise KeftError(
            f"kge.width = {config.kge.width}: {config.kge.model}'s entities have {theirs} numbers "
            f"and the model's rows {ours} (knowledge.entities = {known.entities!r}); "
            "objective.triples shares them, so make them equal"
        )
    return config


def _start_width(config: Config) -> int:
    """Width of what rows of entities start as; 0 where that has none of its own."""
    kind = config.knowledge.entities
    if kind in ("", "random"):
        return 0
    if kind in TEXTS:
        folder = config.knowledge.text_model or config.encoder.pretrained
        return pretrained.read_sizes(locate(folder), EncoderConfig()).width
    if is_run(kind):
        run = Path(kind) / "config.json"
        return entity_width(from_json(run.read_text(), str(run)).kge)
    return read_embeddings(kind).vectors.shape[1]


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether it is a run's directory: DGL-KE's folders of embeddings have a config.json too."""
    config, *made = (Path(path) / name for name in ("config.json", "inputs.json", FOLDER))
    return config.is_file() and any(file.exists() for file in made)


def texts_of(kg: KG, kind: str) -> list[str]:
    """What stands for each entity; its name where it has no description."""
    names = list(kg.names)
    if kind == "name":
        return names
    return [kg.description(i) or name for i, name in enumerate(names)]


def _encode(
    config: Config, texts: Sequence[str], tokenizer: tokenizers.Tokenizer, vocab: int
) -> np.ndarray:
    model = Model(_Mean(config, vocab))
    params = load_weights(locate(config.encoder.pretrained), model.abstract())
    apply = jax.jit(model.apply)
    most = min(LONGEST, config.encoder.max_length)
    tokens = encode(tokenizer, texts, None, most)
    out = []
    for start in range(0, len(texts), BATCH):  # sorted by length: few of them are padding
        part = range(start, min(start + BATCH, len(texts)))
        longest = max(tokens.lengths[part.start : part.stop])
        width = min(8 << int(np.ceil(np.log2(max(longest, 8) / 8))), most)
        ids = np.zeros((BATCH, width), np.int32)
        for row, i in enumerate(part):
            ids[row, : len(tokens.ids[i])] = tokens.ids[i]
        lengths = np.zeros(BATCH, np.int32)
        lengths[: len(part)] = tokens.lengths[part.start : part.stop]
        out.append(np.asarray(apply(params, ids, lengths))[: len(part)])
    vectors = np.concatenate(out)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
