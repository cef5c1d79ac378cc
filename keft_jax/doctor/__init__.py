"""`keft doctor`: what a graph covers of the text, what is wrong with it, what to expect of it and
what a run costs, within a minute and before any training."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from keft_jax.config import REST, Config, KeftError
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.splits import set_aside
from keft_jax.doctor.expect import expect, judge
from keft_jax.gain.lookup import Questions, ceilings, subset
from keft_jax.gain.splits import audit_splits, given
from keft_jax.kg.describe import describe
from keft_jax.tasks.kinds import KINDS
from keft_jax.train.checkpoint import abstract_like
from keft_jax.train.coverage import cover
from keft_jax.train.dry_run import compile_step, measure
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import Parts, build
from keft_jax.train.run import load_given

MAX_TRAIN, MAX_OTHER = 4_000, 1_500
"""Examples that are looked at; more are sampled, and that is said. Leaks are looked for among all
training examples: a sample of them finds few of the texts and topics that two splits share."""
_HELD_OUT = 0.33  # of those, to judge the probes by
_LISTED = 5
_STEPS = 5  # timed

Report = dict[str, Any]


def examine(
    config: Config, *, seeds: int = 5, cost: bool = True, say: Callable[[str], None] = print
) -> Report:
    """All sections of the report; `cost`: compile a step and time it. Raises KeftError as a run
    would."""
    kind = config.task.kind
    if kind != "kgqa" and not (kind in KINDS and KINDS[kind].single):
        raise KeftError(
            f"task.kind = {kind!r}: has no one label for each text to expect a gain on; name a "
            "task that has, or run `keft gain`"
        )
    if not config.knowledge.kg:
        raise KeftError("knowledge.kg = '': there is no graph to look at; name one")
    begin = time.perf_counter()
    say("reading the graph and the text")
    parts, splits = build(config)
    sampled: list[str] = []

    def sample(name: str, examples: Sequence[Example], most: int) -> Dataset:
        if len(examples) > most:
            sampled.append(f"{most:,} of {len(examples):,} examples of {name}")
        pick = np.sort(np.random.default_rng(0).permutation(len(examples))[:most])
        return parts.dataset([examples[i] for i in pick])

    say("linking")
    train = sample("train", splits.train, MAX_TRAIN)
    nothing = np.zeros(0, int)
    select = sample("select", splits.select, MAX_OTHER) if splits.select else subset(train, nothing)
    tests = {name: sample(name, test, MAX_OTHER) for name, test in splits.tests.items()}
    known = {"train": train, **({"select": select} if len(select) else {}), **tests}
    report: Report = {
        "name": config.name,
        "graph": describe(parts.knowledge.kg, top=_LISTED),
        "examples": {name: len(part) for name, part in splits if part},
        "coverage": {name: cover(given(d, parts), parts) for name, d in known.items()},
        "linking": look_at_links(train, parts),
        "leaks": audit_splits(parts, splits.train, splits.select, tests, splits.unlabelled),
    }
    # The reported splits stay unseen: what is expected is judged on a part of the others.
    # The examples of two files are numbered alike.
    both = [replace(e, id=n) for n, e in enumerate([*train.examples, *select.examples])]
    pool = set_aside(both, {"judged": _HELD_OUT})
    if not pool["judged"] or not pool["train"]:
        raise KeftError(f"{config.data.train}: too few examples to set some aside; give more")
    learnt, judged = parts.dataset(pool["train"]), parts.dataset(pool["judged"][:MAX_OTHER])
    if config.task.kind == "kgqa":
        report["ceiling"] = ceilings(Questions(judged, parts.knowledge.kg, config.knowledge.hops))
    say(f"fitting linear probes, {seeds} times")
    report["expect"] = expect(parts, learnt, judged, seeds)
    if cost:
        say("compiling a step")
        whole = replace(splits, train=train.examples)
        mixed = parts.training(whole) if config.data.unlabelled else train
        report["cost"] = look_at_cost(parts, given(mixed, parts), len(splits.select))
    report["sampled"] = sampled
    linked = report["coverage"]["train"]["linked"]
    report["verdict"] = judge(report["expect"], linked)
    report["seconds"] = round(time.perf_counter() - begin, 1)
    return report


def look_at_links(dataset: Dataset, parts: Parts) -> Report:
    """Mentions: how many, without an entity, ambiguous; the most frequent ones, and hubs."""
    kg, budget = parts.knowledge.kg, parts.config.knowledge.nodes
    mentions = [(e.text[m.start : m.end], m) for e, row in _pairs(dataset) for m in row]
    surfaces = Counter(surface.casefold() for surface, m in mentions if m.entities)
    several = Counter(surface.casefold() for surface, m in mentions if len(m.entities) > 1)
    count = max(len(mentions), 1)
    linked = dataset.seeds[dataset.seeds >= 0]
    entities, often = np.unique(linked, return_counts=True)
    hubs = sorted(
        (
            (int(kg.degrees[i]), kg.names[int(i)], int(n))
            for i, n in zip(entities, often, strict=True)
        ),
        reverse=True,
    )
    return {
        "mentions": len(mentions),
        "mentions_a_text": len(mentions) / max(len(dataset), 1),
        "without_entity": sum(not m.entities for _, m in mentions) / count,
        "ambiguous": sum(len(m.entities) > 1 for _, m in mentions) / count,
        "ambiguous_names": several.most_common(_LISTED),
        "entities": len(entities),
        "most_frequent": surfaces.most_common(_LISTED),
        "isolated": float((kg.degrees[linked] == 0).mean()) if len(linked) else 0.0,
        "degree_median": float(np.median(kg.degrees[linked])) if len(linked) else 0.0,
        "over_budget": float((kg.degrees[linked] >= budget).mean()) if len(linked) else 0.0,
        "hubs": [hub for hub in hubs[:_LISTED] if hub[0] >= budget],
    }


def _pairs(dataset: Dataset) -> Any:
    return zip(dataset.examples, dataset.mentions, strict=True)


def look_at_cost(parts: Parts, train: Dataset, selected: int) -> Report:
    """Seconds of a step (the median of a few), of a run and of the gain table, and memory."""
    config = parts.config
    begin = time.perf_counter()
    trainer = Trainer(parts, load_given(parts))
    length, indices = make_plan(_all_of(config, len(train)), train, config.seed).batch(0)
    batch = train.batch(length, indices)
    compiled = compile_step(trainer, batch)
    compile_s = time.perf_counter() - begin
    # A step takes as long from zeros, and what draws parameters as long to compile as a step.
    abstract = abstract_like(jax.eval_shape(trainer.init, jax.random.key(0)), trainer.shardings)
    state = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), abstract)
    frozen, put = trainer.frozen(), trainer.put(batch)
    times = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        state, metrics = compiled(state, frozen, put)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    step_s = float(np.median(times))
    # An evaluation is about a third of a step's work for each example.
    evaluations = -(-config.optim.steps // config.eval.every)
    per_example = step_s / config.optim.batch / 3
    run_s = step_s * config.optim.steps + evaluations * per_example * selected
    trials = max(len(config.gain.learning_rates), 1)
    runs = len(config.gain.rows) * (config.gain.seeds + trials - 1)
    sizes = measure(trainer, batch, compiled)
    return {
        "compile_s": compile_s,
        "step_s": step_s,
        "run_s": compile_s + run_s,
        "gain_s": compile_s + runs * run_s,
        "gain_runs": runs,
        "parameters": int(parts.model.size()),
        "device": jax.devices()[0].device_kind,
        "memory_mb": sizes.get("peak, a device, about (MB)"),
    }


def _all_of(config: Config, size: int) -> Config:
    """The sample is what there is: nothing is drawn from it, or less than there is where the rest
    is read too."""
    draw = min(config.data.draw, size - 1) if config.data.unlabelled == REST else 0
    return replace(config, data=replace(config.data, draw=draw))
