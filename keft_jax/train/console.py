"""What a run says on the terminal: what it is about to do, how far it is, what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

from keft_jax.data.features import Dataset
from keft_jax.models.attend import attention_kind
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts
from keft_jax.train.triple_parts import TripleParts

PLAIN_SECONDS = 5.0
"""Between two lines of progress where the output is not a terminal."""


class Display:
    """A progress bar on a terminal; elsewhere a plain line every few seconds. Evaluations are
    lines of their own in both."""

    def __init__(self, console: rich.console.Console, first: int, steps: int):
        self._console, self._first, self._steps = console, first, steps
        self._begin, self._spoke = None, 0.0  # type: float | None, float
        self._rate = 0.0
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=first, note="compiling")
        self._bar.start()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if "loss/total" not in scalars:
            values = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
            self._console.print(f"step {step}  {values}", highlight=False, soft_wrap=True)
            return
        rate = scalars.get("examples_per_s", self._rate)
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        note = f"loss {scalars['loss/total']:.4f}  {self._rate:,.0f} examples/s"
        self._bar.update(self._task, completed=step, note=note)
        now = time.monotonic()
        if self._begin is None:  # from the first step on: compiling is not the pace
            self._first, self._begin, self._spoke = step, now, now
        elif not self._console.is_terminal and now - self._spoke >= PLAIN_SECONDS:
            self._spoke = now
            left = (now - self._begin) / (step - self._first) * (self._steps - step)
            text = f"step {step}/{self._steps}  {note}  {left:,.0f} s left"
            self._console.print(text, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def introduce(
    console: rich.console.Console,
    trainer: Trainer,
    covers: Mapping[str, Any],
    select: Any,
    folder: Path | str,
) -> None:
    """What is about to be trained, on what."""
    parts = trainer.parts
    lines = [
        *(parts.describe() if isinstance(parts, TripleParts) else _on_text(parts, covers, select)),
        f"run        {parts.config.optim.steps:,} steps of {parts.config.optim.batch} examples, in "
        f"{folder}",
    ]
    place = f"{trainer.mesh.size} x {jax.devices()[0].device_kind}"
    lines.insert(-1, f"model      {parts.model.size():,} parameters, {place}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _on_text(parts: Parts, covers: Mapping[str, Any], select: Dataset | None) -> list[str]:
    config, kg = parts.config, parts.knowledge.kg
    drawn = config.data.draw or covers["examples"]
    reach = ""
    if "answers_near" in covers:
        kept = covers["answers_kept"]
        reach = (
            f"; {covers['answers_in_graph']:.1%} of answers in the graph, "
            f"{covers['answers_near']:.1%} of those near a mention, "
            f"{'–' if kept is None else f'{kept:.1%}'} of these kept by the budget"
        )
    buckets, pack, each = config.data.buckets, config.data.pack, config.knowledge.text == "visible"
    trains, reads = (
        {
            attention_kind(config.encoder, training, each, training and pack > 0, length)
            for length in lengths
        }
        for training, lengths in ((True, (pack,) if pack else buckets), (False, buckets))
    )
    attention = " and ".join(sorted(trains))
    if reads != trains:
        attention += f"; in evaluation by {' and '.join(sorted(reads))}"
    return [
        f"examples   {covers['examples']:,} to train on ({drawn:,} drawn), "
        f"{len(select) if select else 0:,} to select by; {covers['truncated']:,} texts truncated",
        f"graph      {kg.n_entities:,} entities, {kg.n_triples:,} triples of {kg.n_relations:,} "
        f"relations; row {config.knowledge.row}",
        f"coverage   {covers['linked']:.1%} of texts with a linked entity, "
        f"{covers['cut']:.1%} of subgraphs cut by the budget{reach}",
        f"attention  by {attention}",
    ]


def print_summary(summary: Mapping[str, Any], *, quiet: bool = False) -> None:
    """The scores of each split, on stdout."""
    if quiet or not summary["scores"]:
        return
    console = rich.console.Console(emoji=False)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width to keep to
    names = [name for name in next(iter(summary["scores"].values())) if "/" not in name]
    linked = summary["task"] != "link_prediction"
    table = rich.table.Table(
        *("split", "examples", *(["linked"] if linked else []), *names),
        title=f"best step {summary['best_step']}",
    )
    for split, scores in summary["scores"].items():
        covers = summary["coverage"][split]
        share = [f"{covers['linked']:.1%}"] if linked else []
        values = [f"{np.round(scores[name], 4):.4f}" for name in names]
        table.add_row(split, f"{covers['examples']:,}", *share, *values)
    console.print(table)
