"""Which entity a masked mention is of (the denoising entity auto-encoder of Zhang et al. 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keft_jax.data.batch import Batch, EntityTarget
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.task import OneRow, Rows, Task

BANDS = {"unseen": (0, 1), "1-4": (1, 5), "5+": (5, None)}
"""How often an entity is mentioned in training, half-open."""


def may_ask(batch: Batch) -> jax.Array:
    """bool[b, m]: mentions of entities that have a row, each once."""
    mentions = batch.mentions
    there_bm = mentions.end > mentions.start
    row_bm = _rows(batch)
    # A mention with several candidates has a slot for each; the first is the best one.
    number = jnp.arange(there_bm.shape[1])
    same = (mentions.start[:, None] == mentions.start[..., None]) & (number < number[:, None])
    once_bm = ~(same & there_bm[:, None]).any(2)
    return (mentions.node >= 0) & there_bm & (row_bm > 0) & once_bm & (batch.example >= 0)[:, None]


def _rows(batch: Batch) -> jax.Array:
    """i32[b, m]: each mention's row in the table of entities."""
    node_bm = jnp.maximum(batch.mentions.node, 0)
    return jnp.take_along_axis(jnp.asarray(batch.graph.nodes["row"]), node_bm, 1)


def entity_target(
    batch: Batch, masked_bm: jax.Array, keys: jax.Array | None, drawn: int, rows: int
) -> EntityTarget:
    """Of a batch whose mentions are not hidden yet.

    Args:
      masked_bm: tokens of each mention that are predicted; a mention counts with all of them.
      keys: of each example, for its part of the `drawn` entities of rows 1 to `rows`; None:
        evaluation, in which all are candidates.
    """
    asked_bm = may_ask(batch) & (masked_bm == batch.mentions.end - batch.mentions.start)
    row_bm = jnp.where(asked_bm, _rows(batch), 0)
    target = EntityTarget(row=row_bm, weight=asked_bm.astype(jnp.float32))
    if keys is None:
        return target
    share = -(-drawn // len(row_bm))
    more_bk = jax.vmap(lambda k: jax.random.randint(k, (share,), 1, rows + 1))(keys)
    there_bk = jnp.concatenate([asked_bm, jnp.ones(more_bk.shape, bool)], 1)
    candidate_bk = jnp.concatenate([row_bm, more_bk], 1)
    return dataclasses.replace(target, candidate=candidate_bk, there=there_bk)


class EntityPrediction(OneRow):
    """Cross-entropy of a masked mention's entity; in training among the entities that the batch
    masks and some drawn ones, in evaluation among all: hits@1."""

    term = "entities"
    metrics: tuple[str, ...] = ("hits@1",)

    def __init__(self, masks: Task, share: float):
        """masks: the masked language modelling whose masks and forward pass these are. share: of
        linked mentions that it masks."""
        self.choices: Sequence[str] = ()
        self.masks, self._share = masks, share

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> Any:
        return self.masks.targets(rows, tokens)

    def prepare(self, batch: Batch, key: jax.Array | None, frozen: Mapping[str, Any]) -> Batch:
        prepared: Batch = self.masks.prepare(batch, key, frozen)
        return prepared

    def total(self, batch: Batch) -> jax.Array:
        """As many as are masked on average, where there is room for them."""
        return self._share * may_ask(batch).sum()

    def loss(self, logits_bmc: Any, target: EntityTarget) -> jax.Array:
        """logits: models/entities.py."""
        label_bm = target.row if target.candidate is None else jnp.zeros_like(target.row)
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits_bmc), label_bm[..., None], 2)
        return -(target.weight * taken[..., 0]).sum()

    def score(self, logits_bmc: jax.Array, target: EntityTarget) -> dict[str, jax.Array]:
        hit_bm = target.weight * (logits_bmc.argmax(-1) == target.row)
        return {
            "hits@1": hit_bm.sum(1) / jnp.maximum(target.weight.sum(1), 1),
            "hit": hit_bm,
            "asked": target.weight,
            "row": target.row,
        }

    def summarise(self, rows: Rows) -> dict[str, float]:
        asked = float(np.sum(rows["asked"]))
        return {"hits@1": float(np.sum(rows["hit"])) / max(asked, 1.0), "asked": asked}


def by_frequency(rows: Rows, count_r: np.ndarray) -> dict[str, float]:
    """hits@1 of the mentions whose entity is mentioned so often in training, and their number.
    count_r: mentions of each row of the table."""
    count, out = count_r[rows["row"]], {}
    for band, (least, end) in BANDS.items():
        inside = (rows["asked"] > 0) & (count >= least) & (end is None or count < end)
        out[f"hits@1/{band}"] = float(rows["hit"][inside].sum()) / max(int(inside.sum()), 1)
        out[f"asked/{band}"] = float(inside.sum())
    return out
