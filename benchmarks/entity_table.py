"""Step time and memory of a big table of entities: updated by rows, and dense for comparison.

Link prediction by ComplEx on random triples, Adagrad, one device; a batch names 6,400 entities:
`shared`, 1,024 queries of which 256 in a row share 1,088 negatives (most of the step is matmuls),
or `own`, 4 negatives for each query and little arithmetic. Each case runs in a process of its own,
for its peak memory; the cases are repeated in turns. Prints JSON on its last line.

taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/entity_table.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from keft_jax.config import Config, DataConfig, KgeConfig, MeshConfig, OptimConfig, TaskConfig
from keft_jax.data.triples import TripleDataset
from keft_jax.train.loop import Trainer
from keft_jax.train.triple_parts import TripleParts

BATCH, RELATIONS, TRIPLES = 1024, 100, 200_000
NEGATIVES = {"shared": (1088, 256), "own": (4, 1)}  # how many, and how many queries share them


class Numbers:
    """Names of millions of entities, without their strings."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> str:
        return str(place)


def make_config(tables: Any, form: str, width: int) -> Config:
    negatives, share = NEGATIVES[form]
    return Config(
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train="random"),
        kge=KgeConfig(width=width, negatives=negatives, share=share),
        optim=OptimConfig(
            kind="adagrad",
            tables=tables,
            batch=BATCH,
            learning_rate=0.1,
            warmup=0,
            weight_decay=0,
            clip=0,
        ),
        mesh=MeshConfig(data=1),
    )


def measure(tables: str, form: str, rows: int, width: int, steps: int) -> dict[str, Any]:
    """One case, in this process: seconds a step (wall and CPU, medians), and memory."""
    rng = np.random.default_rng(0)
    triples = np.stack([rng.integers(0, n, TRIPLES) for n in (rows, RELATIONS, rows)], 1)
    names: Any = Numbers(rows)
    relations = tuple(str(i) for i in range(RELATIONS))
    config = make_config(tables, form, width)
    parts = TripleParts(config, names, relations, names, {"train": triples.astype(np.int32)})
    data: TripleDataset = parts.ready(parts.splits["train"])
    trainer = Trainer(parts)
    before = peak()
    state = jax.block_until_ready(trainer.fresh(0))
    after_init = peak()
    frozen = trainer.frozen()
    batches = [
        trainer.put(data.batch(0, rng.integers(0, len(data), BATCH))) for _ in range(steps + 5)
    ]
    wall, cpu = [], []
    for batch in batches:
        begin = time.perf_counter(), time.process_time()
        state, metrics = trainer.train_step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        wall.append(time.perf_counter() - begin[0])
        cpu.append(time.process_time() - begin[1])
    held = sum(x.nbytes for x in jax.tree.leaves((state.tables, state.params, state.opt_state)))
    return {
        "wall_ms": 1e3 * float(np.median(wall[5:])),
        "cpu_ms": 1e3 * float(np.median(cpu[5:])),
        "table_and_moments_mb": held / 1e6,
        "before_mb": before,
        "init_peak_mb": after_init - before,
        "peak_mb": peak() - before,
    }


def peak() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run_apart(case: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", *case]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--width", type=int, default=100, help="complex numbers of a vector")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", type=int, default=50_000)
    parser.add_argument("--large", type=int, default=5_000_000)
    parser.add_argument("--dense", type=int, default=400_000, help="rows of the larger dense one")
    parser.add_argument("--case", nargs=3, help="tables, form, rows: this one alone")
    a = parser.parse_args()
    if a.case:
        tables, form, rows = a.case
        print(json.dumps(measure(tables, form, int(rows), a.width, a.steps)))
        return
    sizes = {"rows": (a.small, a.large), "dense": (a.small, a.dense)}
    results: dict[str, Any] = {}
    for form in NEGATIVES:
        cases = [(t, n) for t, pair in sizes.items() for n in pair]
        found: dict[Any, list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(a.repeats):
            for tables, rows in cases:
                options = ["--steps", str(a.steps), "--width", str(a.width)]
                found[tables, rows].append(run_apart([tables, form, str(rows), *options]))
        for (tables, rows), runs in found.items():
            best = {key: round(min(run[key] for run in runs), 2) for key in runs[0]}
            results[f"{form}/{tables}/{rows}"] = best
            print(f"{form}/{tables}/{rows}: {json.dumps(best)}", file=sys.stderr)
        for tables, (small, large) in sizes.items():
            name = f"{form}/{tables}: {large} over {small} rows"
            few, many = found[tables, small], found[tables, large]
            ratios = [b["cpu_ms"] / a["cpu_ms"] for a, b in zip(few, many, strict=True)]
            results[name] = round(float(np.median(ratios)), 3)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
