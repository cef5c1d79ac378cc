"""One step, whatever the devices, the layout or the way it is computed."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from keft_jax.config import (
    DistillConfig,
    GraphConfig,
    GroupConfig,
    KeftError,
    MeshConfig,
    ObjectiveConfig,
)
from keft_jax.models.functional import paths
from keft_jax.train.optim import make_optimizer


def config(**sections):
    """One graph layer: a second one compiles for half as long again and shards alike."""
    return toy.config(graph=GraphConfig(width=16, heads=8, layers=1), **sections)


def on_mesh(c, **mesh):
    return dataclasses.replace(c, mesh=MeshConfig(**mesh))


def with_encoder(c, **fields):
    return dataclasses.replace(c, encoder=dataclasses.replace(c.encoder, **fields))


def with_optim(c, **fields):
    return dataclasses.replace(c, optim=dataclasses.replace(c.optim, **fields))


@functools.cache
def training_on(**mesh):
    """Compiled once for all tests of this file."""
    return toy.Training(on_mesh(with_encoder(config(), dropout=0.1), **mesh))


@functools.cache
def alone(steps=20):
    return training_on(data=1).run(steps)


def distance(one, two) -> float:
    """Largest difference of any parameter."""
    leaves = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, two.params)
    return max(jax.tree.leaves(leaves))


@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 8},
        {"data": 1, "fsdp": 8},
        {"data": 1, "tensor": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"parallel": "pmap"},
    ],
    ids=str,
)
def test_devices_change_nothing(mesh, capfd):
    training = training_on(**mesh)
    assert training.mesh.size == 8
    state, losses, norms = training.run(20)
    np.testing.assert_allclose(losses, alone()[1], rtol=1e-5)
    np.testing.assert_allclose(norms, alone()[2], rtol=1e-5)
    assert distance(state, alone()[0]) < 1e-5
    # The partitioner says on stderr that it gave up and gathered; no warning of Python's.
    assert "nvoluntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("mesh", [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_moments_stay_where_they_are(mesh):
    training = training_on(**mesh)
    state, batch = training.fresh(), training.put(toy.batch())
    text = training.step.lower(state, training.frozen, batch).compile().as_text()
    moments = set(re.findall(r"%(\S+) = \S+ parameter\(\d+\).*op_name=\"state\.opt_state", text))
    assert len(moments) > 50
    gathers = re.findall(r"all-gather(?:-start)?\(([^)]*)\)", text)
    assert gathers  # of parameters, which FSDP gathers where they are used
    used = {name for operands in gathers for name in re.findall(r"%([\w.\-]+)", operands)}
    assert not used & moments
    # And the update alone moves nothing at all.
    grads = jax.tree.map(jnp.zeros_like, state.params)
    update = jax.jit(
        training.tx.update, out_shardings=(training.shardings.params, training.shardings.opt_state)
    )
    assert (
        "all-gather" not in update.lower(grads, state.opt_state, state.params).compile().as_text()
    )
    for leaf, place in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(training.shardings.params), strict=True
    ):
        assert leaf.sharding == place


@functools.cache
def deep():
    return toy.Training(on_mesh(with_encoder(config(), layers=3, dropout=0.1), data=1))


@functools.cache
def plain_training():
    return toy.Training(on_mesh(config(), data=1))


@pytest.mark.parametrize(
    "change",
    [{"remat": "dots"}, {"scan": True, "remat": "full"}],
    ids=str,
)
def test_scan_and_remat_change_nothing(change):
    # Three layers, so that the scan after the exchange runs over two.
    c = on_mesh(with_encoder(config(), layers=3, dropout=0.1), data=1)
    plain, losses, norms = deep().run(3)
    state, losses2, norms2 = toy.Training(with_encoder(c, **change)).run(3)
    np.testing.assert_allclose(losses2, losses, rtol=1e-6)
    np.testing.assert_allclose(norms2, norms, rtol=1e-6)
    assert distance(state, plain) < 1e-6


def test_accumulation_equals_the_big_batch():
    c = on_mesh(config(), data=4, fsdp=2)
    plain, losses, norms = plain_training().run(3)
    state, losses2, norms2 = toy.Training(with_optim(c, accumulate=2)).run(3)
    np.testing.assert_allclose(losses2, losses, rtol=1e-6)
    np.testing.assert_allclose(norms2, norms, rtol=1e-6)
    assert distance(state, plain) < 1e-6


def test_pmap_alias_equals_jax_pmap():
    """A hand-written jax.pmap step: sums over devices, then the update on each."""
    c = on_mesh(config(), parallel="pmap")
    training = toy.Training(c)
    objective, frozen = training.objective, jax.device_get(training.frozen)

    def step(params, opt_state, batch):
        totals = jax.tree.map(lambda x: jax.lax.psum(x, "i"), objective.totals(batch))
        grads, metrics = jax.grad(objective, has_aux=True)(params, frozen, batch, totals, None)
        grads = jax.lax.psum(grads, "i")
        updates, opt_state = training.tx.update(grads, opt_state, params)
        updates = jax.tree.map(lambda u: u * frozen["learning_rate"], updates)
        loss = jax.lax.psum(metrics["loss/total"][0], "i")
        return optax.apply_updates(params, updates), opt_state, loss

    state = jax.device_get(training.fresh())
    copies = jax.tree.map(lambda x: np.stack([x] * 8), (state.params, state.opt_state))
    pmapped, (params, opt_state), losses = jax.pmap(step, axis_name="i"), copies, []
    for i in range(3):
        cut = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), toy.batch(seed=i))
        params, opt_state, loss = pmapped(params, opt_state, cut)
        losses.append(float(loss[0]))
    ours, our_losses, _ = training.run(3)
    np.testing.assert_allclose(our_losses, losses, rtol=1e-5)
    other = ours.replace(params=jax.tree.map(lambda x: np.asarray(x)[0], params))
    assert distance(ours, other) < 1e-5


def test_a_step_moves_nothing_between_host_and_device():
    training = training_on(data=2, fsdp=2, tensor=2)
    state, batch = training.fresh(), training.put(toy.batch())
    with jax.transfer_guard("disallow"):
        state, _ = training.step(state, training.frozen, batch)
        state, _ = training.step(state, training.frozen, training.put(toy.batch(seed=1)))
    assert int(state.step) == 2


def test_what_does_not_divide_is_named():
    with pytest.raises(KeftError, match=r"heads axis has 4 entries.*mesh\.tensor = 8"):
        toy.Training(on_mesh(with_encoder(config(), heads=4), data=1, tensor=8))


def test_groups_scale_and_freeze():
    groups = (GroupConfig("encoder/embed", 0.0), GroupConfig("encoder", 0.5))
    c = on_mesh(with_encoder(config(), layers=1), data=1)
    c = with_optim(c, clip=0.0, weight_decay=0.0, warmup=0.0)
    plain, grouped = toy.Training(c), toy.Training(with_optim(c, groups=groups))
    start = jax.device_get(plain.fresh()).params
    moved = [jax.tree.map(lambda a, b: a - b, t.run(1)[0].params, start) for t in (plain, grouped)]
    for path, one, two in zip(
        jax.tree.leaves(paths(start)), *map(jax.tree.leaves, moved), strict=True
    ):
        factor = 0 if "encoder/embed" in path else 0.5 if "encoder" in path else 1
        np.testing.assert_allclose(two, factor * one, rtol=1e-2, atol=5e-7)
    frozen = jax.tree.leaves(make_optimizer(grouped_config(c, groups), start).init(start))
    free = jax.tree.leaves(make_optimizer(c.optim, start).init(start))
    assert sum(x.size for x in frozen) < sum(x.size for x in free)  # no moments for frozen ones
    with pytest.raises(KeftError, match="'encodr'"):
        make_optimizer(grouped_config(c, (GroupConfig("encodr"),)), start)


def grouped_config(c, groups):
    return dataclasses.replace(c.optim, groups=groups)


def distilling(weight, task=1.0):
    distill = DistillConfig(teacher="t" if weight else "", weight=weight, temperature=2.0)
    return on_mesh(config(objective=ObjectiveConfig(task=task, distill=distill)), data=1)


@functools.cache
def teacher():
    """Deeper and narrower than the student, and sure of itself."""
    c = with_encoder(config(), layers=3, width=16, mlp=32)
    params = toy.trained(c)
    params["head"] = jax.tree.map(lambda x: 5 * x, params["head"])
    return toy.model(c), params


@functools.cache
def taught():
    c = distilling(0.7, task=0.01)
    return toy.Training(with_optim(c, learning_rate=3e-3, warmup=0.0), teacher())


def test_distillation_of_weight_zero_is_the_run_without_it():
    without, losses, _ = plain_training().run(3)
    with_it, losses2, _ = toy.Training(distilling(0.0), teacher()).run(3)
    np.testing.assert_array_equal(losses, losses2)
    jax.tree.map(np.testing.assert_array_equal, without, with_it)


def test_the_teacher_teaches_and_never_changes():
    training = taught()
    before = jax.device_get(training.frozen["teacher"])
    state = training.fresh()
    batch, losses = training.put(toy.batch()), []
    for _ in range(20):
        state, metrics = training.step(state, training.frozen, batch)
        losses.append(float(metrics["loss/distill"][0] / metrics["loss/distill"][1]))
    assert losses[-1] < 0.9 * losses[0]
    after = jax.device_get(training.frozen["teacher"])
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_distillation_equals_a_plain_formula():
    training, (model, params) = taught(), teacher()
    state, batch = training.fresh(), toy.batch()
    student = jax.jit(training.model.apply)(state.params, batch, toy.names()).logits
    logits = jax.jit(model.apply)(params, batch, toy.names()).logits
    t, s = (np.asarray(x, np.float64) / 2.0 for x in (logits, student))
    t, s = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (t, s))
    expected = 4.0 * (np.exp(t) * (t - s)).sum(-1).mean()
    _, metrics = training.step(state, training.frozen, training.put(batch))
    got = float(metrics["loss/distill"][0] / metrics["loss/distill"][1])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    total = float(metrics["loss/total"][0])
    task = float(metrics["loss/task"][0] / metrics["loss/task"][1])
    np.testing.assert_allclose(total, 0.01 * task + 0.7 * expected, rtol=1e-5)
