"""The last sections of report.html: ceilings, leak audit, coverage, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from keft_jax.gain.cells import Cell

AUDIT_TONES = {"ok": "good", "look": "warn", "leak": "bad"}


def chip(text: str, tone: str = "") -> str:
    return f'<span class="chip {tone}">{escape(text)}</span>'


def show_audit(leaks: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each check, one column for each split; the worst first."""
    order = ["leak", "look", "ok"]
    grouped: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, check in leaks.items():
        name, _, split = key.partition("/")
        grouped.setdefault(name, {})[split] = check
    splits = list(dict.fromkeys(split for checks in grouped.values() for split in checks if split))

    def rank(checks: Mapping[str, Mapping[str, Any]]) -> int:
        places = [order.index(c["verdict"]) for c in checks.values() if c["verdict"] in order]
        return min(places, default=len(order))

    lines, absent = [], []
    for name, checks in sorted(grouped.items(), key=lambda item: rank(item[1])):
        if rank(checks) == len(order):
            absent.append(f"{name} ({next(iter(checks.values()))['note']})")
            continue
        cells = "".join(f"<td>{_show_check(checks.get(split))}</td>" for split in splits)
        if "" in checks:
            cells = f'<td colspan="{max(len(splits), 1)}">{_show_check(checks[""])}</td>'
        worst = min(checks.values(), key=lambda c: rank({"": c}))
        lines.append(
            f'<tr><td>{escape(name)}</td>{cells}<td class="soft">{escape(worst["note"])}</td></tr>'
        )
    head = "".join(f"<th>{escape(split)}</th>" for split in splits or [""])
    note = f'<p class="small soft">Not applicable: {escape("; ".join(absent))}.</p>'
    return (
        f'<div class="wide"><table class="audit"><thead><tr><th>Check</th>{head}'
        f"<th>What it is</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"{note if absent else ''}"
    )


def _show_check(check: Mapping[str, Any] | None) -> str:
    if check is None or check["value"] is None:
        return "–"
    value, verdict = check["value"], check["verdict"]
    shown = f"{value:.3f}" if isinstance(value, float) else str(value)
    shown = {"True": "yes", "False": "no"}.get(shown, shown)
    return f'{chip(verdict, AUDIT_TONES.get(verdict, ""))}<span class="val">{escape(shown)}</span>'


def show_ceilings(ceiling: Mapping[str, Any]) -> str:
    """A table for each split: what look-up in the graph reaches, by part of the questions."""
    tables = []
    for split, found in ceiling.items():
        head = "".join(
            f'<th class="n">{escape(part)} ({n:,})</th>' for part, n in found["examples"].items()
        )
        lines = ""
        for row, values in found["rows"].items():
            cells = (values.get(part) for part in found["examples"])
            shown = (f'<td class="n">{"–" if v is None else f"{100 * v:.1f}"}</td>' for v in cells)
            lines += f"<tr><td>{escape(row)}</td>{''.join(shown)}</tr>"
        tables.append(
            f'<div class="wide"><table class="facts2"><thead><tr><th>{escape(split)}</th>{head}'
            f"</tr></thead><tbody>{lines}</tbody></table></div><br>"
        )
    return "".join(tables)


def show_facts(facts: Mapping[str, Any]) -> str:
    """Numbers and names as a list; {split: {name: value}} as a table with a column a split."""
    deep = {
        k: v
        for k, v in facts.items()
        if isinstance(v, Mapping) and v and all(isinstance(x, Mapping) for x in v.values())
    }
    items = "".join(
        f"<dt>{escape(path)}</dt><dd>{escape(value)}</dd>"
        for k, v in facts.items()
        if k not in deep
        for path, value in _flatten(v, k)
    )
    tables = []
    for title, by_split in deep.items():
        flat = {split: dict(_flatten(values, "")) for split, values in by_split.items()}
        names = dict.fromkeys(name for values in flat.values() for name in values)
        head = "".join(f'<th class="n">{escape(split)}</th>' for split in flat)
        lines = []
        for name in names:
            row = "".join(f'<td class="n">{escape(v.get(name, "–"))}</td>' for v in flat.values())
            lines.append(f"<tr><td>{escape(name)}</td>{row}</tr>")
        tables.append(
            f'<div class="wide"><table class="facts2"><thead><tr><th>{escape(title)}</th>{head}'
            f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div><br>"
        )
    return f"<dl>{items}</dl>{''.join(tables)}" if items else "".join(tables)


def _flatten(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            item
            for k, v in value.items()
            for item in _flatten(v, f"{path} · {k}" if path else str(k))
        ]
    if isinstance(value, bool):
        return [(path, "yes" if value else "no")]
    if isinstance(value, float):
        return [(path, f"{value:,.3f}")]
    if value is None:
        return [(path, "–")]
    return [(path, f"{value:,}" if isinstance(value, int) else str(value))]


def show_cost(cells: Sequence[Cell], rows: Sequence[str]) -> str:
    keys = ("steps", "best_step", "learning_rate", "graph_scale", "seconds", "compilations")
    shown = [k for k in keys if any(k in c.info for c in cells)]
    if not shown:
        return ""
    head = "".join(f'<th class="n">{escape(k.replace("_", " "))}</th>' for k in shown)
    lines = []
    for i, row in enumerate(rows):
        mine = [c.info for c in cells if c.row == row]
        values = []
        for key in shown:
            found = [float(info[key]) for info in mine if isinstance(info.get(key), int | float)]
            values.append(f'<td class="n">{_short(float(np.mean(found))) if found else "–"}</td>')
        lines.append(
            f'<tr class="c{i}"><td><span class="name">{escape(row)}</span></td>{"".join(values)}'
            "</tr>"
        )
    return (
        '<p class="small soft">Means over seeds.</p><div class=wide><table><thead><tr><th>Row</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 0.01 else f"{value:.3g}"
