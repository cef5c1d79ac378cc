"""Sizes from measurements: subgraphs, text lengths, the model and its steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keft_jax.data.source import Example
from keft_jax.init.columns import Guess
from keft_jax.kg.linking.string import StringLinker
from keft_jax.kg.store import KG
from keft_jax.kg.subgraph import Budget, extract, survival

LOOKED_AT = 600
"""Examples whose neighbourhoods are measured."""
_WIDE = Budget(nodes=192, edges=1536, hops=1)


@dataclass(frozen=True)
class Sizes:
    """Of KnowledgeConfig, DataConfig, EncoderConfig and OptimConfig."""

    hops: int
    nodes: int
    edges: int
    mentions: int
    buckets: tuple[int, ...]
    vocab_size: int
    width: int
    steps: int
    batch: int
    learning_rate: float
    select_share: float
    test_share: float


def measure_sizes(
    examples: Sequence[Example], kg: KG, *, kgqa: bool, given: bool, pretrained: bool
) -> tuple[Sizes, list[Guess]]:
    """Of all examples the number and the words; of an even sample the mentions and subgraphs."""
    said: list[Guess] = []
    numbers = np.linspace(0, len(examples) - 1, min(len(examples), LOOKED_AT)).astype(int)
    some = [examples[i] for i in np.unique(numbers)]
    linker = StringLinker(kg)
    found = [[] for _ in some] if given else linker.link([e.text for e in some])
    found = [
        linker.link_given(e.text, e.spans) if e.spans else m
        for e, m in zip(some, found, strict=True)
    ]
    ids = [[i for m in mentions for i in m.entities] for mentions in found]
    linked = sum(map(bool, ids)) / max(len(ids), 1)
    counts = [len(row) for row in ids if row] or [1]
    marked = max(len(e.spans) for e in some)
    most = int(np.clip(max(np.ceil(np.quantile(counts, 0.95)), marked), 1, 8))
    why = f"{linked:.0%} of the texts link something, 95 % of these no more"
    said.append(Guess("mentions a text", str(most), why))
    seeds = np.full((len(some), most), -1, np.int32)
    for row, entities in enumerate(ids):
        seeds[row, : len(entities[:most])] = entities[:most]
    hops, why = _hops(kg, seeds, some, kgqa)
    said.append(Guess("hops", str(hops), why))
    sub = extract(kg, seeds, Budget(_WIDE.nodes, _WIDE.edges, hops))
    has = seeds[:, 0] >= 0
    nodes = _upper(sub.n_node[has] + 1, 8, 8, 96 if kgqa else 64)
    edges = _upper(sub.n_edge[has], 16, 16, 320 if kgqa else 192)
    too_much = (sub.cut | (sub.n_node >= nodes) | (sub.n_edge > edges))[has]
    cut = float(too_much.mean()) if has.any() else 0.0
    why = f"95 % of the subgraphs fit, or the most that is quick; {cut:.0%} are cut"
    said.append(Guess("nodes, edges", f"{nodes}, {edges}", why))
    buckets = _buckets(examples)
    said.append(
        Guess("text lengths", str(buckets), "from the number of words; longer ones are cut")
    )
    words = len({w for e in examples[:20_000] for w in re.findall(r"\w+", e.text.lower())})
    n = len(examples)
    shares = (0.15, 0.25) if n < 2000 else (0.1, 0.2)
    width, rate = (32, 1e-2) if n < 300 else (64, 3e-3)
    batch = 8 if n < 150 else 16 if n < 1000 else 32
    steps = int(np.clip(round(12 * n / batch, -1), 120, 400))
    if pretrained:
        batch, steps, rate = 16, min(steps, 200), 3e-4
    said.append(Guess("splits", "{:g}, {:g}".format(*shares), "shares to choose by and to report"))
    why = f"for {n:,} examples; raise optim.steps where the score still rises at the end"
    said.append(Guess("steps x batch", f"{steps} x {batch}", why))
    vocab_size = int(np.clip(128 * (words // 128), 256, 6000))
    return (
        Sizes(hops, nodes, edges, most, buckets, vocab_size, width, steps, batch, rate, *shares),
        said,
    )


def _hops(kg: KG, seeds: np.ndarray, some: Sequence[Example], kgqa: bool) -> tuple[int, str]:
    one, two = (extract(kg, seeds, Budget(_WIDE.nodes, _WIDE.edges, hops)) for hops in (1, 2))
    if kgqa:
        answers = [{i for i in map(kg.find, e.answers) if i is not None} for e in some]
        near, far = (
            survival(sub, answers, kg, hops)["examples_with_answer"]
            for sub, hops in ((one, 1), (two, 2))
        )
        hops = 1 if near >= 0.9 * far else 2
        return hops, f"{near:.0%} of the questions reach an answer in one step, {far:.0%} in two"
    has = seeds[:, 0] >= 0
    if not has.any():
        return 1, "nothing is linked"
    cut = float((two.cut | (two.n_node > 96))[has].mean())
    if cut > 0.2:
        return 1, f"two steps reach too much: over 96 entities in {cut:.0%} of the texts"
    return 2, f"two steps reach {np.median(two.n_node[has]):.0f} entities in the median"


def _upper(sizes: np.ndarray, multiple: int, low: int, high: int) -> int:
    value = float(np.quantile(sizes, 0.95)) if len(sizes) else 0.0
    return int(np.clip(multiple * np.ceil(value / multiple), low, high))


def _buckets(examples: Sequence[Example]) -> tuple[int, ...]:
    """One or two lengths in tokens, taken as 1.35 a word or mark."""
    words = [len(re.findall(r"\w+|[^\w\s]", f"{e.text} {e.pair}")) for e in examples[:20_000]]
    half, long = (int(16 * np.ceil((1.35 * np.quantile(words, q) + 3) / 16)) for q in (0.5, 0.99))
    long = min(max(long, 16), 256)
    return (half, long) if long > 64 and half <= long // 2 else (long,)
