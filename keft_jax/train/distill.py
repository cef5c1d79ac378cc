"""What a student can learn of a teacher for the same batch: its outputs, its states, its attention.
Losses of each example; the teacher's side takes no gradient (train/objective.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def diverge(taught: jax.Array, own: jax.Array, temperature: Any) -> jax.Array:
    """KL(teacher || student) over the last axis of logits [..., c], both softened, times the
    square of the temperature, so that gradients keep their size (Hinton et al. 2015): [...]."""
    log_t = jax.nn.log_softmax(taught / temperature)
    log_s = jax.nn.log_softmax(own / temperature)
    return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1)


def _square(taught: jax.Array, own: jax.Array) -> jax.Array:
    return jnp.square(taught - own).mean(-1)


def _angle(taught: jax.Array, own: jax.Array) -> jax.Array:
    length = (jnp.square(x).sum(-1) for x in (taught, own))
    a, b = (jax.lax.rsqrt(square + 1e-12) for square in length)
    return 1 - a * b * (taught * own).sum(-1)


STATE_LOSSES = {"mse": _square, "cosine": _angle}
"""objective.distill.hidden_loss -> from states [..., d] to [...]."""


def match_states(
    taught: Sequence[jax.Array], own: Sequence[jax.Array], mask_bl: jax.Array, loss: str
) -> jax.Array:
    """f32[b]: the mean over layers and real tokens. taught, own: the embeddings and the states
    after each layer, [b, l, d] of one width; layer i of M learns from ceil(i N / M) of N."""
    layers, its = len(own) - 1, len(taught) - 1
    measure = STATE_LOSSES[loss]
    each_bl = sum(
        measure(taught[-(-i * its // layers)].astype(jnp.float32), x.astype(jnp.float32))
        for i, x in enumerate(own)
    )
    return _over_tokens(jnp.asarray(each_bl), mask_bl) / len(own)


def match_attention(taught: jax.Array, own: jax.Array, mask_bl: jax.Array) -> jax.Array:
    """f32[b]: KL(teacher || student) of attention distributions, the mean over heads and over real
    queries (Wang et al. 2020). taught, own: scores f32[b, heads, l, l], each with its own number of
    heads, -1e9 where a key is not read. Where these numbers differ, neighbouring heads are joined
    into as many as divide both, as the relation heads of MiniLMv2 (Wang et al. 2021): the score of
    joined heads is that of their queries and keys end to end."""
    heads = math.gcd(taught.shape[1], own.shape[1])
    each_brl = diverge(_join(taught, heads), _join(own, heads), 1.0)
    return _over_tokens(each_brl.mean(1), mask_bl)


def _join(scores: jax.Array, heads: int) -> jax.Array:
    b, h, *pair = scores.shape
    joined = scores.astype(jnp.float32).reshape(b, heads, h // heads, *pair).sum(2)
    return joined * (heads / h) ** 0.5  # scores are divided by the root of the head's width


def _over_tokens(each_bl: jax.Array, mask_bl: jax.Array) -> jax.Array:
    total = jnp.where(mask_bl, each_bl, 0).sum(1)
    return total / jnp.maximum(mask_bl.sum(1), 1)
