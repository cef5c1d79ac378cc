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

    def spans(
        self, starts: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The original's half-open spans, and which of them split none of its characters."""
        if self.starts is None or self.ends is None:
            return starts, ends, np.ones(len(starts), bool)
        size = len(self.starts)
        whole = (starts == 0) | (self.starts[np.maximum(starts - 1, 0)] < self.starts[starts])
        whole &= (ends == size) | (self.ends[np.minimum(ends, size - 1)] > self.ends[ends - 1])
        return self.starts[starts], self.ends[ends - 1], whole


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
    pieces = _pattern().findall(text)
    parts = [run.casefold() if fold else run for run, _ in pieces]
    parts = [
        part or _normal_cluster(cluster, fold)
        for part, (_, cluster) in zip(parts, pieces, strict=True)
    ]
    is_run = np.array([bool(run) for run, _ in pieces])
    sizes = np.array([len(run) + len(cluster) for run, cluster in pieces])
    widths = np.array([len(part) for part in parts])
    piece = np.repeat(np.arange(len(pieces)), widths)
    inside = np.arange(len(piece)) - (np.cumsum(widths) - widths)[piece]
    starts = (np.cumsum(sizes) - sizes)[piece] + np.where(is_run[piece], inside, 0)
    ends = starts + np.where(is_run, 1, sizes)[piece]
    return Normal("".join(parts), starts, ends)


@lru_cache(maxsize=1 << 16)
def _normal_cluster(cluster: str, fold: bool) -> str:
    normal = unicodedata.normalize("NFKC", cluster)
    return unicodedata.normalize("NFKC", normal.casefold()) if fold else normal


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Either a run of characters that keep their length, or one other with all that joins it.

    What joins: marks, Hangul vowels and finals, kana voicing. Built when a text first needs it:
    reading the character tables takes .1 s.
    """
    steady, joins = [], []
    for code in (*range(0x20000), *range(0xE0100, 0xE01F0)):
        character = chr(code)
        if (
            unicodedata.category(character)[0] == "M"
            or 0x1160 <= code <= 0x11FF
            or code in (0xFF9E, 0xFF9F)
        ):
            joins.append(code)
        else:
            folded = character.casefold()
            if len(folded) == 1 and unicodedata.is_normalized("NFKC", character + folded):
                steady.append(code)
    return re.compile(f"({_ranges(steady)}+(?!{_ranges(joins)}))|(.{_ranges(joins)}*)", re.DOTALL)


def _ranges(codes: list[int]) -> str:
    """A class of a regular expression."""
    runs = np.split(np.array(codes), np.flatnonzero(np.diff(codes) != 1) + 1)
    escaped = ((re.escape(chr(run[0])), re.escape(chr(run[-1]))) for run in runs)
    return "[" + "".join(f"{first}-{last}" for first, last in escaped) + "]"
