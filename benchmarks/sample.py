"""Subgraphs made by the host, against those made inside the step: what either costs. Training steps
by turns, on made-up input; CPU seconds.

OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
    python benchmarks/sample.py --size minilm_gnn_short --nodes 64 --edges 256 --hops 2
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from keft_jax.bench.host import bench_input
from keft_jax.bench.run import first_batches
from keft_jax.bench.synthetic import make_synthetic
from keft_jax.bench.timing import Steps, time_in_turn
from keft_jax.data.features import Knowledge
from keft_jax.options import load_config_file
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts
from keft_jax.train.resident import make_resident

MODES = ("host", "device")
ROOT = Path(__file__).resolve().parents[1]


def sampled(parts: Parts, mode: str) -> Parts:
    """The same model and graph with knowledge.sample = `mode`."""
    knowledge: Any = dataclasses.replace(parts.config.knowledge, sample=mode)
    return dataclasses.replace(
        parts,
        config=dataclasses.replace(parts.config, knowledge=knowledge),
        knowledge=Knowledge(parts.knowledge.kg, parts.knowledge.vocabulary, knowledge),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="minilm_gnn_short", help="as in configs/bench.py")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--edges", type=int, default=256)
    parser.add_argument("--hops", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--examples", type=int, default=1024, help="read by the host")
    asked = parser.parse_args()
    config = load_config_file(f"{ROOT}/configs/bench.py:{asked.size}")
    budget = {"nodes": asked.nodes, "edges": asked.edges, "hops": asked.hops}
    knowledge = dataclasses.replace(config.knowledge, **budget)
    config = dataclasses.replace(config, knowledge=knowledge)
    parts, examples = make_synthetic(config, max(asked.examples, 4 * config.optim.batch))
    out: dict[str, Any] = {"size": asked.size, **budget, "batch": config.optim.batch}
    steps = []
    for mode in MODES:
        own = sampled(parts, mode)
        batches = first_batches(own, examples)
        rates = bench_input(own, examples)
        out[mode] = {name: rates[f"{name}_us"] for name in ("subgraphs", "batches")}
        arrays = jax.tree.leaves((batches[0].graph, batches[0].mentions.node))
        out[mode]["bytes"] = sum(x.nbytes for x in arrays) / config.optim.batch
        steps.append(Steps(Trainer(own), batches))
        out[mode]["compile_cpu_s"] = steps[-1].compile_cpu_s
    begin = time.process_time()
    graph = make_resident(own.knowledge, "true", 0)
    out["lay_out_cpu_s"] = time.process_time() - begin
    out["resident_mb"] = sum(np.asarray(x).nbytes for x in jax.tree.leaves(graph)) / 1e6
    times = time_in_turn(steps, asked.steps, 1)[..., 0]
    for at, mode in enumerate(MODES):
        out[mode]["step_cpu_s"] = float(np.median(times[:, at]))
        out[mode]["loss"] = steps[at].loss
    out["ratio"] = float(np.median(times[:, 1] / times[:, 0]))
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
