"""The only seam to Flax NNX: modules on this side, plain nested dicts of arrays on the other.

A module declares its parameters with `param`: shape, axis names and initialiser, and no values.
`Model` then gives `abstract / shardings / init / apply`. Each parameter is drawn from a key that
depends on its path alone, so two models that share a part start it alike.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from keft_jax.sharding import gather, parameter_sharding

Tree = dict[str, Any]
Initializer = Callable[..., jax.Array]

LARGE = 1 << 24  # numbers; a larger table of rows is drawn in slices of about so many

normal = jax.nn.initializers.normal(0.02)  # BERT's
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def param(shape: Sequence[int], axes: Sequence[str | None], init: Initializer) -> Any:
    """A float32 parameter without a value yet; `axes` names its axes for sharding.py."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {tuple(shape)} and axes {tuple(axes)} differ in length")
    struct = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return nnx.Param(struct, axes=tuple(axes), initializer=init)


def use(parameter: Any) -> jax.Array:
    """A parameter's value at the place of its use: gathered over fsdp."""
    return gather(parameter[...], parameter.get_metadata()["axes"])


def _join(path: Sequence[str]) -> str:
    return "/".join(path)


class Model:
    """A module as pure functions over a nested dict of parameters."""

    def __init__(self, module: Any):
        self.module = module
        self._graphdef, state = nnx.split(module)
        self._flat = {
            tuple(map(str, path)): (v.get_value(), v.get_metadata())
            for path, v in nnx.to_flat_state(state)
        }

    def _tree(self, leaf: Callable[[str, Any, Any], Any]) -> Tree:
        out: Tree = {}
        for path, (struct, meta) in self._flat.items():
            at = out
            for part in path[:-1]:
                at = at.setdefault(part, {})
            at[path[-1]] = leaf(_join(path), struct, meta)
        return out

    @property
    def tables(self) -> tuple[str, ...]:
        """Paths of the parameters that a batch looks up by rows alone; the module's `map_rows`
        knows with which ids."""
        return getattr(self.module, "tables", ())

    @property
    def alone(self) -> tuple[str, ...]:
        """How the paths begin of the parameters that have a loss of their own."""
        return getattr(self.module, "alone", ())

    def abstract(self) -> Tree:
        """Shapes and dtypes, with no memory behind them."""
        return self._tree(lambda path, struct, meta: struct)

    def shardings(self, mesh: Mesh) -> Tree:
        return self._tree(
            lambda path, struct, meta: parameter_sharding(mesh, meta["axes"], struct.shape, path)
        )

    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """The names of each parameter's axes, by its path."""
        return {_join(path): meta["axes"] for path, (_, meta) in self._flat.items()}

    def init(self, key: jax.Array) -> Tree:
        """Fresh parameters; pure, so it can be jitted with `shardings` as its out_shardings."""

        # Parameters of one shape and kind are drawn in one call: a tenth of the compile time.
        groups: dict[Any, list[str]] = {}
        drawn: dict[str, jax.Array] = {}
        for path, (struct, meta) in self._flat.items():
            name = _join(path)
            if meta["axes"][0] == "row" and struct.size > LARGE:
                own = jax.random.fold_in(key, zlib.crc32(name.encode()))
                drawn[name] = _draw_in_slices(meta["initializer"], own, struct)
            else:
                groups.setdefault((meta["initializer"], struct), []).append(name)
        for (initializer, struct), names in groups.items():
            numbers = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
            draw = functools.partial(initializer, shape=struct.shape, dtype=struct.dtype)
            stacked = jax.vmap(lambda n, draw=draw: draw(jax.random.fold_in(key, n)))(numbers)
            drawn |= {name: stacked[i] for i, name in enumerate(names)}
        return self._tree(lambda path, struct, meta: drawn[path])

    def apply(self, params: Tree, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """A method of the module with these parameters."""
        return getattr(nnx.merge(self._graphdef, params), method)(*args, **kwargs)

    def size(self) -> int:
        """Number of parameters."""
        return sum(struct.size for struct, _ in self._flat.values())


def _draw_in_slices(initializer: Initializer, key: jax.Array, struct: Any) -> jax.Array:
    """A table of rows [n, ...], without the three times its memory that its random bits would take.
    A slice is of each of `cut` blocks of rows, so that it lies on all devices as the table does."""
    rows, *rest = struct.shape
    cut = math.gcd(rows, 256)
    block = rows // cut
    size = min(block, max(1, LARGE // (struct.size // block)))

    def fill(number: Any, table: jax.Array) -> jax.Array:
        start = jnp.minimum(number * size, block - size)
        shape = (cut * size, *rest)
        part = initializer(jax.random.fold_in(key, number), shape=shape, dtype=struct.dtype)
        part = part.reshape(cut, size, *rest)
        return jax.lax.dynamic_update_slice_in_dim(table, part, start, axis=1)

    table = jnp.zeros((cut, block, *rest), struct.dtype)
    return jax.lax.fori_loop(0, -(-block // size), fill, table).reshape(struct.shape)


def paths(tree: Tree) -> Tree:
    """The same tree with each leaf replaced by its path, `a/b/c`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(str(getattr(p, "key", p)) for p in path), tree
    )
