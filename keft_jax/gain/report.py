"""report.html: one page, no script, nothing loaded from anywhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from keft_jax.gain.cells import Cell, write_atomic
from keft_jax.gain.charts import colour_css
from keft_jax.gain.compare import show_beside, show_perturbed
from keft_jax.gain.console import plot, print_table
from keft_jax.gain.facts import show_audit, show_ceilings, show_cost, show_facts
from keft_jax.gain.rows import JUDGED, PLAIN
from keft_jax.gain.sections import (
    Drawn,
    Scale,
    note_rising,
    show_curves,
    show_drawn,
    show_examples,
    show_slices,
    show_split,
)
from keft_jax.gain.verdict import count, join_rows

__all__ = ["Drawn", "plot", "print_table", "write_report"]

SENTENCES = {
    "helps": "The knowledge helps.",
    "hurts": "The knowledge hurts.",
    "no difference": "The knowledge makes no difference.",
    "cannot tell": "This table cannot tell whether the knowledge helps.",
    "no verdict": "No verdict on the knowledge yet.",
}


def write_report(
    path: str | os.PathLike[str],
    summary: Mapping[str, Any],
    cells: Sequence[Cell],
    examples: Mapping[str, Sequence[Mapping[str, Any]]],
    drawn: Sequence[Drawn],
    config: Mapping[str, Any],
) -> None:
    """Writes the page in one move.

    `summary`: what `summarise` gave, with the run's `leaks`, `coverage`, `ceiling`,
    `survival`, `step_time_ratio`, `config_hash`, `kg_hash`, `data_hash` where there are any.
    `examples`: split -> {"text", "gold", "pattern"} in the order of the cells' values.
    """
    write_atomic(Path(path), render(summary, cells, examples, drawn, config).encode())


def render(
    summary: Mapping[str, Any],
    cells: Sequence[Cell],
    examples: Mapping[str, Sequence[Mapping[str, Any]]],
    drawn: Sequence[Drawn],
    config: Mapping[str, Any],
) -> str:
    """The page as a string. Every piece of data in it has been through html.escape."""
    scale, rows = Scale.of(summary), summary["rows"]
    splits, metric = summary["splits"], summary["metric"]
    tables = "".join(show_split(name, part, rows, scale) for name, part in splits.items())
    hashes = {k: v for k, v in summary.items() if k.endswith("_hash") and v}
    coverage = {k: summary[k] for k in ("coverage", "survival") if summary.get(k)}
    sections = [
        (
            "What each row scored",
            "Rows share one compiled step, the same parameters, seeds and trials; only what the "
            "graph holds differs. A dot is the mean over seeds, a tick one seed, a bar the 95 % "
            f"interval. The last column is what `{JUDGED}` gains over the row, paired by example "
            "and seed.",
            tables,
        ),
        (
            "What look-up could reach",
            "Expected share of right picks among the entities that one relation leads to, over the "
            "whole graph: with the best relation known (the ceiling), guessed by a linear model of "
            "the question's words, and among all neighbours. Covered: the graph leads to a right "
            "answer; unambiguous: some relation leads to right answers alone.",
            show_ceilings(summary.get("ceiling") or {}),
        ),
        ("Where it helped", "", show_slices(splits, scale)),
        (
            "One split beside another",
            f"What `{JUDGED}` gains on each reported split; a test file of another set of the same "
            "task tells what is left out of domain.",
            show_beside(splits, scale),
        ),
        (
            "With worse knowledge",
            "The same model with a share of the graph's facts wrong or missing, in training and "
            "test alike; larger shares hold the smaller ones.",
            show_perturbed(splits, rows, scale),
        ),
        (
            "How it learned",
            "Strong lines are means over seeds, faint lines single seeds."
            + (f" {note_rising(rising)}" if (rising := summary["not_converged"]) else ""),
            show_curves(cells, rows, metric, scale),
        ),
        (
            "What the knowledge changed",
            f"Right in `{JUDGED}` and wrong in `{PLAIN}` for most seeds, and the reverse.",
            show_examples(cells, splits, metric, examples),
        ),
        ("What the model looked at", "", show_drawn(drawn)),
        (
            "Leak audit",
            "Ways in which a score could come from something other than the knowledge.",
            show_audit(summary["leaks"]) if summary.get("leaks") else "",
        ),
        ("Coverage", "", show_facts(coverage) if coverage else ""),
        ("What it cost", _cost_sentence(summary), show_cost(cells, rows)),
        ("How to make this table again", "", show_facts(hashes) + _show_config(config)),
    ]
    title = f"{config.get('name') or summary['task']}: what the knowledge was worth"
    return _page(
        title,
        _show_head(summary, config, scale),
        sections,
        rows,
        f"Intervals: hierarchical bootstrap over clusters of examples and seeds, "
        f"{summary['bootstrap']:,} draws.",
    )


def write_page(
    path: Path, name: str, lead: str, sections: Sequence[tuple[str, str, str]], rows: Sequence[str]
) -> None:
    """A page of its own: a line on top, then sections as (title, introduction, HTML)."""
    head = f'<header><h1>{escape(name)}</h1><p class="lead">{_bind(lead)}</p></header>'
    write_atomic(path, _page(name, head, sections, rows, "Intervals: 95 %.").encode())


def _page(
    title: str,
    head: str,
    sections: Sequence[tuple[str, str, str]],
    rows: Sequence[str],
    foot: str,
) -> str:
    body = "".join(
        f"<section><h2>{escape(heading)}</h2>{_paragraph(intro)}{content}</section>"
        for heading, intro, content in sections
        if content
    )
    light, dark = colour_css(rows)
    style = resources.files("keft_jax.gain").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}{light}"
        f"@media(prefers-color-scheme:dark){{{dark}}}</style></head><body><main>"
        f"{head}{body}<footer>{escape(foot)}</footer></main></body></html>"
    )


def _show_head(summary: Mapping[str, Any], config: Mapping[str, Any], scale: Scale) -> str:
    name = f"{config.get('name') or summary['task']} · {summary['task']} · gain table"
    gain, missing = summary["gain"], summary["missing"]
    rivals = join_rows(summary["rivals"]) if summary["rivals"] else ""
    sentence = SENTENCES[summary["kind"]]
    if rivals:
        sentence = f"The knowledge does no better than {rivals}."
    if gain:
        unit = f" {scale.unit}" if scale.unit else ""
        sentence = (
            f"{sentence[:-1]}{'; it is' if rivals else ':'} {scale.number(gain['mean'], True)}"
            f"{unit} of {summary['metric']} {scale.interval(gain, True)} over the same model "
            "without it."
        )
    part = summary["splits"][summary["split"]]
    facts = f"On {summary['split']}: {count(part['n'], 'example')} in "
    facts += f"{count(part['clusters'], 'cluster')}, {count(part['seeds'], 'seed')}. "
    facts += summary["verdict"][:1].upper() + summary["verdict"][1:]
    facts += "." if summary["why"] in summary["verdict"] else f" ({summary['why']})."
    best = summary.get("best_text")
    if best and best["row"] != PLAIN:
        facts += f" Over the best model of text alone, {best['row']}: "
        facts += f"{scale.number(best['mean'], True)} {scale.interval(best, True)}."
    flags = []
    for check in (c for c in ("leak", "look") if summary.get("leaks")):
        found = [key for key, c in summary["leaks"].items() if c["verdict"] == check]
        if found:
            what = "The audit found a leak" if check == "leak" else "The audit asks for a look"
            tone = "bad" if check == "leak" else ""
            flags.append(_flag(f"{what}: {', '.join(k.replace('/', ' of ') for k in found)}", tone))
    for split, of_split in summary["splits"].items():
        for row, check in of_split["controls"].items():
            if check["flag"]:
                flags.append(_flag(f"Row {row} on {split} is {check['note']}", "bad"))
    if missing:
        noun = "control" if len(missing) == 1 else "controls"
        flags.append(_flag(f"The table lacks the {noun} {', '.join(missing)}", ""))
    return (
        f'<header><h1>{escape(name)}</h1><p class="lead">{_bind(sentence)}</p>'
        f'<p class="why">{_bind(facts)}</p>{"".join(flags)}</header>'
    )


def _bind(text: str) -> str:
    """Escaped, with intervals that no line break parts."""
    return re.sub(r"\[[^\[\]]{3,30}\]", r'<span class="bind">\g<0></span>', escape(text))


def _flag(text: str, tone: str) -> str:
    return f'<div class="flag {tone}">{escape(text)}.</div>'


def _paragraph(text: str) -> str:
    parts = escape(text).split("`")
    marked = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
    return f'<p class="soft">{marked}</p>' if text else ""


def _cost_sentence(summary: Mapping[str, Any]) -> str:
    ratio = summary.get("step_time_ratio")
    if not ratio:
        return ""
    text = f"A step with the graph network takes {ratio:.2f} times the time of one without it."
    variants = (summary.get("variants") or {}).items()
    more = [f"{row} {found['step_time_ratio']:.2f}" for row, found in variants]
    return f"{text} Against the step of {JUDGED}: {', '.join(more)}." if more else text


def _show_config(config: Mapping[str, Any]) -> str:
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>The whole config</summary><pre>{escape(text)}</pre></details>"
