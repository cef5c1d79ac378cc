"""Questions on paragraphs: 6,078 of SQuAD 2.0's dev part (Rajpurkar et al. 2018), half of which
have no answer there, with a graph of named entities.

kg.tsv, aliases.tsv, descriptions.tsv    as in named.py; no question is read for them
test.jsonl      questions on articles that are in no other file
select.jsonl    questions for choosing a checkpoint, likewise
pool.jsonl      questions on the other articles
answered-*      of each of the three the questions with an answer, as in SQuAD 1.1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.named import PARTS as GRAPHS
from keft_jax.data.named import write_named_graph
from keft_jax.data.raw import read_gzip, set_apart, source_folder, write_jsonl

TEST_QUESTIONS = 1500
SELECT_QUESTIONS = 500
FILE = "extractive_qa/squad2/dev-v2.0.json.gz"
PARTS = ("extractive_qa/squad2", *GRAPHS)

Row = dict[str, Any]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source, and
    the question whose answer does not stand where it should."""
    raw = source_folder(source, PARTS)
    rows = read_questions(raw / FILE)
    counts = TEST_QUESTIONS, SELECT_QUESTIONS
    test, select, pool = set_apart(rows, lambda row: row["cluster"], *counts)
    write_named_graph(raw, folder)
    for name, part in (("test", test), ("select", select), ("pool", pool)):
        write_jsonl(folder / f"answered-{name}.jsonl", [row for row in part if row["answers"]])
        write_jsonl(folder / f"{name}.jsonl", part)


def read_questions(file: Path) -> list[Row]:
    """`answers` are [start, text] of the annotators' answers in `context`, each place once; empty
    where it holds none."""
    rows = []
    try:
        for article in json.loads(read_gzip(file))["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for asked in paragraph["qas"]:
                    places = dict.fromkeys((a["answer_start"], a["text"]) for a in asked["answers"])
                    for start, text in places:
                        if context[start : start + len(text)] != text:
                            raise KeftError(
                                f"{file}: question {asked['id']}: {text[:40]!r} does not stand at "
                                f"character {start} of its context; copy it again"
                            )
                    rows.append(
                        {
                            "question": asked["question"].strip(),
                            "context": context,
                            "answers": [list(place) for place in places],
                            "answerable": "yes" if places else "no",
                            "cluster": article["title"],
                        }
                    )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, KeftError):
            raise
        raise KeftError(f"{file}: not SQuAD's JSON ({error!r}); copy it again") from error
    return rows
