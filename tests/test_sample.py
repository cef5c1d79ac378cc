"""Subgraphs made inside the step are the host's, bit for bit; another graph is other arrays."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import tiny
from test_subgraph import random_graph

from keft_jax.config import KeftError
from keft_jax.data.batch import Resident, Seeds
from keft_jax.data.features import Knowledge, with_row
from keft_jax.data.rows import ROWS
from keft_jax.kg import KG, Budget, extract
from keft_jax.kg.attributes import Attributes
from keft_jax.kg.resident import Room, lay_out, pad_size, refuse_large
from keft_jax.models.sample import sample, take
from keft_jax.sharding import batch_sharding, make_mesh, on_mesh
from keft_jax.train import resident as module
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import build
from keft_jax.train.resident import make_resident

ROOM = Room(entities=64, triples=512, relations=8, widest=384, halvings=6)
ROOMS = {
    Budget(13, 31, 2): ROOM,
    Budget(24, 400, 1): dataclasses.replace(ROOM, entities=1 << 21),  # too many for one sort key
}


@pytest.mark.parametrize("budget", ROOMS, ids=str)
def test_equals_the_host(budget):
    """Graphs with hubs, loops and parallel facts; seeds that repeat or are missing."""
    subgraphs = jax.jit(lambda graph, seeds: jax.vmap(partial(take, graph))(seeds))
    cut = []
    for trial in range(8):
        rng = np.random.default_rng(trial)
        kg = random_graph(rng, triples=int(rng.integers(1, 400)), relations=1 + trial % 4)
        room, arrays = lay_out(kg, room=ROOMS[budget])
        assert room == ROOMS[budget]
        graph = Resident(**arrays, number=np.zeros(1, "i4"), nodes={}, budget=budget, room=room)
        seeds = rng.integers(-1, kg.n_entities, (24, 3)).astype(np.int32)
        seeds[:4, 1] = seeds[:4, 0]
        seeds[4] = -1
        got, want = jax.device_get(subgraphs(graph, seeds)), extract(kg, seeds, budget)
        for name in type(want).__annotations__:
            own = getattr(want, name)
            assert got[name].dtype == own.dtype, name
            np.testing.assert_array_equal(got[name], own, err_msg=f"{name} of trial {trial}")
        cut.append(want.cut.mean())
    assert 0 < np.mean(cut) < 1
    assert subgraphs._cache_size() == 1


def test_a_hub_is_in_the_lists_of_its_neighbours():
    """So no list is long, and a pair is found in a few steps."""
    kg = KG.from_triples([(f"e{i}", "r", "hub") for i in range(5000)])
    room, arrays = lay_out(kg)
    assert room.widest >= 5000 and room.halvings == 4
    assert np.diff(arrays["pair_start"]).max() == 1


def test_sizes_have_room_and_divide():
    for count in (0, 1, 7, 1000, 123_456, 20_000_000):
        size = pad_size(count)
        assert count * 17 / 16 < size <= count * 1.2 + 2
    assert pad_size(20_000_000) % 4096 == 0


def test_a_budget_that_is_too_large_is_refused():
    room = dataclasses.replace(ROOM, widest=100_000)
    refuse_large(Budget(64, 256, 4), 8, room)
    refuse_large(Budget(512, 4096, 2), 4, room)
    with pytest.raises(KeftError, match=r"nodes = 2048 .* use knowledge\.sample=host"):
        refuse_large(Budget(2048, 4096, 1), 4, room)


def on(mode: str, parts):
    knowledge = parts.config.knowledge
    config = dataclasses.replace(
        parts.config, knowledge=dataclasses.replace(knowledge, sample=mode)
    )
    ours = parts.knowledge
    told = Knowledge(
        *(ours.kg, ours.vocabulary, config.knowledge, ours.vectors, None, ours.attributes)
    )
    return dataclasses.replace(parts, config=config, knowledge=told)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_files(folder)
    return build(tiny.config(folder))


@pytest.fixture(scope="module")
def asked(built):
    """Parameters with which a graph makes a difference."""
    rng = np.random.default_rng(0)
    abstract = built[0].model.abstract()
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), abstract)


def test_batches_of_all_rows_equal_the_hosts_and_share_a_program(built):
    """With attributes and vectors, which some rows are given of others."""
    parts, splits = built
    kg, rng = parts.knowledge.kg, np.random.default_rng(1)
    values = {name: rng.normal(size=2) for name in kg.names[::2]}
    attributes = Attributes(("a", "b"), values, np.zeros(2), np.ones(2), 0)
    vectors = rng.normal(size=(kg.n_entities, 5)).astype(np.float16)
    config = dataclasses.replace(parts.config.knowledge, vectors="description")
    given = (vectors, None, attributes)
    host = Knowledge(kg, parts.knowledge.vocabulary, config, *given)
    config = dataclasses.replace(config, sample="device")
    device = Knowledge(kg, parts.knowledge.vocabulary, config, *given)
    text, numbers = parts.dataset(splits.train), np.arange(24)
    filled = jax.jit(sample)
    for row in (*(r for r in ROWS if "-" not in r), "true-corrupt-30"):
        want = with_row(text, host, row, 3).batch(16, numbers)
        short = with_row(text, device, row, 3).batch(16, numbers)
        assert isinstance(short.graph, Seeds)
        graph, node_bm = jax.device_get(filled(make_resident(device, row, 3), short.graph))
        np.testing.assert_array_equal(node_bm, want.mentions.node)
        jax.tree.map(np.testing.assert_array_equal, graph, want.graph)
        jax.tree.map(np.testing.assert_array_equal, device.show(short, row, 3), want)
    assert want.graph.nodes["attribute"].any() and (want.graph.n_edge[:, 0] > 0).any()
    assert filled._cache_size() == 1


def test_a_new_fact_is_an_array_swap(built, asked):
    """Of the graph's 29 facts and 2 more; what is asked about other entities is answered as it
    was."""
    parts, splits = built
    parts, test = on("device", parts), splits.tests["test"]
    evaluator = Evaluator(parts)
    before = evaluator.evaluate(asked, parts.ready(test))["probability"]
    new = [("person13", "near", f"town{i}") for i in range(2)]
    swapped = evaluator.over(parts.with_kg(parts.knowledge.kg.add(new)))
    after = swapped.evaluate(asked, swapped.parts.ready(test))["probability"]
    about = np.array(["person13" in example.text for example in test])
    assert (after[about] != before[about]).all() and about.any()
    assert (after == before).any()
    assert evaluator._score._cache_size() == 1


def test_training_on_other_rows_is_one_program(built):
    parts, splits = built
    parts = on("device", parts)
    trainer, given = Trainer(parts), []
    for row in ("true", "random"):
        train = with_row(parts.dataset(splits.train), parts.knowledge, row, 0)
        batch = trainer.put(train.batch(16, np.arange(8)))
        assert sum(x.nbytes for x in jax.tree.leaves(batch.graph)) == 8 * 2 * 4
        given.append((trainer.frozen(None, train), batch))
    true, random = (jax.tree.map(lambda x: (x.shape, x.dtype), g) for g in given)
    assert true == random
    near = [np.asarray(frozen["graph"].near) for frozen, _ in given]
    assert (near[0] != near[1]).any()
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    _, metrics = jax.eval_shape(trainer.train_step, state, *given[0])
    assert "loss/task" in metrics


def test_large_arrays_lie_cut_over_devices_and_are_never_whole(built, monkeypatch):
    parts = on("device", built[0])
    mesh = make_mesh(dataclasses.replace(parts.config.mesh, data=4, fsdp=2))
    kg = random_graph(np.random.default_rng(0), entities=500, triples=3000)
    monkeypatch.setattr(module, "LARGE", 1 << 13)
    budget = Budget(8, 16, 1)
    room, arrays = lay_out(kg, room=Room(1024, 4096, 8, 16, 8))
    graph = Resident(**arrays, number=np.arange(16, dtype="i4"), nodes={}, budget=budget, room=room)
    graph = module.put(graph, mesh)
    assert not graph.near.is_fully_replicated and graph.near_start.is_fully_replicated
    seeds = np.random.default_rng(1).integers(0, 500, (16, 2)).astype(np.int32)

    def on_all(graph, seeds):
        with on_mesh(mesh):
            return sample(graph, seeds)

    put = jax.device_put(Seeds(seeds), batch_sharding(mesh))
    program = jax.jit(on_all).lower(graph, put).compile()
    sizes = [f"[{len(x)}]" for x in (graph.near, graph.pair_to, graph.fact)]
    gathers = [line for line in program.as_text().splitlines() if "all-gather" in line]
    assert gathers and not [line for line in gathers if any(size in line for size in sizes)]
    got, node_bm = jax.device_get(program(graph, put))
    want = extract(kg, seeds, budget)
    np.testing.assert_array_equal(got.nodes["entity"], want.entity)
    np.testing.assert_array_equal(got.senders, want.senders)
    np.testing.assert_array_equal(node_bm, want.seed_node)
