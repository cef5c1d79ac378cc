"""The gain against the number of labels: a table for each, and one report of them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from keft_jax.config import Config, KeftError
from keft_jax.files import write_atomic
from keft_jax.gain.cells import find_difference
from keft_jax.gain.charts import Lines, draw_legend, draw_lines
from keft_jax.gain.compare import best_control
from keft_jax.gain.console import plot_lines
from keft_jax.gain.facts import chip
from keft_jax.gain.report import write_page
from keft_jax.gain.rows import JUDGED, PLAIN, REFERENCES, order_rows
from keft_jax.gain.run import GainRun, run_table
from keft_jax.gain.sections import TONES, Scale
from keft_jax.gain.verdict import count

OF_LABELS = ("data.draw", "data.select", "data_hash.select", "optim.steps", "eval.every")
"""What recipes choose by the number of labels."""
Tables = dict[str, dict[str, Any]]
"""Name of a table's directory -> its summary, by rising number of labels."""


def run_examples(
    configs: Mapping[str, Config], folder: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """A table in `folder`/NAME for each config, then the report of all tables that are finished
    there, which may be more. What configs have in common is built, and compiled, once."""
    console = Console(quiet=quiet, highlight=False, emoji=False)
    table: GainRun | None = None
    for name, config in configs.items():
        place = folder / name
        table = table.again(config, place) if table else GainRun(config, place, console.print)
        run_table(table, console)
        summary = write_examples(folder)
    console.print(f"report: {folder / 'report.html'}")
    return summary


def write_examples(folder: Path) -> dict[str, Any]:
    """summary.json, report.html and gain.png of the finished tables in a folder. Raises KeftError
    where they differ in more than what a number of labels asks for."""
    done = {
        file.parent.name: json.loads(file.read_text("utf-8"))
        for file in sorted(folder.glob("*/summary.json"))
    }
    tables = dict(sorted(done.items(), key=lambda item: item[1]["train"]))
    first = next(iter(tables.values()))
    made = {
        name: json.loads((folder / name / "manifest.json").read_text("utf-8")) for name in tables
    }
    one = next(iter(made))
    for name, manifest in made.items():
        if found := find_difference(made[one], manifest, OF_LABELS):
            key, left, right = found
            raise KeftError(
                f"{folder / name}: a table with {key} = {right!r}, and {one} has {left!r}; move it "
                "elsewhere"
            )
    out = {"task": first["task"], "metric": first["metric"], "examples": tables}
    write_atomic(folder / "summary.json", json.dumps(out, indent=2, default=float).encode())
    rows = order_rows({row for summary in tables.values() for row in summary["rows"]})
    parts = [part for summary in tables.values() for part in summary["splits"].values()]
    scale = Scale.of({"splits": dict(enumerate(parts))})
    name = f"{first['task']} · gain against the number of labels"
    sections = [(split, "", _show(split, tables, rows, scale)) for split in first["splits"]]
    write_page(folder / "report.html", name, _lead(tables, scale), sections, rows)
    split = first["split"]
    plot_lines(
        {
            first["metric"]: read_lines(tables, split, "scores"),
            f"{JUDGED} − row": gain_lines(tables, split),
        },
        _labels(tables),
        "training examples",
        folder / "gain.png",
        scale.factor,
    )
    return out


def _labels(tables: Tables) -> dict[float, str]:
    return {float(t["train"]): f"{t['train']:,}" for t in tables.values()}


def read_lines(tables: Tables, split: str, what: str) -> Lines:
    """row -> [(labels, estimate)] of `scores` or `versus`."""
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for summary in tables.values():
        for row, estimate in summary["splits"][split][what].items():
            lines.setdefault(row, []).append((float(summary["train"]), estimate))
    return {row: lines[row] for row in order_rows(lines)}


def gain_lines(tables: Tables, split: str) -> Lines:
    """The gain over `none` and over each control."""
    versus = read_lines(tables, split, "versus")
    return {row: versus[row] for row in REFERENCES if row in versus}


def _lead(tables: Tables, scale: Scale) -> str:
    parts = []
    for summary in tables.values():
        gain = summary["gain"]
        if gain:
            parts.append(
                f"{scale.number(gain['mean'], True)} {scale.interval(gain, True)} at "
                f"{summary['train']:,}"
            )
    unit = f" {scale.unit}" if scale.unit else ""
    return f"Over the same model without the knowledge:{unit} {'; '.join(parts)} labels."


def _show(split: str, tables: Tables, rows: list[str], scale: Scale) -> str:
    metric = next(iter(tables.values()))["metric"]
    scores, gains = read_lines(tables, split, "scores"), gain_lines(tables, split)
    labels, under = _labels(tables), "training example"
    charts = [
        draw_lines(scores, rows, metric, under, labels, scale=scale.factor, log=True),
        draw_lines(gains, rows, f"{JUDGED} − row", under, labels, scale=scale.factor, log=True),
    ]
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    lines = []
    for i, row in enumerate(rows):
        cells = []
        for summary in tables.values():
            value = summary["splits"][split]["scores"].get(row)
            cells.append(scale.cell(value, False))
        mark = " true" if row == JUDGED else ""
        lines.append(
            f'<tr class="c{i}{mark}"><td><span class="name">{escape(row)}</span></td>'
            f"{''.join(cells)}</tr>"
        )
    for title, row_of in (("none", lambda part: PLAIN), ("best control", best_control)):
        cells = []
        for summary in tables.values():
            part = summary["splits"][split]
            row = row_of(part)
            shown = scale.cell(part["versus"].get(row), True)
            cells.append(shown.replace("</td>", f" <br>{escape(row)}</td>") if row else shown)
        lines.append(f"<tr><td><code>{JUDGED}</code> − {escape(title)}</td>{''.join(cells)}</tr>")
    verdicts = "".join(
        f'<td class="n">{chip(p["kind"], TONES.get(p["kind"], ""))}</td>'
        for p in (summary["splits"][split] for summary in tables.values())
    )
    lines.append(f"<tr><td>verdict</td>{verdicts}</tr>")
    head = "".join(
        f'<th class="n"><a href="{escape(name)}/report.html">{summary["train"]:,}</a><br>'
        f"{count(summary['splits'][split]['seeds'], 'seed')}</th>"
        for name, summary in tables.items()
    )
    return (
        f'<div class="pair">{figures}</div>{draw_legend([r for r in rows if r in scores], rows)}'
        f'<div class="wide"><table><thead><tr><th>Row</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
