"""Frozen vectors of entities: their names or descriptions, read by a pre-trained text model."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from keft_jax.config import Config
from keft_jax.data.tokenize import encode
from keft_jax.kg.store import KG
from keft_jax.models.encoder import Encoder
from keft_jax.models.functional import Model
from keft_jax.models.pretrained import load_weights, locate

logger = logging.getLogger(__name__)

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
