"""Steps that would do harm and are left out (`optim.skip`), inside the compiled step: those whose
loss or gradient is not finite, and those whose loss is far above what it was lately."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from keft_jax.config import OptimConfig

WINDOW = 100
"""Steps over which the loss's mean and variance run."""
LEAST = 50
"""Steps before a loss can be called too high."""

Guard = dict[str, jax.Array]


def make_guard() -> Guard:
    """Of the steps that were not skipped: how many, mean and variance of their loss. And how many
    were."""
    types = {"count": jnp.int32, "mean": jnp.float32, "variance": jnp.float32, "skipped": jnp.int32}
    return {name: jnp.zeros((), dtype) for name, dtype in types.items()}


def judge(
    config: OptimConfig, guard: Guard, loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, Guard]:
    """(whether this step is to be skipped, the guard after it)."""
    rise = loss - guard["mean"]
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
    if config.spike:
        far = rise > config.spike * jnp.sqrt(guard["variance"])
        bad |= (guard["count"] >= LEAST) & far
    # A true mean at first, then one that forgets (West 1979).
    rate = 1 / jnp.minimum(guard["count"] + 1, WINDOW)
    new = {
        "count": guard["count"] + 1,
        "mean": guard["mean"] + rate * rise,
        "variance": (1 - rate) * (guard["variance"] + rate * rise**2),
        "skipped": guard["skipped"],
    }
    return bad, {**choose(bad, guard, new), "skipped": guard["skipped"] + bad}


def choose(bad: jax.Array, old: Any, new: Any) -> Any:
    """The old tree after a bad step, else the new one."""
    return jax.tree.map(lambda a, b: jnp.where(bad, a, b), old, new)
