"""The graph that the step takes subgraphs of, on the devices (knowledge.sample)."""

from __future__ import annotations

import weakref
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keft_jax.data.batch import Resident
from keft_jax.data.features import Knowledge
from keft_jax.models.sample import GRAPH
from keft_jax.sharding import MESH_AXES, replicated

LARGE = 1 << 26
"""Bytes from which an array lies cut over all devices; smaller ones lie whole on each."""

_kept: weakref.WeakKeyDictionary[Knowledge, tuple[Any, Resident]] = weakref.WeakKeyDictionary()


def reside(knowledge: Knowledge, mesh: Mesh, row: str, seed: int) -> dict[str, Resident]:
    """What a step reads of the graph of a row of the gain table, beside the batch: nothing where
    the host makes subgraphs. The last one asked for is kept: training and evaluation share it.

    Raises KeftError for a graph or a budget that is too large.
    """
    if knowledge.config.sample == "host":
        return {}
    key, kept = (mesh, row, seed), _kept.get(knowledge)
    if kept is None or kept[0] != key:
        _kept.pop(knowledge, None)  # before there is another one
        kept = _kept[knowledge] = key, put(knowledge.resident(row, seed), mesh)
    return {GRAPH: kept[1]}


def put(graph: Resident, mesh: Mesh) -> Resident:
    """On the devices: large arrays cut along their first axis, as far as it divides."""

    def put_one(x: np.ndarray) -> jax.Array:
        cut = x.nbytes >= LARGE and len(x) % mesh.size == 0
        spec = NamedSharding(mesh, PartitionSpec(MESH_AXES)) if cut else replicated(mesh)
        return jax.device_put(x, spec)

    return jax.tree.map(put_one, graph)
