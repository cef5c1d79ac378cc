"""A tag for each word of a text, as in named entity recognition.

A word's tag is read at its first piece. Tags may be IO, IOB1, IOB2, BIOES or BILOU; entities are
read off them as conlleval does (Tjong Kim Sang and De Meulder 2003), which seqeval follows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import Batch, TagTarget
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.corpus import Corpus, count_of, count_sets
from keft_jax.tasks.task import AsGiven, Rows

OUTSIDE = "O"
PREFIXED = re.compile(r"([BIESLUM])-(.*)", re.DOTALL)
ALIKE = {"L": "E", "U": "S", "M": "I"}


def split_tag(tag: str) -> tuple[str, str]:
    """(one of B I E S O, type); a tag without a prefix is a type inside."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = PREFIXED.fullmatch(tag)
    return (ALIKE.get(found[1], found[1]), found[2]) if found else ("I", tag)


def find_entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, one past the last, type) of each entity of a sequence, also of one that breaks
    the rules of its scheme."""
    found: list[tuple[int, int, str]] = []
    before, kind_before = OUTSIDE, ""
    for i, tag in enumerate(tags):
        now, kind = split_tag(tag)
        if now != OUTSIDE:
            if before in "OES" or now in "BS" or kind != kind_before:
                found.append((i, i + 1, kind))
            else:
                found[-1] = (found[-1][0], i + 1, kind)
        before, kind_before = now, kind
    return found


class Tagging(AsGiven):
    """Cross-entropy of every word's tag. Precision, recall and F1 of entities, micro averaged, and
    the accuracy of words; `sentence_f1` of an example is 1 where nothing is found and nothing is
    there. Words behind the tokens that are read have no tag: their entities are missed."""

    term = "tags"
    metrics: tuple[str, ...] = ("sentence_f1",)
    corpus: Mapping[str, Corpus] = {
        "f1": Corpus(count_sets, "micro_f1"),
        "precision": Corpus(count_of("hit", "said"), "share"),
        "recall": Corpus(count_of("hit", "gold"), "share"),
        "accuracy": Corpus(count_of("right", "words"), "share"),
    }

    def __init__(self, labels: Sequence[str], longest: int):
        self.choices: Sequence[str] = tuple(labels)
        self._number = {label: i for i, label in enumerate(labels)}
        self._longest = longest

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> TagTarget:
        shape = (len(rows), self._longest)
        label, word = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        weight = np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            first = tokens.spans(i, [(start, end) for start, end, _ in row.tags])[:, 0]
            for w in reversed(np.flatnonzero(first)):  # 0 is [CLS]: the word is not read
                at, tag = first[w], row.tags[w][2]
                word[i, at] = w
                if tag:
                    label[i, at], weight[i, at] = self._find(tag, row), 1
        return TagTarget(label=label, weight=weight, word=word)

    def _find(self, tag: str, row: Example) -> int:
        if tag not in self._number:
            raise KeftError(
                f"{row.where}: tag {tag!r} never occurs in training ({', '.join(self.choices[:8])}"
                f"{', ...' if len(self.choices) > 8 else ''}); correct it, or name all tags in "
                "task.labels and train again"
            )
        return self._number[tag]

    def loss(self, logits_blc: jax.Array, target: TagTarget) -> jax.Array:
        length = logits_blc.shape[1]
        at = target.label[:, :length, None]
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits_blc), at, 2)[..., 0]
        return -(target.weight[:, :length] * taken).sum()

    def distributions(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """One for each word; the mean over those of a text."""
        read = batch.targets[self.term].word[:, : logits.shape[1]] >= 0
        return logits, read / jnp.maximum(read.sum(1, keepdims=True), 1)

    def score(self, logits_blc: jax.Array, target: TagTarget) -> dict[str, jax.Array]:
        return self.guess(logits_blc, target)

    def guess(self, logits: jax.Array, target: TagTarget) -> dict[str, jax.Array]:
        rest = ((0, 0), (0, self._longest - logits.shape[1]))  # buckets differ in length
        p = jax.nn.softmax(logits)
        shown = {"tag": p.argmax(-1), "p": p.max(-1)}
        return {name: jnp.pad(x, rest) for name, x in shown.items()} | {"word": target.word}

    def _read(self, rows: Rows, i: int, words: int) -> tuple[list[str], np.ndarray]:
        """(the tag of each word, its probability: 0 where it was not read)."""
        at = np.flatnonzero(rows["word"][i] >= 0)
        tags, p = [OUTSIDE] * words, np.zeros(words)
        for w, tag in zip(rows["word"][i, at], rows["tag"][i, at], strict=True):
            tags[w] = self.choices[tag]
        p[rows["word"][i, at]] = rows["p"][i, at]
        return tags, p

    def merge(self, rows: Rows, dataset: Dataset) -> Rows:
        out: dict[str, list[Any]] = {}
        for i, example in enumerate(dataset.examples):
            gold = [tag for *_, tag in example.tags]
            said, p = self._read(rows, i, len(gold))
            found, there = set(find_entities(said)), set(find_entities(gold))
            both, hit = len(found) + len(there), len(found & there)
            right = sum(s == g for s, g, q in zip(said, gold, p, strict=True) if q > 0)
            shown = (f"{_text(example, a, b)} ({kind})" for a, b, kind in sorted(found))
            for name, value in (
                ("sentence_f1", 2 * hit / both if both else 1.0),
                ("hit", hit),
                ("said", len(found)),
                ("gold", len(there)),
                ("right", right),
                ("words", len(gold)),
                ("choice", "; ".join(shown)),
            ):
                out.setdefault(name, []).append(value)
        return {name: np.array(values) for name, values in out.items()}

    def said(self, rows: Rows) -> list[str]:
        return [str(entities) for entities in rows["choice"]]

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        """ "entities": [start, end, type, probability of its least sure word], in characters, and
        "unread": words behind the last of data.buckets."""
        del top
        out = []
        for i, example in enumerate(dataset.examples):
            tags, p = self._read(rows, i, len(example.tags))
            entities = [
                [example.tags[a][0], example.tags[b - 1][1], kind, round(float(p[a:b].min()), 6)]
                for a, b, kind in find_entities(tags)
            ]
            out.append({"entities": entities, "unread": int((p == 0).sum())})
        return out


def _text(example: Example, first: int, end: int) -> str:
    return example.text[example.tags[first][0] : example.tags[end - 1][1]]
