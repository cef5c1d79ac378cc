"""From intervals to one of: helps, no difference, hurts, cannot tell, no verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keft_jax.gain.bootstrap import MIN_SEEDS, Estimate
from keft_jax.gain.rows import JUDGED, PLAIN

MARGIN = 0.01
"""Differences inside +-1 point are called no difference."""
MIN_CLUSTERS = 10
"""Below this many clusters of examples a bootstrap says nothing."""
_SIGMAS = 1.96 + 0.84
"""A 95 % interval excludes the bound with 80 % power."""


def judge(
    estimates: Mapping[str, Estimate], references: Sequence[str], text_only: Iterable[str] = ()
) -> dict[str, Any]:
    """`estimates`: row -> true minus row. `references`: rows that `helps` must all beat.

    To beat all of them is an intersection-union test (Berger 1982): each is tested at its own
    level and no correction for their number is due. Gives {"verdict", "why", "kind", "missing",
    "rivals", "needed_n", "needed"}; verdict starts with its kind, and rivals are the controls that
    do better than `true`, or as well where `none` is not among them.
    """
    present = [row for row in references if row in estimates]
    missing = [row for row in references if row not in estimates]
    verdict: dict[str, Any] = {"missing": missing, "rivals": []}
    verdict |= {"needed_n": None, "needed": None}
    if PLAIN not in present:
        why = f"no row `{PLAIN}` to judge `{JUDGED}` by"
        return verdict | {"kind": "no verdict", "verdict": f"no verdict: {why}", "why": why}
    seeds = min(len(estimates[row].values) for row in present)
    clusters = estimates[PLAIN].clusters
    gain = _points(estimates[PLAIN])
    if seeds < MIN_SEEDS:
        short = f"no verdict: {count(seeds, 'seed')}, {MIN_SEEDS} are needed"
        why = f"{gain} over {PLAIN}, an interval over examples alone"
        return verdict | {"kind": "no verdict", "verdict": short, "why": why}
    if clusters < MIN_CLUSTERS:
        unit = "cluster of examples"
        short = f"no verdict: {count(clusters, unit)}, {MIN_CLUSTERS} are needed"
        return verdict | {"kind": "no verdict", "verdict": short, "why": short[12:]}

    side = {row: _side(estimates[row]) for row in present}
    below, same, above, open_ = (
        [row for row in present if side[row] == s] for s in ("below", "same", "above", "open")
    )
    short = ""
    if PLAIN in below:
        kind, why = "hurts", _each(estimates, below)
    elif below:
        rival = f"{join_rows(below)} {_do(below)} better"
        why = f"{_each(estimates, below)}; {gain} over {PLAIN}"
        if PLAIN in same:
            kind, short = "no difference", f"within 1 point of {PLAIN}, and {rival}"
        elif PLAIN in above:
            kind, short = "cannot tell", f"helps over {PLAIN}, but {rival}"
        else:
            kind, short = "cannot tell", f"not told apart from {PLAIN}, and {rival}"
        verdict["rivals"] = below
    elif same:
        kind = "no difference"
        why = f"within 1 point of {join_rows(same)}: {_points(estimates[same[0]])}"
        if PLAIN not in same:
            short = f"{join_rows(same)} {_do(same)} as well"
            verdict["rivals"] = same
    elif open_:
        kind, why = "cannot tell", f"not told apart from {join_rows(open_)}"
        verdict |= _needed({row: estimates[row] for row in open_}, seeds)
        need = verdict["needed"]
        short = f"{count(clusters, 'cluster')} and {count(seeds, 'seed')}"
        short += f", about {need['clusters']:,} and {need['seeds']:,} would be needed"
    else:
        least = min(above, key=lambda row: _low(estimates[row]))
        kind, why = "helps", f"{gain} over {PLAIN}"
        if least != PLAIN:
            why += f", at the least {_points(estimates[least])} over {least}"
        if missing:
            kind, short = "cannot tell", f"the table lacks {join_rows(missing)}"
            why += ", but what it lacks may explain that"
    if not below and (same or open_) and PLAIN in above:
        why += f"; {gain} over {PLAIN}, which the control may explain"
    short = f"{kind}: {short}" if short else kind
    if kind == "helps":
        level = [row for row in text_only if row in estimates and _low(estimates[row]) <= 0]
        if level:
            why += f"; but not above {join_rows(level)}, which reads text alone"
    return verdict | {"kind": kind, "verdict": short, "why": why}


def _low(estimate: Estimate) -> float:
    return -math.inf if estimate.interval is None else estimate.interval[0]


def _side(estimate: Estimate) -> str:
    if estimate.interval is None:
        return "open"
    low, high = estimate.interval
    if low >= -MARGIN and high <= MARGIN:
        return "same"
    return "above" if low > 0 else "below" if high < 0 else "open"


def _needed(estimates: Mapping[str, Estimate], seeds: int) -> dict[str, Any]:
    """Clusters (at these seeds, or at more where clusters alone cannot do it) at which the mean
    seen now would leave zero, or the margin if that is nearer, outside or inside its interval."""
    worst: dict[str, Any] = {"clusters": 0, "seeds": seeds, "versus": ""}
    for row, estimate in estimates.items():
        reach = max(abs(estimate.mean), MARGIN - abs(estimate.mean))
        target = (reach / _SIGMAS) ** 2
        seed_var, cluster_var = estimate.variance
        # Seeds may take half of the variance allowed; the rest is the clusters'.
        more = max(seeds, math.ceil(seed_var / (target / 2)))
        left = target - seed_var / more
        need = max(estimate.clusters, math.ceil(cluster_var / left))
        if need > worst["clusters"]:
            worst |= {"clusters": need, "versus": row}
        worst["seeds"] = max(worst["seeds"], more)
    return {"needed_n": worst["clusters"], "needed": worst}


def _points(estimate: Estimate) -> str:
    text = f"{100 * estimate.mean:+.1f} points"
    if estimate.interval is None:
        return text
    low, high = (100 * edge for edge in estimate.interval)
    return f"{text} [{low:+.1f}, {high:+.1f}]"


def _each(estimates: Mapping[str, Estimate], rows: Sequence[str]) -> str:
    return ", ".join(f"{_points(estimates[row])} over {row}" for row in rows)


def _do(rows: Sequence[str]) -> str:
    return "does" if len(rows) == 1 else "do"


def join_rows(rows: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return rows[0] if len(rows) == 1 else ", ".join(rows[:-1]) + " and " + rows[-1]


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`, `2 clusters of examples`."""
    first, _, rest = noun.partition(" ")
    return f"{number:,} {first}{'' if number == 1 else 's'}{' ' + rest if rest else ''}"
