"""The one compiled function of training, `(state, frozen, batch) -> (state, metrics)`, and its
twin for evaluation, `(params, frozen, batch) -> rows`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from keft_jax.config import OptimConfig
from keft_jax.data.batch import Batch
from keft_jax.models.functional import Model
from keft_jax.sharding import batch_sharding, on_mesh, replicated
from keft_jax.tasks.task import Task
from keft_jax.train.objective import Frozen, Metrics, Objective
from keft_jax.train.optim import schedule, stop_frozen
from keft_jax.train.rows import at, fetch_rows, put_at, update_rows, without
from keft_jax.train.state import State


def make_train_step(
    objective: Objective, tx: optax.GradientTransformation, config: OptimConfig
) -> Callable[[State, Frozen, Batch], tuple[State, Metrics]]:
    """`frozen` holds `learning_rate` (the peak), `names`, and whatever the terms read."""

    accumulate, rising = config.accumulate, schedule(config)

    def loss(params: Any, *rest: Any) -> tuple[jax.Array, Metrics]:
        return objective.of_views(stop_frozen(config, params), *rest)

    def gradients(params: Any, frozen: Frozen, views: Any, totals: Any, key: jax.Array):
        grad = jax.grad(loss, has_aux=True)
        if accumulate == 1:
            return grad(params, frozen, views, totals, key)

        # Part i takes every accumulate-th example, so that each part lies on every device.
        def cut(x: jax.Array) -> jax.Array:
            return x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

        def add(total: Any, item: tuple[jax.Array, Any]) -> tuple[Any, None]:
            number, part = item
            own = grad(params, frozen, part, totals, key, number)
            return jax.tree.map(jnp.add, total, own), None

        parts = jax.tree.map(cut, views)
        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.eval_shape(lambda: grad(params, frozen, first, totals, key, 0))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), zero)
        (grads, metrics), _ = jax.lax.scan(add, zero, (jnp.arange(accumulate), parts))
        # Sums over parts are sums over the batch; weights were the whole batch's all along.
        metrics = {name: (s, w / accumulate) for name, (s, w) in metrics.items()}
        return grads, metrics

    def train_step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        totals = objective.totals(batch)
        shown = objective.views(batch, frozen, key)
        renumbered, rows = fetch_rows(objective.model, state.tables, shown)
        views = {name: (shown[name], renumbered[name]) for name in shown}
        params = put_at(state.params, {path: r.value for path, r in rows.items()})
        grads, metrics = gradients(params, frozen, views, totals, key)
        metrics["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        rate = frozen["learning_rate"] * rising(state.step)
        tables = {
            path: update_rows(config, t, rows[path], at(grads, path), state.step + 1, rate)
            for path, t in state.tables.items()
        }
        grads = without(grads, tuple(tables))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * frozen["learning_rate"], updates)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            tables=tables,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: Model, task: Task
) -> Callable[[Any, Frozen, Batch], dict[str, jax.Array]]:
    """Rows with an `example` id; padding has id -1 and is for the caller to drop."""

    def eval_step(params: Any, frozen: Frozen, batch: Batch) -> dict[str, jax.Array]:
        batch = task.prepare(batch, None, frozen)
        output = model.apply(params, batch, frozen["names"], head=task.term)
        target = batch.targets[task.term]
        rows = task.score(output.logits, target)
        probability = jax.nn.softmax(output.logits).max(-1)
        probability = probability.reshape(len(probability), -1).min(1)  # [b] or [b, t] predictions
        return rows | {"example": batch.example, "probability": probability}

    return eval_step


def compile_train_step(step: Callable, shardings: State, mesh: Mesh) -> Callable:
    """jit with the state donated and every output's place given."""

    def on(state: State, frozen: Frozen, batch: Batch) -> tuple[State, Metrics]:
        with on_mesh(mesh):
            return step(state, frozen, batch)

    return jax.jit(
        on,
        donate_argnums=0,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def compile_eval_step(step: Callable, mesh: Mesh) -> Callable:
    def on(params: Any, frozen: Frozen, batch: Batch) -> dict[str, jax.Array]:
        with on_mesh(mesh):
            return step(params, frozen, batch)

    return jax.jit(on, out_shardings=replicated(mesh))
