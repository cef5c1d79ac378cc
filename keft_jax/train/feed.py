"""From a data set to the devices: each process makes the rows of a batch that its own hold."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from keft_jax.sharding import batch_sharding, own_parts, place, place_parts
from keft_jax.train.watchdog import beat


def feed(data: Any, length: Any, indices: np.ndarray, mesh: Mesh) -> Any:
    """`data.batch(length, indices)` on the mesh, cut along the batch.

    data: a Dataset or a TripleDataset. indices: those of the whole batch, the same in every
    process.
    """
    beat()
    sharding, ways = batch_sharding(mesh), mesh.shape["data"] * mesh.shape["fsdp"]
    if jax.process_count() == 1:
        return jax.device_put(data.batch(length, indices), sharding)
    if len(indices) % ways:  # a unit of several rows may lie on several devices
        return place(data.batch(length, indices), sharding)
    own = own_parts(sharding, ways)
    mine = indices.reshape(ways, -1)[own].ravel()
    return place_parts(data.batch(length, mine), sharding, own, ways)
