"""Runs as child processes, for kill.py and hosts.py. The parent imports everything and asks for no
device, so that a child is there at once."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Restarts do not compile again.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax
import numpy as np

import keft_jax.train.run  # noqa: F401 (imported for the children)
from keft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    KgeConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
    WatchConfig,
)
from keft_jax.options import run_main

ENTITIES, RELATIONS, TRIPLES = 40, 4, 200


def triples_config(folder: Path) -> Config:
    """Link prediction on random triples, with a table that a step reads by rows. Writes the
    files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    drawn = [(rng.integers(ENTITIES), rng.integers(RELATIONS), rng.integers(ENTITIES))]
    while len(drawn) < TRIPLES:
        one = (rng.integers(ENTITIES), rng.integers(RELATIONS), rng.integers(ENTITIES))
        drawn += [one] if one not in drawn else []
    lines = [f"e{head}\tr{relation}\te{tail}\n" for head, relation, tail in drawn]
    splits = {"train": lines[:160], "select": lines[160:180], "test": lines[180:]}
    for name, part in splits.items():
        (folder / f"{name}.tsv").write_text("".join(part))
    return Config(
        name="triples",
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(
            train=f"{folder}/train.tsv",
            select=f"{folder}/select.tsv",
            test=(f"{folder}/test.tsv",),
        ),
        kge=KgeConfig(width=8, negatives=8, share=4, init=0.3),
        optim=OptimConfig(
            kind="adagrad",
            tables="rows",
            steps=24,
            batch=32,
            learning_rate=0.1,
            weight_decay=0,
            clip=0,
        ),
        mesh=MeshConfig(),
        eval=EvalConfig(every=8, batch=64),
        checkpoint=CheckpointConfig(every=3),
        watch=WatchConfig(stall=300, abort=900),
    )


def with_steps(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=steps))


def spawn(run: Callable[[], object], log: Path, devices: int = 1, cache: str = "") -> int:
    """The process id of a child that calls it and ends as the command would."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(out, stream)
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
        if cache:
            jax.config.update("jax_compilation_cache_dir", cache)

        def main() -> int:
            run()
            return 0

        code = run_main(main)
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
    except BaseException:  # whatever it is, the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pids: list[int]) -> bool:
    """Whether one of them has; `wait` still tells how."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return any(os.waitid(os.P_PID, pid, look) for pid in pids)


def wait(pids: list[int]) -> list[int]:
    """Their exit codes; negative: the signal that ended them."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
