"""Dense, norm, embedding look-up and dropout: the pieces every other module is made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from keft_jax.models.functional import Initializer, normal, ones, param, use, zeros


class Linear(nnx.Module):
    """x @ kernel + bias over the last axis; `out` may have several axes (heads, head width)."""

    def __init__(
        self,
        inputs: tuple[str, int],
        *out: tuple[str, int],
        kernel: Initializer = normal,
        bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
    ):
        axes, shape = zip(*out, strict=True)
        self.kernel = param((inputs[1], *shape), (inputs[0], *axes), kernel)
        self.bias = param(shape, axes, zeros) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # One axis of rows: the kernel's gradient of three axes is copied about by XLA on a CPU.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        y = jnp.tensordot(rows, use(self.kernel).astype(self.dtype), 1)
        y = y.reshape(*x.shape[:-1], *y.shape[1:])
        return y if self.bias is None else y + use(self.bias).astype(self.dtype)


class LayerNorm(nnx.Module):
    """Over the last axis; statistics in float32 (Ba et al. 2016)."""

    def __init__(self, width: tuple[str, int], *, eps: float = 1e-12):
        self.scale = param((width[1],), (width[0],), ones)
        self.bias = param((width[1],), (width[0],), zeros)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
        y = (x32 - mean) * (jax.lax.rsqrt(variance + self.eps) * use(self.scale))
        return (y + use(self.bias)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function (Hendrycks and Gimpel 2016), as BERT computes it:
    by erf. jax.nn.gelu goes by erfc, which takes twice the time of the whole MLP on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.asarray(math.sqrt(0.5), x.dtype)))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales the rest; the identity without a key."""
    if key is None or rate == 0:
        return x
    keep = random_words(key, x.shape) >= np.uint32(rate * 2**32)
    return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


def random_words(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """u32[shape]: each element's number, mixed with the key and twice by MurmurHash3's finaliser
    (Appleby 2011). Good enough for masks, and a twelfth of the time that Threefry, jax.random's
    generator, takes: that was a tenth of a training step on a CPU. No element depends on how the
    array is cut over devices."""
    words = jax.random.key_data(key)
    number, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        number, stride = number + place * np.uint32(stride % 2**32), stride * shape[axis]
    return _mix(_mix(number ^ words[0]) + words[-1])


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def fold(key: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    """A key of its own for part `number`; None (inference) stays None."""
    return None if key is None else jax.random.fold_in(key, number)


@jax.custom_vjp
def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a small table. Its gradient is a one-hot matmul instead of a scatter, which on
    accelerators is slow where many ids are the same."""
    return table[ids]


def _look_up_forward(table: jax.Array, ids: jax.Array):
    return table[ids], (ids, table.shape[0])


def _look_up_backward(saved, gradient: jax.Array):
    ids, rows = saved
    flat = gradient.reshape(-1, gradient.shape[-1])
    one_hot = jax.nn.one_hot(ids.reshape(-1), rows, dtype=flat.dtype)
    return jnp.einsum("ir,id->rd", one_hot, flat), None


look_up.defvjp(_look_up_forward, _look_up_backward)


@functools.cache
def glorot(axes_in: int, axes_out: int) -> Initializer:
    """Uniform with the variance of Glorot and Bengio (2010) for a kernel used as [in, out]."""
    limit = math.sqrt(6 / (axes_in + axes_out))

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
