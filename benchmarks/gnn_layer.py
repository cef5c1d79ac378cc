"""One graph layer of ours, forward and backward, against another program's (gnn_pyg.py of PyTorch
Geometric): each in its own interpreter, in turn, on one pinned core. The ratio is the other's CPU
seconds over ours: above 1 we are faster. The shapes are those of the other program's defaults.

python benchmarks/gnn_layer.py --baseline gnn_pyg.py --baseline-python OTHER_VENV/bin/python
python benchmarks/gnn_layer.py --alone --kind gat --compute dense      ours alone
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bert_step import compare

GRAPHS, NODES, EDGES, WIDTH, HEADS, RELATIONS = 64, 100, 400, 256, 4, 32


def make_graph(rng: np.random.Generator) -> Any:
    """Random edges, receivers rising, as the host makes batches."""
    import jraph

    pairs = rng.integers(0, NODES, (2, GRAPHS, EDGES))
    order = np.lexsort(pairs, axis=-1)
    senders, receivers = (np.take_along_axis(x, order, 1).astype(np.int32) for x in pairs)
    return jraph.GraphsTuple(
        nodes={"entity": np.zeros((GRAPHS, NODES), np.int32)},
        edges={"relation": rng.integers(0, 2 * RELATIONS, senders.shape).astype(np.int32)},
        senders=senders,
        receivers=receivers,
        n_node=np.tile(np.int32([NODES, 0]), (GRAPHS, 1)),
        n_edge=np.tile(np.int32([EDGES, 0]), (GRAPHS, 1)),
        globals=None,
    )


def time_layer(kind: Any, compute: str, steps: int, warmup: int = 3) -> dict[str, Any]:
    """CPU and wall seconds of the gradients of mean(y^2) by parameters and states."""
    import jax
    import jax.numpy as jnp

    from keft_jax.config import GraphConfig
    from keft_jax.models.functional import Model
    from keft_jax.models.graph import Edges, GraphLayer

    config = GraphConfig(kind=kind, width=WIDTH, heads=HEADS)
    model = Model(GraphLayer(config, RELATIONS, "float32"))
    rng = np.random.default_rng(0)
    graph = jax.device_put(make_graph(rng))
    x_bnw = jax.device_put(rng.normal(size=(GRAPHS, NODES, WIDTH)).astype(np.float32))

    @jax.jit
    @jax.grad
    def gradients(params_and_x: Any, graph: Any) -> jax.Array:
        params, x_bnw = params_and_x
        edges = Edges(graph, compute)
        gates = jnp.ones(graph.senders.shape)
        return jnp.square(model.apply(params, x_bnw, edges, gates)).mean()

    given = model.init(jax.random.key(0)), x_bnw
    begin = time.perf_counter()
    step = gradients.lower(given, graph).compile()
    compile_s, spent = time.perf_counter() - begin, []
    for _ in range(warmup + steps):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(step(given, graph))
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_s, wall_s = np.array(spent[warmup:]).T
    return {
        "kind": kind,
        "compute": compute,
        "cpu_s_min": cpu_s.min(),
        "cpu_s_median": np.median(cpu_s),
        "step_s_median": np.median(wall_s),
        "compile_s": compile_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--alone", action="store_true", help="time ours in this process")
    parser.add_argument("--kind", default="", help="gcn,gat (default); alone also rgcn, rgat")
    parser.add_argument("--compute", default="auto", help="auto, dense or segment")
    parser.add_argument("--baseline", default="", help="script of the other one, with options")
    parser.add_argument("--baseline-python", default=sys.executable, help="its interpreter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each in a round")
    parser.add_argument("--core", type=int, default=0, help="the core that all run on")
    a = parser.parse_args()
    kinds = a.kind.split(",") if a.kind else ["gcn", "gat"]
    if a.alone:
        for kind in kinds:
            print(json.dumps(time_layer(kind, a.compute, a.steps)))
        return
    if not a.baseline:
        parser.error("--baseline: name the other program's script, or give --alone")
    steps = ["--steps", str(a.steps)]
    out = {}
    for kind in kinds:
        alone = ["--alone", "--kind", kind, "--compute", a.compute, *steps]
        ours = [sys.executable, str(Path(__file__).resolve()), *alone]
        other = [a.baseline_python, *shlex.split(a.baseline), "--conv", kind, "--threads", "1"]
        found = compare(ours, [*other, *steps], a.rounds, a.core)
        speed = 1 / float(found["median_ratio_of_rounds"])  # type: ignore[arg-type]
        out[kind] = {**found, "times_as_fast": speed}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
