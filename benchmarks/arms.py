"""What benchmarks of several arms share: cells on disk, made under one set of options, and paired
differences between arms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import Config, config_hash
from keft_jax.gain.bootstrap import Estimate, Sample, draw, group_clusters
from keft_jax.gain.cells import Cell, Split
from keft_jax.gain.splits import make_split
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.parts import Parts
from keft_jax.train.run import load_run

METRIC = "accuracy"
DRAWS = 10_000

Options = Mapping[str, Any]
Pair = tuple[str, str]


def hash_options(config: Config) -> str:
    """Equal for configs that differ in seed, name and the place of the runs that they start from
    alone: these are cells of their own."""
    objective = config.objective
    distill = objective.distill
    distill = dataclasses.replace(distill, teacher="a run" if distill.teacher else "")
    start = "a run" if config.optim.start else ""
    return config_hash(
        dataclasses.replace(
            config,
            name="",
            seed=0,
            objective=dataclasses.replace(objective, distill=distill),
            optim=dataclasses.replace(config.optim, start=start),
        )
    )


def read_cells(folder: Path, options: Callable[[str], Options | None]) -> list[Cell]:
    """The cells in a folder. `options`: what must stand in `info` of a row's cells; None: they
    are of no concern here and are left out. SystemExit where it does not."""
    out = []
    for file in sorted(folder.glob("*.npz")):
        cell = Cell.load(file)
        for key, value in (wanted := options(cell.row) or {}).items():
            if cell.info.get(key) != value:
                raise SystemExit(
                    f"{file}: was made with {key} = {cell.info.get(key)!r}, now it is {value!r}; "
                    "give another folder"
                )
        out += [cell] if wanted else []
    return out


def test(name: str, seed: int, run: Path, info: Options) -> tuple[Cell, Split]:
    """The value of each test example of a run. Slices are those of the knowledge, whatever was
    read."""
    parts, params = load_run(run)
    assert isinstance(parts, Parts)
    file = parts.config.data.test[0]
    dataset = parts.ready(parts.read(file))
    values = Evaluator(parts).evaluate(params, dataset)[METRIC]
    split = make_split(Path(file).stem, dataset, parts)
    return Cell(name, seed, {split.name: {METRIC: values}}, info=dict(info)), split


def compare(
    cells: Iterable[Cell], split: Split, pairs: Sequence[Pair]
) -> dict[str, dict[str, Estimate]]:
    """{"all" and "covered": {row: its score, "a - b": the paired difference}}, printed."""
    values: dict[str, dict[int, np.ndarray]] = {}
    for cell in cells:
        values.setdefault(cell.row, {})[cell.seed] = cell.metrics[split.name][METRIC]
    rng = np.random.default_rng(0)
    cluster = group_clusters(split.cluster, rng)
    keep = {"all": np.ones(len(split), bool), "covered": split.slices["covered"]}
    samples = {name: Sample(values, cluster, mask) for name, mask in keep.items()}
    draw(list(samples.values()), DRAWS, rng)
    out: dict[str, dict[str, Estimate]] = {}
    for name, sample in samples.items():
        out[name] = {row: sample.estimate(row) for row in values}
        known = [(a, b) for a, b in pairs if a in values and b in values]
        out[name] |= {f"{a} - {b}": sample.estimate(a, b) for a, b in known}
        print(f"\n{name}: {sample.n} examples")
        for thing, estimate in out[name].items():
            print(f"  {thing:44} {show(estimate)}")
    return out


def show(estimate: Estimate) -> str:
    low, high = estimate.interval or (float("nan"), float("nan"))
    seeds = len(estimate.values)
    over = (
        f"examples and {seeds} seeds" if estimate.over_seeds else f"examples alone, {seeds} seeds"
    )
    return f"{estimate.mean:+.3f} [{low:+.3f}, {high:+.3f}] over {over}"
