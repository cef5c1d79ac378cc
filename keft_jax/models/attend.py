"""Which kernel computes self-attention: a fused one where the device and the shape have one that
computes the same, else XLA's own. Fused kernels never write the scores of all pairs of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from keft_jax.config import EncoderConfig, check
from keft_jax.sharding import on_devices, platform

LONG = 256
"""Tokens from which `auto` takes `flash`: below, the scores are smaller than the other activations
of a layer."""


def attention_kind(
    config: EncoderConfig,
    training: bool,
    each: bool = False,
    packed: bool = False,
    length: int = 0,
) -> str:
    """ "xla", or of FUSED "cudnn" (NVIDIA) or "flash" (TPU), for rows of `length` tokens. packed:
    of several texts, which cuDNN cannot keep apart by their lengths. each: each token reads other
    ones, which no fused kernel is given. Fused ones have no dropout on attention weights: `auto`
    takes them where there is none. Raises KeftError where one is asked for by name and cannot be
    had."""
    asked, head, device = config.attention, config.width // config.heads, platform()
    if each or (packed and asked == "cudnn"):  # a teacher's; a run of its own is refused
        return "xla"
    nvidia = device == "gpu" and not packed
    fits = {
        "cudnn": nvidia and config.dtype == "bfloat16" and head % 8 == 0 and head <= 128,
        "flash": device == "tpu" and length % 128 == 0 and (head <= 128 or head % 128 == 0),
    }
    needs = {
        "cudnn": "an NVIDIA GPU, encoder.dtype=bfloat16 and heads of a multiple of 8, at most 128 "
        "wide",
        "flash": "a TPU, data.buckets and data.pack of multiples of 128 and heads at most 128 "
        "wide, or of a multiple of 128",
    }
    if asked in fits:
        here = f"{device}, {config.dtype}, heads of {head}, {length} tokens"
        check(
            fits[asked], "encoder.attention", asked, f"needs {needs[asked]}; here: {here}; use auto"
        )
        return asked
    if asked == "xla" or (training and config.dropout):
        return "xla"
    if fits["flash"] and length >= LONG:
        return "flash"
    return "cudnn" if fits["cudnn"] else "xla"


def cudnn(
    q_blhk: jax.Array, k_blhk: jax.Array, v_blhk: jax.Array, text_bl: jax.Array, scale: float
) -> jax.Array:
    """One text in each row. By lengths, not a mask: a mask becomes a bias, whose gradient is
    written out."""
    length_b = (text_bl > 0).sum(1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        *(q_blhk, k_blhk, v_blhk),
        scale=scale,
        query_seq_lengths=length_b,
        key_value_seq_lengths=length_b,
        implementation="cudnn",
    )


def flash(
    q_blhk: jax.Array, k_blhk: jax.Array, v_blhk: jax.Array, text_bl: jax.Array, scale: float
) -> jax.Array:
    """FlashAttention (Dao et al. 2022) as JAX's Pallas kernel for TPU has it; padding reads
    padding. The partitioner cannot cut a kernel: each device calls it for its own part."""
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    def own(q: jax.Array, k: jax.Array, v: jax.Array, text_bl: jax.Array) -> jax.Array:
        block = max(n for n in (128, 256, 384, 512) if q.shape[1] % n == 0)
        sizes = {field.name: block for field in dataclasses.fields(tpu.BlockSizes)}
        y_bhlk = tpu.flash_attention(
            *(x.swapaxes(1, 2) for x in (q, k, v)),
            segment_ids=tpu.SegmentIds(text_bl, text_bl),
            sm_scale=scale,
            block_sizes=tpu.BlockSizes(**sizes | {"block_b": 1}),
        )
        return y_bhlk.swapaxes(1, 2)

    names = ("batch", "length", "heads", "kv")
    return on_devices(own, (names, names, names, ("batch", "length")), names)(
        q_blhk, k_blhk, v_blhk, text_bl
    )


FUSED: dict[str, Callable[..., jax.Array]] = {"cudnn": cudnn, "flash": flash}
"""Of queries, keys, values, i32[b, l] and the scale: a token reads those of its row that have its
number, from 1; 0 is padding."""
