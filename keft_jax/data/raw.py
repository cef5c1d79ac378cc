"""What generators of data sets share: raw files in, JSONL out, orders that do not change."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from keft_jax.config import KeftError
from keft_jax.files import write_atomic

SPLIT_SEED = 20240
R = TypeVar("R")
_GRAMMAR = """
a about above after again against all almost also although always am among an and another any
anyone anything are around as at be because been before behind being below between both but by can
cannot could did do does doing done down during each either else enough etc even ever every
everyone everything everywhere few for from further get gets go goes had has have having he hence
her here hers herself him himself his how however i if in instead into is it its itself just least
less lot many may me might mine more most much must my myself neither no nobody none nor not
nothing now of off often on once one only onto or other others otherwise our ours ourselves out
over own per perhaps quite rather really same shall she should since so some someone something
sometimes somewhere still such than that the their theirs them themselves then there these they
this those though through thus to together too toward towards under until up upon us very was we
well were what whatever when where whether which while who whom whose why will with within without
would yet you your yours yourself
"""
FUNCTION_WORDS = frozenset(_GRAMMAR.split())
"""English words that stand in a text for its grammar: what is called so is not found by name."""


def source_folder(source: str, parts: Sequence[str]) -> Path:
    """The folder of raw files. Raises KeftError where it, or a part of it, is not there."""
    remedy = f"name the folder with {', '.join(parts)}: --data.source=..."
    if not source or not Path(source).is_dir():
        raise KeftError(f"data.source = {source!r}: no such folder; {remedy}")
    for part in parts:
        if not (Path(source) / part).exists():
            raise KeftError(f"{Path(source) / part}: no such folder; {remedy}")
    return Path(source)


def read_lines(path: Path) -> list[tuple[str, str]]:
    """(file:line, line) of a gzipped file."""
    lines = read_gzip(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    return [(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def read_gzip(path: Path) -> str:
    """Raises KeftError for a file that is not there or damaged."""
    if not path.is_file():
        raise KeftError(f"{path}: no such file; copy it there")
    try:
        return gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise KeftError(f"{path}: cannot be read ({error}); copy it again") from error


def read_jsonl_gzip(path: Path) -> list[dict[str, Any]]:
    """Raises KeftError with file:line for a line that is no object."""
    out = []
    for number, line in enumerate(read_gzip(path).rstrip("\n").split("\n"), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise KeftError(f"{path}:{number}: not JSON ({error}); copy it again") from error
        if not isinstance(record, dict):
            raise KeftError(f"{path}:{number}: no object; copy it again")
        out.append(record)
    return out


def nested(rows: Sequence[R], key: Callable[[R], Any]) -> list[R]:
    """The rows in an order of which every beginning has the classes' shares of the whole; within a
    class their order stays."""
    classes: dict[Any, list[R]] = {}
    for row in rows:
        classes.setdefault(key(row), []).append(row)
    places = [
        ((rank + 0.5) / len(classes[c]), number, rank, c)
        for number, c in enumerate(sorted(classes))
        for rank in range(len(classes[c]))
    ]
    return [classes[c][rank] for _, _, rank, c in sorted(places, key=lambda p: p[:3])]


def is_grammar(name: str) -> bool:
    """Whether all its words are function words (`if you`)."""
    return FUNCTION_WORDS.issuperset(name.lower().split())


def without(rows: Sequence[R], others: Iterable[R], key: Callable[[R], Any]) -> list[R]:
    """The rows whose key is none of the others'."""
    seen = set(map(key, others))
    return [row for row in rows if key(row) not in seen]


def set_apart(rows: Sequence[R], key: Callable[[R], Any], *counts: int) -> list[list[R]]:
    """Parts of so many rows or a few more, and a last one with the rest: whole groups of one key,
    in an order drawn from `SPLIT_SEED`; within a part the rows' own order stays."""
    groups = dict.fromkeys(map(key, rows))
    sizes = Counter(map(key, rows))
    part, filled = 0, 0
    for group in random.Random(SPLIT_SEED).sample(list(groups), len(groups)):
        while part < len(counts) and filled >= counts[part]:
            part, filled = part + 1, 0
        groups[group], filled = part, filled + sizes[group]
    return [[row for row in rows if groups[key(row)] == part] for part in range(len(counts) + 1)]


def write_tsv(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Each row once, sorted."""
    write_atomic(path, "".join("\t".join(row) + "\n" for row in sorted(set(rows))))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
