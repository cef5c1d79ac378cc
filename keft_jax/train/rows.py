"""Tables of entities of which a step reads and changes some rows only.

Such a table lies outside `params`, as a `RowTable` in the state. A step collects the ids that its
batch looks up, makes them unique, fetches these rows, and renumbers the batch by their places. The
model then sees a small table and small ids: it cannot tell it from a dense one. The gradient is
taken with respect to those rows, and the optimizer changes them in place. Nothing of the length of
the table is ever computed or copied.

Against the dense optimizer: `adagrad` is the same (a row without gradient does not move there
either), `adam` is *lazy* Adam: moments of a row that is not in the batch neither decay nor move it.
Weight decay and clipping by the global norm are not for these tables.

On a mesh the table is cut by rows over all devices. Either the partitioner moves rows (plain
gathers and scatters, for small meshes), or an `Exchange` does, inside `shard_map`: then what is
here sees one chip's block of the table and one chip's part of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.config import OptimConfig
from keft_jax.models.functional import Model, Tree
from keft_jax.train.exchange import Exchange, Route, fetch, send


@flax.struct.dataclass
class RowTable:
    value: Any  # f32[n, ...]
    moments: dict[str, Any]  # each f32[n, ...]


@flax.struct.dataclass
class RowsOf:
    """What a batch needs of a table."""

    ids: jax.Array  # i32[u], rising; n and above where there are fewer than u
    value: jax.Array  # f32[u, ...]
    route: Route | None  # how they came from their owners; None: by a plain gather


def make_tables(config: OptimConfig, params: Tree, paths: tuple[str, ...]) -> dict[str, RowTable]:
    """Fresh tables of the parameters at these paths."""
    names = MOMENTS[config.kind]
    return {
        path: RowTable(at(params, path), {m: jnp.zeros_like(at(params, path)) for m in names})
        for path in paths
    }


def fetch_rows(
    model: Model,
    tables: Mapping[str, RowTable],
    views: dict[str, Any],
    exchange: Exchange | None = None,
) -> tuple[dict[str, Any], dict[str, RowsOf]]:
    """(the views with their ids renumbered, the rows they mean). Views share the fetched rows.
    exchange: the tables are this chip's blocks, the views its part of the batch."""
    if not tables:
        return views, {}
    wanted: dict[str, list[jax.Array]] = {path: [] for path in tables}

    def collect(path: str, ids: Any) -> Any:
        if path in wanted:
            wanted[path].append(ids.reshape(-1))
        return ids

    for view in views.values():
        model.module.map_rows(view, collect)
    rows, places = {}, {}
    for path, table in tables.items():
        limit = len(table.value) * (exchange.chips if exchange else 1)
        asked = jnp.concatenate(wanted[path])
        asked = jnp.where(asked < 0, limit, asked)  # -1: no entity
        size = min(len(asked), limit + 1)
        ids, place = jnp.unique(asked, size=size, fill_value=limit, return_inverse=True)
        cuts = np.cumsum([len(x) for x in wanted[path]])[:-1]
        places[path] = iter(jnp.split(place.astype(jnp.int32), cuts))
        # Each number once, those out of range too: the scatter is told so.
        ids = jnp.where(ids < limit, ids, limit + jnp.arange(len(ids)))
        if exchange is None:
            rows[path] = RowsOf(ids, _take(table.value, ids), None)
        else:
            rows[path] = RowsOf(ids, *fetch(table.value, ids, exchange.capacity(len(ids))))

    def renumber(path: str, ids: Any) -> Any:
        """In the order in which they were collected."""
        if path not in rows:
            return ids
        return jnp.where(ids < 0, ids, next(places[path]).reshape(ids.shape))

    return {name: model.module.map_rows(view, renumber) for name, view in views.items()}, rows


def collect(rows: RowsOf, grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where to change the table, and the gradients there: (i32[k], f32[k, ...]). With a route: of
    this chip's block, summed over all chips."""
    return (rows.ids, grads) if rows.route is None else send(grads, rows.route)


def drop(
    bad: jax.Array, table: RowTable, ids: jax.Array, grads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What to change in a step that is to be skipped: rows past the end of the table. Nothing of
    the table's length is looked at."""
    return jnp.where(bad, len(table.value) + jnp.arange(len(ids)), ids), grads


def update_rows(
    config: OptimConfig, table: RowTable, ids: jax.Array, grads: jax.Array, step: Any, rate: Any
) -> RowTable:
    """One optimizer step on these rows. ids: i32[k], rising, no two alike; those past the end of
    the table are padding. step: from 1 on; rate: the learning rate now."""
    change, new = _change(config, {m: _take(x, ids) for m, x in table.moments.items()}, grads, step)

    def write(whole: jax.Array, part: jax.Array) -> jax.Array:
        return whole.at[ids].set(part, mode="drop", unique_indices=True, indices_are_sorted=True)

    # `set`, not `add`: a scatter-add is slow on some GPUs.
    value = write(table.value, _take(table.value, ids) - rate * change)
    return RowTable(value, {m: write(table.moments[m], x) for m, x in new.items()})


def _take(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows; zeros past the end of the table."""
    return table.at[ids].get(mode="fill", fill_value=0)


def _change(
    config: OptimConfig, old: Mapping[str, jax.Array], grads: jax.Array, step: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a learning rate of 1 takes off the rows, and their new moments."""
    if config.kind == "adagrad":
        total = old["sum_of_squares"] + grads**2
        scaled = jnp.where(total > 0, jax.lax.rsqrt(total + config.eps), 0) * grads
        return scaled, {"sum_of_squares": total}
    mu = config.b1 * old["mu"] + (1 - config.b1) * grads
    nu = config.b2 * old["nu"] + (1 - config.b2) * grads**2
    unbiased = [x / (1 - b**step) for x, b in ((mu, config.b1), (nu, config.b2))]
    return unbiased[0] / (jnp.sqrt(unbiased[1]) + config.eps), {"mu": mu, "nu": nu}


MOMENTS = {"adamw": ("mu", "nu"), "adagrad": ("sum_of_squares",)}


def at(tree: Tree, path: str) -> Any:
    """The leaf at a path `a/b/c`."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


def put_at(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """The tree with other leaves at these paths, new or there already."""
    out = dict(tree)
    for path, leaf in leaves.items():
        head, _, rest = path.partition("/")
        out[head] = put_at(out.get(head, {}), {rest: leaf}) if rest else leaf
    return out


def without(tree: Tree, paths: tuple[str, ...]) -> Tree:
    """The tree without the leaves at these paths."""
    out = {}
    for name, part in tree.items():
        inner = tuple(p.partition("/")[2] for p in paths if p.partition("/")[0] == name)
        if "" in inner:
            continue
        out[name] = without(part, inner) if inner else part
    return out
