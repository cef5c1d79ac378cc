"""The sections of report.html, each a function from data to a string of escaped HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from keft_jax.gain.cells import Cell
from keft_jax.gain.charts import draw_bar, draw_curves, draw_legend, nice_ticks, read_curves
from keft_jax.gain.facts import chip
from keft_jax.gain.network import draw_network, list_edges
from keft_jax.gain.rows import JUDGED, PLAIN, REFERENCES, describe_row
from keft_jax.gain.verdict import count, join_rows

TONES = {"helps": "good", "hurts": "bad", "no difference": "", "cannot tell": "warn"}
MAX_CARDS = 4
MAX_FACTS = 8


@dataclass
class Drawn:
    """One example whose subgraph is drawn."""

    text: str
    gold: list[str]
    answers: dict[str, str]
    """row -> what it answered"""
    nodes: list[tuple[str, float, str]]
    """(name, importance 0..1, role); role is mention, answer or other"""
    edges: list[tuple[int, int, str, float]]
    """(from, to, relation, importance 0..1)"""
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How numbers of the metric are written: shares in points of a hundred, others as they are."""

    factor: float
    unit: str

    @staticmethod
    def of(summary: Mapping[str, Any]) -> Scale:
        means = [s["mean"] for part in summary["splits"].values() for s in part["scores"].values()]
        share = all(0 <= mean <= 1 for mean in means if np.isfinite(mean))
        return Scale(100.0, "points") if share else Scale(1.0, "")

    def number(self, value: float, sign: bool = False) -> str:
        if not np.isfinite(value):
            return "–"
        text = f"{value * self.factor:{'+' if sign else ''}.{1 if self.factor == 100 else 3}f}"
        # A minus of the width of a plus; no sign on zero.
        return text.replace("-", "−") if float(text) else text.lstrip("+-")

    def interval(self, value: Mapping[str, Any], sign: bool = False) -> str:
        if value["interval"] is None:
            return ""
        return "[" + ", ".join(self.number(edge, sign) for edge in value["interval"]) + "]"

    def cell(self, value: Mapping[str, Any] | None, sign: bool) -> str:
        """A cell of a plain table: the mean with its interval."""
        if value is None:
            return '<td class="n">–</td>'
        return (
            f'<td class="n"><b>{self.number(value["mean"], sign)}</b> '
            f'<span class="soft">{self.interval(value, sign)}</span></td>'
        )


def _cell(value: Mapping[str, Any] | None, scale: Scale, sign: bool, track: str) -> str:
    if value is None:
        return "<td></td>"
    return (
        f'<td><span class="num"><b>{scale.number(value["mean"], sign)}</b>'
        f"<span>{scale.interval(value, sign)}</span></span>{track}</td>"
    )


def show_ends(low: float, high: float, scale: Scale, sign: bool) -> str:
    """The ends of a track of `draw_bar`, for a column's head."""

    def edge(value: float) -> str:
        number = value * scale.factor
        return f"{number:{'+' if sign and number else ''}g}".replace("-", "−")

    return f'<span class="ends"><span>{edge(low)}</span><span>{edge(high)}</span></span>'


def span(values: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Round numbers around zero and some estimates."""
    edges = [0.0]
    for value in values:
        edges += [v for v in (value["interval"] or ()) if np.isfinite(v)]
        edges += [value["mean"]] if np.isfinite(value["mean"]) else []
    if max(edges) - min(edges) == 0:
        return -1.0, 1.0
    ticks = nice_ticks(min(edges), max(edges), 4)
    return ticks[0], ticks[-1]


def show_split(name: str, part: Mapping[str, Any], rows: Sequence[str], scale: Scale) -> str:
    """The table of one split: scores, and what `true` gains over each row."""
    low, high = (0.0, 1.0) if scale.factor == 100 else span(part["scores"].values())
    gain_low, gain_high = span(part["versus"].values())
    lines = []
    for i, row in enumerate(rows):
        if row not in part["scores"]:
            continue
        score, gain = part["scores"][row], part["versus"].get(row)
        note, seeds = describe_row(row), len(score["values"])
        if seeds != part["seeds"]:  # then its score is not to be held beside the others'
            note += f"; {count(seeds, 'seed')}, and its difference over these"
        lines.append(
            f'<tr class="c{i}{" true" if row == JUDGED else ""}"><td><span class="name">'
            f'{escape(row)}</span><span class="note">{escape(note)}</span></td>'
            + _cell(score, scale, False, draw_bar(score, low, high, f"c{i}", False))
            + _cell(gain, scale, True, gain and draw_bar(gain, gain_low, gain_high, "", True))
            + "</tr>"
        )
    size = f"{count(part['n'], 'example')} in {count(part['clusters'], 'cluster')}, "
    size += count(part["seeds"], "seed")
    return (
        f"<h3>{escape(name)} <small>{size}</small> "
        f"{chip(part['verdict'], TONES.get(part['kind'], ''))}</h3>"
        f'<p class="small soft">{escape(part["why"])}</p>'
        '<table class="table"><thead><tr><th>Row</th>'
        f"<th>Score, 95 % interval{show_ends(low, high, scale, False)}</th>"
        f"<th><code>true</code> − row{show_ends(gain_low, gain_high, scale, True)}</th>"
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def show_slices(splits: Mapping[str, Any], scale: Scale) -> str:
    blocks: list[str] = []
    for name, part in splits.items():
        slices = {k: v for k, v in part["slices"].items() if v["gain"] is not None}
        if not slices:
            continue
        low, high = span(s["gain"] for s in slices.values())
        controls = [r for r in REFERENCES if r in part["versus"] and r != PLAIN]
        lines = []
        for label, s in slices.items():
            over = "".join(scale.cell(s["versus"].get(row), True) for row in controls)
            lines.append(
                f'<tr><td>{escape(label)}</td><td class="n">{s["n"]:,}</td>'
                f'<td class="n">{scale.number(s["scores"][PLAIN]["mean"])}</td>'
                f'<td class="n">{scale.number(s["scores"][JUDGED]["mean"])}</td>'
                f'<td class="n"><b>{scale.number(s["gain"]["mean"], True)}</b></td>'
                f'<td class="n soft">{scale.interval(s["gain"], True)}</td>'
                f'<td class="bar">{draw_bar(s["gain"], low, high, "", True)}</td>{over}</tr>'
            )
        heads = "".join(f'<th class="n">over <code>{row}</code></th>' for row in controls)
        table = (
            '<div class="wide"><table class="slices"><thead><tr><th>Slice</th>'
            f'<th class="n">n</th><th class="n"><code>{PLAIN}</code></th>'
            f'<th class="n"><code>{JUDGED}</code></th><th class="n">Gain</th>'
            '<th class="n">95 % interval</th>'
            f'<th class="bar">{show_ends(low, high, scale, True)}</th>{heads}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )
        blocks.append(_fold(name, table, bool(blocks)))
    return "".join(blocks)


def _fold(title: str, content: str, folded: bool) -> str:
    """A part with its heading; the splits after the first start closed."""
    heading = f"<h3>{escape(title)}</h3>"
    if not folded:
        return heading + content
    return f"<details><summary>{heading}</summary>{content}</details>"


def show_curves(cells: Sequence[Cell], rows: Sequence[str], metric: str, scale: Scale) -> str:
    curves = read_curves(cells)
    if not curves:
        return ""
    figure = draw_curves(curves, rows, f"{metric} on the selection split", scale.factor)
    legend = draw_legend([row for row in rows if row in curves], rows)
    return f'<div class="pair"><figure>{figure}</figure></div>{legend}'


def note_rising(rows: Sequence[str]) -> str:
    return f"Still rising at the last step: {join_rows(rows)}; more optim.steps may move the gain."


def compare(
    cells: Sequence[Cell], split: str, metric: str
) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
    """Examples that most seeds win with knowledge and lose without, the reverse, and the share
    of seeds that are right in `true` and in `none`."""

    def share_right(row: str) -> np.ndarray | None:
        values = [c.each(split, metric) for c in cells if c.row == row and split in c.metrics]
        return np.mean([v >= 0.5 for v in values], 0) if values else None

    with_it, without = share_right(JUDGED), share_right(PLAIN)
    if with_it is None or without is None:
        return [], [], np.zeros(0), np.zeros(0)
    won = np.flatnonzero((with_it > 0.5) & (without < 0.5))
    lost = np.flatnonzero((with_it < 0.5) & (without > 0.5))

    def clearest(which: np.ndarray) -> list[int]:
        return sorted(map(int, which), key=lambda i: (-abs(with_it[i] - without[i]), i))

    return clearest(won), clearest(lost), with_it, without


def show_examples(
    cells: Sequence[Cell], splits: Iterable[str], metric: str, examples: Mapping[str, Any]
) -> str:
    blocks: list[str] = []
    for split in splits:
        texts = examples.get(split)
        won, lost, with_it, without = compare(cells, split, metric)
        if not texts or not len(with_it):
            continue
        columns = []
        for title, which in (("Won with the knowledge", won), ("Lost with it", lost)):
            patterns = Counter(str(texts[i].get("pattern", "")) for i in which)
            common = ", ".join(f"{p} {n:,}" for p, n in patterns.most_common(4) if p)
            cards = [
                _show_card(texts[i], cells, split, i, with_it[i], without[i])
                for i in _mix_patterns(which, texts)
            ]
            body = "".join(cards) or '<p class="soft">None.</p>'
            columns.append(
                f"<div><h4>{title} <small>{len(which):,} of {len(texts):,}"
                f"{f' ({escape(common)})' if common else ''}</small></h4>{body}</div>"
            )
        blocks.append(_fold(split, f'<div class="pair">{"".join(columns)}</div>', bool(blocks)))
    return "".join(blocks)


def _mix_patterns(which: Sequence[int], texts: Sequence[Mapping[str, Any]]) -> list[int]:
    """The first of every pattern, then the second, ...: MAX_CARDS in all."""
    seen: Counter[str] = Counter()
    turn: list[tuple[int, int, int]] = []
    for i in which:
        pattern = str(texts[i].get("pattern", ""))
        turn.append((seen[pattern], len(turn), i))
        seen[pattern] += 1
    return [i for _, _, i in sorted(turn)[:MAX_CARDS]]


def _show_card(
    example: Mapping[str, Any],
    cells: Sequence[Cell],
    split: str,
    i: int,
    with_it: float,
    without: float,
) -> str:
    gold = example.get("gold", "")
    gold = gold if isinstance(gold, str) else ", ".join(map(str, gold))
    pattern = str(example.get("pattern", ""))
    lines = [f"<dt>gold</dt><dd>{escape(_clip(gold, 160))}</dd>"]
    for row, share in ((JUDGED, with_it), (PLAIN, without)):
        mine = [c for c in cells if c.row == row and split in c.choice and c.choice[split]]
        said = Counter(c.choice[split][i] for c in mine)
        answer = said.most_common(1)[0][0] if said else ""
        seeds = len([c for c in cells if c.row == row])
        tone = "yes" if share > 0.5 else "no"
        lines.append(
            f'<dt><code>{row}</code></dt><dd><span class="{tone}">{escape(answer) or "(nothing)"}'
            f'</span> <span class="soft">right in {round(share * seeds)} of {seeds}</span></dd>'
        )
    mark = f" {chip(pattern)}" if pattern else ""
    text = escape(_clip(str(example.get("text", "")), 400))
    return f'<div class="card"><p>{text}{mark}</p><dl>{"".join(lines)}</dl></div>'


def show_drawn(drawn: Sequence[Drawn]) -> str:
    cards = []
    for example in drawn:
        facts = []
        for k, (_, (a, b, relation, importance)) in enumerate(
            list_edges(example.nodes, example.edges), 1
        ):
            head, tail = (escape(example.nodes[i][0]) for i in (a, b))
            width = 100 * min(max(importance, 0), 1)
            facts.append(
                f'<li><span class="idx">{k}</span><span>{head} <em>{escape(relation)}</em> {tail}'
                f'</span><span class="meter"><i style="width:{width:.0f}%"></i></span>'
                f'<span class="val">{importance:.2f}</span></li>'
            )
        said = "".join(
            f'<dt><code>{escape(row)}</code></dt><dd><span class="'
            f'{"yes" if answer in example.gold else "no"}">{escape(answer)}</span></dd>'
            for row, answer in example.answers.items()
        )
        gold = escape(_clip(", ".join(example.gold), 160))
        note = f'<p class="small soft">{escape(example.note)}</p>' if example.note else ""
        picture = draw_network(example.nodes, example.edges) if example.nodes else ""
        cards.append(
            f'<div class="card"><p><b>{escape(_clip(example.text, 400))}</b></p>'
            f"<dl><dt>gold</dt><dd>{gold}</dd>{said}</dl>"
            f'<div class="look"><div class="canvas">{picture}</div>'
            f"{_list_facts(facts)}</div>{note}</div>"
        )
    if not cards:
        return ""
    key = "".join(
        f'<span class="key {css}">{label}</span>'
        for css, label in (("mention", "in the text"), ("answer", "answer"), ("", "other"))
    )
    return (
        f'<p class="small soft">{key}Stronger lines weigh more; a number on a line refers to the '
        f"list beside it.</p>{''.join(cards)}"
    )


def _list_facts(facts: Sequence[str]) -> str:
    shown = f'<ol class="facts">{"".join(facts[:MAX_FACTS])}</ol>'
    if len(facts) <= MAX_FACTS:
        return f"<div>{shown}</div>"
    rest = f'<ol class="facts">{"".join(facts[MAX_FACTS:])}</ol>'
    more = f"{len(facts) - MAX_FACTS} more"
    return f"<div>{shown}<details><summary>{more}</summary>{rest}</details></div>"


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
