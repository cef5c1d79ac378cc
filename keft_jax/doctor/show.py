"""The doctor's report on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from keft_jax.doctor.expect import NAMES

_TONES = {
    "expect a gain": "bold green",
    "expect little": "bold red",
    "cannot tell": "bold yellow",
}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Graph, coverage, linking, leaks, what to expect, cost; the verdict last."""
    graph, links = report["graph"], report["linking"]
    facts = f"{graph['entities']:,} entities, {graph['relations']:,} relations, "
    facts += f"{graph['triples']:,} facts"
    if graph["ambiguous_names"]:
        facts += f"; {graph['ambiguous_names']:,} names of several entities"
    _say(console, "graph", facts)
    for note in report["sampled"]:
        _say(console, "sampled", note)
    _table(console, "coverage", report["coverage"], report["examples"])
    _say(
        console,
        "mentions",
        f"{links['mentions_a_text']:.1f} a text, of {links['entities']:,} entities; "
        f"{links['without_entity']:.0%} without an entity, {links['ambiguous']:.0%} ambiguous, "
        f"{links['isolated']:.0%} of entities without facts",
    )
    _say(console, "most frequent", _counted(links["most_frequent"]))
    if links["ambiguous_names"]:
        _say(console, "ambiguous", _counted(links["ambiguous_names"]))
    if links["hubs"]:
        hubs = ", ".join(f"{name} ({degree:,} facts)" for degree, name, _ in links["hubs"])
        share = links["over_budget"]
        _say(console, "hubs", f"{share:.0%} of mentions have more facts than nodes fit: {hubs}")
    for key, check in report["leaks"].items():
        if check["verdict"] in ("leak", "look"):
            tone = "bold red" if check["verdict"] == "leak" else "yellow"
            value = check["value"]
            shown = f" ({value:.3f})" if isinstance(value, float) else ""
            what = f"{key.replace('/', ' of ')}{shown}: {check['note']}"
            _say(console, check["verdict"], what, tone)
    if "ceiling" in report:
        for row, values in report["ceiling"]["rows"].items():
            parts = (f"{part} {100 * value:.1f}" for part, value in values.items())
            _say(console, "ceiling", f"{row}: {', '.join(parts)}")
    found = report["expect"]
    title = f"linear probes, {found['train']:,} training and {found['test']:,} other examples, "
    _say(console, "expect", title + f"{found['seeds']} resamples ({found['metric']})")
    for row, name in NAMES.items():
        if row in found["scores"]:
            score = found["scores"][row]
            console.print(Text(f"{'':16}{name:36}{100 * score['mean']:6.1f}  {_interval(score)}"))
    if "cost" in report:
        cost = report["cost"]
        memory = "" if cost["memory_mb"] is None else f"; {cost['memory_mb']:,.0f} MB of memory"
        _say(
            console,
            "cost",
            f"{cost['parameters']:,} parameters; compiling {cost['compile_s']:.0f} s, a step "
            f"{1000 * cost['step_s']:.0f} ms, train.py about {_time(cost['run_s'])}, keft gain "
            f"about {_time(cost['gain_s'])} ({cost['gain_runs']} runs){memory} on {cost['device']}",
        )
    verdict = report["verdict"]
    console.print()
    console.print(Text(verdict["sentence"], _TONES[verdict["kind"]]), soft_wrap=True)


def _say(console: Console, head: str, text: str, tone: str = "") -> None:
    """As Text: names may hold what rich reads as markup."""
    console.print(Text.assemble((f"{head:16}", tone or "dim"), text), soft_wrap=True)


def _counted(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({n:,})" for name, n in pairs) or "none"


def _table(
    console: Console, head: str, splits: Mapping[str, Any], sizes: Mapping[str, int]
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(Text(f"{head:14}", "dim"))
    table.add_column("examples", justify="right")
    names = [n for n in next(iter(splits.values())) if n not in ("examples", "truncated")]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for split, values in splits.items():
        shares = ["–" if values[name] is None else f"{values[name]:.0%}" for name in names]
        table.add_row(Text(split), f"{sizes.get(split, 0):,}", *shares)
    console.print(table)


def _interval(value: Mapping[str, Any]) -> str:
    edges = value["interval"]
    return "" if edges is None else f"[{100 * edges[0]:.1f}, {100 * edges[1]:.1f}]"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
