"""SST-2 (Socher et al. 2013) with a graph of sentiment lexicons, from the raw files.

kg.tsv           what the lexicons say of their words; no sentence is read for it
test.jsonl       the dev part and 4,000 training sentences that are held out for good
select_N.jsonl   N sentences for choosing a checkpoint, each a part of the larger ones
pool.jsonl       the other training sentences, to draw from; none stands in the files above
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from keft_jax.config import KeftError
from keft_jax.data.lexicon import make_triples, read_lexicons
from keft_jax.files import write_atomic

logger = logging.getLogger(__name__)

SPLIT_SEED, HELD_OUT = 20240, 4000
SELECT_SIZES = (16, 32, 100, 300)
"""A selection split no larger than the training sample: labels used to choose are labels used
(Perez et al. 2021, "True few-shot learning"). 300 are enough for larger samples too."""
LABELS = ("negative", "positive")
REMEDY = "name the folder with sentiment/sst2/ and knowledge/lexicons/: --data.source=..."

Row = dict[str, str]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the graph last but one and the pool last. Raises KeftError naming what is
    missing in the source."""
    if not source or not Path(source).is_dir():
        raise KeftError(f"data.source = {source!r}: no such folder; {REMEDY}")
    raw = Path(source)
    pool, select, test = split(read_part(raw, "train"), read_part(raw, "dev"))
    if not (raw / "knowledge/lexicons").is_dir():
        raise KeftError(f"{raw / 'knowledge/lexicons'}: no such folder; {REMEDY}")
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
    write_atomic(folder / "kg.tsv", "".join(lines))
    write_jsonl(folder / "pool.jsonl", pool)


def read_part(raw: Path, part: str) -> list[Row]:
    """Rows of `sentence<tab>0 or 1`. Raises KeftError with file:line."""
    path, rows = raw / f"sentiment/sst2/{part}.tsv.gz", []
    if not path.is_file():
        raise KeftError(f"{path}: no such file; {REMEDY}")
    try:
        lines = gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise KeftError(f"{path}: cannot be read ({error}); copy it again") from error
    for number, line in enumerate(lines, 1):
        sentence, _, label = line.partition("\t")
        if label not in ("0", "1") or not sentence.strip():
            raise KeftError(f"{path}:{number}: {line[:60]!r}; write sentence<tab>0 or 1")
        rows.append({"sentence": sentence, "label": LABELS[int(label)], "part": part})
    return rows


def split(train: Sequence[Row], dev: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """(pool, select, test). Sentences are equal where their words are."""
    shuffled = list(train)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    test = [*dev, *({**row, "part": "held-out"} for row in shuffled[:HELD_OUT])]
    rest = without(shuffled[HELD_OUT:], test)
    select = stratified(rest)[: SELECT_SIZES[-1]]
    return without(rest, select), select, test


def without(rows: Sequence[Row], others: Iterable[Row]) -> list[Row]:
    """The rows whose sentence is none of the others'."""
    seen = {tuple(row["sentence"].split()) for row in others}
    return [row for row in rows if tuple(row["sentence"].split()) not in seen]


def stratified(rows: Sequence[Row]) -> list[Row]:
    """The rows in an order of which every beginning has the classes' shares of the whole."""
    by_label = [[row for row in rows if row["label"] == label] for label in LABELS]
    places = [
        ((rank + 0.5) / len(some), label, rank)
        for label, some in enumerate(by_label)
        for rank in range(len(some))
    ]
    return [by_label[label][rank] for _, label, rank in sorted(places)]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
