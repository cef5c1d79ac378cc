"""The rows of the gain table: their order, what each one is, and which of them read text alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from keft_jax.config import ROWS

JUDGED = "true"
"""The row with the knowledge: what is judged."""
PLAIN = "none"
"""The row it is judged by first: the same model without knowledge."""
REFERENCES = ("none", "dictionary", "shuffled", "random")
"""`helps` needs a lower bound above zero against every one of these."""
DEFINITION = 4
"""Counts up where a row comes to mean something else, so that no table mixes the two. 2: `shuffled`
takes away the relations of an entity too. 3: text and graph that are trained apart are weighed on
the selection split. 4: their gradients are clipped apart too, and the text alone chooses the
checkpoint."""
MAJORITY, CHAR_NGRAM = "majority", "char_ngram"
LINEAR, LINEAR_DICTIONARY = "linear", "linear-dictionary"
LINEAR_SHUFFLED, LINEAR_KNOWLEDGE = "linear-shuffled", "linear-knowledge"
PROBES = (LINEAR, LINEAR_DICTIONARY, LINEAR_SHUFFLED, LINEAR_KNOWLEDGE)
"""Linear models of text without and with the knowledge, where labels are asked for."""
BASELINES = (MAJORITY, CHAR_NGRAM, *PROBES)
"""Cheap models that stand in the table as rows."""
TEXT_ONLY = (PLAIN, MAJORITY, CHAR_NGRAM, LINEAR)
"""Rows that see no knowledge at all; the gain is also given against the best of them."""

NOTES = {
    MAJORITY: "the most frequent training answer for each kind of question",
    CHAR_NGRAM: "character and word n-grams, kernel ridge regression, text alone",
    LINEAR: "words, logistic regression, text alone",
    LINEAR_DICTIONARY: "words and linked entities, no facts, logistic regression",
    LINEAR_SHUFFLED: "words and the facts of the shuffled graph, logistic regression",
    LINEAR_KNOWLEDGE: "words and the facts of linked entities, logistic regression",
    "none": "the same model and step, the empty graph",
    "dictionary": "linked entities as marks and ids, no facts",
    "candidates": "the true neighbours, no edges",
    "untyped": "the true edges, every relation the same",
    "shuffled": "the whole graph, every entity in the place of another",
    "kindred": "as shuffled, of another that has the same relations",
    "random": "the same degrees, edges and relations at random",
    JUDGED: "the knowledge",
    "kge-init": "true, entities start from triple embeddings",
    "kge-init-shuffled": "as kge-init, embeddings of the shuffled graph",
    "description-init": "true, entities start from their descriptions",
    "random-init": "true, entities start from random numbers",
    "kg-teacher": "true, triple embeddings teach the mentions",
    "kg-teacher-shuffled": "as kg-teacher, embeddings of the shuffled graph",
    "multi-task": "true, and link prediction in the same step",
    "multi-task-shuffled": "as multi-task, facts of the shuffled graph",
    "transe-init": "true, entities start from TransE",
    "distmult-init": "true, entities start from DistMult",
    "complex-init": "true, entities start from ComplEx",
    "rotate-init": "true, entities start from RotatE",
    "text": "the facts in words behind the text, no graph network",
    "text-shuffled": "as text, facts of the shuffled graph",
    "text-visible": "the facts as branches at their mentions, as in K-BERT, no graph network",
    "text-visible-shuffled": "as text-visible, facts of the shuffled graph",
    "triple-concat": "true, triples by concatenation in the place of messages",
    "triple-concat-shuffled": "as triple-concat, of the shuffled graph",
    "triple-sum": "true, triples by weighted sums in the place of messages",
    "triple-sum-shuffled": "as triple-sum, of the shuffled graph",
    "attributes": "true, with the nodes' numbers and dates",
    "attributes-shuffled": "as attributes, of the shuffled graph",
}

_ORDER = (*BASELINES, "none", *(row for row in ROWS if row not in ("none", "true")))


def order_rows(rows: Iterable[str]) -> list[str]:
    """Baselines, then controls as in the config, then rows this module has not met, then `true`."""

    def place(row: str) -> tuple[int, str]:
        if row == JUDGED:
            return len(_ORDER) + 1, row
        return (_ORDER.index(row), "") if row in _ORDER else (len(_ORDER), row)

    return sorted(set(rows), key=place)


def describe_row(row: str) -> str:
    """One line on what the row is; empty for a row that brings its own meaning."""
    if level := level_of(row):
        return f"true, {100 * level[1]:.0f} % of the facts {CHANGED[level[0]]}"
    return NOTES.get(row, "")


CHANGED = {"corrupt": "wrong", "drop": "missing"}


def level_of(row: str) -> tuple[str, float] | None:
    """`true-corrupt-30` -> (corrupt, .3); None for other rows."""
    found = re.fullmatch(rf"{JUDGED}-({'|'.join(CHANGED)})-(\d\d)", row)
    return (found[1], int(found[2]) / 100) if found else None


# Told apart by colour-blind readers (after Okabe and Ito 2008): on white, on black.
COLOURS = {
    MAJORITY: ("#9aa1a9", "#7d8791"),
    CHAR_NGRAM: ("#555e68", "#b4bdc6"),
    LINEAR: ("#7d6b4f", "#b59f7d"),
    LINEAR_DICTIONARY: ("#a8862e", "#d6b565"),
    LINEAR_SHUFFLED: ("#a8603a", "#e0a07e"),
    LINEAR_KNOWLEDGE: ("#3f7fa8", "#8cc2e6"),
    "none": ("#7c848d", "#98a3ae"),
    "dictionary": ("#c58a00", "#f0b83f"),
    "candidates": ("#00835c", "#34c596"),
    "untyped": ("#7b5cc9", "#ac93f5"),
    "shuffled": ("#c44a00", "#ff8b52"),
    "kindred": ("#8f3d1f", "#f0a98c"),
    "random": ("#b04f8d", "#e78fc4"),
    JUDGED: ("#0068ab", "#58b2f2"),
}
OTHER_COLOUR = ("#8a5a33", "#d3a377")


def colour_row(row: str) -> tuple[str, str]:
    """Colours on a light and on a dark page."""
    return COLOURS.get(row, COLOURS[JUDGED] if level_of(row) else OTHER_COLOUR)
