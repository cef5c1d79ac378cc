"""Sentiment lexicons as a graph: each word points at what its lexicons say of it.

    good    polarity         positive word            by the mean of the lexicons that list it
    good    VADER valence    clearly positive         how strong, in the lexicons that grade
    good    AFINN valence    clearly positive

The value nodes are few and their names are plain words, so that a text model reads them as it reads
text. What a word is worth stands in the tails alone: a graph in which words change places with
others of the same relations knows nothing of it.

The lexicons, each as it is distributed: VADER (Hutto and Gilbert 2014), AFINN (Nielsen 2011), the
opinion lexicon (Hu and Liu 2004).
"""

from __future__ import annotations

import gzip
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keft_jax.config import KeftError
from keft_jax.kg.io import Report
from keft_jax.kg.store import Triple

VADER, AFINN, OPINION = "vader_lexicon.txt.gz", "AFINN-en-165.txt", "opinion_lexicon.zip"
_SIGNS = {"positive": 1.0, "negative": -1.0}
_LARGEST = 1 << 26  # bytes of an unpacked file
STRENGTHS = ((0.3, "slightly"), (0.6, "clearly"), (math.inf, "very"))
"""Upper bounds of |value|, as a share of the largest one of the scale."""


@dataclass(frozen=True)
class Lexicon:
    name: str
    values: dict[str, float]  # word -> -1..1, the sign being its polarity
    graded: bool = True  # the size means something


def read_lexicons(folder: str | Path) -> tuple[list[Lexicon], Report]:
    """Those of the three that the folder has. Bad lines are left out, counted and listed. Raises
    KeftError where there is none, or a file is damaged or holds no word."""
    folder, report = Path(folder), Report()
    found: list[Lexicon] = []
    if (folder / VADER).is_file():
        found.append(read_values(folder / VADER, "VADER", report, largest=4))
    if (folder / AFINN).is_file():
        found.append(read_values(folder / AFINN, "AFINN", report, largest=5))
    if (folder / OPINION).is_file():
        found.append(read_opinion(folder / OPINION, report))
    if not found:
        raise KeftError(f"{folder}: no lexicon; put {VADER}, {AFINN} or {OPINION} there")
    return found, report


def read_values(
    path: str | Path, name: str, report: Report | None = None, largest: float | None = None
) -> Lexicon:
    """A lexicon of lines `word<tab>value`; what follows the value is ignored. `largest`: the
    largest |value| of the scale; None: that of the file. The last of two lines on a word counts."""
    path, report = Path(path), report or Report()
    values: dict[str, float] = {}
    for number, line in _lines(path, _read(path), "utf-8", report):
        word, tab, rest = line.partition("\t")
        try:
            value = float(rest.split("\t")[0])
        except ValueError:
            value = math.nan
        if not word.strip() or not abs(value) <= (largest or sys.float_info.max):
            reason = f"{rest[:20]!r} is no value of the scale" if tab else "not word<tab>value"
            report.reject(path, number, reason)
            continue
        report.read += 1
        values[word.strip()] = value
    _refuse_empty(path, values)
    scale = largest or max(map(abs, values.values())) or 1.0
    return Lexicon(name, {word: value / scale for word, value in values.items()})


def read_opinion(path: str | Path, report: Report | None = None) -> Lexicon:
    """The opinion lexicon's archive: words without grades, comments after a semicolon."""
    path, report = Path(path), report or Report()
    values: dict[str, float] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for sign, value in _SIGNS.items():
                member = archive.getinfo(f"opinion_lexicon/{sign}-words.txt")
                if member.file_size > _LARGEST:
                    raise KeftError(f"{path}: {member.filename} unpacks to over 64 MiB; check it")
                raw = archive.read(member)
                for _, line in _lines(path / member.filename, raw, "latin-1", report):
                    if not line.startswith(";"):
                        report.read += 1
                        values[line] = value
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError) as error:
        raise KeftError(f"{path}: not the opinion lexicon ({error}); copy it again") from error
    _refuse_empty(path, values)
    return Lexicon("opinion lexicon", values, graded=False)


def make_triples(lexicons: Sequence[Lexicon]) -> list[Triple]:
    """Polarity by the mean of the lexicons, and a valence from each graded one; words in order."""
    triples = []
    for word in sorted({word for lexicon in lexicons for word in lexicon.values}):
        listed = [lexicon for lexicon in lexicons if word in lexicon.values]
        mean = sum(lexicon.values[word] for lexicon in listed) / len(listed)
        triples.append((word, "polarity", f"{_sign(mean)} word"))
        triples += [
            (word, f"{lexicon.name} valence", describe(lexicon.values[word]))
            for lexicon in listed
            if lexicon.graded
        ]
    return triples


def make_attributes(lexicons: Sequence[Lexicon]) -> list[tuple[str, str, float]]:
    """The same as numbers, -1 to 1: the mean of the lexicons that list a word, and the value in
    each that grades."""
    rows: list[tuple[str, str, float]] = []
    for word in sorted({word for lexicon in lexicons for word in lexicon.values}):
        listed = [lexicon for lexicon in lexicons if word in lexicon.values]
        mean = sum(lexicon.values[word] for lexicon in listed) / len(listed)
        rows.append((word, "polarity", mean))
        rows += [(word, f"{x.name} valence", x.values[word]) for x in listed if x.graded]
    return rows


def describe(value: float) -> str:
    """-1..1 -> "very negative" to "very positive"; 0 -> "neutral word"."""
    if value == 0:
        return "neutral word"
    strength = next(name for bound, name in STRENGTHS if abs(value) <= bound)
    return f"{strength} {_sign(value)}"


def _sign(value: float) -> str:
    return "positive" if value > 0 else "negative" if value < 0 else "neutral"


def _read(path: Path) -> bytes:
    """A file's bytes, unpacked where it is .gz. Raises KeftError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise KeftError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(raw) > _LARGEST:
        raise KeftError(f"{path}: over 64 MiB unpacked, no lexicon of words; check it")
    return raw


def _lines(path: Path, raw: bytes, encoding: str, report: Report) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank and can be decoded."""
    report.files += 1
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        report.lines += 1
        try:
            yield number, line.decode(encoding).strip()
        except UnicodeDecodeError as error:
            report.reject(path, number, f"not {encoding} (byte {error.start + 1})")


def _refuse_empty(path: Path, values: dict[str, float]) -> None:
    if not values:
        raise KeftError(f"{path}: no line holds a word and its value; write word<tab>value")
