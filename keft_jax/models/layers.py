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


def activation_dtype(dtype: str) -> jnp.dtype:
    """What activations are kept in where the config says `dtype`."""
    return jnp.dtype("float32" if dtype == "mixed" else dtype)


class Linear(nnx.Module):
    """x @ kernel + bias over the last axis; `out` may have several axes (heads, head width)."""

    def __init__(
        self,
        inputs: tuple[str, int],
        *out: tuple[str, int],
        kernel: Initializer = normal,
        bias: bool = True,
        dtype: str = "float32",
    ):
        axes, shape = zip(*out, strict=True)
        self.kernel = param((inputs[1], *shape), (inputs[0], *axes), kernel)
        self.bias = param(shape, axes, zeros) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # One axis of rows: the kernel's gradient of three axes is copied about by XLA on a CPU.
        dtype, kernel = activation_dtype(self.dtype), use(self.kernel)
        rows = x.reshape(-1, x.shape[-1])
        y = matmul(rows, kernel, self.dtype).reshape(*x.shape[:-1], *kernel.shape[1:])
        return y if self.bias is None else y + use(self.bias).astype(dtype)


def matmul(x_id: jax.Array, kernel: jax.Array, dtype: str) -> jax.Array:
    """[i, ...] of [i, d] and [d, ...], in `activation_dtype(dtype)`."""
    if dtype == "mixed":
        y_io = _mixed(x_id.astype(jnp.float32), kernel.reshape(len(kernel), -1))
        return y_io.reshape(-1, *kernel.shape[1:])
    return jnp.tensordot(x_id.astype(dtype), kernel.astype(dtype), 1)


@jax.custom_vjp
def _mixed(x_id: jax.Array, kernel_do: jax.Array) -> jax.Array:
    return matmul_bf16(x_id, kernel_do)


def _mixed_backward(saved, y_io: jax.Array):
    x_id, kernel_do = saved
    return matmul_bf16(y_io, transpose(kernel_do)), matmul_bf16(transpose(x_id), y_io)


_mixed.defvjp(lambda x, kernel: (matmul_bf16(x, kernel), (x, kernel)), _mixed_backward)


def matmul_bf16(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32[..., i, o]: factors rounded to bfloat16, sums in float32."""
    a, b = (x.astype(jnp.bfloat16) for x in (a, b))
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def transpose(x: jax.Array, block: int = 32) -> jax.Array:
    """The last two axes of x swapped, on a CPU by way of blocks: XLA:CPU folds a plain
    transposition into a matmul, and then does not do it in bfloat16 (with AMX three to four times
    as fast as float32)."""
    *batch, rows, columns = x.shape
    block = math.gcd(rows, block)

    def in_blocks(x):
        x = x.reshape(*batch, rows // block, block, columns)
        return jnp.moveaxis(x, -1, -3).reshape(*batch, columns, rows)

    return jax.lax.platform_dependent(x, cpu=in_blocks, default=lambda x: x.swapaxes(-1, -2))


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
