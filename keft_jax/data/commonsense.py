"""CommonsenseQA (Talmor et al. 2019) with the 100,000 facts of ConceptNet of Li et al. (2016).

kg.tsv         (concept, relation, concept), in words; none of function words alone (`he`, `if you`)
test.jsonl     the dev part: the test part has no answers
select.jsonl   questions of the train part for choosing a checkpoint
pool.jsonl     the other questions of the train part

The questions were written from ConceptNet: the right choice and two of the wrong ones have one
relation to `concept`, two more wrong ones were added by hand. So a fact between concept and choice
speaks for a choice, though it does not tell the three apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.raw import (
    SPLIT_SEED,
    is_grammar,
    read_jsonl_gzip,
    read_lines,
    source_folder,
    without,
    write_jsonl,
    write_tsv,
)

SELECT_QUESTIONS = 600
LETTERS = "ABCDE"
CONCEPTNET = "knowledge/conceptnet100k"
PARTS = ("mcqa/commonsenseqa", CONCEPTNET)

Row = dict[str, Any]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source, and
    file:line of a question of another form."""
    raw = source_folder(source, PARTS)
    train, test = (read_questions(raw, part) for part in ("train", "dev"))
    train = without(train, test, lambda row: row["question"])
    select = random.Random(SPLIT_SEED).sample(train, SELECT_QUESTIONS)
    write_jsonl(folder / "test.jsonl", test)
    write_jsonl(folder / "select.jsonl", select)
    write_tsv(folder / "kg.tsv", read_conceptnet(raw))
    write_jsonl(folder / "pool.jsonl", without(train, select, lambda row: row["question"]))


def read_questions(raw: Path, part: str) -> list[Row]:
    """`label` is the letter of the right one among `choices`, of which two can be equal."""
    file = raw / f"mcqa/commonsenseqa/{part}_rand_split.jsonl.gz"
    rows = []
    for number, record in enumerate(read_jsonl_gzip(file), 1):
        try:
            question = record["question"]
            choices = {choice["label"]: choice["text"].strip() for choice in question["choices"]}
            row = {
                "question": question["stem"].strip(),
                "choices": [choices[letter] for letter in LETTERS],
                "label": LETTERS[LETTERS.index(record["answerKey"])],
                "concept": question["question_concept"],
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            raise KeftError(
                f"{file}:{number}: no question with choices A to E and an answer; copy it again"
            ) from None
        rows.append(row)
    return rows


def read_conceptnet(raw: Path) -> Iterator[tuple[str, str, str]]:
    """Without concepts made of function words alone, which every text would name. Raises KeftError
    with file:line."""
    for where, line in read_lines(raw / CONCEPTNET / "train.txt.gz"):
        match line.split("\t"):
            case [relation, head, tail]:
                if not (is_grammar(head) or is_grammar(tail)):
                    yield head, spoken(relation), tail
            case _:
                raise KeftError(f"{where}: {line[:60]!r}; write relation<tab>head<tab>tail")


def spoken(relation: str) -> str:
    """HasFirstSubevent -> has first subevent."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in relation).strip()
