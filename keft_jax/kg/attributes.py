"""Numbers and dates of entities, as vectors that a graph network reads.

    France    population    67390000
    France    founded       0843-08-10

An attribute is a column of its own, standardised by the median and the quartiles of the graph's
entities, with a second column that says where it is known. What is no number belongs into the graph
as an entity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg.io import ATTRIBUTE, Report, read_fields
from keft_jax.kg.store import KG

MOST = 10.0  # quartile distances from the median that a value is cut to
_DATE = re.compile(r"([+-]?\d{4,})-(\d{2})(?:-(\d{2})(?:[T ][\d:.]+(?:Z|[+-]\d{2}:?\d{2})?)?)?")


@dataclass(frozen=True)
class Attributes:
    """Attributes by name: a graph that is updated or swapped finds those of its entities."""

    names: tuple[str, ...]  # of a attributes, sorted
    values: dict[str, np.ndarray]  # entity -> f64[a]; NaN: not known
    centre: np.ndarray  # f64[a]: the median
    spread: np.ndarray  # f64[a], above 0: as a standard deviation, where values are normal
    unknown: int = 0  # rows on entities that the graph has not

    @property
    def width(self) -> int:
        return 2 * len(self.names)

    def of(self, kg: KG) -> np.ndarray:
        """f16[entities, 2 a]: the standardised values, 0 where there is none; then whether there is
        one."""
        raw = np.full((kg.n_entities, len(self.names)), np.nan)
        for entity, row in self.values.items():
            place = kg.find(entity)
            if place is not None:
                raw[place] = row
        there = ~np.isnan(raw)
        scaled = np.where(there, (raw - self.centre) / self.spread, 0)
        return np.concatenate([np.clip(scaled, -MOST, MOST), there], 1).astype(np.float16)

    def lines(self) -> Iterator[str]:
        """Rows that `read_attributes` makes the same values of."""
        for entity in sorted(self.values):
            for name, value in zip(self.names, self.values[entity], strict=True):
                if not math.isnan(value):
                    yield f"{entity}\t{name}\t{float(value)!r}\n"


def read_attributes(path: str | Path, kg: KG) -> tuple[Attributes, Report]:
    """Of a file of entity, attribute, value (TSV, CSV, Parquet; .gz too), those of the graph's
    entities. The last of two values counts.

    A line that is malformed or whose value is neither a finite number nor an ISO date (2001,
    2001-05, 2001-05-31, with a time too: it becomes a year with its part) is counted and listed.

    Raises:
      KeftError: a file without a row; an attribute of which most values are no numbers; no row on
        an entity of the graph.
    """
    report = Report()
    rows: list[tuple[str, str, float]] = []
    bad: dict[str, list[tuple[int, str, str]]] = {}
    counts: dict[str, int] = {}
    path = Path(path)
    for number, (entity, attribute, text) in read_fields(path, ATTRIBUTE, report):
        counts[attribute] = counts.get(attribute, 0) + 1
        value = parse_value(text)
        if value is None:
            report.read -= 1
            report.reject(path, number, f"{text[:40]!r} is no number or date")
            bad.setdefault(attribute, []).append((number, entity, text))
        else:
            rows.append((entity, attribute, value))
    for attribute, some in bad.items():
        if 2 * len(some) > counts[attribute]:
            number, entity, text = some[0]
            raise KeftError(
                f"{path}:{number}: attribute {attribute!r} has the value {text[:40]!r}, no number "
                f"or date, and {len(some) - 1} more such; put these into the graph, as facts like "
                f"{entity[:40]!r}, {attribute!r}, {text[:40]!r}"
            )
    known = {entity for entity, _, _ in rows if kg.find(entity) is not None}
    if not known:
        raise KeftError(
            f"{path}: none of its {len(rows)} rows is on an entity of the graph; names are "
            "case-sensitive"
        )
    return _gather(rows, known), report


def _gather(rows: Iterable[tuple[str, str, float]], known: Collection[str]) -> Attributes:
    """The spread is that of the known entities; the others may come with another graph."""
    rows = sorted(rows, key=lambda row: row[0])  # stable: the last value of an entity counts
    names = tuple(sorted({attribute for _, attribute, _ in rows}))
    column = {name: i for i, name in enumerate(names)}
    values: dict[str, np.ndarray] = {}
    for entity, attribute, value in rows:
        values.setdefault(entity, np.full(len(names), np.nan))[column[attribute]] = value
    table = np.stack([row for entity, row in values.items() if entity in known])
    table = np.where(np.isnan(table).all(0), 0.0, table)  # of unknown entities alone
    low, centre, high = np.nanquantile(table, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / 1.349
    # Where half of all values are the same, the quartiles say nothing.
    spread = np.where(spread > 0, spread, np.nanstd(table, axis=0))
    spread = np.where(spread > 0, spread, 1.0)
    unknown = sum(entity not in known for entity, _, _ in rows)
    return Attributes(names, values, centre, spread, unknown)


def parse_value(text: str) -> float | None:
    """A finite number, or an ISO date as a year with its part; None: neither."""
    date = _DATE.fullmatch(text)
    if date is not None:
        year, month, day = (int(part or 1) for part in date.groups())
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return None
        return year + (month - 1) / 12 + (day - 1) / 372
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
