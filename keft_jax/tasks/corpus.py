"""Metrics of a whole split that are no mean over its examples: functions of sums over them.

A task says what it counts of each example and which function of the sums is its metric. So a score
of any part, or of any weighing of the examples, is a matrix product and one call: that is what
makes intervals by the bootstrap as cheap for F1 as for accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Counts = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From a task's values of n examples to f32[n, k]."""
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(f64[..., k], sums over some examples; f64[..., k], those over the split that they are of) ->
[...]."""


@dataclass(frozen=True)
class Corpus:
    """One metric: `score` (a key of SCORES) of the sums of `count` over a split's examples."""

    count: Counts
    score: str

    def __call__(self, rows: Mapping[str, np.ndarray]) -> float:
        return score_counts(self.score, self.count(rows))


def count_labels(labels: int, leave_out: tuple[int, ...] = ()) -> Counts:
    """Of single labels, `choice` and `gold` by number: f32[n, 3 c] for each label whether it is
    right, answered, gold; without some of them."""
    kept = np.setdiff1d(np.arange(labels), leave_out)

    def count(rows: Mapping[str, np.ndarray]) -> np.ndarray:
        gold, said = (np.asarray(rows[name])[:, None] == kept for name in ("gold", "choice"))
        return np.concatenate([gold & said, said, gold], 1).astype(np.float32)

    return count


def count_sets(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of sets, their sizes `hit` (right ones), `said` and `gold`: f32[n, 3]."""
    return np.stack([np.asarray(rows[k]) for k in ("hit", "said", "gold")], 1).astype(np.float32)


def count_of(*names: str) -> Counts:
    """Values as they are: f32[n, k]."""

    def count(rows: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.stack([np.asarray(rows[name]) for name in names], 1).astype(np.float32)

    return count


def count_shares(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of sets as in `count_sets`: precision and whether anything was answered, recall and one,
    f32[n, 4]."""
    hit, said, gold = count_sets(rows).T
    columns = (hit / np.maximum(said, 1), said > 0, hit / np.maximum(gold, 1), np.ones_like(hit))
    return np.stack(columns, 1).astype(np.float32)


def _by_label(sums: np.ndarray) -> np.ndarray:
    """right, answered, gold: f64[3, ..., labels] of what `count_labels` counts."""
    return np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)


def _over_labels(value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Score:
    """The mean over the labels that occur in the split as gold or as answer (scikit-learn's
    `macro`). A part that lacks one of them has nothing of it right: were it averaged over fewer,
    its score would depend on which labels it holds."""

    def score(sums: np.ndarray, split: np.ndarray) -> np.ndarray:
        _, said, gold = _by_label(split)
        there = said + gold > 0
        total = np.where(there, value(*_by_label(sums)), 0).sum(-1)
        return total / np.maximum(there.sum(-1), 1)

    return score


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole > 0, whole, 1)


def matthews(sums: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Matthews' correlation of counts by label, for any number of them (Gorodkin 2004)."""
    right, said, gold = _by_label(sums)
    n = gold.sum(-1)
    both = right.sum(-1) * n - (said * gold).sum(-1)
    spread = (n**2 - (said**2).sum(-1)) * (n**2 - (gold**2).sum(-1))
    return both / np.sqrt(np.where(spread > 0, spread, np.inf))


def micro_f1(sums: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Of right, answered and gold: entities (Ramshaw and Marcus 1995), types, labels."""
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def loose_macro_f1(sums: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Of what `count_shares` counts: the harmonic mean of mean precision and mean recall (Ling and
    Weld 2012)."""
    precision, recall = _ratio(sums[..., 0], sums[..., 1]), _ratio(sums[..., 2], sums[..., 3])
    return _ratio(2 * precision * recall, precision + recall)


SCORES: dict[str, Score] = {
    "macro_precision": _over_labels(lambda right, said, gold: _ratio(right, said)),
    "macro_recall": _over_labels(lambda right, said, gold: _ratio(right, gold)),
    "macro_f1": _over_labels(lambda right, said, gold: _ratio(2 * right, said + gold)),
    "matthews": matthews,
    "micro_f1": micro_f1,
    "share": lambda sums, split: _ratio(sums[..., 0], sums[..., 1]),
    "loose_macro_f1": loose_macro_f1,
}
"""All lie in [-1, 1]; a division by zero is zero."""


def score_counts(score: str, counts_nk: np.ndarray) -> float:
    """The metric of a whole split."""
    sums = counts_nk.sum(0, dtype=np.float64)
    return float(SCORES[score](sums, sums))
