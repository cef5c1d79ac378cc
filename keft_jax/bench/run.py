"""`keft bench`: what a step of a config takes, as text and as one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keft_jax.bench.ablate import peel
from keft_jax.bench.environment import device, environment, peak_rss
from keft_jax.bench.flops import count_step, find_peak
from keft_jax.bench.host import bench_input, plan_all, with_headroom
from keft_jax.bench.show import show
from keft_jax.bench.synthetic import SYNTHETIC, draw, make_synthetic, make_teacher
from keft_jax.bench.timing import Steps, time_in_turn
from keft_jax.config import Config, KeftError
from keft_jax.data.batch import Batch
from keft_jax.data.features import with_row
from keft_jax.data.source import Example
from keft_jax.data.splits import Splits
from keft_jax.models.attend import attention_kind
from keft_jax.train.given import Given
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts, build
from keft_jax.train.run import load_given, versions

BATCHES = 4
"""Different batches that the steps take in turn."""
MIB = 2**20


def bench(
    config: Config, steps: int = 10, warmup: int = 2, repeats: int = 1, parts: bool = True
) -> dict[str, Any]:
    """Times the training step; prints what a person reads and gives what a program reads. parts:
    the step without each of its parts too."""
    made, examples = prepare(config)
    batches = first_batches(made, examples)
    given = given_of(made)
    peeled = peel(made, given) if parts else [("whole", made, given)]
    names = [name for name, _, _ in peeled]
    main = Steps(Trainer(made, given), batches)
    main()
    memory, rss = device_memory(main), peak_rss()  # before other models are beside it
    runs = [main, *(Steps(Trainer(one, own), batches) for _, one, own in peeled[1:])]
    times = time_in_turn(runs, repeats * steps, warmup)
    cpu, wall = times[:, 0, 0], times[:, 0, 1]
    step_s = float(np.median(wall))
    batches = [made.knowledge.show(b, config.knowledge.row, config.seed) for b in batches]
    flops = [count_step(made, batch, given) for batch in batches]
    useful = {name: float(np.mean([f[name] for f in flops])) for name in flops[0]}
    peak, how = find_peak(made.config.encoder.dtype, main.trainer.mesh.size)
    tokens = float(np.mean([batch.length.sum() for batch in batches]))
    examples_per_s = (made.config.optim.batch + made.config.optim.unlabelled) / step_s
    medians = np.median(cpu.reshape(repeats, steps), 1)
    out: dict[str, Any] = {
        "name": config.name,
        "input": "files" if config.data.train else "synthetic",
        "steps": steps,
        "cpu_s_min": float(cpu.min()),
        "cpu_s_median": float(np.median(cpu)),
        "step_s_median": step_s,
        "step_s_p95": float(np.quantile(wall, 0.95)),
        "repeats": medians.tolist(),
        "spread": float(medians.max() / medians.min() - 1),
        "times": {"cpu": cpu.tolist(), "wall": wall.tolist()},
        "tokens_per_s": tokens / step_s,
        "examples_per_s": examples_per_s,
        "mfu": useful["total"] / step_s / peak,
        "flops_per_step": useful["total"],
        "flops_by_part": useful,
        "peak_flops": peak,
        "peak_known_by": how,
        "bytes_per_step": main.bytes,
        "bytes_per_s": None if main.bytes is None else main.bytes / step_s,
        "compile_s": main.compile_s,
        "compile_cpu_s": main.compile_cpu_s,
        "peak_rss_mib": rss / MIB,
        "device_memory_mib": memory,
        "loss": main.loss,
        "shapes": shapes(made, batches),
        "device": device(main.trainer.mesh),
        "environment": environment(),
        "versions": versions(),
        "host_input": with_headroom(bench_input(made, examples), examples_per_s),
    }
    if parts:
        out["parts"] = costs(names, times)
    if "fusion" in names:
        with_graph, alone = times[:, names.index("graph")], times[:, -1]
        ratios = np.median(with_graph / alone, 0)
        out["graph_ratio_cpu"], out["graph_ratio_wall"] = map(float, ratios)
        out["graph_ratio_cpu_min"] = float(with_graph[:, 0].min() / alone[:, 0].min())
        out["without_graph_cpu_s_min"] = float(alone[:, 0].min())
    show(out)
    return out


def costs(names: Sequence[str], times: np.ndarray) -> dict[str, dict[str, float]]:
    """Of each part the seconds that it adds and the step with it over the one without it, medians
    of alternating pairs; the last one is the rest, by itself. times: f64[steps, models, 2]."""
    out = {}
    for i, name in enumerate(names[:-1]):
        with_it, without = times[:, i], times[:, i + 1]
        cpu, wall = np.median(with_it - without, 0)
        ratio_cpu, ratio_wall = np.median(with_it / without, 0)
        values = {"cpu_s": cpu, "wall_s": wall, "ratio_cpu": ratio_cpu, "ratio_wall": ratio_wall}
        out[name] = {key: float(value) for key, value in values.items()}
    cpu, wall = np.median(times[:, -1], 0)
    return {**out, names[-1]: {"cpu_s": float(cpu), "wall_s": float(wall)}}


def given_of(parts: Parts, abstract: bool = False) -> Given:
    """What the config names beside the data; a teacher may be made up. abstract: such a one has
    shapes in the place of parameters."""
    distill = parts.config.objective.distill
    if not distill.active or distill.teacher != SYNTHETIC:
        return load_given(parts)
    teacher = make_teacher(parts)
    rest = load_given(dataclasses.replace(parts, config=teacher.config))
    params = teacher.model.abstract() if abstract else draw(teacher)
    return dataclasses.replace(rest, parts=parts, teacher=(teacher, params))


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
    plan = plan_all(config, ready)
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
        "rows": list(encoder_rows(first).shape),  # of the encoder, and their slots
        "nodes": graph.nodes["entity"].shape[1],
        "edges": graph.senders.shape[1],
        "layers": c.encoder.layers,
        "width": c.encoder.width,
        "heads": c.encoder.heads,
        "mlp": c.encoder.mlp,
        "dropout": c.encoder.dropout,
        "dtype": c.encoder.dtype,
        "attention": attention(parts, first),
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


def attention(parts: Parts, batch: Batch) -> str:
    """What computes it in training."""
    return attention_kind(
        parts.config.encoder,
        training=True,
        each=parts.config.knowledge.text == "visible",
        packed=batch.packing is not None,
        length=encoder_rows(batch).shape[1],
    )


def encoder_rows(batch: Batch) -> Any:
    """[r, s]: a slot for each token that the encoder reads, pads too."""
    return batch.tokens if batch.packing is None else batch.packing.slot


def device_memory(steps: Steps) -> dict[str, float]:
    """What the compiler allots to a step on one device, and where that keeps count, the most in
    use so far."""
    out, found = {}, steps.compiled.memory_analysis()
    if found is not None:
        parts = {
            "arguments": found.argument_size_in_bytes,
            "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
            "temporaries": found.temp_size_in_bytes,
        }
        out = {name: size / MIB for name, size in (parts | {"all": sum(parts.values())}).items()}
    counts = steps.trainer.mesh.devices.flat[0].memory_stats()
    if counts and "peak_bytes_in_use" in counts:
        out["peak_in_use"] = counts["peak_bytes_in_use"] / MIB
    return out
