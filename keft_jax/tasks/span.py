"""Extractive question answering: which part of a text answers a question, or that none does.

As in BERT (Devlin et al. 2019): a distribution over beginnings and one over ends, [CLS] standing
for no answer. The context is the first text, so that it is linked; a long one is read in windows
that overlap, each with the whole question. Metrics are SQuAD's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from keft_jax.config import KeftError, TaskConfig
from keft_jax.data.batch import Batch, SpanTarget
from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.corpus import Corpus, count_of
from keft_jax.tasks.squad import best_threshold, exact, f1, rightful
from keft_jax.tasks.task import AsGiven, Rows, ranked

SPECIAL = 3  # [CLS] context [SEP] question [SEP]
BEST = 20  # answers of a window
NEVER = -1e9
CHUNK = 512  # examples tokenized at once


def cut_windows(words: Sequence[int | None], room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Token spans of at most `room` tokens that begin and end with whole words and cover the text.
    Of a word longer than that, what does not fit is in none.

    Args:
      words: the number of the word that each token belongs to.
      stride: tokens from the beginning of a window to that of the next one, at most.
    """
    count = len(words)
    begins = [i for i in range(count) if i == 0 or words[i] != words[i - 1]]
    begin = 0
    while begin + room < count:
        inside = [i for i in begins if begin < i <= begin + room]
        end = inside[-1] if inside else begin + room
        yield begin, end
        near = [i for i in inside if i <= begin + stride]
        begin = near[-1] if near else next((i for i in begins if i > begin), count)
        if begin == count:
            return
    yield begin, count


class SpanAnswering(AsGiven):
    """Cross-entropy of beginning and end, their mean; [CLS] where a window has no answer. Over an
    example the best span of all windows, against the lowest score of no answer."""

    term = "span"
    metrics: tuple[str, ...] = ("f1", "exact")
    choices: Sequence[str] = ()
    corpus: Mapping[str, Corpus] = {
        f"{part}_{metric}": Corpus(count_of(f"{part}_{metric}", part), "share")
        for part in ("HasAns", "NoAns")
        for metric in ("exact", "f1")
    }

    def __init__(self, tokenizer: tokenizers.Tokenizer, longest: int, config: TaskConfig):
        self._tokenizer, self._longest, self._config = tokenizer, longest, config

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]:
        out: list[Example] = []
        owner: list[int] = []
        for at in range(0, len(examples), CHUNK):
            some = examples[at : at + CHUNK]
            encode = self._tokenizer.encode_batch
            texts = encode([e.text for e in some], add_special_tokens=False)
            questions = encode([e.pair for e in some], add_special_tokens=False)
            for i, (example, text, question) in enumerate(zip(some, texts, questions, strict=True)):
                room = self._longest - SPECIAL - len(question)
                if len(question) > room:
                    raise KeftError(
                        f"{example.where}: a question of {len(question)} tokens leaves {room} of "
                        f"{self._longest} for its text; raise the last of data.buckets"
                    )
                cuts = [(0, len(text))]
                if len(text) > room:
                    cuts = list(cut_windows(text.word_ids, room, self._config.stride))
                for first, end in cuts:
                    whole = len(cuts) == 1
                    start = 0 if whole else text.offsets[first][0]
                    stop = len(example.text) if whole else text.offsets[end - 1][1]
                    out.append(cut_window(example, start, stop))
                    owner.append(at + i)
        return out, np.array(owner, np.int32)

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> SpanTarget:
        count = len(rows)
        offsets = np.zeros((count, self._longest, 2), np.int32)
        start, end = np.zeros((2, count), np.int32)
        weight = np.zeros(count, np.float32)
        for i, row in enumerate(rows):
            own = np.where((tokens.types[i] == 0)[:, None], tokens.offsets[i], 0)
            real = own[:, 1:] > own[:, :1]
            offsets[i, : len(own)] = np.where(real, own + row.pieces[0][1], 0)
            if row.answer_spans is None:
                continue
            weight[i] = 1
            if row.answer_spans:
                first, stop = tokens.spans(i, row.answer_spans[:1])[0]
                start[i], end[i] = first, max(stop - 1, 0)
        return SpanTarget(offsets=offsets, start=start, end=end, weight=weight)

    def loss(self, logits_b2l: jax.Array, target: SpanTarget) -> jax.Array:
        at_b2 = jnp.stack([target.start, target.end], 1)
        log_p = jax.nn.log_softmax(logits_b2l)
        taken = jnp.take_along_axis(log_p, at_b2[..., None], 2)[..., 0]
        return -(target.weight * taken.mean(1)).sum()

    def distributions(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """One of the beginning and one of the end."""
        del batch
        return logits, jnp.full(logits.shape[:2], 0.5)

    def score(self, logits_b2l: jax.Array, target: SpanTarget) -> dict[str, jax.Array]:
        return self.guess(logits_b2l, target)

    def guess(self, logits: jax.Array, target: SpanTarget) -> dict[str, jax.Array]:
        """The best spans of a window in characters, their scores, and that of no answer."""
        length = logits.shape[-1]
        offsets = target.offsets[:, :length]
        real_bl = offsets[..., 1] > offsets[..., 0]
        ahead = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
        allowed = (ahead >= 0) & (ahead < self._config.answer_length)
        allowed = allowed & real_bl[:, :, None] & real_bl[:, None, :]
        both = jnp.where(allowed, logits[:, 0, :, None] + logits[:, 1, None, :], 2 * NEVER)
        score, at = jax.lax.top_k(both.reshape(len(both), -1), BEST)
        begin = jnp.take_along_axis(offsets[..., 0], at // length, 1)
        stop = jnp.take_along_axis(offsets[..., 1], at % length, 1)
        return {"score": score, "begin": begin, "stop": stop, "null": logits[:, :, 0].sum(1)}

    def merge(self, rows: Rows, dataset: Dataset) -> Rows:
        out: dict[str, list[Any]] = {}
        for example, found in zip(dataset.examples, self._found(rows, dataset), strict=True):
            answers = rightful(example.answers)
            _, begin, stop, margin = found[0]
            best = example.text[begin:stop]
            said = "" if self._none(margin) else best
            there = bool(example.answers)
            values = {"exact": exact(said, answers), "f1": f1(said, answers)}
            of_best = {f"best_{m}": v(best, answers) for m, v in (("exact", exact), ("f1", f1))}
            for part, holds in (("HasAns", there), ("NoAns", not there)):
                values |= {part: float(holds)}
                values |= {f"{part}_{m}": values[m] * holds for m in ("exact", "f1")}
            for name, value in {**values, **of_best, "margin": margin, "choice": said}.items():
                out.setdefault(name, []).append(value)
        return {name: np.array(values) for name, values in out.items()}

    def _none(self, margin: float) -> bool:
        return margin > self._config.no_answer_threshold

    def _found(self, rows: Rows, dataset: Dataset) -> Iterator[list[tuple[float, int, int, float]]]:
        """For each example its best spans: (score, first character, one past the last, how far no
        answer is above it), best first. A text without a token has an empty one."""
        last = np.append(np.flatnonzero(np.diff(dataset.owner)) + 1, len(dataset.owner))
        for first, end in zip(np.append(0, last[:-1]), last, strict=True):
            null = float(rows["null"][first:end].min())
            keys = ("score", "begin", "stop")
            flat = [rows[key][first:end].ravel() for key in keys]
            order = np.argsort(-flat[0], kind="stable")
            yield [
                (float(flat[0][i]), int(flat[1][i]), int(flat[2][i]), null - float(flat[0][i]))
                for i in order
                if flat[0][i] > NEVER or i == order[0]
            ]

    def said(self, rows: Rows) -> list[str]:
        return [str(text) for text in rows["choice"]]

    def summarise(self, rows: Rows) -> dict[str, float]:
        """The parts that a split has; where it has both, the best that any threshold would reach on
        it, and that threshold: to be chosen on other examples than are reported."""
        out = super().summarise(rows)
        parts = [part for part in ("HasAns", "NoAns") if np.any(rows[part])]
        names = [*self.metrics, *(f"{part}_{m}" for part in parts for m in ("exact", "f1"))]
        out = {name: out[name] for name in names}
        if len(parts) == 2:
            for metric in ("exact", "f1"):
                given = rows["margin"], rows[f"best_{metric}"], rows["HasAns"] > 0
                best, threshold = best_threshold(*given)
                out |= {f"best_{metric}": best, f"best_{metric}_threshold": threshold}
        return out

    def answers(self, rows: Rows, dataset: Dataset, top: int) -> list[dict[str, Any]]:
        """As `Classification`, with the texts of spans, and "" for no answer; "span": the answer's
        characters, or None; "score": how far it is above no answer."""
        out = []
        for example, found in zip(dataset.examples, self._found(rows, dataset), strict=True):
            score: dict[str, float] = {}
            for value, begin, stop, _ in found:
                score.setdefault(example.text[begin:stop], value)
            best, begin, stop, margin = found[0]
            none = self._none(margin)
            score[""] = margin + best
            said = "" if none else example.text[begin:stop]
            values = np.array(list(score.values()))
            p = np.exp(values - values.max())
            pairs = sorted(zip(score, p / p.sum(), strict=True), key=lambda pair: -pair[1])
            pairs.sort(key=lambda pair: pair[0] != said)  # the threshold may choose another
            record = ranked([(text, float(p)) for text, p in pairs[:top]], [said])
            out.append(record | {"span": None if none else [begin, stop], "score": -margin})
        return out


def cut_window(example: Example, start: int, end: int) -> Example:
    """The example with the characters from start to end alone, and what lies whole in them."""
    spans = [(s - start, e - start, name) for s, e, name in example.spans if start <= s < e <= end]
    answers = example.answer_spans
    if answers is not None:
        answers = tuple((s - start, e - start) for s, e in answers if start <= s < e <= end)
    return dataclasses.replace(
        example,
        text=example.text[start:end],
        spans=tuple(spans),
        answer_spans=answers,
        pieces=((0, start),),
    )
