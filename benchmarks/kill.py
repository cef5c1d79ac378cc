"""A run that is killed again and again ends with the parameters of one that was left alone.

    python benchmarks/kill.py --out runs/kill --kills 50

Trains link prediction on random triples, saving every third step. A round starts a run and kills it
(SIGKILL) at a random moment: so long after its start, after a step, or while a checkpoint is being
written; starts it again and kills it again, up to four times, and then lets it end. Then its last
checkpoint has to be that of the undisturbed run bit for bit. Goes on where it was stopped itself;
says how many kills fell into which part of a run.

    python benchmarks/kill.py --out runs/kill --flips 20

flips one random bit in each of so many files of a finished run's last checkpoint, by turns, and
has the run go on: it has to name the file and go on from the step before, to the same end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from launch import spawn, triples_config, wait

from keft_jax.config import Config
from keft_jax.train.run import train

KINDS = ("start", "step", "save")


class Child:
    """One attempt at a run, in a process of its own."""

    def __init__(self, config: Config, folder: Path, cache: Path):
        self.begin, self.folder = time.time(), folder
        log = folder.with_name(f"{folder.name}.log")

        def run() -> None:
            train(config, folder)
            folder.with_name(f"{folder.name}.arrays").write_text(json.dumps(arrays(folder)))

        self.pid = spawn(run, log, cache=str(cache))
        self.code: int | None = None

    def over(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def part(self) -> str:
        """Which part of the run it is in. What an earlier process left unfinished is no save."""
        found = [
            p for kind in ("checkpoints", "best") for p in (self.folder / kind).glob("*[0-9p]")
        ]
        if any(
            p.is_dir() and not p.with_name(f"{p.name}.json").exists() and self._made(p)
            for p in found
        ):
            return "save"
        return "step" if self._made(self.folder / "metrics.jsonl") else "start"

    def _made(self, path: Path) -> bool:
        """By this process. One that others wait for may be gone again."""
        try:
            return path.stat().st_mtime > self.begin
        except FileNotFoundError:
            return False

    def until(self, condition: Callable[[], bool]) -> None:
        while not self.over() and not condition():
            time.sleep(0.002)

    def kill(self) -> bool:
        """False: it had come to its end."""
        if (self.folder / "summary.json").exists():
            self.until(lambda: False)
        if self.over():
            return False
        os.kill(self.pid, signal.SIGKILL)
        self.code = wait([self.pid])[0]
        return self.code == -signal.SIGKILL


def steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def moment(child: Child, folder: Path, kind: str, draw: random.Random, usual: float) -> str:
    """Waits for a random moment of that kind; says into which part of the run it fell."""
    if kind == "start":
        after = draw.uniform(0.0, usual)
        child.until(lambda: time.time() - child.begin > after)
        return child.part()
    wanted = min(steps(folder) + draw.randrange(1, 8), 22)
    if kind == "step":
        child.until(lambda: steps(folder) >= wanted and child.part() == "step")
    else:
        child.until(lambda: steps(folder) >= wanted and child.part() == "save")
    time.sleep(draw.choice((0.0, draw.uniform(0.0, 0.1))))
    return child.part()


def arrays(folder: Path) -> dict[str, str]:
    """sha256 of every array of the last checkpoint, by name, and of the best parameters."""
    import hashlib

    import jax
    import numpy as np

    from keft_jax.train.checkpoint import Checkpoints, abstract_like
    from keft_jax.train.loop import Trainer
    from keft_jax.train.run import load_triple_run

    parts, best = load_triple_run(folder)
    trainer: Trainer = Trainer(parts)
    shape = jax.eval_shape(trainer.init, jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.restore(abstract_like(shape, trainer.shardings))
    checkpoints.close()
    assert found is not None
    trees = {"state": vars(found[0]), "best": best}
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    out = {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
        for path, x in leaves
    }
    return out | {"progress": json.dumps(vars(found[1]), sort_keys=True)}


def read(folder: Path) -> dict[str, str]:
    """`arrays` of a run that has ended, as its process found them."""
    return json.loads(folder.with_name(f"{folder.name}.arrays").read_text())


class Bench:
    def __init__(self, out: Path):
        self.out, self.cache = out, out / "compiled"
        self.config = triples_config(out / "data")
        self.file, self.whole = out / "kill.json", out / "whole"
        self.seen = json.loads(self.file.read_text()) if self.file.exists() else {}
        if "usual" not in self.seen:
            self.begin()

    def begin(self) -> None:
        """The undisturbed run, twice: the second one compiles nothing, and says what is usual."""
        for name in ("first", "whole"):
            shutil.rmtree(self.out / name, ignore_errors=True)
            child = Child(self.config, self.out / name, self.cache)
            child.until(lambda name=name: steps(self.out / name) > 0)
            usual = time.time() - child.begin
            child.until(lambda: False)
            if child.code != 0:
                raise SystemExit(f"{self.out / name}.log: the undisturbed run failed")
        self.seen |= {"usual": usual, "arrays": read(self.whole)}
        self.seen |= {"kills": {}, "rounds": 0, "same": 0, "failed": [], "flips": {}}
        self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.seen, indent=2))

    def kill(self, kills: int) -> None:
        """Rounds until so many kills are done in all."""
        while (done := sum(self.seen["kills"].values())) < kills:
            draw, fell = random.Random(), Counter()
            folder = self.out / f"round-{self.seen['rounds']}"
            shutil.rmtree(folder, ignore_errors=True)
            for _ in range(min(draw.randrange(2, 5), kills - done)):
                child = Child(self.config, folder, self.cache)
                kind = draw.choice(KINDS)
                part = moment(child, folder, kind, draw, self.seen["usual"])
                if child.kill():
                    fell[part] += 1
                else:
                    break
            code = child.code
            if code == -signal.SIGKILL:  # any other error is one
                child = Child(self.config, folder, self.cache)
                child.until(lambda child=child: False)
                code = child.code
            same = code == 0 and read(folder) == self.seen["arrays"]
            self.seen["kills"] = dict(Counter(self.seen["kills"]) + fell)
            self.seen["rounds"] += 1
            self.seen["same"] += same
            if same:
                shutil.rmtree(folder)
            else:
                self.seen["failed"].append(str(folder))
            self.write()
            self.show()

    def show(self) -> None:
        kills = self.seen["kills"]
        parts = ", ".join(f"{n} in {part}" for part, n in sorted(kills.items()))
        print(
            f"{sum(kills.values())} kills ({parts}); {self.seen['same']} of {self.seen['rounds']} "
            f"rounds ended the same",
            flush=True,
        )

    def flip(self, flips: int) -> None:
        """A bit in each file of the last checkpoint, in turn until there are so many."""
        last = max((self.whole / "checkpoints").glob("*.json"), key=lambda p: int(p.stem))
        step = last.with_suffix("")
        files = sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size) + [last]
        for number in range(len(self.seen["flips"]), flips):
            file = files[number % len(files)].relative_to(self.whole)
            folder = self.out / f"flip-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.whole, folder)
            (folder / "summary.json").unlink()
            data = bytearray((folder / file).read_bytes())
            bit = random.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            (folder / file).write_bytes(data)
            child = Child(self.config, folder, self.cache)
            child.until(lambda child=child: False)
            log = " ".join(folder.with_name(f"{folder.name}.log").read_text().split())
            found = str(folder / file) in log and f"resumed from step {int(step.name) - 3} " in log
            same = child.code == 0 and read(folder) == self.seen["arrays"]
            self.seen["flips"][str(number)] = [str(file), found, same]
            self.write()
            if found and same:
                shutil.rmtree(folder)
            good = sum(all(one[1:]) for one in self.seen["flips"].values())
            print(f"{len(self.seen['flips'])} flips, {good} found and made good", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--kills", type=int, default=0)
    options.add_argument("--flips", type=int, default=0)
    given = options.parse_args()
    bench = Bench(given.out.resolve())
    bench.kill(given.kills)
    bench.flip(given.flips)
    bench.show()


if __name__ == "__main__":
    main()
