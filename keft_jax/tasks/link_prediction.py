"""Link prediction: which entity completes (head, relation, ?) or (?, relation, tail)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.config import KgeConfig
from keft_jax.data.batch import QueryTarget
from keft_jax.models.kge import Scores
from keft_jax.tasks.task import OneRow, Rows

HITS = (1, 3, 10)


class LinkPrediction(OneRow):
    """Negatives are drawn inside the step, uniformly among the entities; the loss is that of
    `kge.loss`, a sum over answers, and the metrics are of filtered ranks."""

    term = "link"
    metrics: tuple[str, ...] = ("mrr", *(f"hits@{k}" for k in HITS), "mean_rank")

    def __init__(self, config: KgeConfig, entities: Sequence[str]):
        self.config, self.choices = config, entities

    def targets(self, rows: Any, tokens: Any) -> Any:
        """They are made with the data set (data/triples.py)."""
        return rows

    def prepare(self, batch: Any, key: jax.Array | None, frozen: Mapping[str, Any]) -> Any:
        if not self.config.negatives or key is None:
            return batch
        target: QueryTarget = batch.targets[self.term]
        b, k = len(target.source), self.config.negatives
        groups = b // (self.config.share or b)
        drawn = jax.random.randint(key, (groups, k), 0, len(self.choices))
        allowed = None
        if self.config.filtered:
            each = jnp.repeat(drawn, b // groups, 0, total_repeat_length=b)
            allowed = ~contains(frozen["known"], target.known, each)
        target = dataclasses.replace(target, negatives=drawn, allowed=allowed)
        return dataclasses.replace(batch, targets={**batch.targets, self.term: target})

    def total(self, batch: Any) -> jax.Array:
        target = batch.targets[self.term]
        return (target.weight * (target.answers >= 0).sum(1)).sum()

    def loss(self, logits_bc: Any, target: QueryTarget) -> jax.Array:
        scores: Scores = logits_bc
        penalty = self.config.strength * (target.weight * scores.penalty).sum()
        if target.negatives is None and self.config.loss == "softmax":
            return _cross_entropy(scores.negative, target.answers, target.weight) + penalty
        there_ba = target.answers >= 0
        allowed = target.allowed
        if target.negatives is None:  # an answer is no negative of its own query
            allowed = jnp.ones(scores.negative.shape, bool)
            at = jnp.where(there_ba, target.answers, scores.negative.shape[1])
            allowed = allowed.at[jnp.arange(len(at))[:, None], at].set(False, mode="drop")
        negative = scores.negative
        if allowed is not None:
            negative = jnp.where(allowed, negative, -1e9)
        else:
            allowed = jnp.ones(negative.shape, bool)
        each_ba = self._losses(scores.positive, negative, allowed)
        each_ba = jnp.where(there_ba, each_ba, 0)
        return (target.weight * each_ba.sum(1)).sum() + penalty

    def _losses(self, positive: jax.Array, negative: jax.Array, allowed: jax.Array) -> jax.Array:
        """f32[b, a]: of each answer and the negatives of its query, -1e9 where not allowed."""
        count_b = jnp.maximum(allowed.sum(1), 1)
        margin = self.config.margin
        match self.config.loss:
            case "softmax":
                # The drawn stand for all entities (Jean et al. 2015).
                share = jnp.log(len(self.choices) / count_b)
                rivals = jax.nn.logsumexp(negative, 1) + share
                return jnp.logaddexp(positive, rivals[:, None]) - positive
            case "self_adversarial":
                temperature = self.config.temperature
                weight = jax.lax.stop_gradient(jax.nn.softmax(negative * temperature, 1))
                wrong = (weight * jax.nn.softplus(negative + margin)).sum(1)
                return (jax.nn.softplus(-positive - margin) + wrong[:, None]) / 2
            case "margin":
                short = margin - positive[..., None] + negative[:, None]
                return jax.nn.relu(short).sum(-1) / count_b[:, None]
        wrong = (allowed * jax.nn.softplus(negative)).sum(1) / count_b
        return jax.nn.softplus(-positive) + wrong[:, None]

    def score(self, logits_bc: Any, target: Any) -> dict[str, jax.Array]:
        raise NotImplementedError("ranks are taken against all entities: train/ranking.py")

    def summarise(self, rows: Rows) -> dict[str, float]:
        """Over both sides of every triple, from `rank_head` and `rank_tail` (1 the best, ties at
        their mean)."""
        sides = {side: np.asarray(rows[f"rank_{side}"], np.float64) for side in ("head", "tail")}
        out = score_ranks(np.concatenate(list(sides.values())))
        for side, ranks in sides.items():
            out |= {f"{side}/{name}": value for name, value in score_ranks(ranks).items()}
        return out


def score_ranks(ranks: np.ndarray) -> dict[str, float]:
    """MRR, hits@1, 3 and 10, and the mean rank."""
    out = {"mrr": float(np.mean(1 / np.maximum(ranks, 1)))}
    out |= {f"hits@{k}": float(np.mean(ranks <= k)) for k in HITS}
    return out | {"mean_rank": float(np.mean(ranks))}


def contains(sorted_ids: jax.Array, span_b2: jax.Array, ids_bk: jax.Array) -> jax.Array:
    """bool[b, k]: whether ids_bk[i, j] is among sorted_ids[span[i, 0]:span[i, 1]], by bisection."""
    low = jnp.broadcast_to(span_b2[:, :1], ids_bk.shape)
    end = jnp.broadcast_to(span_b2[:, 1:], ids_bk.shape)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        less = (sorted_ids[jnp.minimum(middle, len(sorted_ids) - 1)] < ids_bk) & (low < high)
        return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

    steps = max(1, len(sorted_ids).bit_length())
    low, _ = jax.lax.fori_loop(0, steps, halve, (low, end))
    found = sorted_ids[jnp.minimum(low, len(sorted_ids) - 1)] == ids_bk
    return found & (low < end)


@jax.custom_vjp
def _cross_entropy(s_bn: jax.Array, answers_ba: jax.Array, weight_b: jax.Array) -> jax.Array:
    """Sum over answers of weight * (logsumexp of the row - score of the answer). By hand, since
    the backward pass then makes one array [b, n], not three."""
    return _cross_entropy_fwd(s_bn, answers_ba, weight_b)[0]


def _cross_entropy_fwd(s_bn: jax.Array, answers_ba: jax.Array, weight_b: jax.Array):
    there = answers_ba >= 0
    lse_b = jax.nn.logsumexp(s_bn, 1)
    right = jnp.take_along_axis(s_bn, jnp.where(there, answers_ba, 0), 1)
    each = there.sum(1) * lse_b - jnp.where(there, right, 0).sum(1)
    return (weight_b * each).sum(), (s_bn, lse_b, answers_ba, weight_b)


def _cross_entropy_bwd(saved: Any, g: jax.Array):
    s_bn, lse_b, answers_ba, weight_b = saved
    there = answers_ba >= 0
    weight = g * weight_b
    p_bn = jnp.exp(s_bn - lse_b[:, None]) * (weight * there.sum(1))[:, None]
    at = jnp.where(there, answers_ba, s_bn.shape[1])
    rows = jnp.arange(len(at))[:, None]
    return p_bn.at[rows, at].add(-weight[:, None] * there, mode="drop"), None, None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)
