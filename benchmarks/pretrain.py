"""What knowledge in pre-training is worth: `plain` and `knowledge` of configs/pretrain.py for the
same CPU time from the same start, then FewRel from both and from that start.

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/pretrain.py --source ../shared/data \
        --pretrained ../shared/models/all-MiniLM-L6-v2 --out runs/pretrain

Steps of both are those that take `--minutes` CPU minutes, measured first, without evaluation and
compilation. Each cell is kept in --out, and the same command goes on with what is missing; the
table is printed, and lies in OUT/results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from keft_jax.config import Config, FusionConfig
from keft_jax.files import write_atomic
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


class Cells:
    """Results by name, each computed once."""

    def __init__(self, file: Path):
        self.file = file
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self.done:
            print(f"{name} ...", flush=True)
            self.done[name] = compute()
            write_atomic(self.file, json.dumps(self.done, indent=2))
        return self.done[name]


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
    return dataclasses.replace(
        config,
        fusion=FusionConfig(kind="none"),
        knowledge=dataclasses.replace(config.knowledge, row="none"),
        optim=dataclasses.replace(
            optim, groups=tuple(g for g in optim.groups if not g.match.startswith("nodes"))
        ),
    )


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
    encoder = dataclasses.replace(config.encoder, pretrained=options.pretrained)
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


def pretrain(options: argparse.Namespace, mode: str, steps: int) -> dict[str, Any]:
    begin = time.process_time()
    config = pretraining(options, mode, steps)
    summary = finish(config, options.out / mode)
    (scores,) = summary["scores"].values()
    return {
        "steps": steps,
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


def fine_tune(folder: Path, config: Config) -> dict[str, Any]:
    """Accuracy over all test sentences, and over those with an entity in the graph."""
    tests, data = config.data.test, dataclasses.replace(config.data, test=())
    finish(dataclasses.replace(config, data=data), folder)
    parts, params = load_run(folder)
    test = parts.ready(parts.read(tests[0]))
    right, linked = Evaluator(parts).evaluate(params, test)["accuracy"], test.linked
    return {
        "accuracy": float(right.mean()),
        "covered": float(right[linked].mean()),
        "test": len(test),
        "test_covered": int(linked.sum()),
    }


def show(cells: Cells, options: argparse.Namespace) -> None:
    done = cells.done
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
    print(f"\n{'FewRel':<34}{'all':>15}{'covered':>15}")
    for labels in options.labels:
        for start in STARTS:
            for reads in READS:
                names = [f"{start}/{reads}/{labels}/{seed}" for seed in options.seeds]
                rows = [done[name] for name in names if name in done]
                if rows:
                    told = [spread([row[k] for row in rows]) for k in ("accuracy", "covered")]
                    name = f"{labels} labels, {start}, reads {reads}"
                    print(f"{name:<34}{told[0]:>15}{told[1]:>15}")


def spread(values: list[float]) -> str:
    wide = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * wide:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", required=True, help="folder of raw data")
    parser.add_argument("--pretrained", required=True, help="folder of the encoder to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of each pre-training")
    parser.add_argument("--labels", type=int, nargs="+", default=[96, 480])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="of everything, for a trial")
    parser.add_argument("--texts", type=int, default=0, help="to score, for a trial; 0: all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(options.out / "results.json")
    for mode in ARMS:
        steps = options.steps
        if not steps:
            config = pretraining(options, mode, 100)
            pace = cells.get(f"{mode}, CPU seconds a step", partial(seconds_a_step, config))
            steps = max(int(60 * options.minutes / pace), 1)
        cells.get(mode, partial(pretrain, options, mode, steps))
    cells.get("without graph", partial(without_graph, options))
    for labels in options.labels:
        for seed in options.seeds:
            for start in STARTS:
                for reads in READS:
                    name = f"{start}/{reads}/{labels}/{seed}"
                    config = fine_tuning(options, start, reads, labels, seed)
                    folder = options.out / "fewrel" / name.replace("/", "-")
                    cells.get(name, partial(fine_tune, folder, config))
    show(cells, options)


if __name__ == "__main__":
    main()
