"""Useful FLOPs of a training step, and what the device could do at most.

A multiply-add is two. Real tokens, nodes and edges only; the masked-LM head on the predicted
positions only; attention over a text's own length. Look-ups, norms, activations, softmax, dropout
and the optimizer count nothing, and neither does what is recomputed. A step is three forward
passes: the backward pass multiplies each kernel twice.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.data.batch import Batch
from keft_jax.train.parts import Parts

FORMULA = """\
useful FLOPs of a step = 3 x forward; forward is the sum of
  encoder   layers (8 T d^2 + 4 T d f + 4 d sum(length^2))
  head      mlm: P (2 d^2 + 2 d V); classification: b (2 d^2 + 2 d labels); kgqa: b (2 d^2 + 2 d E);
            relation, typing: b 2 d marks labels; tagging: T 2 d labels; span: T 4 d;
            choice: b (2 d^2 + 2 d)
  graph     N 2 d w; per exchange: layers (2 N w^2 + 4 M w + gate (2 N w^2 + 2 b d w)), fusion
  fusion    mention_add: 2 w d mentions; cross_attention: 4 T d w + 4 N w^2 + 4 w sum(length nodes);
            interaction: b (2 d^2 + 8 d w)
T real tokens, d width, f mlp, P predicted positions, V word pieces, b texts, E entities, N real
nodes, M real edges, w graph width (rgcn: w heads in 2 N w^2; triple kinds: 6 N w^2). kgqa has one
exchange more, in its head, without fusion"""

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


def count_step(parts: Parts, batch: Batch) -> dict[str, float]:
    """Useful FLOPs of a training step over a host batch: encoder, head, graph and total."""
    c = parts.config
    batch = parts.knowledge.show(batch, c.knowledge.row, c.seed)
    d, f, w = c.encoder.width, c.encoder.mlp, c.graph.width
    length = np.asarray(batch.length, np.float64)
    b, tokens = len(length), length.sum()
    encoder = c.encoder.layers * (
        8 * tokens * d * d + 4 * tokens * d * f + 4 * d * (length**2).sum()
    )
    kind = c.task.kind
    choices = {
        "mlm": parts.knowledge.vocabulary.tokenizer.get_vocab_size(),
        "kgqa": parts.knowledge.kg.n_entities,
        "span": 2,
        "choice": 1,
    }.get(kind, len(parts.labels))
    marks = {"relation": 2}.get(kind, 1) if c.task.reads == "marks" else 1
    asked = {"mlm": float(parts.task.total(batch)), "tagging": tokens, "span": tokens}.get(kind, b)
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
        graph = 2 * n * d * w + exchanges * (block + fusion) + (c.task.kind == "kgqa") * block
    forward = {"encoder": encoder, "head": head, "graph": graph}
    return {name: 3 * value for name, value in (forward | {"total": sum(forward.values())}).items()}


def find_peak(dtype: str, devices: int) -> tuple[float, str]:
    """(FLOPs/s of all devices at most, how that is known)."""
    kind, dtype = jax.devices()[0].device_kind, dtype.replace("mixed", "bfloat16")
    if kind in PEAKS:
        return devices * PEAKS[kind][dtype], f"vendor's dense figure for {kind} in {dtype}"
    size, repeats = 1024, 12
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
