"""Training steps and filtered evaluation of triple embeddings, ours against PyKEEN's, each in its
own interpreter, in turn, on one pinned core: CPU seconds a step. Prints JSON on its last line.

python benchmarks/kge.py --baseline-python OTHER_VENV/bin/python \
    --baseline ../shared/baselines/kge_pykeen.py --data ../shared/data/kg/FB15k-237

Pairs do the same work: batch 1024, 128 negatives for each positive, d = 200 (complex numbers for
ComplEx), self-adversarial loss, dense Adam; or 1-vs-all, by softmax against
the loss that the other is fastest with (softplus). Cases without a partner are ours alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCH, NEGATIVES, WIDTH = 1024, 128, 200
STEPS, WARMUP = 12, 2

SELF = {"loss": "self_adversarial", "margin": 9.0, "reciprocal": False}
OWN = {**SELF, "negatives": NEGATIVES, "share": 1}
SHARED = {**SELF, "negatives": NEGATIVES, "share": 64}
ADAM = {"kind": "adamw", "learning_rate": 1e-3}
ROWS = {"kind": "adagrad", "learning_rate": 0.1, "tables": "rows"}
ALL = {"model": "complex", "loss": "softmax", "reciprocal": True}

# name: (kge, optim, threads, options of the other program; None: ours alone)
CASES: dict[str, tuple[dict, dict, int, list[str] | None]] = {
    "transe_l1": ({**OWN, "model": "transe", "distance": "l1"}, ADAM, 1, ["--model", "TransE"]),
    "complex": ({**OWN, "model": "complex"}, ADAM, 1, ["--model", "ComplEx"]),
    "complex_all": (
        ALL,
        ADAM,
        1,
        ["--model", "ComplEx", "--loop", "lcwa", "--loss", "native"],
    ),
    "complex_all_bf16": ({**ALL, "dtype": "bfloat16"}, ADAM, 1, None),
    "complex_shared": ({**SHARED, "model": "complex"}, ROWS, 2, None),
    "transe_l2_shared": ({**SHARED, "model": "transe", "distance": "l2"}, ROWS, 2, None),
    "transr": ({**SHARED, "model": "transr", "distance": "l2"}, ROWS, 1, None),
}
EVALUATION = "evaluation"  # ComplEx on the whole test split


def make_config(data: str, kge: dict[str, Any], optim: dict[str, Any]) -> Any:
    from keft_jax.config import Config, DataConfig, EvalConfig, KgeConfig, OptimConfig, TaskConfig

    return Config(
        name="bench_kge",
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train=data),
        kge=KgeConfig(width=WIDTH, **kge),
        optim=OptimConfig(batch=BATCH, weight_decay=0, clip=0, warmup=0, **optim),
        eval=EvalConfig(batch=256),
    )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def train(name: str, data: str, steps: int) -> dict[str, Any]:
    """The product's own step, timed one by one."""
    import numpy as np

    from keft_jax.bench.timing import Steps, time_in_turn
    from keft_jax.train.loop import Trainer, make_plan
    from keft_jax.train.triple_parts import build_triples

    kge, optim, _, _ = CASES[name]
    config = make_config(data, kge, optim)
    parts, splits = build_triples(config)
    trainer, queries = Trainer(parts), parts.ready(splits.train)
    plan = make_plan(config, queries, 0)
    batches = [queries.batch(*plan.batch(i)) for i in range(4)]
    timed = time_in_turn([Steps(trainer, batches)], steps, WARMUP)[:, 0]
    # Padding of blocks of one relation is no positive.
    positives = float(np.mean([(b.targets["link"].weight > 0).sum() for b in batches]))
    return {
        "cpu_s_min": timed[:, 0].min(),
        "cpu_s_median": float(np.median(timed[:, 0])),
        "step_s_median": float(np.median(timed[:, 1])),
        "positives_per_s": positives / float(np.median(timed[:, 1])),
        "peak_rss_gib": peak_gib(),
    }


def evaluate(data: str) -> dict[str, Any]:
    """Filtered ranks of both sides of a test split; time does not depend on the values."""
    import jax
    import numpy as np

    from keft_jax.train.loop import Trainer
    from keft_jax.train.triple_parts import build_triples

    config = make_config(data, dict(model="complex", reciprocal=True), ADAM)
    parts, splits = build_triples(config)
    trainer, test = Trainer(parts), parts.ready(splits.tests["test"])
    params = jax.tree.map(
        lambda s: jax.numpy.asarray(np.random.default_rng(0).normal(size=s.shape), "f"),
        parts.model.abstract(),
    )
    spent = []
    for _ in range(2):  # the first one compiles
        cpu, wall = time.process_time(), time.perf_counter()
        trainer.evaluate(params, test)
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        "triples": len(test.triples),
        "first_cpu_s": spent[0][0],
        "cpu_s_min": spent[1][0],
        "cpu_s_median": spent[1][0],
        "wall_s": spent[1][1],
        "peak_rss_gib": peak_gib(),
    }


def run(command: list[str], cores: str, threads: int) -> dict[str, Any]:
    """The JSON of a program's last line; stops with its last words where it fails."""
    flags = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    own = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "XLA_FLAGS": flags}
    paths = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pinned = ["taskset", "-c", cores, *command]
    done = subprocess.run(
        pinned, env=os.environ | own | paths, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(pinned)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(name: str, a: argparse.Namespace) -> dict[str, Any]:
    """Ours and, where there is one, the other program, in turn."""
    threads, options = (1, None) if name == EVALUATION else CASES[name][2:]
    ours, other = [], []
    cores = a.core if threads == 1 else a.cores
    for number in range(a.rounds):
        one = [a.python, __file__, "--worker", name, "--data", a.data, "--steps", str(a.steps)]
        ours.append(run(one, cores, threads))
        line = f"{name} round {number + 1}: ours {ours[-1]['cpu_s_median']:.4f} CPU s"
        if options is not None and a.baseline_python:
            its = [a.baseline_python, a.baseline, "--data", a.data, "--steps", "7", *options]
            other.append(run([*its, "--threads", "1"], cores, threads))
            other[-1]["cpu_s"] = other[-1]["step_cpu_ms"] / 1e3
            line += f", other {other[-1]['cpu_s']:.3f}"
        print(line, file=sys.stderr, flush=True)
    out: dict[str, Any] = {
        key: statistics.median(one[key] for one in ours) for key in ours[0] if key != "cpu_s_min"
    }
    out["cpu_s_min"] = min(one["cpu_s_min"] for one in ours)
    if other:
        ratios = [b["cpu_s"] / x["cpu_s_median"] for b, x in zip(other, ours, strict=True)]
        out |= {
            "other_cpu_s_min": min(b["cpu_s"] for b in other),
            "other_cpu_s_median": statistics.median(b["cpu_s"] for b in other),
            "other_peak_rss_gib": max(b["peak_rss_gib"] for b in other),
            "other_over_ours": statistics.median(ratios),
            "rounds": ratios,
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", default=[*CASES, EVALUATION])
    parser.add_argument("--data", default=str(ROOT.parent / "shared/data/kg/FB15k-237"))
    parser.add_argument("--baseline", default=str(ROOT.parent / "shared/baselines/kge_pykeen.py"))
    parser.add_argument("--baseline-python", default="", help="its interpreter; empty: ours alone")
    parser.add_argument("--python", default=sys.executable, help="our interpreter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="timed steps of ours in a round")
    parser.add_argument("--core", default="0", help="of what runs on one thread")
    parser.add_argument("--cores", default="0,1", help="of what runs on two")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        from keft_jax.memory import keep_freed_memory

        keep_freed_memory()  # as train.py does
        same = evaluate(a.data) if a.worker == EVALUATION else train(a.worker, a.data, a.steps)
        print(json.dumps(same))
        return
    for name in a.cases:
        if name not in (*CASES, EVALUATION):
            parser.error(f"no case {name!r}: there are {', '.join([*CASES, EVALUATION])}")
    print(json.dumps({name: compare(name, a) for name in a.cases}))


if __name__ == "__main__":
    main()
