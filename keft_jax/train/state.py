"""What a step changes, its abstract twin and its shardings."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding

from keft_jax.config import OptimConfig
from keft_jax.models.functional import Model
from keft_jax.sharding import replicated, row_sharding
from keft_jax.train.guard import make_guard
from keft_jax.train.rows import MOMENTS, RowTable, at, make_tables, put_at, without


@flax.struct.dataclass
class State:
    """Donated to the step and saved in checkpoints. The data position is `step`."""

    step: Any  # i32[]
    params: Any
    opt_state: Any
    key: Any  # u32[2]; never changes: randomness is folded from it and the step
    tables: Any = flax.struct.field(default_factory=dict)  # {path: RowTable}: parameters of which
    # a step changes some rows only
    ema: Any = None  # as params, with optim.ema
    guard: Any = None  # train/guard.py, with optim.skip

    @property
    def model_params(self) -> Any:
        """All parameters of the model, those in tables in their places."""
        return put_at(self.params, {path: t.value for path, t in self.tables.items()})


def make_state(
    model: Model, config: OptimConfig, tx: optax.GradientTransformation, key: jax.Array
) -> State:
    """A fresh state; pure, for jit."""
    init_key, train_key = jax.random.split(key)
    whole, paths = model.init(init_key), row_tables(model, config)
    params = without(whole, paths)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        tables=make_tables(config, whole, paths),
        key=jax.random.key_data(train_key),
        ema=jax.tree.map(jnp.copy, params) if config.ema else None,
        guard=make_guard() if config.skip else None,
    )


def row_tables(model: Model, config: OptimConfig) -> tuple[str, ...]:
    """Paths of the parameters that are updated by rows."""
    return model.tables if config.tables == "rows" else ()


def state_shardings(
    model: Model, config: OptimConfig, tx: optax.GradientTransformation, mesh: Mesh
) -> State:
    """Moments lie where their parameters lie; row tables are cut over all devices; everything else
    is on every device."""
    paths = row_tables(model, config)
    params = without(model.shardings(mesh), paths)
    tables = {}
    for path in paths:
        shape = at(model.abstract(), path).shape
        cut = _by_rows(row_sharding(mesh, shape, path), len(shape))
        tables[path] = RowTable(cut, dict.fromkeys(MOMENTS[config.kind], cut))

    def is_frozen(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)  # a frozen parameter has no moments

    abstract = jax.eval_shape(tx.init, without(model.abstract(), paths))
    opt_state = optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if is_frozen(leaf) else sharding,
        abstract,
        params,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=is_frozen,
    )
    rest = replicated(mesh)
    return State(
        step=rest,
        params=params,
        opt_state=opt_state,
        tables=tables,
        key=rest,
        ema=params if config.ema else None,
        guard=dict.fromkeys(make_guard(), rest) if config.skip else None,
    )


def _by_rows(sharding: NamedSharding, axes: int) -> NamedSharding | Format:
    """With each row in one piece. A TPU, left to itself, lays a table by columns where that pads
    less, and then transposes all of it and of its moments twice a step, as a scatter wants rows."""
    if sharding.mesh.devices.flat[0].platform != "tpu":
        return sharding
    return Format(Layout(tuple(range(axes))), sharding)
