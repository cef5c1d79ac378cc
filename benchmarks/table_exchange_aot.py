"""Bytes between chips of one training step on a table of 5M x 200 rows, compiled ahead of time for
16 and 256 TPU chips that are not there: a plain gather and scatter on the sharded table, and the
exchange by `all_to_all`. Needs `libtpu` beside jax; prints JSON on its last line.

python benchmarks/table_exchange_aot.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from keft_jax.bench.collectives import FORMULA, count_bytes, find_collectives
from keft_jax.sharding import MESH_AXES
from keft_jax.train.exchange import default_capacity, fetch, send

RATE, TINY = 0.1, 1e-10


def loss(rows_ud: jax.Array, at_u: jax.Array) -> jax.Array:
    """A toy: what matters is that it reads the rows at the batch's places."""
    return jnp.sum(jnp.sin(rows_ud[at_u]))


def adagrad(table: jax.Array, moment: jax.Array, ids: jax.Array, grads: jax.Array):
    squares = moment.at[ids].get(mode="fill", fill_value=1) + grads * grads
    moment = moment.at[ids].set(squares, mode="drop")
    return table.at[ids].add(-RATE * grads * jax.lax.rsqrt(squares + TINY), mode="drop"), moment


def plain(table: jax.Array, moment: jax.Array, ids: jax.Array):
    """Under jit: the partitioner decides what moves."""
    ids, at = jnp.unique(ids, size=ids.size, fill_value=len(table), return_inverse=True)
    grads = jax.grad(loss)(table.at[ids].get(mode="fill", fill_value=0), at.ravel())
    return *adagrad(table, moment, ids, grads), jnp.zeros((), jnp.int32)


def exchanged(mesh: Mesh):
    def step(block: jax.Array, moment: jax.Array, ids: jax.Array):
        n = len(block) * mesh.size
        ids, at = jnp.unique(ids, size=ids.size, fill_value=n, return_inverse=True)
        rows, route = fetch(block, ids, default_capacity(len(ids), mesh.size))
        own, grads = send(jax.grad(loss)(rows, at.ravel()), route)
        return *adagrad(block, moment, own, grads), jax.lax.psum(route.overflow, MESH_AXES)

    cut = P(MESH_AXES)
    return jax.shard_map(step, mesh=mesh, in_specs=(cut,) * 3, out_specs=(cut, cut, P()))


def measure(form: str, topology: str, n: int, width: int, ids: int) -> dict[str, object]:
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=[2, 2, 1]
    ).devices
    grid = np.asarray(devices).reshape(-1, 1, 1)
    mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    cut = NamedSharding(mesh, P(MESH_AXES))
    rows = -(-n // mesh.size) * mesh.size
    # Left to itself XLA lays a table on TPU by columns wherever that pads less, and then transposes
    # all of it and of its moments, twice a step, because a scatter wants rows.
    by_rows = Format(Layout((0, 1)), cut)
    table = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=by_rows)
    batch = jax.ShapeDtypeStruct((mesh.size * ids,), jnp.int32, sharding=cut)
    step = plain if form == "plain" else exchanged(mesh)
    places = (by_rows, by_rows, NamedSharding(mesh, P()))
    begin = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=(0, 1), out_shardings=places)
        .lower(table, table, batch)
        .compile()
    )
    seconds = time.perf_counter() - begin
    hlo = compiled.as_text()
    by_kind = count_bytes(hlo)
    of_table = f"f32[{rows // mesh.size},{width}]"
    memory = compiled.memory_analysis()
    return {
        "form": form,
        "topology": topology,
        "chips": mesh.size,
        "bytes": sum(by_kind.values()),
        "by_kind": by_kind,
        "collectives": [[one.kind, *one.operands] for one in find_collectives(hlo)],
        "moves_the_table": any(of_table in one.operands for one in find_collectives(hlo)),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--ids", type=int, default=2048, help="ids a chip")
    parser.add_argument("--topologies", nargs=2, default=["v5e:4x4", "v5e:16x16"])
    a = parser.parse_args()
    results: dict[str, object] = {"formula": FORMULA}
    for form in ("plain", "all_to_all"):
        pair = [measure(form, t, a.rows, a.width, a.ids) for t in a.topologies]
        for one in pair:
            print(json.dumps(one), file=sys.stderr)
        growth = pair[1]["bytes"] / pair[0]["bytes"]
        results[form] = {
            "bytes": {one["chips"]: one["bytes"] for one in pair},
            "growth": round(growth, 2),
            "temporary_bytes": {one["chips"]: one["temporary_bytes"] for one in pair},
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
