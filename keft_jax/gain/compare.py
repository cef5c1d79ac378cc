"""Sections of the report that set gains side by side: of reported splits, of worse graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from keft_jax.gain.charts import draw_bar, draw_legend, draw_lines
from keft_jax.gain.facts import chip
from keft_jax.gain.rows import CHANGED, JUDGED, PLAIN, REFERENCES
from keft_jax.gain.sections import TONES, Scale, show_ends, span

TITLES = {"corrupt": "Wrong facts", "drop": "Missing facts"}


def best_control(part: Mapping[str, Any]) -> str:
    """The control of a split, `none` apart, that scores highest; empty where there is none."""
    there = [row for row in REFERENCES if row in part["versus"] and row != PLAIN]
    return max(there, key=lambda row: part["scores"][row]["mean"], default="")


def show_beside(splits: Mapping[str, Any], scale: Scale) -> str:
    """One line for each reported split; empty for a single one."""
    if len(splits) < 2 or any(part["gain"] is None for part in splits.values()):
        return ""
    low, high = span(part["gain"] for part in splits.values())
    lines = []
    for name, part in splits.items():
        control = best_control(part)
        over = part["versus"].get(control)
        lines.append(
            f'<tr><td>{escape(name)}</td><td class="n">{part["n"]:,}</td>'
            f'<td class="n">{scale.number(part["scores"][PLAIN]["mean"])}</td>'
            f'<td class="n">{scale.number(part["scores"][JUDGED]["mean"])}</td>'
            f"{scale.cell(part['gain'], True)}"
            f'<td class="bar">{draw_bar(part["gain"], low, high, "", True)}</td>'
            f'{scale.cell(over, True)}<td class="soft">{escape(control)}</td>'
            f"<td>{chip(part['kind'], TONES.get(part['kind'], ''))}</td></tr>"
        )
    return (
        '<div class="wide"><table class="slices"><thead><tr><th>Split</th><th class="n">n</th>'
        f'<th class="n"><code>{PLAIN}</code></th><th class="n"><code>{JUDGED}</code></th>'
        f'<th class="n">Gain</th><th class="bar">{show_ends(low, high, scale, True)}</th>'
        '<th class="n">Over the best control</th><th></th><th></th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def show_perturbed(splits: Mapping[str, Any], rows: Sequence[str], scale: Scale) -> str:
    """A curve and a table for each split and each way of making the graph worse."""
    blocks = []
    for name, part in splits.items():
        for change, levels in part["perturbed"].items():
            labels = {level["share"]: f"{100 * level['share']:.0f} %" for level in levels}
            lines = {JUDGED: [(level["share"], level["score"]) for level in levels]}
            if plain := part["scores"].get(PLAIN):
                lines = {PLAIN: [(share, plain) for share in labels]} | lines
            under = f"share of the facts {CHANGED[change]}"
            chart = draw_lines(lines, rows, "score", under, labels, scale=scale.factor)
            blocks.append(
                f"<h3>{TITLES[change]} <small>{escape(name)}</small></h3>"
                f'<div class="pair"><figure>{chart}{draw_legend(list(lines), rows)}</figure>'
                f"<div>{_table(levels, labels, scale)}</div></div>"
            )
    return "".join(blocks)


def _table(levels: Sequence[Mapping[str, Any]], labels: Mapping[float, str], scale: Scale) -> str:
    lines = "".join(
        f'<tr><td class="n">{labels[level["share"]]}</td>{scale.cell(level["score"], False)}'
        f"{scale.cell(level.get('gain'), True)}{scale.cell(level.get('loss'), True)}"
        f"<td>{chip(level.get('kind', ''), TONES.get(level.get('kind', ''), ''))}</td></tr>"
        for level in levels
    )
    return (
        '<div class="wide"><table class="slices"><thead><tr><th class="n">Share</th>'
        f'<th class="n">Score</th><th class="n">Over <code>{PLAIN}</code></th>'
        f'<th class="n">Over the whole graph</th><th></th></tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )
