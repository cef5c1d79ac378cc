"""Curves as inline SVG, and the bars inside the report's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from keft_jax.gain.cells import Cell
from keft_jax.gain.rows import JUDGED, colour_row, order_rows

WIDTH, HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 26, 14, 44
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

Curves = dict[str, list[tuple[np.ndarray, np.ndarray]]]
"""row -> for each seed (steps, values)"""
Lines = Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]]
"""row -> (place, {"mean", "interval"}), places rising"""


def read_curves(cells: Sequence[Cell]) -> Curves:
    """Scores on the selection split."""
    curves: Curves = {}
    for row in order_rows(cell.row for cell in cells):
        for cell in sorted((c for c in cells if c.row == row), key=lambda c: c.seed):
            points = [(p["step"], p["select"]) for p in cell.curve if np.isfinite(p["select"])]
            if len(points) > 1:
                steps, values = np.array(points, float).T
                curves.setdefault(row, []).append((steps, values))
    return curves


def mean_curve(seeds: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all seeds reached, and the mean over seeds there."""
    last = min(steps[-1] for steps, _ in seeds)
    grid = np.unique(np.concatenate([steps for steps, _ in seeds]))
    grid = grid[grid <= last]
    return grid, np.mean([np.interp(grid, steps, values) for steps, values in seeds], 0)


def row_style(row: str, rows: Sequence[str]) -> tuple[str, str]:
    """CSS class and dash pattern of a row: rows of a chart never differ by colour alone."""
    place = list(rows).index(row)
    return f"c{place}", "" if row == JUDGED else _DASHES[place % len(_DASHES)]


def colour_css(rows: Sequence[str]) -> tuple[str, str]:
    """Rules that give class c<i> the colour of row i, on a light and on a dark page."""
    light, dark = (
        "".join(f".c{i}{{--c:{colour_row(row)[k]}}}" for i, row in enumerate(rows)) for k in (0, 1)
    )
    return light, dark


def draw_curves(curves: Curves, rows: Sequence[str], what: str, scale: float = 1.0) -> str:
    """Lines over steps: each seed faint, the mean of each row strong."""
    if not curves:
        return ""
    everything = [points for seeds in curves.values() for points in seeds]
    right = max(float(steps[-1]) for steps, _ in everything)
    all_values = np.concatenate([values for _, values in everything]) * scale
    ticks_y = nice_ticks(float(all_values.min()), float(all_values.max()))
    ticks_x = nice_ticks(0.0, right, 5)
    low, high = ticks_y[0], ticks_y[-1]
    right = max(right, ticks_x[-1])

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(right, 1e-9)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / max(high - low, 1e-9)

    under, where = "training step", {tick: x(tick) for tick in ticks_x}
    parts = _frame(what, under, {f"{t:,g}": at for t, at in where.items()}, ticks_y, y)
    strong = []
    for row, seeds in curves.items():
        css, dash = row_style(row, rows)
        for steps, values in seeds:
            points = " ".join(
                f"{x(s):.1f},{y(v * scale):.1f}" for s, v in zip(steps, values, strict=True)
            )
            parts.append(f'<polyline class="seed {css}" points="{points}"/>')
        grid, mean = mean_curve(seeds)
        points = " ".join(f"{x(s):.1f},{y(v * scale):.1f}" for s, v in zip(grid, mean, strict=True))
        strong.append(
            f'<polyline class="mean {css}" stroke-dasharray="{dash}" points="{points}">'
            f"<title>{escape(row)}</title></polyline>"
        )
    return "".join(parts + strong) + "</svg>"


def _frame(
    what: str,
    under: str,
    ticks_x: Mapping[str, float],
    ticks_y: Sequence[float],
    y: Callable[[float], float],
) -> list[str]:
    """The beginning of a chart: its grid, ticks (label -> place from the left) and axes' names."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img" '
        f'aria-label="{escape(what)} over {escape(under)}s">'
    ]
    for tick in ticks_y:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{f"{tick:g}".replace("-", "−")}</text>'
        )
    for label, at in ticks_x.items():
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 18}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(under)}</text>'
        f'<text class="axis" text-anchor="middle" transform="translate(13 '
        f'{(_TOP + HEIGHT - _BOTTOM) / 2}) rotate(-90)">{escape(what)}</text>'
    )
    return parts


def draw_lines(
    lines: Lines,
    rows: Sequence[str],
    what: str,
    under: str,
    labels: Mapping[float, str],
    *,
    scale: float = 1.0,
    log: bool = False,
) -> str:
    """Means with their intervals over what is varied. labels: place on the axis -> what stands
    there; log: places are drawn by their logarithm."""
    values = [e for points in lines.values() for _, e in points]
    edges = [edge * scale for e in values for edge in (e["mean"], *(e["interval"] or ()))]
    ticks_y = nice_ticks(min(edges), max(edges))
    low, high = ticks_y[0], ticks_y[-1]
    places = {at: float(np.log(at)) if log else at for at in labels}
    left, right = min(places.values()), max(places.values())
    pad = 0.06 * (WIDTH - _LEFT - _RIGHT)  # whiskers keep off the axes

    def x(at: float) -> float:
        share = 0.5 if right == left else (places[at] - left) / (right - left)
        return _LEFT + pad + (WIDTH - _LEFT - _RIGHT - 2 * pad) * share

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / max(high - low, 1e-9)

    parts = _frame(what, under, {label: x(at) for at, label in labels.items()}, ticks_y, y)
    if low < 0 < high:
        parts.append(
            f'<line class="zero" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(0):.1f}" '
            f'y2="{y(0):.1f}"/>'
        )
    for number, (row, points) in enumerate(lines.items()):
        css, dash = row_style(row, rows)
        aside = 3.0 * (number - (len(lines) - 1) / 2)  # so that whiskers do not hide each other
        at = [(x(place) + aside, e) for place, e in points]
        for left_x, e in at:
            if e["interval"] is not None:
                ends = [y(edge * scale) for edge in e["interval"]]
                parts.append(
                    f'<line class="whisker {css}" x1="{left_x:.1f}" x2="{left_x:.1f}" '
                    f'y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'
                )
        line = " ".join(f"{left_x:.1f},{y(e['mean'] * scale):.1f}" for left_x, e in at)
        parts.append(
            f'<polyline class="mean {css}" stroke-dasharray="{dash}" points="{line}">'
            f"<title>{escape(row)}</title></polyline>"
        )
        parts += [
            f'<circle class="dot {css}" cx="{left_x:.1f}" cy="{y(e["mean"] * scale):.1f}" r="3.2"/>'
            for left_x, e in at
        ]
    return "".join(parts) + "</svg>"


def draw_legend(rows: Sequence[str], all_rows: Sequence[str]) -> str:
    items = []
    for row in rows:
        css, dash = row_style(row, all_rows)
        items.append(
            f'<li><svg viewBox="0 0 30 10" width="30" height="10" aria-hidden="true">'
            f'<line class="mean {css}" x1="1" x2="29" y1="5" y2="5" stroke-dasharray="{dash}"/>'
            f"</svg>{escape(row)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span [low, high]."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999))
    first = int(np.floor(low / step + 1e-9))
    last = int(np.ceil(high / step - 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def draw_bar(value: Mapping[str, Any], low: float, high: float, css: str, zero: bool) -> str:
    """Mean, interval and seeds on a track from low to high, placed in percent of its width."""

    def at(number: float) -> float:
        return min(max(100 * (number - low) / max(high - low, 1e-12), 0), 100)

    parts = []
    if zero:
        parts.append(f'<s style="left:{at(0):.2f}%"></s>')
    if value["interval"] is not None:
        left, right = at(value["interval"][0]), at(value["interval"][1])
        parts.append(f'<i style="left:{left:.2f}%;width:{right - left:.2f}%"></i>')
    parts += [f'<u style="left:{at(seed):.2f}%"></u>' for seed in value.get("values", ())]
    parts.append(f'<b style="left:{at(value["mean"]):.2f}%"></b>')
    return f'<span class="track {css}" aria-hidden="true">{"".join(parts)}</span>'
