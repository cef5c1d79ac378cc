"""The end of a table: statistics, what stands beside the scores, and the files for readers."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console

from keft_jax.config import KeftError, config_hash
from keft_jax.gain.cells import Cell, load_table, merge, write_atomic
from keft_jax.gain.lookup import measure_ceilings
from keft_jax.gain.report import Drawn, plot, print_table, write_report
from keft_jax.gain.splits import audit_splits, given, gold_of, text_of
from keft_jax.gain.stats import summarise
from keft_jax.train.coverage import cover

if TYPE_CHECKING:
    from keft_jax.gain.run import GainRun

BESIDE = "beside.json"
"""What no cell changes, so that a table that grows measures it once."""


def finish(table: GainRun, begin: float) -> dict[str, Any]:
    """Writes summary.json, report.html and gain.png of the cells on disk; gives the summary."""
    config, workdir = table.config, table.workdir
    done = load_table(workdir)
    summary = summarise(
        done.cells,
        done.splits,
        table.metric,
        task=config.task.kind,
        score=table.score,
        draws=config.gain.bootstrap,
        seed=config.seed,
    )
    summary["train"] = len(table.drawn(config.seed))
    summary |= _beside(table)
    summary["compilations"] = table.trainer.compilations
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    summary["config_hash"], summary["kg_hash"] = config_hash(config), table.parts.kg_hash
    summary["data_hash"] = table.data_hash()
    summary["versions"] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    texts = {
        name: [
            {
                "text": text_of(e),
                "gold": ", ".join(gold_of(e, config.task.kind)),
                "pattern": e.pattern,
            }
            for e in d.examples
        ]
        for name, d in table.tests.items()
    }
    write_atomic(workdir / "examples.json", json.dumps(texts, ensure_ascii=False).encode())
    _write(workdir, summary, done.cells, workdir, dataclasses.asdict(config))
    return summary


def _beside(table: GainRun) -> dict[str, Any]:
    """Coverage, ceilings, leak audit and costs: measured where they are not on disk."""
    file, parts = table.workdir / BESIDE, table.parts
    facts: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not facts:
        facts["coverage"] = {n: cover(given(d, parts), parts) for n, d in table.tests.items()}
        if table.config.task.kind == "kgqa":
            drawn = table.drawn(table.config.seed)
            facts["ceiling"] = measure_ceilings(parts, table.train, drawn, table.tests)
        facts["leaks"] = audit_splits(
            parts,
            table.train.examples,
            table.select.examples,
            table.tests,
            table.unlabelled,
        )
        facts["step_time_ratio"] = table.step_time_ratio()
        facts["variants"] = {}
    own = given(table.train, parts)
    for row in table.config.gain.variants:
        if row not in facts["variants"]:
            facts["variants"][row] = {"step_time_ratio": table.variants.cost(row, own)}
    write_atomic(file, json.dumps(facts, indent=2, default=float).encode())
    return json.loads(file.read_text("utf-8"))


def _write(
    folder: Path, summary: dict[str, Any], cells: Sequence[Cell], origin: Path, config: dict
) -> None:
    """summary.json, report.html and gain.png, with the examples and drawings of `origin`."""

    def read(name: str, empty: Any) -> Any:
        file = origin / name
        return json.loads(file.read_text("utf-8")) if file.is_file() else empty

    drawn = [Drawn(**d) for d in read("drawn.json", [])]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2, default=float).encode())
    write_report(folder / "report.html", summary, cells, read("examples.json", {}), drawn, config)
    plot(summary, cells, folder / "gain.png")


def merge_tables(folders: Sequence[Path], out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """One table from several: other rows or seeds, all else equal. What lies beside the scores
    (audit, coverage, cost, drawings) is that of the first. Raises KeftError naming what differs."""
    table = merge(folders)
    config = table.manifest["config"]
    gain = config.get("gain", {})
    if not (folders[0] / "summary.json").is_file():
        raise KeftError(f"{folders[0]}: not finished (no summary.json); finish it by its command")
    beside = json.loads((folders[0] / "summary.json").read_text("utf-8"))
    summary = summarise(
        table.cells,
        table.splits,
        table.manifest["metric"],
        task=table.manifest["task"],
        score=table.manifest.get("score", ""),
        draws=gain.get("bootstrap", 10_000),
        seed=config.get("seed", 0),
    )
    summary = beside | summary
    table.save(out)
    for name in ("examples.json", "drawn.json"):
        if (folders[0] / name).is_file():
            write_atomic(out / name, (folders[0] / name).read_bytes())
    _write(out, summary, table.cells, folders[0], config)
    print_table(summary, Console(quiet=quiet, highlight=False, emoji=False))
    return summary
