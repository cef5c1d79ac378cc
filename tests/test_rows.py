"""A table updated by rows: as the dense optimizer where that is sparse, and at no cost that grows
with the table."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_triples as toy

from keft_jax.config import GroupConfig, MeshConfig, OptimConfig
from keft_jax.models import functional
from keft_jax.train.rows import RowTable, fetch_rows, update_rows

ONE = MeshConfig(data=1)
STEPS = 20
ROWS, WIDTH = 12, 3


@functools.cache
def training(tables="rows", entities=toy.ENTITIES, rows=toy.ROWS):
    c = toy.config(ONE, tables)
    optim = dataclasses.replace(c.optim, groups=(GroupConfig("entity", 0.5),))
    return toy.Training(dataclasses.replace(c, optim=optim), entities, rows)


def test_adagrad_by_rows_is_dense_adagrad():
    ours, metrics = training().run(STEPS)
    theirs, wanted = training("dense").run(STEPS)
    for name in wanted[0]:
        np.testing.assert_allclose([m[name] for m in metrics], [m[name] for m in wanted], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(ours.model_params), jax.tree.leaves(theirs.model_params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_rows_that_no_batch_names_keep_their_bits():
    first, few = training().fresh(), training()
    before = jax.device_get(first.tables["entity"])
    given = toy.batch(0, entities=40)  # negatives come from all 250
    state, _ = few.step(first, few.frozen, few.put(given))
    after = jax.device_get(state.tables["entity"])
    rest = (after.moments["sum_of_squares"] == 0).all(1)
    assert 60 < rest.sum() < 180
    np.testing.assert_array_equal(before.value[rest], after.value[rest])
    assert (before.value != after.value)[~rest].any(1).all()


def random_rounds():
    """(ids rising, then padding; gradients) of some steps."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        ids = np.sort(rng.choice(ROWS, 5, replace=False))
        ids[4:] = ROWS + np.arange(1)
        yield ids.astype(np.int32), rng.normal(size=(5, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("kind", ["adamw", "adagrad"])
def test_is_the_optimizer_of_the_rows_alone(kind):
    """Against a loop over the rows, in NumPy."""
    config = OptimConfig(kind=kind, tables="rows", eps=1e-8)
    moments = ("mu", "nu") if kind == "adamw" else ("sum_of_squares",)
    value = np.random.default_rng(1).normal(size=(ROWS, WIDTH))
    old = {m: np.zeros((ROWS, WIDTH)) for m in moments}
    table = RowTable(jnp.float32(value), {m: jnp.zeros((ROWS, WIDTH)) for m in moments})
    for n, (ids, grads) in enumerate(random_rounds(), 1):
        table = update_rows(config, table, ids, grads, n, 0.1)
        for row, g in zip(ids, grads.astype(float), strict=True):
            if row >= ROWS:
                continue
            if kind == "adagrad":
                old["sum_of_squares"][row] += g**2
                value[row] -= 0.1 * g / np.sqrt(old["sum_of_squares"][row] + 1e-8)
            else:
                old["mu"][row] = 0.9 * old["mu"][row] + 0.1 * g
                old["nu"][row] = 0.999 * old["nu"][row] + 0.001 * g**2
                mu, nu = old["mu"][row] / (1 - 0.9**n), old["nu"][row] / (1 - 0.999**n)
                value[row] -= 0.1 * mu / (np.sqrt(nu) + 1e-8)
        np.testing.assert_allclose(table.value, value, atol=1e-5)
        for m in moments:
            np.testing.assert_allclose(table.moments[m], old[m], atol=1e-5)


def test_ids_are_fetched_once_and_renumbered_to_them():
    model, batch = training().model, toy.batch(0)
    table = RowTable(jnp.arange(toy.ROWS * 2.0).reshape(-1, 2), {})
    fetch = jax.jit(functools.partial(fetch_rows, model))
    views, rows = fetch({"entity": table}, {"link": batch})
    ids, value = np.asarray(rows["entity"].ids), np.asarray(rows["entity"].value)
    shown, given = views["link"].targets["link"], batch.targets["link"]
    for name in ("source", "answers"):
        small, real = np.asarray(getattr(shown, name)), getattr(given, name)
        np.testing.assert_array_equal(small < 0, real < 0)  # -1 stays: no entity
        np.testing.assert_array_equal(ids[small[real >= 0]], real[real >= 0])
        np.testing.assert_array_equal(value[small[real >= 0]], table.value[real[real >= 0]])
    assert (np.diff(ids) > 0).all()
    known = np.unique(np.concatenate([given.source, given.answers.ravel()]))
    assert (ids < toy.ROWS).sum() == (known >= 0).sum()
    assert not value[ids >= toy.ROWS].any()


def test_nothing_of_the_tables_length_is_made():
    """Temporaries do not grow with the table, and its arrays are changed in place."""
    temporaries = []
    for rows in (10_240, 102_400):
        memory = training(entities=rows, rows=rows).compiled().memory_analysis()
        temporaries.append(memory.temp_size_in_bytes)
        table = rows * 2 * toy.WIDTH * 4
        assert memory.alias_size_in_bytes >= 2 * table  # the table and its moments
        assert memory.output_size_in_bytes - memory.alias_size_in_bytes < table / 10
    small, large = temporaries
    assert large <= small + 4096
    assert large < 102_400 * 4


def test_large_tables_are_drawn_in_slices_of_the_same_distribution(monkeypatch):
    monkeypatch.setattr(functional, "LARGE", 6000)  # 3 slices of 2 of 5 rows: the last two overlap
    model = training(rows=5 * toy.ROWS).model
    drawn = np.asarray(jax.jit(model.init)(jax.random.key(0))["entity"])
    assert drawn.shape == (5 * toy.ROWS, 2 * toy.WIDTH)
    assert abs(drawn.std() - 0.3) < 0.02
    assert len(np.unique(drawn, axis=0)) == len(drawn)  # no slice twice, none left out
    assert (drawn != 0).all()
