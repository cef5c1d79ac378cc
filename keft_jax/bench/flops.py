"""Useful FLOPs of a training step, and what the device could do at most.

A multiply-add is two. Real tokens, nodes and edges only; the masked-LM head on the predicted
positions only; attention over a text's own length, packed or not. Look-ups, norms, activations,
softmax, dropout and the optimizer count nothing, and neither does what is recomputed. What is
trained takes three forward passes: the backward pass multiplies each kernel twice.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.data.batch import Batch, take
from keft_jax.models.fusion import row_width
from keft_jax.tasks.task import Task
from keft_jax.train.given import Given
from keft_jax.train.parts import Parts

FORMULA = """\
useful FLOPs of a step = 3 x forward + teacher; forward is the sum of
  encoder   layers (8 T d^2 + 4 T d f + 4 d sum(length^2))
  head      mlm: P (2 d^2 + 2 d V); classification: b (2 d^2 + 2 d labels); kgqa: b (2 d^2 + 2 d E);
            relation, typing: b 2 d marks labels; tagging: T 2 d labels; span: T 4 d;
            choice: b (2 d^2 + 2 d)
  graph     N 2 d w; per exchange: layers (2 N w^2 + 4 M w + gate (2 N w^2 + 2 b d w)), fusion
  fusion    mention_add: 2 w d mentions; cross_attention: 4 T d w + 4 N w^2 + 4 w sum(length nodes);
            interaction: b (2 d^2 + 8 d w)
  triples   Q (1 + negatives, or all E) 2 w of an entity
T real tokens, d width, f mlp, P predicted positions, V word pieces, b texts, E entities, N real
nodes, M real edges, w graph width (rgcn: w heads in 2 N w^2; triple kinds: 6 N w^2), Q queries.
kgqa has one exchange more, in its head, without fusion. objective.mlm beside a task is a second
forward pass with its head. teacher: one forward pass of distillation's, and of consistency's over
the texts without labels"""

_TERA = 1e12
PEAKS: dict[str, dict[str, float]] = {
    # Vendors' dense figures, FLOPs/s of one device; float32 matmuls run as TF32 on NVIDIA, and in
    # bfloat16 passes on TPU.
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312 * _TERA, "float32": 156 * _TERA},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312 * _TERA, "float32": 156 * _TERA},
    "NVIDIA A100 80GB PCIe": {"bfloat16": 312 * _TERA, "float32": 156 * _TERA},
    "NVIDIA H100 PCIe": {"bfloat16": 756 * _TERA, "float32": 378 * _TERA},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989 * _TERA, "float32": 495 * _TERA},
    "NVIDIA H200": {"bfloat16": 989 * _TERA, "float32": 495 * _TERA},
    "NVIDIA L4": {"bfloat16": 121 * _TERA, "float32": 60 * _TERA},
    "TPU v4": {"bfloat16": 275 * _TERA, "float32": 275 * _TERA},
    "TPU v5 lite": {"bfloat16": 197 * _TERA, "float32": 197 * _TERA},
    "TPU v5": {"bfloat16": 459 * _TERA, "float32": 459 * _TERA},
    "TPU v6 lite": {"bfloat16": 918 * _TERA, "float32": 918 * _TERA},
}


def count_step(
    parts: Parts, batch: Batch, given: Given | None = None, times: int = 1
) -> dict[str, float]:
    """Useful FLOPs of a training step over so many of a host batch: encoder, head, graph, triples,
    teacher and total. given: with distillation's teacher."""
    c, objective = parts.config, parts.config.objective
    batch = parts.knowledge.show(batch, c.knowledge.row, c.seed)
    out = dict.fromkeys(("encoder", "head", "graph", "triples", "teacher"), 0.0)
    others = objective.consistency, objective.kg_teacher
    reads = objective.task > 0 or objective.distill.active or any(t.weight > 0 for t in others)
    own = {parts.task.term: parts.task} if reads else {}
    beside = parts.beside
    for task in (own if beside is None else own | {beside.term: beside}).values():
        for name, value in _forward(parts, batch, task).items():
            out[name] += 3 * times * value
    if given is not None and given.teacher is not None:
        out["teacher"] += times * sum(_forward(given.teacher[0], batch, parts.task).values())
    if objective.consistency.weight:
        texts = take(batch, np.flatnonzero(batch.targets["consistency"].weight > 0))
        out["teacher"] += times * sum(_forward(parts, texts, parts.task).values())
    if objective.triples.weight:
        candidates = 1 + c.kge.negatives if c.kge.negatives else parts.knowledge.kg.n_entities
        out["triples"] = 3.0 * objective.triples.batch * candidates * 2 * row_width(c)
    return out | {"total": sum(out.values())}


def _forward(parts: Parts, batch: Batch, task: Task) -> dict[str, float]:
    """Of one forward pass, as FORMULA says. task: whose head reads the states."""
    c = parts.config
    d, f, w = c.encoder.width, c.encoder.mlp, c.graph.width
    length = np.asarray(batch.length, np.float64)
    b, tokens = len(length), length.sum()
    encoder = c.encoder.layers * (
        8 * tokens * d * d + 4 * tokens * d * f + 4 * d * (length**2).sum()
    )
    kind = "mlm" if task.term == "mlm" else c.task.kind
    choices = {
        "mlm": parts.knowledge.vocabulary.tokenizer.get_vocab_size(),
        "kgqa": parts.knowledge.kg.n_entities,
        "span": 2,
        "choice": 1,
    }.get(kind, len(parts.labels))
    marks = {"relation": 2}.get(kind, 1) if c.task.reads == "marks" else 1
    asked = {"tagging": tokens, "span": tokens}.get(kind, b)
    asked = float(task.total(batch)) if kind == "mlm" else asked
    plain = kind in ("tagging", "span") or (kind not in ("mlm", "kgqa") and c.task.reads != "cls")
    head = asked * ((0 if plain else 2 * d * d) + 2 * d * choices * marks)
    graph = 0.0
    if c.fusion.kind != "none":
        nodes = np.asarray(batch.graph.n_node[:, 0], np.float64)
        n, m = nodes.sum(), float(batch.graph.n_edge[:, 0].sum())
        value = {"rgcn": c.graph.heads, "triple_concat": 3, "triple_sum": 3}.get(c.graph.kind, 1)
        gate = (2 * n * w * w + 2 * b * d * w) * c.graph.gate
        block = c.graph.layers * (2 * n * w * w * value + 4 * m * w + gate)
        fusion = {
            "mention_add": 2 * w * d * float((batch.mentions.node >= 0).sum()),
            "cross_attention": 4 * tokens * d * w + 4 * n * w * w + 4 * w * (length * nodes).sum(),
            "interaction": b * (2 * d * d + 8 * d * w),
        }[c.fusion.kind]
        exchanges = len({i % c.encoder.layers for i in c.fusion.layers})
        graph = 2 * n * d * w + exchanges * (block + fusion) + (kind == "kgqa") * block
    return {"encoder": encoder, "head": head, "graph": graph}


def find_peak(dtype: str, devices: int) -> tuple[float, str]:
    """(FLOPs/s of all devices at most, how that is known)."""
    kind, dtype = jax.devices()[0].device_kind, dtype.replace("mixed", "bfloat16")
    if kind in PEAKS:
        return devices * PEAKS[kind][dtype], f"vendor's dense figure for {kind} in {dtype}"
    # Large enough that an accelerator's time is the matmul's, not the call's.
    size, repeats = 1024 if jax.default_backend() == "cpu" else 8192, 12
    x = jnp.ones((size, size), dtype)
    wide = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    multiply: Any = jax.jit(wide).lower(x, x).compile()
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(x, x))
        best = min(best, time.perf_counter() - begin)
    # The virtual devices of one CPU share its cores.
    factor = 1 if jax.default_backend() == "cpu" else devices
    how = f"measured: the best of {repeats} {dtype} matmuls of {size} x {size} in this process"
    return factor * 2 * size**3 / best, f"{how}; {kind!r} is in no table"
