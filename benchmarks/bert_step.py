"""Our training step against another program's, each in its own interpreter, in turn, on one pinned
core: the ratio of CPU seconds a step. The other program prints JSON with cpu_s_min and cpu_s_median
on its last line, as `keft bench` does.

python benchmarks/bert_step.py --baseline-python OTHER_VENV/bin/python \
    --baseline "bert_torch_hf.py --size minilm --batch 8 --seq 128 --threads 1"
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
}


def measure(command: list[str], core: int) -> dict[str, float]:
    """The JSON of a program's last line; stops with its last words where it fails."""
    pinned = ["taskset", "-c", str(core), *command]
    done = subprocess.run(pinned, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(pinned)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(ours: list[str], other: list[str], rounds: int, core: int) -> dict[str, object]:
    """Best and median step of all rounds, ours over the other's; and the ratio of each round."""
    pairs = []
    for number in range(rounds):
        both = [measure(one, core) for one in (ours, other)[:: -1 if number % 2 else 1]]
        pairs.append(both[:: -1 if number % 2 else 1])
        best = [f"{one['cpu_s_min']:.3f}" for one in pairs[-1]]
        print(f"round {number + 1}: ours {best[0]}, other {best[1]} CPU s a step", file=sys.stderr)

    def table(key: str) -> list[list[float]]:
        return [[pair[side][key] for pair in pairs] for side in (0, 1)]

    least = [min(values) for values in table("cpu_s_min")]
    middle = [statistics.median(values) for values in table("cpu_s_median")]
    of_rounds = [mine / its for mine, its in zip(*table("cpu_s_median"), strict=True)]
    return {
        "ours_cpu_s_min": least[0],
        "other_cpu_s_min": least[1],
        "ours_cpu_s_median": middle[0],
        "other_cpu_s_median": middle[1],
        "ratio_of_minima": least[0] / least[1],
        "ratio_of_medians": middle[0] / middle[1],
        "median_ratio_of_rounds": statistics.median(of_rounds),
        "rounds": of_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default=str(ROOT / "configs/bench.py") + ":minilm_mlm")
    parser.add_argument("--baseline", required=True, help="script of the other one, with options")
    parser.add_argument("--baseline-python", default=sys.executable, help="its interpreter")
    parser.add_argument("--python", default=sys.executable, help="our interpreter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each in a round")
    parser.add_argument("--core", type=int, default=0, help="the core that all run on")
    a = parser.parse_args()
    steps = ["--steps", str(a.steps)]
    run = "from keft_jax.cli import main; main()"
    ours = [a.python, "-c", run, "bench", "--config", a.config, "--no-parts", *steps]
    other = [a.baseline_python, *shlex.split(a.baseline), *steps]
    print(json.dumps(compare(ours, other, a.rounds, a.core)))


if __name__ == "__main__":
    main()
