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
from jax.sharding import PartitionSpec as P

from keft_jax.config import OptimConfig
from keft_jax.data.batch import Batch
from keft_jax.models.functional import Model
from keft_jax.models.fusion import Output
from keft_jax.models.sample import surround
from keft_jax.sharding import MESH_AXES, batch_sharding, on_mesh, replicated
from keft_jax.tasks.task import Task
from keft_jax.train.exchange import Exchange
from keft_jax.train.guard import choose, judge
from keft_jax.train.objective import Frozen, Metrics, Objective
from keft_jax.train.optim import apply, average, scale_at, schedule, stop_frozen
from keft_jax.train.rows import (
    RowTable,
    at,
    collect,
    drop,
    fetch_rows,
    put_at,
    update_rows,
    without,
)
from keft_jax.train.state import State


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    config: OptimConfig,
    exchange: Exchange | None = None,
) -> Callable[[State, Frozen, Batch], tuple[State, Metrics]]:
    """`frozen` holds `learning_rate` (the peak), `names`, `graph` where the step makes subgraphs of
    it, and whatever the terms read. exchange:
    how rows of tables move between chips; None: as the partitioner has it."""

    accumulate, rising = config.accumulate, schedule(config)

    def loss(params: Any, *rest: Any) -> tuple[jax.Array, Metrics]:
        return objective.of_views(stop_frozen(config, params), *rest)

    def gradients(params: Any, frozen: Frozen, views: Any, totals: Any, key: jax.Array):
        grad = jax.grad(loss, has_aux=True)
        if accumulate == 1:
            return grad(params, frozen, views, totals, key)

        # Part i takes every accumulate-th unit, so that each part lies on every device.
        def cut(x: jax.Array) -> jax.Array:
            units = x.reshape(-1, accumulate, objective.each, *x.shape[1:]).swapaxes(0, 1)
            return units.reshape(accumulate, -1, *x.shape[1:])

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

    axes = MESH_AXES if exchange else ()

    def over_chips(x: Any) -> Any:
        return jax.lax.psum(x, axes)

    def backward(
        params: Any,
        tables: dict[str, RowTable],
        frozen: Frozen,
        shown: Any,
        totals: Any,
        key: jax.Array,
        step: jax.Array,
        guard: Any,
    ) -> tuple[Any, dict[str, RowTable], Metrics, Any]:
        """(gradients of the parameters, the tables after the step, metrics, with optim.skip: the
        verdict on the step and the guard after it). With an exchange: on one chip, of its part of
        what is shown. step: how many changed the state before."""
        renumbered, rows = fetch_rows(objective.model, tables, shown, exchange)
        views = {name: (shown[name], renumbered[name]) for name in shown}
        whole = put_at(params, {path: r.value for path, r in rows.items()})
        grads, metrics = gradients(whole, frozen, views, totals, key)
        sent = {path: collect(r, at(grads, path)) for path, r in rows.items()}
        grads = over_chips(without(grads, tuple(tables)))
        metrics = {name: (over_chips(s), w) for name, (s, w) in metrics.items()}
        square = over_chips(optax.tree.norm([g for _, g in sent.values()], squared=True))
        square += optax.tree.norm(grads, squared=True)
        metrics["grad_norm"] = (jnp.sqrt(square), jnp.ones(()))
        if exchange:
            lost = sum(r.route.overflow for r in rows.values() if r.route)
            metrics["row_overflow"] = (over_chips(jnp.float32(lost)), jnp.ones(()))
        verdict = None
        if guard is not None:
            (total, _), (norm, _) = metrics["loss/total"], metrics["grad_norm"]
            verdict = judge(config, guard, total, norm)
            sent = {path: drop(verdict[0], tables[path], *rows) for path, rows in sent.items()}
        rate = frozen["learning_rate"] * rising(step)
        tables = {
            path: update_rows(
                config, table, *sent[path], step + 1, rate * scale_at(config, path, step)
            )
            for path, table in tables.items()
        }
        return grads, tables, metrics, verdict

    def on_chip(
        params: Any, tables: Any, frozen: Any, shown: Any, totals: Any, key: Any, *rest: Any
    ) -> Any:
        key = jax.random.fold_in(key, jax.lax.axis_index(MESH_AXES))  # dropout of its own
        with on_mesh(None):
            return backward(params, tables, frozen, shown, totals, key, *rest)

    def train_step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch, frozen = surround(batch, frozen)
        asked = frozen.get("stop")  # distributed.Stop
        frozen = {name: value for name, value in frozen.items() if name != "stop"}
        if config.ema:
            frozen = {**frozen, "ema": state.ema}
        frozen = {**frozen, "done": state.step / max(config.steps - 1, 1)}
        # Sums over the batch and draws for it come before it is cut: they are those of one device.
        totals = objective.totals(batch)
        shown = objective.views(batch, frozen, key)
        # Rates and moments of row tables rest where those of the other parameters do.
        applied = state.step if state.guard is None else state.step - state.guard["skipped"]
        given = (state.params, state.tables, frozen, shown, totals, key, applied, state.guard)
        if exchange is None:
            grads, tables, metrics, verdict = backward(*given)
        else:
            cut, same = P(MESH_AXES), P()
            specs = (same, cut, same, cut, same, same, same, same)
            mapped = jax.shard_map(
                on_chip,
                mesh=exchange.mesh,
                in_specs=specs,
                out_specs=(same, cut, same, same),
                check_vma=False,  # models know nothing of it
            )
            grads, tables, metrics, verdict = mapped(*given)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * frozen["learning_rate"], updates)
        params = apply(config, state.params, updates)
        ema = average(config, state.step, state.ema, params) if config.ema else state.ema
        guard = state.guard
        if verdict is not None:
            bad, guard = verdict
            metrics["skipped"] = (guard["skipped"].astype(jnp.float32), jnp.ones(()))
            before = (state.params, state.opt_state, state.ema)
            params, opt_state, ema = choose(bad, before, (params, opt_state, ema))
        if asked is not None:
            metrics["stop"] = (asked.sum(), jnp.ones(()))
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            tables=tables,
            ema=ema,
            guard=guard,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: Model, task: Task, read: Callable[[Output, Any], dict[str, jax.Array]] | None = None
) -> Callable[[Any, Frozen, Batch], dict[str, jax.Array]]:
    """Rows with an `example` id; padding has id -1 and is for the caller to drop. read: what is
    made of the model's output and the target; None: the task's score."""

    def eval_step(params: Any, frozen: Frozen, batch: Batch) -> dict[str, jax.Array]:
        batch, frozen = surround(batch, frozen)
        batch = task.prepare(batch, None, frozen)
        output = model.apply(params, batch, frozen["names"], head=task.term)
        target = batch.targets[task.term]
        rows = read(output, target) if read else task.score(output.logits, target)
        batch = dataclasses.replace(batch, example=batch.example[:: task.each])
        probability = jax.nn.softmax(output.logits).max(-1)
        # [b] or [b, t] predictions, of one row or of several
        probability = probability.reshape(len(batch.example), -1).min(1)
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
