"""SST-2 (Socher et al. 2013) with a graph of sentiment lexicons, from the raw files.

kg.tsv           what the lexicons say of their words; no sentence is read for it
attributes.tsv   the same as numbers, for knowledge.attributes
test.jsonl       the dev part and 4,000 training sentences that are held out for good
select_N.jsonl   N sentences for choosing a checkpoint, each a part of the larger ones
pool.jsonl       the other training sentences, to draw from; none stands in the files above
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

from keft_jax.config import KeftError
from keft_jax.data.lexicon import make_attributes, make_triples, read_lexicons
from keft_jax.data.raw import (
    SPLIT_SEED,
    nested,
    read_lines,
    source_folder,
    without,
    write_jsonl,
)
from keft_jax.files import write_atomic

logger = logging.getLogger(__name__)

HELD_OUT = 4000
SELECT_SIZES = (16, 32, 100, 300)
"""A selection split no larger than the training sample: labels used to choose are labels used
(Perez et al. 2021, "True few-shot learning"). 300 are enough for larger samples too."""
LABELS = ("negative", "positive")
PARTS = ("sentiment/sst2", "knowledge/lexicons")

Row = dict[str, str]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the graph last but one and the pool last. Raises KeftError naming what is
    missing in the source."""
    raw = source_folder(source, PARTS)
    pool, select, test = split(read_part(raw, "train"), read_part(raw, "dev"))
    lexicons, report = read_lexicons(raw / "knowledge/lexicons")
    if report.malformed_lines:
        file, line, reason = report.malformed[0]
        logger.warning(
            "%d malformed lines of lexicons left out, the first one %s:%d: %s",
            *(report.malformed_lines, file, line, reason),
        )
    write_jsonl(folder / "test.jsonl", test)
    for size in SELECT_SIZES:
        write_jsonl(folder / f"select_{size}.jsonl", select[:size])
    lines = ["\t".join(triple) + "\n" for triple in make_triples(lexicons)]
    numbers = [f"{word}\t{name}\t{value:g}\n" for word, name, value in make_attributes(lexicons)]
    write_atomic(folder / "attributes.tsv", "".join(numbers))
    write_atomic(folder / "kg.tsv", "".join(lines))
    write_jsonl(folder / "pool.jsonl", pool)


def read_part(raw: Path, part: str) -> list[Row]:
    """Rows of `sentence<tab>0 or 1`. Raises KeftError with file:line."""
    path, rows = raw / f"sentiment/sst2/{part}.tsv.gz", []
    for where, line in read_lines(path):
        sentence, _, label = line.partition("\t")
        if label not in ("0", "1") or not sentence.strip():
            raise KeftError(f"{where}: {line[:60]!r}; write sentence<tab>0 or 1")
        rows.append({"sentence": sentence, "label": LABELS[int(label)], "part": part})
    return rows


def split(train: Sequence[Row], dev: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """(pool, select, test). Sentences are equal where their words are."""
    shuffled = list(train)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    test = [*dev, *({**row, "part": "held-out"} for row in shuffled[:HELD_OUT])]
    rest = without(shuffled[HELD_OUT:], test, words)
    select = nested(rest, key=lambda row: row["label"])[: SELECT_SIZES[-1]]
    return without(rest, select, words), select, test


def words(row: Row) -> tuple[str, ...]:
    return tuple(row["sentence"].split())
