"""Trains the model of a config, evaluates it, and writes the run's directory.

python train.py --config configs/quickstart.py [--optim.learning_rate=1e-3 ...] [--workdir DIR]
"""

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
    JAX_COMPILATION_CACHE_DIR names a folder."""

    config: ConfigOptions
    workdir: str = ""
    """The run's directory (default: runs/CONFIG-HASH)."""
    dry_run: bool = False
    """Show sizes, costs and a batch; write nothing."""


def main(argv: Sequence[str]) -> int:
    spec, config, rest = take_config(argv)
    own = parse(Train, rest, prog="train.py", default=Train(config))
    if own.dry_run:
        from keft_jax.train.dry_run import dry_run

        dry_run(own.config)
        return 0
    from keft_jax.train.run import train
    from keft_jax.train.workdir import default_workdir

    train(own.config, Path(own.workdir or default_workdir(own.config, config_stem(spec))))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
