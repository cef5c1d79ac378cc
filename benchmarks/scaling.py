"""The tables of docs/scaling.md: configs/scale.py compiled ahead of time for one pod after another.
Each takes some minutes of a core and 3 GB. What OUT has already is not compiled again.

python benchmarks/scaling.py --out scaling.jsonl [--only v5e]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# The smaller ones say all_to_all, which `auto` takes above 16 chips: so one program is compared.
CASES: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("5m,16", "v5e:4x4", 1, ("--mesh.rows=all_to_all",)),
    ("5m,16", "v5e:4x4", 1, ()),
    ("5m,64", "v5e:8x8", 1, ()),
    ("5m,256", "v5e:16x16", 1, ()),
    ("100m,256", "v5e:16x16", 1, ()),
    ("5m,256,4", "v5e:16x16", 1, ()),
    ("5m,64", "v4:4x4x4", 1, ()),
    ("5m,512", "v5p:8x8x8", 1, ()),
    ("5m,512", "v6e:16x16", 2, ()),
)
COLUMNS = (
    *("pod", "chips", "rows", "mesh", "texts a step", "GiB a chip", "table MB", "dense MB moved"),
    *("rows' MB moved", "DCN MB", "ms a step", "MFU"),
)


def run(spec: str, topology: str, slices: int, more: tuple[str, ...]) -> dict[str, Any]:
    """What `keft compile` says: its JSON, or its error."""
    words = ["compile", f"--config=configs/scale.py:{spec}", f"--topology={topology}"]
    words += [f"--slices={slices}", *more]
    command = [sys.executable, "-c", "from keft_jax.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        raise SystemExit(f"keft {' '.join(words)}: {done.stderr[-2000:]}")
    return {"command": f"keft {' '.join(words)}", **json.loads(done.stdout.splitlines()[-1])}


def make_row(one: dict[str, Any]) -> list[str]:
    slices = f"{one['slices']} x " if one["slices"] > 1 else ""
    mesh = " x ".join(f"{axis} {n}" for axis, n in one["mesh"].items() if n > 1)
    rows = one["name"].removeprefix("scale-")
    first = [f"{slices}{one['topology']}", str(one["chips"]), rows, mesh, f"{one['batch']:,}"]
    if not one["fits"]:
        over = one["over_bytes"] / 2**30
        return [*first, f"does not fit by {over:.2f}", *[""] * (len(COLUMNS) - len(first) - 1)]
    dense, own, dcn = split_bytes(one)
    table = one["memory"]["tables"] + one["memory"]["moments of tables"]
    ms = [f"{1e3 * one['seconds'][k]:.0f}" for k in ("overlapped", "one_by_one")]
    mfu = [f"{100 * one['mfu'][k]:.0f}" for k in ("one_by_one", "overlapped")]
    return [
        *first,
        f"{one['used_bytes'] / 2**30:.2f} of {one['hbm_bytes'] / 2**30:.2f}",
        *(f"{x / 1e6:,.1f}" for x in (table, dense, own, dcn)),
        f"{ms[0]} to {ms[1]}",
        f"{mfu[0]} to {mfu[1]} %",
    ]


def split_bytes(one: dict[str, Any]) -> tuple[float, float, float]:
    """(of dense parameters, of rows of the table, between slices)."""
    kinds = one["collectives"]
    dcn = sum(c["bytes"] for c in kinds if c["kind"].startswith("dcn-"))
    own = sum(c["bytes"] for c in kinds if c["kind"] == "all-to-all")
    return one["collective_bytes"] - own - dcn, own, dcn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--only", default="", help="a part of the topology's name")
    a = parser.parse_args()
    lines = a.out.read_text().splitlines() if a.out.is_file() else []
    done = {(one["command"]): one for one in map(json.loads, lines)}
    for spec, topology, slices, more in CASES:
        words = [f"--config=configs/scale.py:{spec}", f"--topology={topology}"]
        command = " ".join(["keft compile", *words, f"--slices={slices}", *more])
        if command in done or a.only not in topology:
            continue
        print(command, file=sys.stderr)
        done[command] = run(spec, topology, slices, more)
        with a.out.open("a") as file:
            file.write(json.dumps(done[command]) + "\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for one in done.values():
        print("| " + " | ".join(make_row(one)) + " |")
    whole = [one["command"] for one in done.values() if one["fits"] and one["gathers"]]
    moved = [one["command"] for one in done.values() if one["fits"] and one["moves_a_table"]]
    again = [one["command"] for one in done.values() if one["fits"] and one["rematerialized"]]
    print(json.dumps({"gathered": whole, "moves_a_table": moved, "rematerialized": again}))


if __name__ == "__main__":
    main()
