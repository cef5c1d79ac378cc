"""AdamW or Adagrad with warm-up and decay, a learning rate for each group of parameters, and
freezing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from keft_jax.config import KeftError, OptimConfig
from keft_jax.models.functional import paths
from keft_jax.train.rows import without


def schedule(config: OptimConfig) -> optax.Schedule:
    """The share of the peak at each step: up over `warmup`, then down by `decay`."""
    up = round(config.warmup * config.steps)
    down = max(config.steps - up, 1)
    match config.decay:
        case "linear":
            fall = optax.linear_schedule(1.0, 0.0, down)
        case "cosine":
            fall = optax.cosine_decay_schedule(1.0, down)
        case _:
            fall = optax.constant_schedule(1.0)
    if up == 0:
        return fall
    rise = optax.linear_schedule(1 / up, 1.0, max(up - 1, 1))
    return optax.join_schedules([rise, fall], [up])


def make_optimizer(
    config: OptimConfig, abstract: Any, tables: tuple[str, ...] = (), alone: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Updates for a peak learning rate of 1: the step multiplies them by the peak, an argument, so
    that a grid of rates shares one compilation. tables: paths of the parameters that are updated by
    rows, not here. alone: how the paths of those begin that are clipped by a norm of their own.
    Raises KeftError for a group that matches nothing.
    """
    scales = without(_scales(config, abstract), tables)
    abstract = without(abstract, tables)
    decayed = jax.tree.map(lambda path: not path.endswith(("bias", "scale")), paths(abstract))
    chain = [
        _clip(config.clip, alone) if config.clip else optax.identity(),
        optax.scale_by_rss(0.0, config.eps)
        if config.kind == "adagrad"
        else optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_schedule(schedule(config)),
        optax.scale(-1.0),
    ]
    if any(scale not in (0, 1) for scale in jax.tree.leaves(scales)):
        chain.insert(4, _scale_by(scales))
    if any(group.from_step for group in config.groups):
        chain.append(_hold(config))
    tx = optax.chain(*chain)
    if all(scale > 0 for scale in jax.tree.leaves(scales)):
        return tx
    labels = jax.tree.map(lambda scale: "train" if scale else "freeze", scales)
    return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)


def stop_frozen(config: OptimConfig, params: Any) -> Any:
    """The parameters as the loss sees them: no gradient is computed for frozen ones, nor for what
    lies only before them."""
    return jax.tree.map(
        lambda scale, x: x if scale else jax.lax.stop_gradient(x), _scales(config, params), params
    )


def apply(config: OptimConfig, params: Any, updates: Any) -> Any:
    """The parameters after a step. Frozen ones are not added to: with a donated state they stay
    where they are, and a word table is not written anew in every step."""
    return jax.tree.map(
        lambda path, p, u: p + u if config.scale_of(path) else p, paths(params), params, updates
    )


def average(config: OptimConfig, step: jax.Array, ema: Any, params: Any) -> Any:
    """The moving average after a step from 0 on: what has not moved stays as it is to the bit."""
    new = 1 - jnp.minimum(config.ema, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + new * (p - e), ema, params)


def scale_at(config: OptimConfig, path: str, step: jax.Array) -> jax.Array | float:
    """The same at a step."""
    scale, first = config.scale_of(path), _first_step(config, path)
    return scale * (step >= first) if first else scale


def _first_step(config: OptimConfig, path: str) -> int:
    group = config.group_of(path)
    return 0 if group is None else group.from_step


def _scales(config: OptimConfig, abstract: Any) -> Any:
    names = paths(abstract)
    scales = jax.tree.map(lambda path: config.scale_of(path), names)
    matched = [config.group_of(path) for path in jax.tree.leaves(names)]
    for group in config.groups:
        if group not in matched:
            known = ", ".join(sorted(abstract))
            raise KeftError(
                f"optim.groups.match = {group.match!r}: no parameter of its own has this in its "
                f"path; the top-level groups are {known}"
            )
    return scales


def _clip(most: float, alone: tuple[str, ...]) -> optax.GradientTransformation:
    """By the global norm of each side: the parameters of `alone`, and the others."""
    clip = optax.clip_by_global_norm(most)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        leaves, tree = jax.tree.flatten(updates)
        sides = [path.startswith(alone) for path in jax.tree.leaves(paths(updates))]
        for side in set(sides):
            own = [i for i, of in enumerate(sides) if of == side]
            clipped, _ = clip.update([leaves[i] for i in own], state)
            for i, leaf in zip(own, clipped, strict=True):
                leaves[i] = leaf
        return jax.tree.unflatten(tree, leaves), state

    return optax.GradientTransformation(clip.init, update)


def _scale_by(scales: Any) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        # Frozen leaves are optax.MaskedNode here, without a scale to go with them.
        flat = dict(jax.tree_util.tree_leaves_with_path(scales))
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u: u * jnp.asarray(flat[path], u.dtype), updates
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _hold(config: OptimConfig) -> optax.GradientTransformation:
    """No update before a parameter's first step; its moments are counted from the beginning."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def held(path: Any, u: jax.Array) -> jax.Array:
            first = _first_step(config, "/".join(str(getattr(p, "key", p)) for p in path))
            return u * (state.count >= first).astype(u.dtype) if first else u

        held_updates = jax.tree_util.tree_map_with_path(held, updates)
        return held_updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
    )
