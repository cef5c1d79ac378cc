"""Trains the model of a config, evaluates it, and writes the run's directory.

python train.py --config configs/quickstart.py [--optim.learning_rate=1e-3 ...] [--workdir DIR]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from keft_jax.cli_config import Parser, config_stem, parse, run_main

DESCRIPTION = """\
Trains the model of a config, evaluates the best parameters on the test splits, and writes the run's
directory. The same command again goes on where a run stopped, and prints the results of a finished
one. Compiled programs are kept between runs where JAX_COMPILATION_CACHE_DIR names a folder."""


def main(argv: Sequence[str]) -> int:
    parser = Parser("train.py", DESCRIPTION)
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run's directory (default: runs/CONFIG-HASH)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show sizes, costs and a batch; write no run"
    )
    config, own = parse(parser, argv)
    if own.dry_run:
        from keft_jax.train.dry_run import dry_run

        dry_run(config)
        return 0
    from keft_jax.train.run import train
    from keft_jax.train.workdir import default_workdir

    train(config, Path(own.workdir or default_workdir(config, config_stem(own.config))))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
