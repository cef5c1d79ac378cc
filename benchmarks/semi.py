"""What texts without labels are worth: SST-2 from 100 labels, each way of configs/semi.py with and
without the graph, over seeds. A seed is a draw of the labels, an initialisation and an order, the
same for all rows, so that differences are paired. Prints JSON on its last line.

python benchmarks/semi.py --source=../shared/data --pretrained=../shared/models/all-MiniLM-L6-v2

Every row has the same number of updates, the same labels and the same trials: of the peaks in
--rates the one that the selection split prefers at the first seed. The best row is chosen on that
split too. A cell that is in --workdir is not run again; with --modes, --rows and --seeds parts of
the table can be run apart, under the same options.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from arms import read_cells

ROOT = Path(__file__).resolve().parents[1]
MODES = ("labelled", "self-training", "consistency", "soft")
SPLIT = "test"
LAST = 10  # steps that are averaged over for what became of texts without labels


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--source", required=True, help="folder with the raw files")
    parser.add_argument("--pretrained", required=True, help="folder of the text model")
    parser.add_argument("--workdir", type=Path, default=Path("runs/semi"))
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--rows", nargs="+", default=("none", "true"))
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--rates", nargs="+", type=float, default=(5e-4,))
    parser.add_argument("--steps", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--dtype", default="float32", help="encoder.dtype")
    return parser.parse_args(argv)


def make_config(args: argparse.Namespace, mode: str) -> Any:
    from keft_jax.options import load_config_file

    config = load_config_file(f"{ROOT}/configs/semi.py:{mode}")
    steps = args.steps or config.optim.steps
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=args.source),
        encoder=dataclasses.replace(config.encoder, pretrained=args.pretrained, dtype=args.dtype),
        optim=dataclasses.replace(config.optim, steps=steps),
        eval=dataclasses.replace(config.eval, every=min(config.eval.every, steps)),
    )


def make_options(args: argparse.Namespace, row: str, backbone: str) -> dict[str, Any]:
    """What all cells of a table were made under, and the mode of a row's."""
    from keft_jax.config import config_hash

    config = make_config(args, row.rpartition("-")[0])
    return {
        "steps": config.optim.steps,
        "rates": list(args.rates),
        "backbone": backbone,
        "config_hash": config_hash(config),
    }


class Mode:
    """One way of training, compiled once for all its cells."""

    def __init__(self, args: argparse.Namespace, name: str):
        from keft_jax.train.loop import Trainer
        from keft_jax.train.parts import build

        self.args, self.name = args, name
        self.parts, splits = build(make_config(args, name))
        train: Any = self.parts.training(splits)
        self.sets = [train, self.parts.dataset(splits.select)]
        self.sets.append(self.parts.dataset(splits.tests[SPLIT]))
        self.trainer = Trainer(self.parts)
        self.read: tuple[str, list[Any]] = ("", [])

    def given(self, row: str) -> list[Any]:
        from keft_jax.data.features import with_row

        if self.read[0] != row:
            self.read = row, [with_row(s, self.parts.knowledge, row, 0) for s in self.sets]
        return self.read[1]

    def run(self, row: str, seed: int, options: dict[str, Any]) -> Any:
        """The cell of this mode, row of the gain table and seed. options: to be kept in it."""
        from keft_jax.gain.cells import Cell
        from keft_jax.train.loop import Hooks, fit

        train, select, test = self.given(row)
        begin, best = time.process_time(), None
        first = self.file(row, min(self.args.seeds))
        rates = self.args.rates
        if seed != min(self.args.seeds) and first.is_file():
            rates = (Cell.load(first).info["learning_rate"],)
        for rate in rates:
            seen: dict[str, list[float]] = defaultdict(list)

            def log(step: int, scalars: dict[str, float], seen: Any = seen) -> None:
                for name, value in scalars.items():
                    seen[name].append(value)

            hooks = Hooks(log=log)
            one = fit(self.trainer, train, select, seed=seed, learning_rate=rate, hooks=hooks)
            score: float = one.progress.select or 0.0
            if best is None or score > best[0]:
                best = score, rate, one, seen
        assert best is not None
        score, rate, chosen, seen = best
        rows = self.trainer.evaluate(chosen.best_params, test)
        info = {
            **options,
            "select": score,
            "learning_rate": rate,
            "best_step": chosen.progress.best_step,
            "cpu_seconds": time.process_time() - begin,
            **{k: float(np.mean(v[-LAST:])) for k, v in seen.items() if k.startswith("consis")},
        }
        metrics = {SPLIT: {"accuracy": rows["accuracy"]}}
        return Cell(f"{self.name}-{row}", seed, metrics, {}, chosen.progress.curve, info)

    def file(self, row: str, seed: int) -> Path:
        return self.args.workdir / "cells" / f"{self.name}-{row}-{seed}.npz"


def summarise(cells: list[Any]) -> dict[str, Any]:
    """Scores, and paired differences to the labelled examples alone and to self-training, with
    95 % intervals over examples and seeds (over examples alone below 5 seeds)."""
    from keft_jax.gain.bootstrap import Sample, draw

    values: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    selected: dict[str, list[float]] = defaultdict(list)
    for cell in sorted(cells, key=lambda c: (c.row, c.seed)):
        values[cell.row][cell.seed] = cell.metrics[SPLIT]["accuracy"]
        selected[cell.row].append(cell.info["select"])
    size = len(next(iter(next(iter(values.values())).values())))
    rng = np.random.default_rng(0)
    sample = Sample(dict(values), np.arange(size), np.ones(size, bool))
    draw([sample], 10_000, rng)
    scores = {row: sample.estimate(row).json() for row in values}
    gains = {}
    for row in values:
        mode, _, known = row.rpartition("-")
        rivals = {f"labelled-{known}", "labelled-none"} if mode != "labelled" else set()
        if mode in ("consistency", "soft"):
            rivals.add(f"self-training-{known}")
        for plain in sorted(rivals):
            if plain in values:
                gains[f"{row} - {plain}"] = sample.estimate(row, plain).json()
    others = [row for row in values if not row.startswith("labelled")]
    best = max(others, key=lambda row: float(np.mean(selected[row])), default=None)
    keys = ("consistency/kept", "consistency/right", "cpu_seconds", "learning_rate")
    info: dict[str, dict[str, float]] = defaultdict(dict)
    for row in values:
        for key in keys:
            found = [c.info[key] for c in cells if c.row == row and key in c.info]
            if found:
                info[row][key] = float(np.mean(found))
    chosen = {row: float(np.mean(scores)) for row, scores in selected.items()}
    return {
        **{"scores": scores, "gains": gains, "best": best, "select": chosen, "info": info},
        "n": size,
    }


def main() -> None:
    from keft_jax.models.pretrained import start_digest

    args = parse(sys.argv[1:])
    backbone = start_digest(make_config(args, "labelled"))
    options = cache(lambda row: make_options(args, row, backbone))
    read_cells(args.workdir / "cells", options)  # refuses what is of other options
    for name in args.modes:
        mode = None
        for row in args.rows:
            for seed in args.seeds:
                file = args.workdir / "cells" / f"{name}-{row}-{seed}.npz"
                if file.is_file():
                    continue
                mode = mode or Mode(args, name)
                cell = mode.run(row, seed, options(f"{name}-{row}"))
                cell.save(args.workdir / "cells")
                score = float(np.mean(cell.metrics[SPLIT]["accuracy"]))
                print(
                    f"{name}, {row}, seed {seed}: {score:.4f} {json.dumps(cell.info)}", flush=True
                )
    print(json.dumps(summarise(read_cells(args.workdir / "cells", options))))


if __name__ == "__main__":
    main()
