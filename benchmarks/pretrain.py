"""What knowledge in pre-training is worth: `plain` and `knowledge` of configs/pretrain.py for the
same CPU time from the same start, then FewRel from both and from that start.

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/pretrain.py --source ../shared/data \
        --pretrained ../shared/models/all-MiniLM-L6-v2 --out runs/pretrain

Steps of both are those that take `--minutes` CPU minutes, measured first, without evaluation and
compilation. Each cell is kept in --out, and the same command goes on with what is missing; the
tables are printed, and lie in OUT/results.json and OUT/summary.json. There is one pre-training per
arm: intervals cover seeds and examples of FewRel, not what another pre-training would have given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arms import Pair, compare, hash_options, read_cells, test

from keft_jax.config import Config, with_mode
from keft_jax.files import write_atomic
from keft_jax.gain.cells import load_splits, save_splits
from keft_jax.options import load_config_file
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import build, generate
from keft_jax.train.run import load_given, load_run, train

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("plain", "knowledge")
STARTS = ("none", *ARMS)
READS = ("text", "graph")
MEASURED = 8  # steps


class Results:
    """Results by name, each computed once."""

    def __init__(self, file: Path):
        self.file = file
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def get(self, name: str, config: Config, compute: Callable[[], Any]) -> Any:
        """SystemExit where it was computed by another config."""
        made = hash_options(config)
        if name not in self.done:
            print(f"{name} ...", flush=True)
            self.done[name] = {"config_hash": made, "result": compute()}
            write_atomic(self.file, json.dumps(self.done, indent=2))
        if self.done[name]["config_hash"] != made:
            raise SystemExit(f"{self.file}: {name} is of other options; give another --out")
        return self.done[name]["result"]


def pretraining(options: argparse.Namespace, mode: str, steps: int) -> Config:
    config = load_config_file(f"{ROOT}/configs/pretrain.py:{mode},{steps}")
    return on_data(config, options)


def fine_tuning(
    options: argparse.Namespace, start: str, reads: str, labels: int, seed: int
) -> Config:
    config = on_data(load_config_file(f"{ROOT}/configs/fewrel.py:{labels}"), options)
    optim = dataclasses.replace(
        config.optim,
        start="" if start == "none" else str(options.out / start),
        steps=options.steps or config.optim.steps,
    )
    config = dataclasses.replace(config, seed=seed, optim=optim)
    if reads == "graph":
        return config
    knowledge = dataclasses.replace(config.knowledge, row="none")
    return with_mode(dataclasses.replace(config, knowledge=knowledge), "text")


def on_data(config: Config, options: argparse.Namespace) -> Config:
    """With the raw files, the encoder to start from and, for a trial, few texts to score."""
    data = dataclasses.replace(config.data, source=options.source)
    config = dataclasses.replace(config, data=data)
    generate(config)
    if options.texts:
        names = {}
        for name in (data.select, *data.test):
            cut = options.out / f"{options.texts}-of-{Path(name).parent.name}-{Path(name).name}"
            lines = Path(name).read_text().splitlines(keepends=True)
            write_atomic(cut, "".join(lines[:: -(-len(lines) // options.texts)]))
            names[name] = str(cut)
        data = dataclasses.replace(
            data,
            generator="",
            select=names[data.select],
            test=tuple(names[name] for name in data.test),
        )
    encoder = dataclasses.replace(
        config.encoder, pretrained=options.pretrained, dtype=options.dtype
    )
    return dataclasses.replace(config, data=data, encoder=encoder)


def seconds_a_step(config: Config) -> float:
    """CPU seconds, over batches of all lengths, without compilation."""
    parts, splits = build(config)
    data = parts.ready(splits.train)
    trainer: Trainer[Any] = Trainer(parts, load_given(parts))
    state, frozen = trainer.fresh(0, data), trainer.frozen(data=data)
    plan, step = make_plan(parts.config, data, 0), 0
    seen: set[int] = set()
    spent: list[float] = []
    while len(spent) < MEASURED:
        length, indices = plan.batch(step)
        begin = time.process_time()
        batch = trainer.put(data.batch(length, indices))
        state, metrics = trainer.train_step(state, frozen, batch)
        float(metrics["loss/total"][0])
        if length in seen:
            spent.append(time.process_time() - begin)
        seen.add(length)
        step += 1
    return statistics.mean(spent)


def finish(config: Config, folder: Path) -> dict[str, Any]:
    """The summary of a run; the same command goes on with one that was stopped."""
    summary = train(config, folder, quiet=True)
    if "stopped" in summary:
        raise SystemExit(f"{folder}: stopped at step {summary['stopped']}")
    return summary


def pretrain(options: argparse.Namespace, mode: str, config: Config) -> dict[str, Any]:
    begin = time.process_time()
    summary = finish(config, options.out / mode)
    (scores,) = summary["scores"].values()
    return {
        "steps": config.optim.steps,
        "best_step": summary["best_step"],
        "cpu_s": round(time.process_time() - begin, 1),
        "cover": summary["coverage"],
        **scores,
    }


def without_graph(options: argparse.Namespace) -> dict[str, float]:
    """Of the model that was pre-trained with knowledge, where it is given none to read."""
    parts, params = load_run(options.out / "knowledge")
    test = parts.dataset(parts.read(parts.config.data.test[0]))  # is of row none
    return parts.task.summarise(Evaluator(parts).evaluate(params, test))


def fine_tune(options: argparse.Namespace) -> None:
    """The cells of FewRel, those that are not there, and what they say. A model that reads the text
    alone is compared on the examples that the graph covers as well."""
    folder = options.out / "cells"
    rows = {
        f"{start}-{reads}-{labels}": partial(fine_tuning, options, start, reads, labels)
        for labels in options.labels
        for start in STARTS
        for reads in READS
    }
    made = {row: {"config_hash": hash_options(config(0))} for row, config in rows.items()}
    read_cells(folder, made.get)  # refuses what is of other options
    for seed in options.seeds:
        for row, config in rows.items():
            if (folder / f"{row}-{seed}.npz").is_file():
                continue
            print(f"{row}, seed {seed} ...", flush=True)
            run = options.out / "fewrel" / f"{row}-{seed}"
            finish(config(seed), run)
            cell, split = test(row, seed, run, made[row])
            cell.save(folder)
            save_splits(options.out, [split])
    (split,) = load_splits(options.out)
    print("\nFewRel, from one pre-training per arm")
    found = compare(read_cells(folder, made.get), split, pairs(options.labels))
    out = {part: {k: e.json() for k, e in told.items()} for part, told in found.items()}
    write_atomic(options.out / "summary.json", json.dumps(out, indent=2))


def pairs(labels: Sequence[int]) -> list[Pair]:
    """What knowledge in pre-training adds, by what is read afterwards."""
    return [
        (f"{one}-{reads}-{n}", f"{other}-{reads}-{n}")
        for n in labels
        for reads in READS
        for one, other in (("knowledge", "plain"), ("knowledge", "none"), ("plain", "none"))
    ]


def show(results: Results) -> None:
    done = {name: kept["result"] for name, kept in results.done.items()}
    print(f"\n{'held-out masked words, nats':<34}{'linked':>9}{'other':>9}{'steps':>9}")
    for name in (*ARMS, "without graph"):
        if name in done:
            row = done[name]
            linked, other = (-row[f"log_likelihood/{part}"] for part in ("linked", "other"))
            print(f"{name:<34}{linked:>9.3f}{other:>9.3f}{row.get('steps', ''):>9}")
    found = done.get("knowledge", {})
    for key in sorted(k for k in found if k.startswith("entities/hits")):
        asked = found[key.replace("hits@1", "asked")] if "/hits@1/" in key else None
        print(f"{key:<34}{found[key]:>9.3f}" + ("" if asked is None else f"  of {asked:.0f}"))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", required=True, help="folder of raw data")
    parser.add_argument("--pretrained", required=True, help="folder of the encoder to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="float32", help="encoder.dtype")
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of each pre-training")
    parser.add_argument("--labels", type=int, nargs="+", default=[80, 480])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="of everything, for a trial")
    parser.add_argument("--texts", type=int, default=0, help="to score, for a trial; 0: all")
    return parser.parse_args(argv)


def main() -> None:
    options = parse(sys.argv[1:])
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "results.json")
    for mode in ARMS:
        steps = options.steps
        if not steps:
            config = pretraining(options, mode, 100)
            name = f"{mode}, CPU seconds a step"
            pace = results.get(name, config, partial(seconds_a_step, config))
            steps = max(int(60 * options.minutes / pace), 1)
        config = pretraining(options, mode, steps)
        results.get(mode, config, partial(pretrain, options, mode, config))
    # That of `knowledge`, the last one.
    results.get("without graph", config, partial(without_graph, options))
    show(results)
    fine_tune(options)


if __name__ == "__main__":
    main()
