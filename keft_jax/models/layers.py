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
        y = jnp.tensordot(x.astype(self.dtype), use(self.kernel).astype(self.dtype), 1)
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
    limit = round(rate * 2**16)  # 16 random bits an element are enough, and half the work
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= limit
    return jnp.where(keep, x * (2**16 / (2**16 - limit)), 0).astype(x.dtype)


def fold(key: jax.Array | None, number: int) -> jax.Array | None:
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
