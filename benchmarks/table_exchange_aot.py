"""Bytes between chips of one training step on a table of 5M x 200 rows (ComplEx, Adagrad), compiled
ahead of time for 16 and 256 TPU chips that are not there: with mesh.rows=gather, and all_to_all.
Needs `libtpu` beside jax; prints JSON on its last line.

python benchmarks/table_exchange_aot.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any, Literal

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from keft_jax.bench.collectives import FORMULA, count_bytes, find_collectives
from keft_jax.config import Config, DataConfig, KgeConfig, MeshConfig, OptimConfig, TaskConfig
from keft_jax.data.batch import QueryBatch, QueryTarget
from keft_jax.models.functional import Model
from keft_jax.models.kge import TripleModel
from keft_jax.sharding import batch_sharding, make_mesh, replicated
from keft_jax.tasks.link_prediction import LinkPrediction
from keft_jax.train.checkpoint import abstract_like
from keft_jax.train.exchange import choose_exchange
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.optim import make_optimizer
from keft_jax.train.rows import without
from keft_jax.train.state import make_state, state_shardings
from keft_jax.train.step import compile_train_step, make_train_step

QUERIES, SHARE = 128, 32  # of a chip
RELATIONS = 1000


Form = Literal["gather", "all_to_all"]
FORMS: tuple[Form, ...] = ("gather", "all_to_all")


def make_config(form: Form, chips: int, width: int, ids: int) -> Config:
    negatives = (ids - 2 * QUERIES) * SHARE // QUERIES  # and a source and an answer of each query
    return Config(
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train="none"),
        kge=KgeConfig(width=width // 2, negatives=negatives, share=SHARE),
        optim=OptimConfig(
            kind="adagrad", tables="rows", batch=QUERIES * chips, weight_decay=0, clip=0
        ),
        mesh=MeshConfig(data=chips, rows=form),
    )


def make_batch(size: int, mesh: Mesh) -> QueryBatch:
    """Of shapes alone."""

    def array(dtype: str, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *rest), dtype, sharding=batch_sharding(mesh))

    one = array("int32")
    target = QueryTarget(
        source=one,
        relation=one,
        inverse=array("bool"),
        answers=array("int32", 1),
        weight=array("float32"),
        known=array("int32", 2),
    )
    return QueryBatch(targets={"link": target}, example=one)


def measure(form: Form, topology: str, n: int, width: int, ids: int) -> dict[str, Any]:
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=[2, 2, 1]
    ).devices
    config = make_config(form, len(devices), width, ids)
    mesh, optim = make_mesh(config.mesh, devices), config.optim
    rows = -(-n // mesh.size) * mesh.size
    model = Model(TripleModel(config.kge, n, rows, RELATIONS))
    tx = make_optimizer(optim, without(model.abstract(), model.tables))
    terms = make_terms(config.objective, LinkPrediction(config.kge, range(n)), None)  # type: ignore
    shardings = state_shardings(model, optim, tx, mesh)
    abstract = jax.eval_shape(lambda: make_state(model, optim, tx, jax.random.key(0)))
    rate = jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
    objective = Objective(model, terms)
    step: Any = make_train_step(objective, tx, optim, choose_exchange(config, mesh))
    begin = time.perf_counter()
    step = compile_train_step(step, shardings, mesh)
    frozen, batch = {"names": {}, "learning_rate": rate}, make_batch(optim.batch, mesh)
    compiled = step.lower(abstract_like(abstract, shardings), frozen, batch).compile()
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
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--topologies", nargs=2, default=["v5e:4x4", "v5e:16x16"])
    a = parser.parse_args()
    results: dict[str, Any] = {"formula": FORMULA}
    for form in a.forms:
        pair = [measure(form, t, a.rows, a.width, a.ids) for t in a.topologies]
        for one in pair:
            print(json.dumps(one), file=sys.stderr)
        growth = pair[1]["bytes"] / pair[0]["bytes"]
        results[form] = {
            "bytes": {one["chips"]: one["bytes"] for one in pair},
            "growth": round(growth, 2),
            "moves_the_table": any(one["moves_the_table"] for one in pair),
            "temporary_bytes": {one["chips"]: one["temporary_bytes"] for one in pair},
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
