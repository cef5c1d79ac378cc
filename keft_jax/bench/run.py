"""`keft bench`: what a step of a config takes, as text and as one JSON object."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from typing import Any

import numpy as np
import rich.console

from keft_jax.bench.flops import FORMULA, count_step, find_peak
from keft_jax.bench.host import bench_input
from keft_jax.bench.synthetic import make_synthetic
from keft_jax.bench.timing import Steps, time_in_turn
from keft_jax.config import Config, KeftError
from keft_jax.data.batch import Batch
from keft_jax.data.features import with_row
from keft_jax.data.plan import BatchPlan
from keft_jax.data.source import Example
from keft_jax.data.splits import Splits
from keft_jax.data.unlabelled import Mixed
from keft_jax.gain.cost import without_graph
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import Parts, build
from keft_jax.train.run import load_given, versions

BATCHES = 4
"""Different batches that the steps take in turn."""
MIB = 2**20


def bench(config: Config, steps: int = 10, warmup: int = 2) -> dict[str, Any]:
    """Times the training step; prints what a person reads and gives what a program reads."""
    parts, examples = prepare(config)
    batches = first_batches(parts, examples)
    main = Steps(Trainer(parts, load_given(parts)), batches)
    runs = [main]
    if parts.config.fusion.kind != "none":
        runs.append(Steps(Trainer(without_graph(parts)), batches))
    times = time_in_turn(runs, steps, warmup)
    cpu, wall = times[:, 0, 0], times[:, 0, 1]
    step_s = float(np.median(wall))
    flops = [count_step(parts, batch) for batch in batches]
    useful = {name: float(np.mean([f[name] for f in flops])) for name in flops[0]}
    peak, how = find_peak(parts.config.encoder.dtype, main.trainer.mesh.size)
    tokens = float(np.mean([batch.length.sum() for batch in batches]))
    out: dict[str, Any] = {
        "name": config.name,
        "input": "files" if config.data.train else "synthetic",
        "steps": steps,
        "cpu_s_min": float(cpu.min()),
        "cpu_s_median": float(np.median(cpu)),
        "step_s_median": step_s,
        "step_s_p95": float(np.quantile(wall, 0.95)),
        "tokens_per_s": tokens / step_s,
        "examples_per_s": parts.config.optim.batch / step_s,
        "mfu": useful["total"] / step_s / peak,
        "flops_per_step": useful["total"],
        "flops_by_part": useful,
        "peak_flops": peak,
        "peak_known_by": how,
        "compile_s": main.compile_s,
        "peak_rss_mib": peak_rss() / MIB,
        "device_memory_mib": device_memory(main),
        "loss": main.loss,
        "shapes": shapes(parts, batches),
        "device": device(main.trainer),
        "versions": versions(),
    }
    if len(runs) > 1:
        ratios = times[:, 0] / times[:, 1]
        out["graph_ratio_cpu"], out["graph_ratio_wall"] = map(float, np.median(ratios, 0))
        out["graph_ratio_cpu_min"] = float(cpu.min() / times[:, 1, 0].min())
        out["without_graph_cpu_s_min"] = float(times[:, 1, 0].min())
    if config.data.train:
        out["host_input"] = bench_input(parts, examples)
    show(out)
    return out


def bench_host(config: Config) -> dict[str, Any]:
    """Times the host's side alone."""
    if not config.data.train:
        raise KeftError(
            "bench --input: data.train = '': name the file to read; it is what is timed"
        )
    parts, examples = prepare(config)
    out = {"name": config.name, "host_input": bench_input(parts, examples), "versions": versions()}
    show(out)
    return out


def prepare(config: Config) -> tuple[Parts, list[Example]]:
    """Real examples where the config names a file, else made-up ones."""
    if config.data.train:
        parts, splits = build(config)
        return parts, splits.train
    return make_synthetic(config, BATCHES * config.optim.batch, config.seed)


def first_batches(parts: Parts, examples: list[Example]) -> list[Batch]:
    """Batches of one length: that of the plan's first one."""
    config = parts.config
    batch = min(config.optim.batch, len(examples))
    if batch < config.optim.batch:
        raise KeftError(f"optim.batch = {config.optim.batch}: there are {batch} examples; lower it")
    some = examples[: 64 * batch]
    text = parts.training(Splits(some, [], {}, unlabelled=some))
    ready = with_row(text, parts.knowledge, config.knowledge.row, config.seed)
    plan: Any = BatchPlan(ready.lengths, batch, config.data.buckets, config.seed)
    if config.data.pack:
        plan = make_plan(config, ready, config.seed)
    if isinstance(ready, Mixed):  # all of them, drawn or not
        plan = dataclasses.replace(ready, leftover=False).mix(plan, config.optim.unlabelled)
    drawn = [plan.batch(step) for step in range(len(ready) // batch)]
    same = [indices for length, indices in drawn if length == drawn[0][0]]
    return [ready.batch(drawn[0][0], indices) for indices in same[:BATCHES]]


def shapes(parts: Parts, batches: list[Batch]) -> dict[str, Any]:
    """Padded sizes, and the mean number of real tokens, nodes, edges and targets of a batch."""
    c, first = parts.config, batches[0]
    graph = first.graph

    def mean(values: list[Any]) -> float:
        return float(np.mean([float(value) for value in values]))

    return {
        "batch": first.tokens.shape[0],
        "length": first.tokens.shape[1],
        "nodes": graph.nodes["entity"].shape[1],
        "edges": graph.senders.shape[1],
        "layers": c.encoder.layers,
        "width": c.encoder.width,
        "heads": c.encoder.heads,
        "mlp": c.encoder.mlp,
        "dropout": c.encoder.dropout,
        "dtype": c.encoder.dtype,
        "graph": c.graph.kind if c.fusion.kind != "none" else "none",
        "graph_layers": c.graph.layers,
        "graph_width": c.graph.width,
        "fusion": c.fusion.kind,
        "task": c.task.kind,
        "vocabulary": parts.knowledge.vocabulary.tokenizer.get_vocab_size(),
        "entities": parts.knowledge.kg.n_entities,
        "parameters": parts.model.size(),
        "real_tokens": mean([b.length.sum() for b in batches]),
        "real_nodes": mean([b.graph.n_node[:, 0].sum() for b in batches]),
        "real_edges": mean([b.graph.n_edge[:, 0].sum() for b in batches]),
        "targets": mean([parts.task.total(b) for b in batches]),
    }


def device(trainer: Trainer) -> dict[str, Any]:
    first = trainer.mesh.devices.flat[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": trainer.mesh.size,
        "cores": cores,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def peak_rss() -> int:
    """Bytes, of this process so far; with a second model, of both."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def device_memory(steps: Steps) -> dict[str, float]:
    """What the compiler allots to a step, and where the device keeps count, the most in use."""
    out, found = {}, steps.compiled.memory_analysis()
    if found is not None:
        out = {
            "arguments": found.argument_size_in_bytes / MIB,
            "temporaries": found.temp_size_in_bytes / MIB,
        }
    counts = steps.trainer.mesh.devices.flat[0].memory_stats()
    if counts and "peak_bytes_in_use" in counts:
        out["peak_in_use"] = counts["peak_bytes_in_use"] / MIB
    return out


def show(out: dict[str, Any]) -> None:
    """The lines before the JSON."""
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)

    def line(name: str, text: str) -> None:
        console.print(f"{name:<16}{text}", markup=False)

    if "shapes" in out:
        s, d = out["shapes"], out["device"]
        line(
            out["name"],
            f"{out['input']} input, {s['task']}, {s['batch']} x {s['length']} tokens, "
            f"{s['layers']} layers of width {s['width']}, {s['parameters'] / 1e6:.1f}M parameters, "
            f"{s['dtype']}, {d['count']} x {d['kind']}",
        )
        line("CPU s a step", f"{out['cpu_s_min']:.4f} at least, {out['cpu_s_median']:.4f} median")
        line("s a step", f"{out['step_s_median']:.4f} median, {out['step_s_p95']:.4f} 95 %")
        line(
            "throughput",
            f"{out['tokens_per_s']:,.0f} real tokens/s, {out['examples_per_s']:,.1f} examples/s",
        )
        line(
            "MFU",
            f"{out['mfu']:.1%}: {out['flops_per_step'] / 1e9:.2f} useful GFLOPs a step, "
            f"{out['peak_flops'] / 1e9:,.0f} GFLOPs/s at most ({out['peak_known_by']})",
        )
        line("memory", f"{out['peak_rss_mib']:,.0f} MiB peak RSS; device {rounded(out)}")
        line("compiling", f"{out['compile_s']:.1f} s")
    if "graph_ratio_cpu" in out:
        line(
            "graph",
            f"x {out['graph_ratio_cpu']:.3f} CPU, x {out['graph_ratio_wall']:.3f} wall, of the "
            "same step without the graph network (medians of alternating pairs)",
        )
    if "host_input" in out:
        h = out["host_input"]
        line(
            "host input",
            f"{h['examples_per_cpu_s']:,.0f} examples a CPU second (text {h['text_us']:.0f} us, "
            f"subgraphs {h['subgraphs_us']:.0f} us, batches {h['batches_us']:.0f} us an example)",
        )
    if "shapes" in out:
        console.print(FORMULA, markup=False, style="dim")


def rounded(out: dict[str, Any]) -> str:
    memory = out["device_memory_mib"]
    return ", ".join(f"{name} {value:,.0f} MiB" for name, value in memory.items()) or "unknown"
