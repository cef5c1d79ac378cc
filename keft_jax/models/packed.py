"""The encoder reads rows, everything else reads texts: from one to the other and back.

A row is a text, but where a batch is packed (data/pack.py); then tokens read those of their own
text alone, positions begin anew with each text, and all that is made of texts is what it is without
packing.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from keft_jax.data.batch import Batch, MaskTarget, sight, token_mask
from keft_jax.sharding import batch_ways, shard


class Rows:
    """Of one batch. Shapes: r rows of s slots, b texts of l tokens."""

    def __init__(self, batch: Batch):
        self._batch, packing = batch, batch.packing
        if packing is None:
            return
        real_bl = token_mask(batch)
        start_b1 = packing.start[:, None]
        slot_bl = jnp.where(real_bl, start_b1 + jnp.arange(real_bl.shape[1]), -1)
        self._shapes = packing.slot.shape, real_bl.shape
        # Of each token its slot, of each slot its token, numbered in what a device holds.
        self._slot, self._token = _by_device(slot_bl, 2), _by_device(packing.slot, 2)
        # The step may have made a text shorter than the host has laid it out.
        there = _take(_by_device(real_bl, 2), self._token)
        self._token = jnp.where(there, self._token, -1)

    def join(self, x: jax.Array) -> jax.Array:
        """[b, l, ...] -> [r, s, ...]; zeros where no token lies."""
        if self._batch.packing is None:
            return x
        rows, _ = self._shapes
        moved = _move(_by_device(x, 2), self._token, self._slot).reshape(*rows, *x.shape[2:])
        return shard(moved, "batch", *[None] * (moved.ndim - 1))

    def split(self, x: jax.Array) -> jax.Array:
        """[r, s, ...] -> [b, l, ...]; zeros behind the end of a text."""
        if self._batch.packing is None:
            return x
        _, texts = self._shapes
        moved = _move(_by_device(x, 2), self._slot, self._token).reshape(*texts, *x.shape[2:])
        return shard(moved, "batch", *[None] * (moved.ndim - 1))

    def end_to_end(self, x_rsd: jax.Array) -> jax.Array:
        """All rows of a device as one; what `gather_masks` counts positions in."""
        return x_rsd if self._batch.packing is None else _by_device(x_rsd, 2)

    @property
    def position(self) -> jax.Array | None:
        """i32[r, s]: of each token in its text. None: as it lies in its row."""
        if self._batch.packing is None:
            return self._batch.position
        if self._batch.position is not None:
            return self.join(self._batch.position)
        rows, (_, length) = self._shapes
        return (jnp.maximum(self._token, 0) % length).reshape(rows)

    @property
    def mask(self) -> jax.Array:
        """As Encoder.run has it."""
        if self._batch.packing is None:
            return sight(self._batch)
        rows, (_, length) = self._shapes
        token_rs = self._token.reshape(rows)
        text_rs = token_rs // length + 1
        if self._batch.branch is None:
            return text_rs
        same_rqs = text_rs[:, :, None] == text_rs[:, None, :]
        read_rql, place_rs = self.join(sight(self._batch)), jnp.maximum(token_rs, 0) % length
        place_rqs = jnp.broadcast_to(place_rs[:, None, :], same_rqs.shape)
        return same_rqs & jnp.take_along_axis(read_rql, place_rqs, 2)


def gather_masks(batch: Batch) -> Batch:
    """A packed batch with one list of the tokens to predict for each device, in the place of one
    for each text, which has to have room for the longest. Positions count in the device's rows."""
    target, packing = batch.targets.get("mlm"), batch.packing
    if packing is None or not isinstance(target, MaskTarget):
        return batch
    (texts, slots), ways = target.position.shape, batch_ways()
    tokens, length = packing.slot.size // ways, batch.tokens.shape[1]
    # Slots that ask for nothing may name a text's padding, which lies elsewhere in the rows or not
    # at all. They stay spread: a scatter that adds to one place many times is slow.
    position = jnp.minimum(packing.start[:, None] + target.position, tokens - 1)
    target = dataclasses.replace(target, position=position)
    each = jax.tree.map(lambda x: _by_device(x, 2), target)
    # A text is asked for its rate of tokens, rounded, and at least for one.
    most = min(-(-slots * tokens // length) + texts // ways, texts // ways * slots)
    first = jnp.argsort(each.weight <= 0, axis=1, stable=True)[:, :most]
    target = jax.tree.map(lambda x: jnp.take_along_axis(x, first, 1), each)
    return dataclasses.replace(batch, targets={**batch.targets, "mlm": target})


def _by_device(x: jax.Array, axes: int) -> jax.Array:
    """The first axes as two: devices, and what each holds end to end."""
    return x.reshape(batch_ways(), -1, *x.shape[axes:])


def _take(x: jax.Array, at: jax.Array) -> jax.Array:
    """x[w, at[w, t]]; zeros at -1. No number comes twice."""
    taken = jax.vmap(lambda x, at: x.at[at].get(mode="promise_in_bounds"))(x, jnp.maximum(at, 0))
    there = (at >= 0).reshape(*at.shape, *[1] * (x.ndim - 2))
    return jnp.where(there, taken, jnp.zeros((), x.dtype))


@jax.custom_vjp
def _move(x: jax.Array, at: jax.Array, back: jax.Array) -> jax.Array:
    """`_take`, whose gradient is the way back instead of a scatter."""
    del back
    return _take(x, at)


_move.defvjp(
    lambda x, at, back: (_take(x, at), back),
    lambda back, gradient: (_take(gradient, back), None, None),
)
