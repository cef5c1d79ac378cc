"""CoLA (Warstadt et al. 2019): which sentences linguists accept, with facts of ConceptNet. Nothing
in the facts speaks of grammar: they should not help, and must not hurt.

kg.tsv                (concept, relation, concept), in words
in_domain.jsonl       the dev part from the publications that the pool is from
out_of_domain.jsonl   the dev part from other publications
select_N.jsonl        N sentences for choosing a checkpoint, each a part of the larger ones
pool.jsonl            the other training sentences; none stands in the files above
"""

from __future__ import annotations

import random
from pathlib import Path

from keft_jax.config import KeftError
from keft_jax.data.commonsense import CONCEPTNET, read_conceptnet
from keft_jax.data.raw import (
    SPLIT_SEED,
    nested,
    read_lines,
    source_folder,
    without,
    write_jsonl,
    write_tsv,
)

SELECT_SIZES = (100, 500)
LABELS = ("unacceptable", "acceptable")
TESTS = ("in_domain", "out_of_domain")
PARTS = ("glue/cola", CONCEPTNET)

Row = dict[str, str]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source, and
    file:line of a line of another form."""
    raw = source_folder(source, PARTS)
    tests = {name: read_part(raw, f"{name}_dev") for name in TESTS}
    rest = read_part(raw, "in_domain_train")
    for test in tests.values():
        rest = without(rest, test, words)
    random.Random(SPLIT_SEED).shuffle(rest)
    select = nested(rest, key=lambda row: row["label"])[: SELECT_SIZES[-1]]
    pool = without(rest, select, words)
    for name, test in tests.items():
        write_jsonl(folder / f"{name}.jsonl", test)
    for size in SELECT_SIZES:
        write_jsonl(folder / f"select_{size}.jsonl", select[:size])
    write_tsv(folder / "kg.tsv", read_conceptnet(raw))
    write_jsonl(folder / "pool.jsonl", pool)


def read_part(raw: Path, part: str) -> list[Row]:
    """`source` is the publication that the sentence is from."""
    rows = []
    for where, line in read_lines(raw / f"glue/cola/{part}.tsv.gz"):
        match line.split("\t"):
            case [source, "0" | "1" as label, _, sentence] if sentence.strip():
                row = {"sentence": sentence, "label": LABELS[int(label)], "source": source}
                rows.append(row)
            case _:
                raise KeftError(f"{where}: {line[:60]!r}; write source, 0 or 1, mark, sentence")
    return rows


def words(row: Row) -> tuple[str, ...]:
    return tuple(row["sentence"].casefold().split())
