"""The gradient of a look-up in the word table where many ids are one and the same, as [MASK] is in
masked language modelling (12 % of the tokens), against ids that are all drawn at random. On some
GPUs and versions of jaxlib additions to one row wait for each other. JSON on the last line.

python benchmarks/embedding_gradient.py
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MASK = 103
BURST = 10
"""Calls that are timed together: one alone takes a GPU hardly longer than the host's call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=32_768, help="of a step")
    parser.add_argument("--words", type=int, default=30_592, help="rows of the table")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--share", type=float, default=0.12, help="of tokens that are [MASK]")
    parser.add_argument("--steps", type=int, default=30)
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    random = rng.integers(0, a.words, a.tokens).astype(np.int32)
    masked = np.where(rng.random(a.tokens) < a.share, MASK, random).astype(np.int32)
    table = jnp.zeros((a.words, a.width))
    given = jnp.asarray(rng.normal(size=(a.tokens, a.width)).astype(np.float32))

    @jax.jit
    def gradient(ids: jax.Array, given: jax.Array) -> jax.Array:
        return jax.grad(lambda table: (table[ids] * given).sum())(table)

    ids = [jax.device_put(x) for x in (masked, random)]
    spent: Any = np.zeros((a.steps + 3, 2, 2))
    for row in spent:
        for i, own in enumerate(ids):
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready([gradient(own, given) for _ in range(BURST)])
            row[i] = time.process_time() - cpu, time.perf_counter() - wall
    cpu_s, wall_s = np.moveaxis(spent[3:] / BURST, -1, 0)
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "jaxlib": jax.lib.__version__,
                "share": a.share,
                "masked_s": float(np.median(wall_s[:, 0])),
                "random_s": float(np.median(wall_s[:, 1])),
                "ratio_wall": float(np.median(wall_s[:, 0] / wall_s[:, 1])),
                "ratio_cpu": float(np.median(cpu_s[:, 0] / cpu_s[:, 1])),
            }
        )
    )


if __name__ == "__main__":
    main()
