"""Trains the model of a config, evaluates it, and writes the run's directory.

python train.py --config configs/quickstart.py [--optim.learning_rate=1e-3 ...] [--workdir DIR]
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keft_jax.options import ConfigOptions, config_stem, parse, run_main, take_config


@dataclass(frozen=True)
class Train:
    """Trains the model of --config FILE[:ARG], evaluates the best parameters on the test splits,
    and writes the run's directory. The same command again goes on where a run stopped, and prints
    the results of a finished one. Compiled programs are kept between runs where
    JAX_COMPILATION_CACHE_DIR names a folder, else in the run's directory.

    Several processes are one run where each is started with the same command, by itself on a TPU
    pod, in SLURM, Open MPI and indexed jobs of Kubernetes, elsewhere with --coordinator,
    --processes and --process."""

    config: ConfigOptions
    workdir: str = ""
    """The run's directory (default: runs/CONFIG-HASH)."""
    dry_run: bool = False
    """Show sizes, costs and a batch; write nothing."""
    coordinator: str = ""
    """host:port of process 0 (JAX_COORDINATOR_ADDRESS)."""
    processes: int | None = None
    """How many there are (JAX_NUM_PROCESSES). 1: this one is a run by itself."""
    process: int | None = None
    """Number of this one, from 0 on (JAX_PROCESS_ID)."""


def main(argv: Sequence[str]) -> int:
    spec, config, rest = take_config(argv)
    own = parse(Train, rest, prog="train.py", default=Train(config))
    if own.dry_run:
        from keft_jax.train.dry_run import dry_run

        dry_run(own.config)
        return 0
    import jax

    from keft_jax.distributed import join
    from keft_jax.train.run import train
    from keft_jax.train.workdir import default_workdir

    join(own.coordinator, own.processes, own.process)
    folder = Path(own.workdir or default_workdir(own.config, config_stem(spec)))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a resumed run does not compile again
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    train(own.config, folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
