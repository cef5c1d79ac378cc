"""Tasks on marked mentions: which relation two of them have, which types one has.

The marks are punctuation around the mention in the text that the model reads, which every
vocabulary has and has seen (Zhou and Chen 2022): `@ first @`, `# second #`. What is asked of a
mention is read off the state of the mark before it (Baldini Soares et al. 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import AnchorTarget, Batch
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.corpus import Corpus, count_labels, count_sets, count_shares
from keft_jax.tasks.task import MOST, AsGiven, Rows, ranked

MARKS = ("@", "#")


def mark(example: Example, count: int) -> Example:
    """The example with its first `count` mentions marked in its text, all spans moved along.
    Raises KeftError where it has fewer, or where they overlap."""
    if len(example.spans) < count:
        raise KeftError(
            f"{example.where}: {len(example.spans)} mentions where {count} are needed; name them "
            "in data.spans or data.token_spans"
        )
    order = sorted(range(count), key=lambda i: example.spans[i][:2])
    for before, after in pairwise(order):
        if example.spans[before][1] > example.spans[after][0]:
            raise KeftError(
                f"{example.where}: the mentions {example.spans[before]} and "
                f"{example.spans[after]} overlap; mark them apart"
            )
    # (place in the text, what is written there); at one place an end comes before a beginning
    put: list[tuple[int, int, str]] = []
    for i in range(count):
        start, end, _ = example.spans[i]
        put += [(start, 1, f"{MARKS[i]} "), (end, 0, f" {MARKS[i]}")]
    text, at, pieces = "", 0, [(0, 0)]
    for place, _, piece in sorted(put):
        text, at = text + example.text[at:place] + piece, place
        pieces.append((len(text), place))
    text += example.text[at:]

    def moved(place: int, is_end: bool) -> int:
        """Marks stand outside of what they mark, and outside of whatever begins or ends there."""
        before = (len(piece) for p, _, piece in put if p < place or (p == place and not is_end))
        return place + sum(before)

    spans = tuple((moved(s, False), moved(e, True), name) for s, e, name in example.spans)
    return dataclasses.replace(example, text=text, spans=spans, pieces=tuple(pieces))


def anchor_positions(rows: Sequence[Example], tokens: Tokens, count: int) -> np.ndarray:
    """i32[rows, count]: the token of the mark before each marked mention. Raises KeftError where a
    mention was cut away with the end of a long text."""
    out = np.zeros((len(rows), count), np.int32)
    for i, row in enumerate(rows):
        starts = [(start - len("@ "), start) for start, _, _ in row.spans[:count]]
        out[i] = tokens.spans(i, starts)[:, 0]
        if not out[i].all():  # 0 is [CLS]
            raise KeftError(
                f"{row.where}: a marked mention lies behind the {len(tokens.ids[i])} tokens that "
                "are read; raise the last of data.buckets"
            )
    return out


class Anchored:
    """Rows whose first mentions are marked."""

    anchors: int
    each = 1

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]:
        marked = [mark(example, self.anchors) for example in examples]
        return marked, np.arange(len(examples), dtype=np.int32)


class RelationClassification(Anchored, Classification):
    """One label for the pair of the first two mentions. Metrics as in `Classification`, and
    `f1_named`, macro F1 without the label Other (SemEval-2010 task 8) or no_relation."""

    term = "relation"
    anchors = 2

    def __init__(self, labels: Sequence[str]):
        super().__init__(labels)
        negative = tuple(i for i, label in enumerate(self.choices) if label in NEGATIVE)
        if negative:
            named = count_labels(len(self.choices), leave_out=negative)
            self.corpus = {**self.corpus, "f1_named": Corpus(named, "macro_f1")}

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> AnchorTarget:
        label = self._labels(rows)
        position = anchor_positions(rows, tokens, self.anchors)
        return AnchorTarget(position=position, label=label.label, weight=label.weight)


NEGATIVE = ("Other", "no_relation", "NA")
"""Labels that say there is none of the relations; no average of F1 is taken over them."""


class EntityTyping(Anchored, AsGiven):
    """Any number of types for the first mention, by a binary cross-entropy for each. A type holds
    where its probability is above one half. Strict accuracy, loose macro and loose micro F1 as in
    Ling and Weld (2012); `f1` of an example is the one that loose macro averages."""

    term = "types"
    anchors = 1
    metrics: tuple[str, ...] = ("f1", "accuracy")
    corpus: Mapping[str, Corpus] = {
        "macro_f1": Corpus(count_shares, "loose_macro_f1"),
        "micro_f1": Corpus(count_sets, "micro_f1"),
    }

    def __init__(self, labels: Sequence[str]):
        self.choices: Sequence[str] = tuple(labels)
        self._number = {label: i for i, label in enumerate(labels)}

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> AnchorTarget:
        label = np.zeros((len(rows), len(self.choices)), np.float32)
        for i, row in enumerate(rows):
            for name in row.answers:
                if name not in self._number:
                    raise KeftError(
                        f"{row.where}: type {name!r} never occurs in training "
                        f"({', '.join(self.choices[:8])}{', ...' if len(self.choices) > 8 else ''}"
                        "); correct it, or name all types in task.labels and train again"
                    )
                label[i, self._number[name]] = 1
        weight = label.any(1).astype(np.float32)
        position = anchor_positions(rows, tokens, self.anchors)
        return AnchorTarget(position=position, label=label, weight=weight)

    def loss(self, logits_bc: jax.Array, target: AnchorTarget) -> jax.Array:
        each = jax.nn.softplus(logits_bc) - target.label * logits_bc
        return (target.weight * each.sum(1)).sum()

    def distributions(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """For each type, whether it holds."""
        del batch
        return jnp.stack([logits, jnp.zeros_like(logits)], -1), jnp.ones(logits.shape)

    def guess(self, logits: jax.Array, target: AnchorTarget) -> dict[str, jax.Array]:
        best = jax.lax.top_k(jax.nn.sigmoid(logits), min(MOST, len(self.choices)))
        return dict(zip(("p", "id"), best, strict=True))

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        """As `AsGiven`, with all types that hold in "answers" and "set", however many."""
        out = []
        for ids, values in zip(rows["id"], rows["p"], strict=True):
            pairs = [(self.choices[int(i)], float(p)) for i, p in zip(ids, values, strict=True)]
            held = [(name, p) for name, p in pairs if p > 0.5]
            record = ranked(pairs, [name for name, _ in held])
            out.append(record | {"answers": record["answers"][: len(held)]})
        return out

    def score(self, logits_bc: jax.Array, target: AnchorTarget) -> dict[str, jax.Array]:
        said, gold = logits_bc > 0, target.label > 0
        hit, chosen, right = (x.sum(1) for x in (said & gold, said, gold))
        return {
            "f1": 2 * hit / jnp.maximum(chosen + right, 1),
            "accuracy": (said == gold).all(1).astype(jnp.float32),
            "choice": logits_bc.argmax(1),
            "hit": hit,
            "said": chosen,
            "gold": right,
        }
