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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from arms import compare, hash_options, read_cells, test

from keft_jax.config import Config, DistillConfig
from keft_jax.files import write_atomic
from keft_jax.gain.cells import Cell, load_splits, save_splits
from keft_jax.options import load_config, override
from keft_jax.train.run import train

ROWS = ("true", "none")
PAIRS = (
    ("teacher-true", "teacher-none"),
    ("student-true", "student-none"),
    ("student-true", "student-alone"),
    ("student-none", "student-alone"),
)


def main() -> None:
    own, rest = parse(sys.argv[1:])
    own.workdir.mkdir(parents=True, exist_ok=True)
    # Runs alike share their compiled steps.
    jax.config.update("jax_compilation_cache_dir", str(own.workdir / "compiled"))
    base = override(load_config(own.config), rest)
    text = override(load_config(f"{own.config},text"), rest)
    made = {k: {"config_hash": hash_options(c)} for k, c in arms(base, text, 0, own).items()}
    read_cells(own.workdir / "cells", made.get)  # refuses what is of other options
    for seed in range(own.seeds):
        for name, config in arms(base, text, seed, own).items():
            folder = own.workdir / f"{name}-{seed}"
            if not (own.workdir / "cells" / f"{name}-{seed}.npz").is_file():
                if "stopped" in train(config, folder):
                    return
                cell, split = test(name, seed, folder, made[name])
                cell.save(own.workdir / "cells")
                save_splits(own.workdir, [split])
    report(own.workdir, read_cells(own.workdir / "cells", made.get))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(own options, those of the configs)."""
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
    return parser.parse_known_args(argv)


def arms(base: Config, text: Config, seed: int, own: argparse.Namespace) -> dict[str, Config]:
    """The runs of a seed, teachers first."""
    runs = {f"teacher-{row}": of_row(base, row, seed) for row in ROWS}
    runs |= {
        f"student-{row}": student(text, row, seed, own, own.workdir / f"teacher-{row}-{seed}")
        for row in ROWS
    }
    return {**runs, "student-alone": student(text, "none", seed, own, None)}


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


def report(folder: Path, cells: list[Cell]) -> None:
    (split,) = load_splits(folder)
    out: dict[str, Any] = {}
    for name, found in compare(cells, split, PAIRS).items():
        its = found["teacher-true - teacher-none"].mean
        kept = found["student-true - student-none"].mean / its if its > 0 else None
        if kept is not None:
            print(f"{name}: of the gain the student keeps {kept:.0%}")
        out[name] = {**{thing: e.json() for thing, e in found.items()}, "kept": kept}
    out["n"] = {"all": len(split), "covered": int(split.slices["covered"].sum())}
    write_atomic(folder / "summary.json", json.dumps(out, indent=2))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
