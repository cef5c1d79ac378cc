"""Knowledge-graph question answering: every entity is scored; several may be right."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.data.batch import AnswerTarget
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.kg.store import KG
from keft_jax.tasks.task import AsGiven


class KGQA(AsGiven):
    """Cross-entropy against the uniform distribution over the right answers, so that the ones of
    a set end up alike and the set can be read off the scores. Questions none of whose answers is
    in the graph weigh 0 in training and count as wrong in evaluation."""

    term = "answer"
    metrics: tuple[str, ...] = ("hits@1", "mrr", "precision", "recall", "set_f1")

    def __init__(self, kg: KG, set_threshold: float):
        self.choices: Sequence[str] = kg.names
        self._kg, self.set_threshold = kg, set_threshold

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> AnswerTarget:
        """As wide as the most answers of one question, rounded up to a power of two, so that
        splits seldom differ in shape."""
        del tokens
        total = np.array([len(set(example.answers)) for example in rows], np.int32)
        width = 1 << max(3, int(total.max(initial=1) - 1).bit_length())
        answers = np.full((len(rows), width), -1, np.int32)
        for row, example in enumerate(rows):
            found = {self._kg.find(name) for name in example.answers}
            ids = sorted(i for i in found if i is not None)
            answers[row, : len(ids)] = ids
        weight = (answers[:, 0] >= 0).astype(np.float32)
        return AnswerTarget(answers=answers, total=total, weight=weight)

    def loss(self, logits_bc: jax.Array, target: AnswerTarget) -> jax.Array:
        log_p = jax.nn.log_softmax(logits_bc)
        right = target.answers >= 0
        taken = jnp.take_along_axis(log_p, jnp.where(right, target.answers, 0), 1)
        mean = jnp.where(right, taken, 0).sum(1) / jnp.maximum(right.sum(1), 1)
        return -(target.weight * mean).sum()

    def score(self, logits_bc: jax.Array, target: AnswerTarget) -> dict[str, jax.Array]:
        """hits@1 and mrr of the best right answer among all that are not right; ties count as a
        fair pick among them (hits@1) and at their mean rank (mrr). The answer set holds whatever
        has `set_threshold` of the best one's probability."""
        right = target.answers >= 0
        at = jnp.where(right, target.answers, logits_bc.shape[1])
        own = jnp.where(right, jnp.take_along_axis(logits_bc, jnp.where(right, at, 0), 1), -jnp.inf)
        best = own.max(1, keepdims=True)
        wrong = jnp.ones(logits_bc.shape, bool)
        wrong = jax.vmap(lambda row, i: row.at[i].set(False, mode="drop"))(wrong, at)
        above = (wrong & ~(logits_bc <= best)).sum(1)  # a NaN stands above everything
        level = (wrong & (logits_bc == best)).sum(1)
        rank = 1 + above + level / 2
        alike = (own == best).sum(1)  # right answers that share the best score
        some = right.any(1)
        top = logits_bc.max(1, keepdims=True)
        chosen = logits_bc >= top + jnp.log(self.set_threshold)
        hit = (chosen & ~wrong).sum(1)
        precision = hit / chosen.sum(1)
        recall = hit / jnp.maximum(target.total, 1)
        f1 = 2 * precision * recall / jnp.maximum(precision + recall, 1e-9)
        return {
            "hits@1": jnp.where(some & (above == 0), alike / (alike + level), 0),
            "mrr": jnp.where(some, 1 / rank, 0),
            "precision": precision,
            "recall": recall,
            "set_f1": f1,
            "choice": logits_bc.argmax(1),
        }
