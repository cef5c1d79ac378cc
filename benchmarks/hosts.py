"""Several processes against one, on this machine's CPU: the same losses, the same examples in the
same order, one stop for all.

    python benchmarks/hosts.py --out runs/hosts

Trains link prediction on random triples, with a table cut by rows over all devices, by one
process, by 2 and by 4; further runs of 2 and of 4 are stopped by SIGTERM to one of them and go on
with 1, 2 and 4. Says how far the losses of each are from those of one process, whether every step
had the same examples, and where a stopped run stopped. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from launch import ended, free_port, spawn, triples_config, wait

from keft_jax.config import Config
from keft_jax.distributed import join
from keft_jax.train import loop
from keft_jax.train.run import train

CASES = ((2, 1), (2, 2), (4, 1))  # processes, devices of each
AGAIN = (1, 2, 4)  # processes that the stopped run goes on with
STOPPED = (2, 4)  # processes of which one gets SIGTERM
STOP_AFTER = 4  # steps
NAME = "metrics.jsonl"


def record(file: Path) -> None:
    """From now on, what each batch of training holds on this process's devices goes there."""
    feed, out = loop.feed, file.open("a")

    def recorded(*args, **kwargs):
        batch = feed(*args, **kwargs)
        parts = {s.index[0].start or 0: s.data for s in batch.example.addressable_shards}
        print(json.dumps({k: np.asarray(v).tolist() for k, v in parts.items()}), file=out)
        out.flush()
        return batch

    loop.feed = recorded


def start(config: Config, folder: Path, processes: int, devices: int) -> list[int]:
    port = free_port()

    def run(process: int) -> None:
        join(f"localhost:{port}", processes, process)
        record(folder.with_name(f"{folder.name}-{process}.batches"))
        ended = train(config, folder, quiet=True)
        result(folder, process).write_text(json.dumps(ended.get("stopped")))

    cache = str(folder.parent / f"compiled-{processes}-{devices}")
    return [
        spawn(lambda i=i: run(i), folder.with_name(f"{folder.name}-{i}.log"), devices, cache)
        for i in range(processes)
    ]


def result(folder: Path, process: int) -> Path:
    """Where a process says at which step it was stopped."""
    return folder.with_name(f"{folder.name}-{process}.json")


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / NAME).read_text().splitlines()]
    return {line["step"]: line["loss/total"] for line in lines if "loss/total" in line}


def scores(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / NAME).read_text().splitlines()]
    return {line["step"]: line["select/mrr"] for line in lines if "select/mrr" in line}


def batches(folder: Path, processes: int) -> list[list[int]]:
    """The examples of each recorded batch, put together from its processes."""
    files = [folder.with_name(f"{folder.name}-{i}.batches") for i in range(processes)]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    out = []
    for parts in zip(*rows, strict=True):
        whole = {int(k): v for part in parts for k, v in part.items()}
        out.append([one for k in sorted(whole) for one in whole[k]])
    return out


def apart(one: dict[int, float], two: dict[int, float]) -> float:
    """The largest difference; infinite where a step is missing, or there twice."""
    return max(abs(one[k] - two[k]) for k in one) if list(one) == list(two) else float("inf")


def stop_one(config: Config, folder: Path, processes: int) -> dict:
    pids = start(config, folder, processes, 1)
    file = folder / NAME
    while not file.exists() or len(file.read_text().splitlines()) < STOP_AFTER:
        if ended(pids):
            raise SystemExit(f"{folder}-*.log: ended before it was stopped")
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    codes = wait(pids)
    steps = sorted(int(p.stem) for p in (folder / "checkpoints").glob("*.json"))
    told = [json.loads(result(folder, i).read_text()) for i in range(processes)]
    return {"exit codes": codes, "stopped at": told, "last checkpoint": steps[-1]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--only", default="", help="of one, 2x1, 2x2, stopped-2, again-2-1, ...")
    given = options.parse_args()
    out, only = given.out.resolve(), given.only.split(",") if given.only else []
    config = triples_config(out / "data")
    file = out / "hosts.json"
    done = json.loads(file.read_text()) if file.exists() else {}

    def note(name: str, value: dict) -> None:
        done[name] = value
        file.write_text(json.dumps(done, indent=2))
        print(name, json.dumps(value), flush=True)

    def wanted(name: str) -> bool:
        return name not in done and (not only or name in only)

    def fresh(name: str) -> Path:
        for left in out.glob(f"{name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return out / name

    one = out / "one"
    if wanted("one"):
        pids = start(config, fresh("one"), 1, 1)
        note("one", {"exit codes": wait(pids)})

    def compare(folder: Path, codes: list[int], first: int = 0) -> dict:
        return {
            "exit codes": codes,
            "steps": len(losses(folder)),
            "loss apart": apart(losses(one), losses(folder)),
            "mrr apart": apart(scores(one), scores(folder)),
            "same examples": batches(folder, len(codes)) == batches(one, 1)[first:],
        }

    for processes, devices in CASES:
        name = f"{processes}x{devices}"
        if wanted(name):
            folder = fresh(name)
            note(name, compare(folder, wait(start(config, folder, processes, devices))))
    for of in STOPPED:
        stopped = f"stopped-{of}"
        if wanted(stopped):
            note(stopped, stop_one(config, fresh(stopped), of))
        for processes in AGAIN:
            name = f"again-{of}-{processes}"
            if wanted(name):
                folder = fresh(name)
                shutil.copytree(out / stopped, folder)
                codes = wait(start(config, folder, processes, 1))
                note(name, compare(folder, codes, done[stopped]["last checkpoint"]))


if __name__ == "__main__":
    main()
