"""The numbers of the gain table: scores, paired gains, slices, verdicts, and checks of controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.gain.bootstrap import Estimate, Sample, draw, group_clusters
from keft_jax.gain.cells import Cell, Split, Table, load_table, merge, table_hash
from keft_jax.gain.rows import (
    BASELINES,
    CHANGED,
    JUDGED,
    MAJORITY,
    PLAIN,
    REFERENCES,
    TEXT_ONLY,
    level_of,
    order_rows,
)
from keft_jax.gain.verdict import MARGIN, judge
from keft_jax.tasks.corpus import SCORES

__all__ = ["Cell", "Split", "Table", "load_table", "merge", "summarise", "table_hash"]


def summarise(
    cells: Sequence[Cell],
    splits: Sequence[Split],
    metric: str,
    *,
    task: str,
    score: str = "",
    draws: int = 10_000,
    seed: int = 0,
    reference_rows: Sequence[str] = REFERENCES,
) -> dict[str, Any]:
    """The content of summary.json: the first split at the top, every split under "splits".

    score: which of SCORES (tasks/corpus.py) the metric is, where it is no mean over examples.

    Each split has scores, gain (true - none), versus (true - row, for every other row),
    best_text (the best row without knowledge and the gain over it), slices (each with the same),
    controls (rows that fall below their trivial baseline), verdict with why, needed_n: clusters for
    a verdict, and perturbed: what `true` scores and gains with a share of the facts wrong or
    missing.
    not_converged: rows that more steps might raise; a gain over them may be one of speed alone.
    Equal arguments give equal numbers to the last bit, whatever the order of the cells.
    Raises KeftError for cells that do not fit the splits or each other.
    """
    if not splits:
        raise KeftError("splits: none; name at least one reported split in data.test")
    values = {split.name: _collect(cells, split, metric, score) for split in splits}
    for split in splits:
        if JUDGED not in values[split.name]:
            raise KeftError(f"split {split.name}: no cell of row `{JUDGED}`, which is judged")
    parts = {
        split.name: _summarise_split(
            split,
            values[split.name],
            score,
            draws,
            np.random.default_rng([seed, i]),
            reference_rows,
        )
        for i, split in enumerate(splits)
    }
    first = splits[0].name
    rows = order_rows(cell.row for cell in cells)
    return {
        "task": task,
        "metric": metric,
        "split": first,
        "bootstrap": draws,
        "rows": rows,
        "not_converged": [row for row in rows if _still_rising(row, cells)],
        **parts[first],
        "splits": parts,
    }


def _collect(
    cells: Sequence[Cell], split: Split, metric: str, score: str
) -> dict[str, dict[int, np.ndarray]]:
    """row -> seed -> float[n], or [n, k] with a score"""
    values: dict[str, dict[int, np.ndarray]] = {}
    for cell in sorted(cells, key=lambda c: (c.row, c.seed)):
        where = f"row {cell.row}, seed {cell.seed}, split {split.name}"
        if metric not in cell.metrics.get(split.name, {}):
            known = sorted({m for ms in cell.metrics.values() for m in ms})
            raise KeftError(f"{where}: no metric {metric!r}; there are {', '.join(known)}")
        v = np.asarray(cell.metrics[split.name][metric], float)
        if v.ndim != (2 if score else 1) or len(v) != len(split):
            raise KeftError(f"{where}: values of shape {v.shape} for {len(split)} examples")
        if not np.isfinite(v).all():
            raise KeftError(f"{where}: {int((~np.isfinite(v)).sum())} values are not finite")
        if cell.seed in values.get(cell.row, {}):
            raise KeftError(f"{where}: two cells; keep one")
        values.setdefault(cell.row, {})[cell.seed] = v
    return {row: values[row] for row in order_rows(values)}


def _summarise_split(
    split: Split,
    values: dict[str, dict[int, np.ndarray]],
    score: str,
    draws: int,
    rng: np.random.Generator,
    references: Sequence[str],
) -> dict[str, Any]:
    if not len(split):
        raise KeftError(f"split {split.name}: no examples; give a file with some")
    cluster = group_clusters(np.asarray(split.cluster).astype(str), rng)
    of_sums = SCORES[score] if score else None
    whole = Sample(values, cluster, np.ones(len(split), bool), of_sums)
    slices = {
        name: Sample(values, cluster, np.asarray(mask, bool), of_sums)
        for name, mask in split.slices.items()
        if np.any(mask)
    }
    draw([whole, *slices.values()], draws, rng)
    others = [row for row in values if row != JUDGED]
    scores = {row: whole.estimate(row) for row in values}
    versus = {row: whole.estimate(JUDGED, row) for row in others}
    text = [row for row in others if row in TEXT_ONLY]
    best = max(text, key=lambda row: scores[row].mean) if text else None
    summary: dict[str, Any] = {
        "n": len(split),
        "clusters": len(np.unique(split.cluster)),
        "seeds": len(whole.seeds[JUDGED]),
        "interval_over": "examples and seeds" if scores[JUDGED].over_seeds else "examples",
        "scores": {row: e.json() for row, e in scores.items()},
        "gain": versus[PLAIN].json() if PLAIN in versus else None,
        "versus": {row: e.json() for row, e in versus.items()},
        "best_text": None if best is None else {"row": best, **versus[best].json()},
        "controls": _check_controls(whole, others),
        "slices": {},
        **judge(versus, references, [row for row in text if row in BASELINES]),
    }
    for name, sample in slices.items():
        against = {row: sample.estimate(JUDGED, row) for row in others}
        summary["slices"][name] = {
            "n": sample.n,
            "clusters": sample.clusters,
            "scores": {row: sample.estimate(row).json() for row in values},
            "gain": against[PLAIN].json() if PLAIN in against else None,
            "versus": {row: e.json() for row, e in against.items()},
            **judge(against, references),
        }
    summary["perturbed"] = {
        change: levels for change in CHANGED if len(levels := _by_level(whole, change)) > 1
    }
    return summary


def _by_level(sample: Sample, change: str) -> list[dict[str, Any]]:
    """What is left of `true` with rising shares of the facts changed, 0 first: its score, its gain
    over `none` with the verdict against that alone, and what it loses against the whole graph."""
    levels = {row: level_of(row) for row in sample.seeds}
    shares = {row: found[1] for row, found in levels.items() if found and found[0] == change}
    out = []
    for row, share in sorted({JUDGED: 0.0, **shares}.items(), key=lambda item: item[1]):
        level: dict[str, Any] = {"share": share, "row": row}
        level["score"] = sample.estimate(row).json()
        if row != JUDGED:
            level["loss"] = sample.estimate(row, JUDGED).json()
        if PLAIN in sample.seeds:
            gain = sample.estimate(row, PLAIN)
            found = judge({PLAIN: gain}, (PLAIN,))
            level |= {"gain": gain.json(), **{k: found[k] for k in ("kind", "verdict", "why")}}
        out.append(level)
    return out


def _still_rising(row: str, cells: Sequence[Cell]) -> bool:
    """The best step is the last one for most seeds, and the selection score rose by more than
    MARGIN at the last evaluation, in the mean over seeds."""
    curves = [c.curve for c in cells if c.row == row and len(c.curve) > 1]
    rises = [curve[-1]["select"] - curve[-2]["select"] for curve in curves]
    last = [curve[-1]["select"] > max(p["select"] for p in curve[:-1]) for curve in curves]
    return bool(curves) and float(np.mean(rises)) > MARGIN + 1e-9 and float(np.mean(last)) > 0.5


def _check_controls(sample: Sample, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A control that falls below the majority was kept low, and a gain over it proves nothing."""
    if MAJORITY not in rows:
        return {}
    checks: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row in BASELINES:
            continue
        e: Estimate = sample.estimate(row, MAJORITY)
        flag = e.interval is not None and e.interval[1] < 0
        note = f"below the row {MAJORITY} by {-100 * e.mean:.1f} points: tune it" if flag else ""
        checks[row] = {"baseline": MAJORITY, **e.json(), "flag": flag, "note": note}
    return checks
