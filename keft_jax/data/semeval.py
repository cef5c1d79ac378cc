"""SemEval-2010 task 8 (Hendrickx et al. 2010), from its training file, with the nouns of WordNet
above the two nominals of each sentence.

kg.tsv             (word, sense, synset), (word, kind of, synset above it), (synset, hypernym,
                   synset), for the nominals of all sentences: the part of WordNet in their reach
descriptions.tsv   lemmas and gloss of each
test.jsonl         1,500 sentences, held out for good
select_N.jsonl     N sentences for choosing a checkpoint, each a part of the larger ones
pool.jsonl         the other sentences, to draw from; none stands in the files above

A mention's entity is the lemma of the nominal, or of its last word, read in its first sense;
where WordNet has none it is the nominal itself, which links to nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.raw import (
    SPLIT_SEED,
    nested,
    read_lines,
    source_folder,
    without,
    write_jsonl,
    write_tsv,
)
from keft_jax.data.wordnet import read_nouns, spoken

TEST_SENTENCES = 1500
SELECT_SIZES = (200, 500)
PARTS = ("relation/semeval2010-task8", "knowledge/wordnet3.0")
_FORM = re.compile(r'\d+\t"(.*)<e1>(.*?)</e1>(.*)<e2>(.*?)</e2>(.*)"')

Row = dict[str, Any]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source, and
    file:line of a sentence without its two nominals."""
    raw = source_folder(source, PARTS)
    nouns = read_nouns(raw)
    rows = read_sentences(raw, nouns.lemma)
    pool, select, test = split(rows)
    lemmas = sorted({lemma for row in rows for lemma in row.pop("lemmas") if lemma})
    write_jsonl(folder / "test.jsonl", test)
    for size in SELECT_SIZES:
        write_jsonl(folder / f"select_{size}.jsonl", select[:size])
    write_tsv(folder / "kg.tsv", nouns.triples(lemmas))
    write_tsv(folder / "descriptions.tsv", nouns.descriptions(lemmas))
    write_jsonl(folder / "pool.jsonl", pool)


def read_sentences(raw: Path, lemma_of: Callable[[str], str | None]) -> list[Row]:
    """`spans` are in characters of `sentence`: [start, end, entity]."""
    # A sentence, its relation, a comment, an empty line.
    lines = read_lines(raw / "relation/semeval2010-task8/TRAIN_FILE.TXT.gz")
    rows = []
    for i in range(0, len(lines), 4):
        (where, line), label = lines[i], lines[i + 1][1].strip() if i + 1 < len(lines) else ""
        found = _FORM.fullmatch(line)
        if not found or not label:
            raise KeftError(
                f'{where}: {line[:60]!r}; write number<tab>"... <e1>a</e1> ... <e2>b</e2> ...", '
                "its relation, a comment and an empty line"
            )
        before, e1, between, e2, after = found.groups()
        first = len(before), len(before) + len(e1)
        second = first[1] + len(between), first[1] + len(between) + len(e2)
        lemmas = [lemma_of(e1), lemma_of(e2)]
        entities = [
            spoken(lemma) if lemma else e for lemma, e in zip(lemmas, (e1, e2), strict=True)
        ]
        rows.append(
            {
                "sentence": before + e1 + between + e2 + after,
                "spans": [[*first, entities[0]], [*second, entities[1]]],
                "label": label,
                "lemmas": lemmas,
            }
        )
    return rows


def split(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """(pool, select, test). Sentences are equal where their words are, whatever their case."""
    shuffled = list(rows)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    test = shuffled[-TEST_SENTENCES:]
    rest = without(shuffled[:-TEST_SENTENCES], test, words)
    select = nested(rest, key=lambda row: row["label"])[: SELECT_SIZES[-1]]
    return without(rest, select, words), select, test


def words(row: Row) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+|[^\w\s]", row["sentence"].lower()))
