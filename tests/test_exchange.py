"""Rows by all_to_all equal a plain gather and scatter-add, and what finds no slot is counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from keft_jax.bench.collectives import count_bytes, find_collectives
from keft_jax.config import MeshConfig
from keft_jax.sharding import MESH_AXES, make_mesh
from keft_jax.train.exchange import default_capacity, fetch, send

ROWS, WIDTH, IDS, CAPACITY = 64, 3, 12, 3  # ROWS: of the whole table
MESHES = ((8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 1))


@functools.cache
def round_trip(sizes: tuple[int, int, int], capacity: int = CAPACITY):
    """(table, ids [chips, IDS], gradients) -> rows, gradient of the table, overflow, and the sum
    of all that is sent [chips, WIDTH] and its ids; compiled."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])

    def local(block, ids, grads):
        rows, route = fetch(block, ids[0], capacity)
        own, sums = send(grads[0], route)
        hints = {"unique_indices": True, "indices_are_sorted": True}
        total = jnp.zeros_like(block).at[own].add(sums, mode="drop", **hints)
        return rows[None], total, jax.lax.psum(route.overflow, MESH_AXES), (sums.sum(0)[None], own)

    cut = P(MESH_AXES)
    step = jax.shard_map(local, mesh=mesh, in_specs=(cut,) * 3, out_specs=(cut, cut, P(), cut))
    return jax.jit(step).lower(*arguments(np.zeros((mesh.size, IDS), np.int32))).compile()


def arguments(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole numbers, so that sums are exact in every order."""
    rng = np.random.default_rng(len(ids))
    table = rng.integers(1, 99, (ROWS, WIDTH)).astype(np.float32)
    return table, ids, rng.integers(1, 99, (*ids.shape, WIDTH)).astype(np.float32)


def draw(kind: str, chips: int) -> np.ndarray:
    """i32[chips, IDS], each row ascending, without duplicates, padded with ROWS or more."""
    rng = np.random.default_rng(chips)
    ids = np.full((chips, IDS), ROWS, np.int32)
    for i, row in enumerate(ids):
        if kind == "spread":
            taken = rng.choice(ROWS, IDS - i % 4, replace=False)
        elif kind == "hubs":  # all chips ask for the same few, and for some more of their own
            taken = np.union1d([0, 9, 18, 63], rng.choice(ROWS, 4, replace=False))
        elif kind == "one owner":
            taken = rng.choice(8, 1 + i, replace=False) + 40
        else:
            taken = np.zeros(0)
        row[: len(taken)] = np.sort(taken)
    return ids


def find_slots(ids: np.ndarray, capacity: int) -> np.ndarray:
    """bool: the first `capacity` of each (chip, owner), by counting; all of them on one chip."""
    kept = ids < ROWS
    for chip, row in enumerate(ids if len(ids) > 1 else ()):
        asked = np.zeros(len(ids), int)
        for place, one in enumerate(row[row < ROWS]):
            owner = one // (ROWS // len(ids))
            kept[chip, place] = asked[owner] < capacity
            asked[owner] += 1
    return kept


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("kind", ["spread", "hubs", "one owner", "padding"])
def test_equals_gather_and_scatter_add_on_every_mesh(sizes, kind):
    table, ids, grads = arguments(draw(kind, int(np.prod(sizes))))
    kept = find_slots(ids, CAPACITY)
    rows, total, overflow, (sent, own) = round_trip(sizes)(table, ids, grads)
    known = np.minimum(ids, ROWS - 1)
    np.testing.assert_array_equal(rows, np.where(kept[..., None], table[known], 0))
    wanted = np.zeros_like(table)
    np.add.at(wanted, ids[kept], grads[kept])
    np.testing.assert_array_equal(total, wanted)
    np.testing.assert_array_equal(np.sum(sent, 0), wanted.sum(0))  # padding carries nothing
    assert (np.diff(np.reshape(own, (len(ids), -1))) > 0).all()
    assert int(overflow) == np.sum((ids < ROWS) & ~kept)
    if kind == "one owner" and len(ids) > 1:
        assert int(overflow) == 1 + 2 + 3 + 4 + 5  # chip i asks for 1 + i, and has 3 slots


def test_with_a_slot_for_every_id_nothing_overflows():
    table, ids, grads = arguments(draw("one owner", 8))
    rows, _, overflow, _ = round_trip((2, 2, 2), IDS)(table, ids, grads)
    assert int(overflow) == 0
    np.testing.assert_array_equal(np.asarray(rows)[ids < ROWS], table[ids[ids < ROWS]])


def test_sums_of_any_numbers_are_near_and_the_same_each_time():
    table, ids, _ = arguments(draw("hubs", 8))
    grads = np.random.default_rng(0).normal(size=(*ids.shape, WIDTH)).astype(np.float32)
    step = round_trip((2, 2, 2))
    first, second = (np.asarray(step(table, ids, grads)[1]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    kept = find_slots(ids, CAPACITY)
    wanted = jnp.zeros((ROWS, WIDTH)).at[ids[kept]].add(grads[kept])
    np.testing.assert_allclose(first, wanted, rtol=1e-5, atol=1e-6)


def test_the_compiled_step_moves_slots_and_never_the_table():
    hlo = round_trip((2, 2, 2)).as_text()
    assert {one.kind for one in find_collectives(hlo)} == {"all-to-all", "all-reduce"}
    slots = 8 * CAPACITY
    assert count_bytes(hlo) == {"all-to-all": slots * (1 + 2 * WIDTH) * 4, "all-reduce": 4}
    assert "all-gather" not in hlo
    alone = round_trip((1, 1, 1)).as_text()
    assert count_bytes(alone).keys() <= {"all-reduce"}  # the psum of the overflow


def test_without_axes_it_needs_no_mesh_and_scans():
    table, ids, grads = (x[0] if x.ndim == 3 else x for x in arguments(draw("spread", 1)))

    def body(block, _):
        rows, route = fetch(block, ids[0], 1, axes=())
        own, sums = send(grads + rows, route)
        return block.at[own].add(sums, mode="drop"), route.overflow

    last, overflow = jax.lax.scan(body, jnp.asarray(table), length=2)
    wanted = table.copy()
    for _ in range(2):
        wanted[ids[0]] += grads + wanted[ids[0]]
    np.testing.assert_array_equal(last, wanted)
    assert not overflow.any()


@pytest.mark.parametrize("unique", [1, 10, 2048, 65536])
@pytest.mark.parametrize("chips", [1, 2, 16, 256])
def test_the_default_holds_twice_the_mean_and_no_more_than_all(unique, chips):
    slots = default_capacity(unique, chips)
    assert slots == unique or slots * chips >= 2 * unique
    assert slots <= unique
    if chips == 1:
        assert slots == unique


def test_collectives_are_read_from_text_of_either_style():
    hlo = """
ENTRY %main (p: f32[8,200]) -> f32[8,200] {
  %p = f32[8,200]{1,0:T(8,128)S(1)} parameter(0)
  %q = (bf16[4]{0}, /*index=1*/s32[]{:T(128)}) tuple(%a, %b), metadata={op_name="x all-reduce(%p)"}
  %s = (f32[8,200]{1,0}, f32[64,200]{1,0}) all-gather-start(f32[8,200]{1,0:T(8,128)} %p), dims={0}
  %d = f32[64,200]{1,0} all-gather-done(%s)
  %r = (f32[8,200], pred[3]) all-reduce(%p, %flags), to_apply=%sum
  %flags = pred[3]{0} parameter(1)
}
"""
    gather, reduce = find_collectives(hlo)
    assert (gather.kind, gather.operands, gather.bytes) == ("all-gather", ("f32[8,200]",), 6400)
    assert (reduce.operands, reduce.bytes) == (("f32[8,200]", "pred[3]"), 6403)
