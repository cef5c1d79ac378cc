"""What a step changes, its abstract twin and its shardings."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from keft_jax.models.functional import Model
from keft_jax.sharding import replicated


@flax.struct.dataclass
class State:
    """Donated to the step and saved in checkpoints. The data position is `step`."""

    step: Any  # i32[]
    params: Any
    opt_state: Any
    key: Any  # u32[2]; never changes: randomness is folded from it and the step


def make_state(model: Model, tx: optax.GradientTransformation, key: jax.Array) -> State:
    """A fresh state; pure, for jit."""
    init_key, train_key = jax.random.split(key)
    params = model.init(init_key)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        key=jax.random.key_data(train_key),
    )


def state_shardings(model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """Moments lie where their parameters lie; everything else on every device."""
    params = model.shardings(mesh)

    def is_frozen(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)  # a frozen parameter has no moments

    abstract = jax.eval_shape(tx.init, model.abstract())
    opt_state = optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if is_frozen(leaf) else sharding,
        abstract,
        params,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=is_frozen,
    )
    rest = replicated(mesh)
    return State(step=rest, params=params, opt_state=opt_state, key=rest)
