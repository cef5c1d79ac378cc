"""Text in normal form, with every character's place in the original."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Normal:
    """NFKC, folded where asked. Its character i comes from original[starts[i]:ends[i]]; None: i."""

    text: str
    starts: np.ndarray | None = None  # int64[len(text)]
    ends: np.ndarray | None = None  # int64[len(text)]

    def span(self, start: int, end: int) -> tuple[int, int] | None:
        """The original's half-open span, or None where the match splits one of its characters."""
        if self.starts is None or self.ends is None:
            return start, end
        splits_first = start > 0 and self.starts[start - 1] == self.starts[start]
        splits_last = end < len(self.ends) and self.ends[end] == self.ends[end - 1]
        if splits_first or splits_last:
            return None
        return int(self.starts[start]), int(self.ends[end - 1])


def normalise(text: str, *, fold: bool) -> Normal:
    """NFKC and, with `fold`, Unicode case folding, by clusters of a character and its marks.

    A cluster's result depends on nothing else, so names and text come out alike, and what changes
    length ('ﬁ', 'İ', full-width forms, combining accents) keeps its place in the original.
    """
    if text.isascii():
        return Normal(text.lower() if fold else text)
    if unicodedata.is_normalized("NFKC", text):
        folded = text.casefold() if fold else text
        if len(folded) == len(text) and unicodedata.is_normalized("NFKC", folded):
            return Normal(folded)
    clusters = _cluster_pattern().findall(text)
    parts = [_normal_cluster(cluster, fold) for cluster in clusters]
    widths = np.array([len(part) for part in parts])
    stops = np.cumsum([len(cluster) for cluster in clusters])
    starts = np.concatenate([[0], stops[:-1]])
    return Normal("".join(parts), np.repeat(starts, widths), np.repeat(stops, widths))


@lru_cache(maxsize=1 << 16)
def _normal_cluster(cluster: str, fold: bool) -> str:
    normal = unicodedata.normalize("NFKC", cluster)
    return unicodedata.normalize("NFKC", normal.casefold()) if fold else normal


@lru_cache(maxsize=1)
def _cluster_pattern() -> re.Pattern[str]:
    """A character and all that NFKC may join to it: marks, Hangul vowels and finals, kana voicing.

    Built when a text first needs it: reading the character tables takes 30 ms.
    """
    codes = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    joins = [
        code
        for code in codes
        if unicodedata.category(chr(code))[0] == "M"
        or 0x1160 <= code <= 0x11FF
        or code in (0xFF9E, 0xFF9F)
    ]
    runs = np.split(np.array(joins), np.flatnonzero(np.diff(joins) != 1) + 1)
    ranges = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(f".[{ranges}]*", re.DOTALL)
