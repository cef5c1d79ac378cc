"""Names of persons, places, organisations and others in 145 articles of Wikipedia: Wikigold
(Balasuriya et al. 2009), with a graph of named entities.

kg.tsv, aliases.tsv, descriptions.tsv    as in named.py; no sentence is read for them
test.jsonl      sentences of articles that are in no other file
select.jsonl    sentences for choosing a checkpoint, likewise
pool.jsonl      sentences of the other articles

Tags are O, or I- and the class: two names of one class side by side cannot be told apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.named import PARTS as GRAPHS
from keft_jax.data.named import write_named_graph
from keft_jax.data.raw import read_lines, set_apart, source_folder, without, write_jsonl

TEST_SENTENCES = 450
SELECT_SENTENCES = 150
FILE = "ner/wikigold/wikigold.conll.txt.gz"
PARTS = ("ner/wikigold", *GRAPHS)
NEXT_ARTICLE = "-DOCSTART-"

Row = dict[str, Any]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source, and
    file:line of a token without a tag."""
    raw = source_folder(source, PARTS)
    rows = read_sentences(raw / FILE)
    counts = TEST_SENTENCES, SELECT_SENTENCES
    test, select, pool = set_apart(rows, lambda row: row["cluster"], *counts)
    pool = without(pool, test + select, lambda row: tuple(row["tokens"]))
    write_jsonl(folder / "test.jsonl", test)
    write_jsonl(folder / "select.jsonl", select)
    write_named_graph(raw, folder)
    write_jsonl(folder / "pool.jsonl", pool)


def read_sentences(file: Path) -> list[Row]:
    """`tags` has one for each of `tokens`; `cluster` numbers the articles."""
    rows: list[Row] = []
    article, tokens, tags = 1, [], []
    for where, line in [*read_lines(file), (f"{file}: end", "")]:
        token, _, tag = line.partition(" ")
        if token == NEXT_ARTICLE:
            article += 1
        elif re.fullmatch(r"O|I-(PER|LOC|ORG|MISC)", tag) and token:
            tokens.append(token)
            tags.append(tag)
        elif line.strip():
            raise KeftError(f"{where}: {line[:60]!r}; write token, space and tag (O, I-PER, ...)")
        elif tokens:
            rows.append({"tokens": tokens, "tags": tags, "cluster": f"article {article}"})
            tokens, tags = [], []
    return rows
