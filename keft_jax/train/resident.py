"""The graph that the step takes subgraphs of, on the devices (knowledge.sample)."""

from __future__ import annotations

import weakref
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keft_jax.data.batch import Resident
from keft_jax.data.features import Knowledge
from keft_jax.data.rows import ROWS
from keft_jax.kg.resident import Room, lay_out, refuse_large
from keft_jax.models.sample import GRAPH
from keft_jax.sharding import MESH_AXES, place, replicated

LARGE = 1 << 28
"""Bytes from which an array lies cut over all devices; smaller ones lie whole on each."""

_kept: weakref.WeakKeyDictionary[Knowledge, tuple[Any, Resident]] = weakref.WeakKeyDictionary()
_rooms: weakref.WeakKeyDictionary[Knowledge, Room] = weakref.WeakKeyDictionary()


def reside(knowledge: Knowledge, mesh: Mesh, row: str, seed: int) -> dict[str, Resident]:
    """What a step reads of the graph of a row of the gain table, beside the batch: nothing where
    the host makes subgraphs. The last one asked for is kept: training and evaluation share it.

    Raises KeftError for a graph or a budget that is too large.
    """
    if knowledge.config.sample == "host":
        return {}
    key, kept = (mesh, row, seed), _kept.get(knowledge)
    if kept is None or kept[0] != key:
        kept = None
        _kept.pop(knowledge, None)  # before there is another one
        graph = make_resident(knowledge, row, seed, _rooms.get(knowledge))
        kept, _rooms[knowledge] = (key, put(graph, mesh)), graph.room
        _kept[knowledge] = kept
    return {GRAPH: kept[1]}


def succeed(old: Knowledge, new: Knowledge) -> None:
    """The graph of `new` takes the room of the old one where that is enough: what is compiled goes
    on with its arrays."""
    if old in _rooms:
        _rooms[new] = _rooms[old]


def make_resident(knowledge: Knowledge, row: str, seed: int, room: Room | None = None) -> Resident:
    """On the host: the graph that a row reads, and what it tells of each entity. Rows differ in the
    arrays alone, so a drawn graph has room for what the graph itself has (`room`, where known)."""
    spec, kg, budget = ROWS[row], knowledge.graph_of(row, seed), knowledge.budget
    if room is None and kg is not knowledge.kg:
        room, _ = lay_out(knowledge.kg)
    room, arrays = lay_out(kg, neighbours=spec.neighbours, edges=spec.edges, room=room)
    refuse_large(budget, knowledge.config.mentions, room)

    def pad(x: np.ndarray, size: int) -> np.ndarray:
        return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))

    told = knowledge.describe(np.arange(kg.n_entities), row, seed)
    told["row"] = knowledge.row_numbers
    return Resident(
        **arrays,
        number=pad(knowledge.numbers(row), 2 * room.relations),
        nodes={name: pad(x, room.entities) for name, x in told.items()},
        budget=budget,
        room=room,
    )


def put(graph: Resident, mesh: Mesh) -> Resident:
    """On the devices: large arrays cut along their first axis, as far as it divides."""

    def put_one(x: np.ndarray) -> jax.Array:
        cut = x.nbytes >= LARGE and len(x) % mesh.size == 0
        spec = NamedSharding(mesh, PartitionSpec(MESH_AXES)) if cut else replicated(mesh)
        return place(x, spec)

    return jax.tree.map(put_one, graph)
