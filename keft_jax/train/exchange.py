"""Rows of a table that is cut by rows over every chip, fetched and sent back by `all_to_all`.

A plain gather from such a table makes no all-gather of it, but sums the rows of *all* chips' ids
over the mesh, so its traffic grows with the number of chips. Here a chip asks each owner for its
own rows alone. Everything below runs inside `jax.shard_map` with all mesh axes manual, and the
table lies as `PartitionSpec(MESH_AXES)`: chip i owns rows [i r, (i + 1) r).

    rows_ud, route = fetch(block_rd, ids_u, default_capacity(u, chips))
    ids_k, grads_kd = send(grads_ud, route)
    block_rd = block_rd.at[ids_k].add(-rate * grads_kd, mode="drop")

Shapes: r rows a chip, u ids a chip, k rows a chip may be asked for, d width.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from keft_jax.config import Config, KeftError
from keft_jax.sharding import MESH_AXES

logger = logging.getLogger(__name__)

GATHER_UP_TO = 16  # devices; above, the traffic of plain gathers is the larger


@dataclass(frozen=True)
class Exchange:
    """That rows move by all_to_all, and over which mesh."""

    mesh: Mesh
    slack: float = 2.0

    @property
    def chips(self) -> int:
        return self.mesh.size

    def capacity(self, unique: int) -> int:
        return default_capacity(unique, self.chips, self.slack)


def choose_exchange(config: Config, mesh: Mesh) -> Exchange | None:
    """As `mesh.rows` says; None: plain gathers. Raises KeftError where it asks for all_to_all and
    the batch cannot be cut over all devices."""
    how = config.mesh.rows
    if config.optim.tables != "rows" or how == "gather":
        return None
    if how == "auto" and mesh.size <= GATHER_UP_TO:
        return None
    obstacle = _obstacle(config, mesh)
    if not obstacle:
        return Exchange(mesh, config.mesh.rows_slack)
    if how == "all_to_all":
        raise KeftError(f"mesh.rows = 'all_to_all': {obstacle}; or use mesh.rows=gather")
    logger.warning(
        "mesh.rows = 'auto': plain gathers, whose traffic grows with the %d devices, since %s",
        mesh.size,
        obstacle,
    )
    return None


def _obstacle(config: Config, mesh: Mesh) -> str:
    """What keeps the batch from being cut over all devices, and the remedy; empty: nothing."""
    chips, batch, share = mesh.size, config.optim.batch // config.optim.accumulate, config.kge.share
    if config.task.kind != "link_prediction" and mesh.shape["tensor"] > 1:
        return (
            f"mesh.tensor = {mesh.shape['tensor']} cuts the text model, not the batch; set it to 1"
        )
    if batch % chips:
        return (
            f"optim.batch / optim.accumulate = {batch} must be a multiple of the {chips} devices; "
            "change optim.batch"
        )
    if config.task.kind == "link_prediction" and (not share or batch // share % chips):
        return (
            f"kge.share = {share} must cut optim.batch = {batch} into groups, as many on each of "
            f"the {chips} devices; use a divisor of {batch // chips}"
        )
    triples = config.objective.triples
    if triples.weight > 0 and (not share or triples.batch // share % chips):
        return (
            f"kge.share = {share} must cut objective.triples.batch = {triples.batch} into groups, "
            f"as many on each of the {chips} devices; use a smaller divisor"
        )
    return ""


@flax.struct.dataclass
class Route:
    """How the rows came, for their gradients to go back."""

    source: jax.Array  # i32[chips, capacity] which of this chip's ids a slot carries; u: none
    asked: jax.Array  # i32[k] the own rows that all chips asked for, chip by chip; r: none
    overflow: jax.Array  # i32[] ids of this chip that found no slot
    rows: int = flax.struct.field(pytree_node=False)  # r
    axes: tuple[str, ...] = flax.struct.field(pytree_node=False)


def default_capacity(unique: int, chips: int, slack: float = 2.0) -> int:
    """Slots for each (chip, owner): min(u, slack ceil(u / chips) + 16), u on one chip; with slack 0
    u, and nothing can overflow.

    Twice the mean of evenly spread ids; the 16 are for its Poisson tail where the mean is small (a
    larger minimum would let traffic grow with the mesh). A table in order of frequency does not
    spread them: up to half of Zipf-distributed ids then find no slot.
    """
    if slack == 0:
        return unique
    return min(unique, math.ceil(slack * math.ceil(unique / chips)) + 16)


def fetch(
    block_rd: jax.Array, ids_u: jax.Array, capacity: int, axes: tuple[str, ...] = MESH_AXES
) -> tuple[jax.Array, Route]:
    """Rows [u, d] of this chip's ids, and the route back for their gradients.

    block: this chip's rows [r, d]. ids: i32[u], ascending and no two alike, of this chip's part of
    the batch, as of `jnp.unique(size=u, fill_value=n)`; an id >= n = r chips is padding, gets zeros
    and takes no slot. Each owner hears at most `capacity` ids of this chip; the largest beyond that
    get zeros, their gradients are dropped, and `route.overflow` counts them: psum and report it. On
    one chip, or with axes = (), a plain gather: any capacity serves, and nothing overflows.
    """
    chips = _size(axes)
    rows, unique = len(block_rd), len(ids_u)
    if chips == 1:
        nothing, own = jnp.zeros((), jnp.int32), jnp.arange(unique)[None]
        asked = jnp.minimum(ids_u, rows)
        return _take(block_rd, asked), Route(own, asked, nothing, rows, axes)
    # The ids are sorted, so those of one owner are a run: no scatter is needed.
    first = jnp.searchsorted(ids_u, rows * jnp.arange(chips + 1), method="compare_all")
    begin, end = first[:-1, None], first[1:, None]
    source = begin + jnp.arange(capacity)
    source = jnp.where(source < end, source, unique)
    wanted = ids_u.at[source].get(mode="fill", fill_value=rows * chips)
    wanted = jnp.where(source < unique, wanted - rows * jnp.arange(chips)[:, None], rows)
    asked = _swap(wanted, axes).ravel()
    answers = _swap(_take(block_rd, asked).reshape(chips, capacity, -1), axes)
    owner = ids_u // rows
    slot = jnp.arange(unique) - first.at[owner].get(mode="clip")
    has_slot = (owner < chips) & (slot < capacity)
    place = jnp.where(has_slot, owner * capacity + slot, chips * capacity)
    overflow = jnp.sum((owner < chips) & ~has_slot, dtype=jnp.int32)
    rows_ud = _take(answers.reshape(chips * capacity, -1), place)
    return rows_ud, Route(source, asked, overflow, rows, axes)


def send(grads_ud: jax.Array, route: Route) -> tuple[jax.Array, jax.Array]:
    """The gradients of this chip's own rows, summed over all chips that asked: (i32[k], [k, d]).

    grads: of this chip's share of the loss with respect to the rows of `fetch`; chips that hold the
    same examples must divide them. ids: local rows, ascending and no two alike; the last are r and
    above, padding for mode="drop", their gradients zero. The sums are the same bits in every run.
    """
    chips, rows = _size(route.axes), route.rows
    ids = route.asked
    if chips > 1:
        grads = _swap(_take(grads_ud, route.source), route.axes)
        ids, grads_ud = _merge(ids, grads.reshape(len(ids), -1), rows, chips)
    keep = ids < rows
    return jnp.where(keep, ids, rows + jnp.arange(len(ids))), jnp.where(keep[:, None], grads_ud, 0)


def _merge(
    ids_k: jax.Array, grads_kd: jax.Array, rows: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """Ids ascending, each once, then padding with `rows`; the gradients of equal ids, of which
    there are at most `most`, summed by doubling: no scatter-add, whose order and speed on
    accelerators nobody promises."""
    order = jnp.argsort(ids_k, stable=True)
    ids_k, grads_kd = ids_k[order], grads_kd[order]
    # After the step of length s, each place holds the sum of the next 2 s of its run.
    for length in (2**i for i in range((most - 1).bit_length())):
        same = (ids_k[length:] == ids_k[:-length])[:, None]
        grads_kd = grads_kd.at[:-length].add(jnp.where(same, grads_kd[length:], 0))
    head = jnp.concatenate([jnp.ones(1, bool), ids_k[1:] != ids_k[:-1]])
    ids_k = jnp.where(head, ids_k, rows)
    order = jnp.argsort(ids_k, stable=True)
    return ids_k[order], grads_kd[order]


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of x; zeros where the index is past its end."""
    return x.at[index].get(mode="fill", fill_value=0)


def _swap(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """x[i] of chip j becomes x[j] of chip i."""
    return jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=0, tiled=True)


def _size(axes: tuple[str, ...]) -> int:
    return math.prod(jax.lax.axis_size(axis) for axis in axes)
