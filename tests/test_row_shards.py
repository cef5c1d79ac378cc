"""A table cut by rows over the devices trains as the whole one does, however its rows move."""

import functools

import jax
import numpy as np
import pytest
import toy_triples as toy

from keft_jax.bench.collectives import find_collectives
from keft_jax.config import KeftError, MeshConfig
from keft_jax.sharding import make_mesh
from keft_jax.train.checkpoint import Checkpoints, abstract_like
from keft_jax.train.exchange import choose_exchange
from keft_jax.train.loop import OverflowWarning, Progress

MESHES = ((8, 1, 1), (2, 2, 2), (1, 8, 1))
STEPS = 20


@functools.cache
def training(sizes, rows):
    return toy.Training(toy.config(MeshConfig(*sizes, rows=rows)))


@functools.cache
def alone():
    return training((1, 1, 1), "gather").run(STEPS)


def entity(state) -> np.ndarray:
    return np.asarray(state.model_params["entity"])


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("rows", ["gather", "all_to_all"])
def test_trains_as_on_one_device(sizes, rows):
    ours, metrics = training(sizes, rows).run(STEPS)
    theirs, wanted = alone()
    for name in ("loss/total", "grad_norm"):
        np.testing.assert_allclose([m[name] for m in metrics], [m[name] for m in wanted], rtol=1e-5)
    np.testing.assert_allclose(entity(ours), entity(theirs), atol=1e-5)
    assert ours.tables["entity"].value.sharding.num_devices == 8
    blocks = {s.data.shape[0] for s in ours.tables["entity"].value.addressable_shards}
    assert blocks == {toy.ROWS // 8}
    if rows == "all_to_all":
        assert [m["row_overflow"] for m in metrics] == [0] * STEPS


@pytest.mark.parametrize("rows", ["gather", "all_to_all"])
def test_no_chip_ever_gets_the_table(rows):
    compiled = training((2, 2, 2), rows).compiled()
    table = toy.ROWS * 2 * toy.WIDTH * 4
    moved = find_collectives(compiled.as_text())
    assert moved
    assert all(one.bytes < table for one in moved if one.kind == "all-gather"), moved
    if rows == "all_to_all":
        assert "all-to-all" in {one.kind for one in moved}


def test_rows_without_a_slot_are_counted_and_learn_nothing(caplog):
    # All entities lie on the first of 8 devices, which has fewer slots than each batch names.
    c = toy.config(MeshConfig(rows="all_to_all", rows_slack=0.1), share=1, negatives=4)
    few = toy.Training(c, entities=31)
    first, (metrics,) = few.run(1)
    assert metrics["row_overflow"] > 0
    assert np.isfinite(metrics["loss/total"])
    moved = np.abs(entity(first) - entity(few.fresh())).max(1) > 0
    assert 16 <= moved.sum() <= 31
    warn = OverflowWarning()
    for step in (1, 2, 500, 1001, 1002):
        warn(step, metrics["row_overflow"])
    warn(3000, 0)
    assert [r.args[0] for r in caplog.records] == [1, 1001]
    assert "mesh.rows_slack=0" in caplog.records[0].getMessage()


def test_a_checkpoint_of_one_mesh_goes_on_on_another(tmp_path):
    begun, _ = training((2, 2, 2), "all_to_all").run(3)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    try:
        checkpoints.save(3, begun, Progress())
        checkpoints.wait()
        other = training((8, 1, 1), "gather")
        abstract = abstract_like(jax.eval_shape(other.init), other.shardings)
        restored, _ = checkpoints.restore(abstract)
    finally:
        checkpoints.close()
    _, metrics = other.run(2, restored)
    _, wanted = alone()
    losses = ([m["loss/total"] for m in x] for x in (metrics, wanted[3:5]))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_what_cannot_be_cut_is_refused_with_the_remedy(caplog):
    mesh = make_mesh(MeshConfig())
    c = toy.config(MeshConfig(rows="all_to_all"), share=0)
    with pytest.raises(KeftError, match=r"kge.share = 0 .* use a divisor of 8"):
        choose_exchange(c, mesh)
    with pytest.raises(KeftError, match=r"kge.share = 16 "):
        choose_exchange(toy.config(MeshConfig(rows="all_to_all"), share=16), mesh)
    assert choose_exchange(toy.config(MeshConfig(rows="all_to_all")), mesh).capacity(80) == 36
    slots = toy.config(MeshConfig(rows="all_to_all", rows_slack=0))
    assert choose_exchange(slots, mesh).capacity(80) == 80
    assert choose_exchange(toy.config(MeshConfig()), mesh) is None  # a small mesh
    assert choose_exchange(toy.config(MeshConfig(rows="all_to_all"), "dense"), mesh) is None
    assert not caplog.records
