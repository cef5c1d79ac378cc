"""What of a graph's worth does a student keep that reads text alone? Teachers with and without the
knowledge, students of each on the same texts, over several seeds; a table with intervals.

python benchmarks/distill.py --workdir runs/distill --seeds 5 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2

Options with a dot are of both configs, configs/fewrel.py:480 and configs/fewrel.py:480,text. What
is finished is not made again: the same command goes on, with more seeds too. Writes summary.json;
its last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from keft_jax.config import Config, DistillConfig
from keft_jax.files import write_atomic
from keft_jax.gain.bootstrap import Estimate, Sample, draw, group_clusters
from keft_jax.gain.cells import Cell, Split, load_splits, save_splits
from keft_jax.gain.splits import make_split
from keft_jax.options import load_config, override
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.parts import Parts
from keft_jax.train.run import load_run, train

ROWS = ("true", "none")
PAIRS = (
    ("teacher-true", "teacher-none"),
    ("student-true", "student-none"),
    ("student-true", "student-alone"),
    ("student-none", "student-alone"),
)
METRIC = "accuracy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", default="configs/fewrel.py:480")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600, help="of a student")
    parser.add_argument("--unlabelled", type=int, default=32, help="texts in a student's step")
    parser.add_argument("--rate", type=float, default=1e-3, help="a student's learning rate")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--hidden", type=float, default=0.0)
    parser.add_argument("--attention", type=float, default=0.0)
    own, rest = parser.parse_known_args()
    own.workdir.mkdir(parents=True, exist_ok=True)
    # Runs alike share their compiled steps.
    jax.config.update("jax_compilation_cache_dir", str(own.workdir / "compiled"))
    base = override(load_config(own.config), rest)
    text = override(load_config(f"{own.config},text"), rest)
    split: Split | None = None
    for seed in range(own.seeds):
        runs = {f"teacher-{row}": of_row(base, row, seed) for row in ROWS}
        runs |= {
            f"student-{row}": student(text, row, seed, own, own.workdir / f"teacher-{row}-{seed}")
            for row in ROWS
        }
        runs["student-alone"] = student(text, "none", seed, own, None)
        for name, config in runs.items():
            folder = own.workdir / f"{name}-{seed}"
            if not (own.workdir / "cells" / f"{name}-{seed}.npz").is_file():
                if "stopped" in train(config, folder):
                    return
                cell, split = test(name, seed, folder)
                cell.save(own.workdir / "cells")
                save_splits(own.workdir, [split])
    report(own.workdir)


def of_row(base: Config, row: Any, seed: int) -> Config:
    return dataclasses.replace(
        base, seed=seed, knowledge=dataclasses.replace(base.knowledge, row=row)
    )


def student(base: Config, row: str, seed: int, own: Any, run: Path | None) -> Config:
    """With labels alone where it has no teacher."""
    like = of_row(base, row, seed)
    optim = dataclasses.replace(like.optim, steps=own.steps, learning_rate=own.rate)
    data, objective = like.data, like.objective
    if run is not None:
        optim = dataclasses.replace(optim, unlabelled=own.unlabelled)
        data = dataclasses.replace(data, unlabelled="rest")
        settings = DistillConfig(
            teacher=str(run),
            weight=1.0,
            temperature=own.temperature,
            hidden=own.hidden,
            attention=own.attention,
        )
        objective = dataclasses.replace(objective, distill=settings)
    return dataclasses.replace(
        like,
        data=data,
        objective=objective,
        optim=optim,
        eval=dataclasses.replace(like.eval, every=max(own.steps // 6, 1)),
    )


def test(name: str, seed: int, folder: Path) -> tuple[Cell, Split]:
    """The value of each test example. Slices are those of the knowledge, whatever was read."""
    parts, params = load_run(folder)
    assert isinstance(parts, Parts)
    file = parts.config.data.test[0]
    dataset = parts.ready(parts.read(file))
    values = Evaluator(parts).evaluate(params, dataset)[METRIC]
    split = make_split(Path(file).stem, dataset, parts)
    return Cell(name, seed, {split.name: {METRIC: values}}), split


def report(folder: Path) -> None:
    (split,) = load_splits(folder)
    values: dict[str, dict[int, np.ndarray]] = {}
    for path in sorted((folder / "cells").glob("*.npz")):
        cell = Cell.load(path)
        values.setdefault(cell.row, {})[cell.seed] = cell.metrics[split.name][METRIC]
    rng = np.random.default_rng(0)
    cluster = group_clusters(split.cluster, rng)
    keep = {"all": np.ones(len(split), bool), "covered": split.slices["covered"]}
    samples = {name: Sample(values, cluster, mask) for name, mask in keep.items()}
    draw(list(samples.values()), 10_000, rng)
    out: dict[str, Any] = {"n": {name: sample.n for name, sample in samples.items()}}
    for name, sample in samples.items():
        scores = {row: sample.estimate(row, None, rng) for row in values}
        gains = {f"{a} - {b}": sample.estimate(a, b, rng) for a, b in PAIRS}
        its = gains["teacher-true - teacher-none"].mean
        kept = gains["student-true - student-none"].mean / its if its > 0 else None
        print(f"\n{name}: {sample.n} examples")
        for thing, estimate in (scores | gains).items():
            print(f"  {thing:32} {show(estimate)}")
        if kept is not None:
            print(f"  {'of the gain the student keeps':32} {kept:.0%}")
        rows = {thing: estimate.json() for thing, estimate in (scores | gains).items()}
        out[name] = {**rows, "kept": kept}
    write_atomic(folder / "summary.json", json.dumps(out, indent=2))
    print(json.dumps(out))


def show(estimate: Estimate) -> str:
    low, high = estimate.interval or (float("nan"), float("nan"))
    over = "examples and seeds" if estimate.over_seeds else "examples alone"
    return f"{estimate.mean:+.3f} [{low:+.3f}, {high:+.3f}] over {over}"


if __name__ == "__main__":
    main()
