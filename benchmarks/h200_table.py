"""The table of benchmarks/h200.sh: what was measured, beside what it should be.

python benchmarks/h200_table.py OUT/results.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

# case -> what is read of it, its name, the goal ("" : none)
ROWS: tuple[tuple[str, Callable[[Record], float], str, str], ...] = (
    ("base_128", lambda r: r["mfu"], "MFU", ">= 0.35"),
    ("base_512", lambda r: r["mfu"], "MFU", ">= 0.35"),
    ("plain_128", lambda r: r["mfu"], "MFU without dropout", ""),
    ("minilm_128", lambda r: r["mfu"], "MFU", ">= 0.20"),
    ("gnn_128", lambda r: 1 / r["graph_ratio_wall"], "share of the text's speed", ">= 0.90"),
    ("gnn_512", lambda r: 1 / r["graph_ratio_wall"], "share of the text's speed", ">= 0.90"),
    ("teacher_128", lambda r: taught(r), "share of the text's speed", ">= 0.67"),
    ("teacher_512", lambda r: taught(r), "share of the text's speed", ">= 0.67"),
    ("embedding", lambda r: r["ratio_wall"], "gradient, 12 % [MASK] / random ids", "<= 1.50"),
)
PAIRS = ("base_128", "base_512", "plain_128", "minilm_128")


def taught(record: Record) -> float:
    return 1 / record["parts"]["distill"]["ratio_wall"]


def reaches(value: float, goal: str) -> str:
    if not goal:
        return ""
    sign, limit = goal.split()
    good = value >= float(limit) if sign == ">=" else value <= float(limit)
    return "reached" if good else "missed"


def make_table(records: Mapping[str, Record]) -> list[str]:
    lines = [f"{'case':<14}{'what':<38}{'value':>8}  {'goal':<9}"]
    for case, read, what, goal in ROWS:
        if case in records:
            value = read(records[case])
            lines.append(f"{case:<14}{what:<38}{value:>8.3f}  {goal:<9}{reaches(value, goal)}")
    for case in PAIRS:
        own, other = records.get(case), records.get(f"torch_{case}")
        if own and other:
            rates = own["tokens_per_s"], other["real_tokens_per_s"]
            what = f"tokens/s {rates[0]:,.0f} / PyTorch {rates[1]:,.0f}"
            lines.append(f"{case:<14}{what:<38}{rates[0] / rates[1]:>8.3f}")
    if "pytorch" in records:
        lines.append(f"PyTorch: not measured: {records['pytorch']['missing']}")
    first = next((r for r in records.values() if "environment" in r), None)
    if first:
        place, versions = first["device"], first["versions"]
        lines.append(
            f"{place['count']} x {place['kind']}, jax {versions['jax']}, peak "
            f"{first['peak_flops'] / 1e12:,.0f} TFLOPs/s ({first['peak_known_by']})"
        )
    return lines


def main() -> None:
    lines = Path(sys.argv[1]).read_text().splitlines()
    print("\n".join(make_table({r["case"]: r for r in map(json.loads, lines)})))


if __name__ == "__main__":
    main()
