"""The metrics of SQuAD 1.1 and 2.0, by the rules of the official evaluation (Rajpurkar et al.
2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def rightful(answers: Sequence[str]) -> list[str]:
    """The answers to compare with: those of which something is left, or "" alone."""
    return [answer for answer in answers if normalise(answer)] or [""]


def exact(said: str, answers: Sequence[str]) -> float:
    """1 where it equals one of the right answers. answers: of `rightful`."""
    return float(any(normalise(said) == normalise(answer) for answer in answers))


def f1(said: str, answers: Sequence[str]) -> float:
    """The best F1 of words with one of the right answers. answers: of `rightful`."""
    return max(_f1(normalise(said).split(), normalise(answer).split()) for answer in answers)


def _f1(said: Sequence[str], answer: Sequence[str]) -> float:
    if not said or not answer:
        return float(said == answer)
    same = (Counter(said) & Counter(answer)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def best_threshold(
    margin: np.ndarray, value: np.ndarray, answerable: np.ndarray
) -> tuple[float, float]:
    """(mean score, threshold) of the best threshold: "" is said where the margin is above it. Where
    it is best to say "" always, one below all margins.

    Args:
      margin: f[n], how far the score of no answer is above that of the best answer.
      value: f[n], the score of the best answer.
      answerable: bool[n].
    """
    gain = np.where(answerable, value, -1.0)
    order = np.argsort(margin, kind="stable")
    total = (~answerable).sum() + np.append(0.0, np.cumsum(gain[order]))
    best = int(total.argmax())
    threshold = margin[order[best - 1]] if best else margin.min() - 1
    return float(total[best] / len(margin)), float(threshold)
