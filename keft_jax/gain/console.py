"""The gain table on a terminal and as a picture for a paper."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keft_jax.gain.cells import Cell, write_atomic
from keft_jax.gain.charts import Lines, mean_curve, read_curves
from keft_jax.gain.rows import CHANGED, JUDGED, PLAIN, colour_row
from keft_jax.gain.sections import Scale, note_rising
from keft_jax.gain.verdict import MARGIN, count

_TONES = {"helps": "bold green", "hurts": "bold red", "cannot tell": "bold yellow"}


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """Scores and gains of every split, with intervals, then verdicts and what needs a look."""
    scale = Scale.of(summary)
    for name, part in summary["splits"].items():
        title = Text.assemble(
            (name, "bold"),
            f"  {summary['metric']}, {count(part['n'], 'example')} in "
            f"{count(part['clusters'], 'cluster')}",
        )
        # Fits a terminal of 80 columns.
        narrow: Any = {"show_edge": False, "pad_edge": False, "collapse_padding": True}
        table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE, **narrow)
        for head in ("row", "score", "95 % interval", "seeds", f"{JUDGED} − row", "95 % interval"):
            table.add_column(head, justify="left" if head == "row" else "right", no_wrap=True)
        for row in summary["rows"]:
            if row not in part["scores"]:
                continue
            score, gain = part["scores"][row], part["versus"].get(row)
            cells = [row, scale.number(score["mean"]), scale.interval(score)]
            cells.append(str(len(score["values"])))
            cells += [scale.number(gain["mean"], True), scale.interval(gain, True)] if gain else []
            # As Text: names may hold what rich reads as markup.
            table.add_row(*map(Text, cells), style="bold" if row == JUDGED else "")
        console.print(table)
        verdict = Text.assemble(
            "  verdict: ", (part["verdict"], _TONES.get(part["kind"], "bold")), "\n"
        )
        if part["why"] not in part["verdict"]:
            verdict.append(f"  {part['why']}\n", "dim")
        for row, check in part["controls"].items():
            if check["flag"]:
                verdict.append(f"  control {row} is {check['note']}\n", "bold red")
        for change, levels in part["perturbed"].items():
            for level in levels[1:]:
                verdict.append(
                    f"  {100 * level['share']:.0f} % {CHANGED[change]}: "
                    f"{scale.number(level['score']['mean'])}"
                )
                if gain := level.get("gain"):
                    verdict.append(
                        f", {scale.number(gain['mean'], True)} {scale.interval(gain, True)} over "
                        f"{PLAIN}: {level['kind']}"
                    )
                verdict.append("\n")
        console.print(verdict)
    for name, found in (summary.get("ceiling") or {}).items():
        for row, values in found["rows"].items():
            shown = ", ".join(f"{part} {100 * value:.1f}" for part, value in values.items())
            console.print(Text(f"  {row} on {name}: {shown}", "dim"))
    for row, found in (summary.get("variants") or {}).items():
        ratio = found["step_time_ratio"]
        console.print(Text(f"  {row}: a step takes {ratio:.2f} times that of {JUDGED}", "dim"))
    if summary["not_converged"]:
        console.print(Text(f"  {note_rising(summary['not_converged'])}", "dim"))
    for key, check in (summary.get("leaks") or {}).items():
        if check["verdict"] in ("leak", "look"):
            tone = "bold red" if check["verdict"] == "leak" else "yellow"
            where = f"  {check['verdict']}: {key.replace('/', ' of ')}: "
            console.print(Text.assemble((where, tone), check["note"]))


def plot(
    summary: Mapping[str, Any], cells: Sequence[Cell], path_png: str | os.PathLike[str]
) -> None:
    """Gains over every row with their intervals, split by split, and the learning curves."""
    scale, splits = Scale.of(summary), summary["splits"]
    curves = read_curves(cells)
    panels = len(splits) + bool(curves)
    rows = [row for row in summary["rows"] if row != JUDGED]
    width = 4.2 * panels + 0.6
    abreast = entries_abreast(list(curves), width)
    lines = -(-len(curves) // abreast)
    height = 1.3 + 0.2 * lines + 0.36 * max(len(rows), 6)
    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    figure.set_layout_engine("constrained")
    for axis, (name, part) in zip(axes, splits.items(), strict=False):
        axis.axvspan(-MARGIN * scale.factor, MARGIN * scale.factor, color="#eceff2", lw=0)
        axis.axvline(0, color="#56606b", lw=1)
        left, right = span_of_gains(
            part["versus"], [row for row in rows if row in curves], scale.factor
        )
        axis.set_xlim(left, right)
        for y, row in enumerate(reversed(rows)):
            if row not in part["versus"]:
                continue
            gain, colour = part["versus"][row], colour_row(row)[0]
            mean = gain["mean"] * scale.factor
            if not left <= mean <= right:  # said at the edge
                edge, side = (right, "right") if mean > right else (left, "left")
                text = f"{mean:+.3g} →" if side == "right" else f"← {mean:+.3g}"
                axis.text(edge, y, _plain(text), color=colour, ha=side, va="center", fontsize=9)
                continue
            if gain["interval"] is not None:
                edges = [edge * scale.factor for edge in gain["interval"]]
                axis.plot(edges, [y, y], color=colour, lw=2.4, solid_capstyle="butt")
            axis.plot(mean, y, "o", color=colour, ms=6)
        labels = [_plain(row) if axis is axes[0] else "" for row in reversed(rows)]
        axis.set_yticks(range(len(rows)), labels)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlabel(f"{JUDGED} − row" + (f" ({scale.unit})" if scale.unit else ""))
        axis.set_title(_plain(f"{name}: {part['kind']}"), loc="left", fontsize=10)
        _tidy(axis, "x")
    if curves:
        axis = axes[-1]
        for row, seeds in curves.items():
            for steps, values in seeds:
                axis.plot(steps, values * scale.factor, color=colour_row(row)[0], lw=0.6, alpha=0.3)
            steps, values = mean_curve(seeds)
            axis.plot(
                steps, values * scale.factor, color=colour_row(row)[0], lw=1.8, label=_plain(row)
            )
        axis.set_xlabel("training step")
        axis.set_title(
            _plain(f"{summary['metric']} on the selection split"), loc="left", fontsize=10
        )
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", frameon=False, ncols=abreast)
        _tidy(axis, "y")
    _save(figure, path_png)


def entries_abreast(names: Sequence[str], inches: float) -> int:
    """How many entries of a legend stand side by side in that width."""
    widest = max((0.8 + 0.09 * len(name) for name in names), default=1.0)
    return max(min(int(inches / widest), len(names)), 1)


def span_of_gains(
    versus: Mapping[str, Any], trained: Sequence[str], factor: float
) -> tuple[float, float]:
    """The part of the axis that the gains over rows of the same model take: a baseline far off
    would leave no room to tell these apart. All of it where nothing is far off."""

    def edges(rows: Iterable[str]) -> list[float]:
        found = [versus[row] for row in rows if row in versus]
        ends = [g["interval"] or (g["mean"], g["mean"]) for g in found]
        return [0.0, *(edge * factor for pair in ends for edge in pair)]

    near, every = edges(trained), edges(versus)
    if trained and max(every) - min(every) > 3 * (max(near) - min(near)):
        every = near
    room = 0.12 * max(max(every) - min(every), 2 * MARGIN * factor)
    return min(every) - room, max(every) + (3 * room if every is near else room)


def plot_lines(
    panels: Mapping[str, Lines],
    labels: Mapping[float, str],
    under: str,
    path_png: str | os.PathLike[str],
    scale: float,
) -> None:
    """Means with their intervals over a logarithmic axis, a panel for each title."""
    figure = Figure(figsize=(4.6 * len(panels) + 1.2, 3.6), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    for axis, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for row, points in lines.items():
            place, colour = [at for at, _ in points], colour_row(row)[0]
            mean = [e["mean"] * scale for _, e in points]
            for at, e in points:
                if e["interval"] is not None:
                    axis.plot([at, at], [v * scale for v in e["interval"]], color=colour, lw=1)
            axis.plot(place, mean, "o-", color=colour, ms=4, lw=1.6, label=_plain(row))
        axis.set_xscale("log")
        axis.set_xticks(list(labels), list(labels.values()))
        axis.set_xticks([], minor=True)
        axis.set_xlabel(under)
        axis.set_title(_plain(title), loc="left", fontsize=10)
        axis.legend(frameon=False, fontsize=8)
        _tidy(axis, "y")
    _save(figure, path_png)


def _save(figure: Figure, path_png: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(Path(path_png), buffer.getvalue())


def _plain(text: str) -> str:
    """A dollar sign in a name is no formula."""
    return text.replace("$", r"\$")


def _tidy(axis: Any, grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#dde1e6", lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
