"""Queries against candidates: products and distances, forwards and backwards, in the forms that XLA
makes fast. Shapes: g groups, c queries of a group, k candidates, x numbers of a vector."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from keft_jax.models.layers import matmul_bf16, transpose

CHUNK = 1 << 18  # numbers of a block of vectors that stays in a processor's cache
TINY = 1e-6  # under the root of a distance: its gradient at 0 is finite


def modulus(x: jax.Array) -> jax.Array:
    """Of complex numbers, halves as real and imaginary parts: f32[..., x / 2]."""
    real, imaginary = jnp.split(x, 2, -1)
    return jnp.sqrt(real**2 + imaginary**2 + TINY**2)


@jax.custom_vjp
def _matmul_bf16(a_gcx: jax.Array, b_gkx: jax.Array) -> jax.Array:
    low = (x.astype(jnp.bfloat16) for x in (a_gcx, b_gkx))
    return jnp.einsum("gcx,gkx->gck", *low, preferred_element_type=jnp.float32)


def _matmul_bf16_bwd(saved: Any, s_gck: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    return matmul_bf16(s_gck, b), matmul_bf16(transpose(s_gck), a)


_matmul_bf16.defvjp(lambda a, b: (_matmul_bf16(a, b), (a, b)), _matmul_bf16_bwd)


def matmul(a_gcx: jax.Array, b_gkx: jax.Array, dtype: str) -> jax.Array:
    """f32[g, c, k], of factors rounded to `dtype`."""
    if dtype == "bfloat16":
        return _matmul_bf16(a_gcx, b_gkx)
    return jnp.einsum("gcx,gkx->gck", a_gcx, b_gkx)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_chunks(compare: Any, q_g1x: jax.Array, table: jax.Array, ids_gk: jax.Array) -> jax.Array:
    """compare(q, table[ids]), f32[g, 1, k], in chunks that stay in the processor's cache, forwards
    and backwards: an array [g, k, w] would be written to fresh memory, read, and written again."""
    parts = _cut(table, q_g1x, ids_gk)
    scores = jax.lax.map(lambda part: compare(part[0], table[part[1]][:, None]), parts)
    return scores.swapaxes(0, 1).reshape(len(q_g1x), 1, -1)


def _in_chunks_bwd(compare: Any, saved: Any, s_g1k: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    q_g1x, table, ids_gk = saved

    def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, ids, s = part
        to_q, to_rows = jax.vjp(compare, q, table[ids][:, None])[1](s)
        return total.at[ids].add(to_rows[:, 0]), to_q

    parts = _cut(table, q_g1x, ids_gk, s_g1k)
    to_table, to_q = jax.lax.scan(add, jnp.zeros_like(table), parts)
    return to_q.swapaxes(0, 1).reshape(q_g1x.shape), to_table, None


in_chunks.defvjp(lambda compare, *given: (in_chunks(compare, *given), given), _in_chunks_bwd)


def _cut(table: jax.Array, q_g1x: jax.Array, ids_gk: jax.Array, *more: jax.Array) -> Any:
    """[g, ...] as [chunks, g / chunks, ...]. A chunk takes every so many-th, so that it lies on
    every device."""
    fits = max(CHUNK // (ids_gk.shape[1] * table.shape[1]), 1)
    size = math.gcd(len(ids_gk), 1 << (fits.bit_length() - 1))
    return tuple(
        x.reshape(size, len(x) // size, *x.shape[1:]).swapaxes(0, 1) for x in (q_g1x, ids_gk, *more)
    )


def l1_shared(q_gcx: jax.Array, e_gkx: jax.Array, in_plane: bool) -> jax.Array:
    """Sums of |q - e| (moduli of complex numbers), f32[g, c, k], without an array [g, c, k, x] in
    memory: the forward pass sums over x with k innermost, the backward pass over k or c with x
    innermost, which is how XLA turns either into vector loops."""
    return _l1_complex(q_gcx, e_gkx) if in_plane else _l1_real(q_gcx, e_gkx)


@jax.custom_vjp
def _l1_real(q: jax.Array, e: jax.Array) -> jax.Array:
    turned = jnp.swapaxes(e, 1, 2)
    return jnp.abs(q[:, :, :, None] - turned[:, None]).sum(2)


def _l1_real_bwd(saved: Any, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, e = saved
    each = jnp.sign(q[:, :, None, :] - e[:, None, :, :]) * s[..., None]
    return each.sum(2), -each.sum(1)


_l1_real.defvjp(lambda q, e: (_l1_real(q, e), (q, e)), _l1_real_bwd)


@jax.custom_vjp
def _l1_complex(q: jax.Array, e: jax.Array) -> jax.Array:
    (qr, qi), (er, ei) = jnp.split(q, 2, -1), jnp.split(jnp.swapaxes(e, 1, 2), 2, 1)
    real, imaginary = qr[..., None] - er[:, None], qi[..., None] - ei[:, None]
    return jnp.sqrt(real**2 + imaginary**2 + TINY**2).sum(2)


def _l1_complex_bwd(saved: Any, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    (qr, qi), (er, ei) = (jnp.split(x, 2, -1) for x in saved)
    real = qr[:, :, None, :] - er[:, None, :, :]
    imaginary = qi[:, :, None, :] - ei[:, None, :, :]
    each = s[..., None] * jax.lax.rsqrt(real**2 + imaginary**2 + TINY**2)
    real, imaginary = each * real, each * imaginary
    return (
        jnp.concatenate([real.sum(2), imaginary.sum(2)], -1),
        -jnp.concatenate([real.sum(1), imaginary.sum(1)], -1),
    )


_l1_complex.defvjp(lambda q, e: (_l1_complex(q, e), (q, e)), _l1_complex_bwd)
