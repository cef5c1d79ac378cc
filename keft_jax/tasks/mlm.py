"""Masked language modelling (Devlin et al. 2019): as a task of its own, or a term beside one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from keft_jax.data.batch import Batch, MaskTarget, TextTarget, token_mask
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.task import OneRow, Rows

SPECIAL = ("[CLS]", "[SEP]", "[PAD]")


class MaskedLM(OneRow):
    """Cross-entropy of the tokens chosen by `prepare`. They are drawn anew in each step, on the
    device, from a key of each example's own, so that neither the batch nor the devices that an
    example lands on change its masks; in evaluation they are always the same ones."""

    term = "mlm"
    metrics: tuple[str, ...] = ("log_likelihood", "accuracy")

    def __init__(self, tokenizer: tokenizers.Tokenizer, rate: float):
        self.choices: Sequence[str] = ()  # no one answer for a text
        self.words, self._rate = tokenizer.get_vocab_size(), rate
        self._mask, *special = (tokenizer.token_to_id(piece) or 0 for piece in ("[MASK]", *SPECIAL))
        self._special = np.array(special, np.int32)

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> TextTarget:
        del tokens
        return TextTarget(weight=np.ones(len(rows), np.float32))

    def prepare(
        self, batch: Batch, key: jax.Array | None, frozen: Mapping[str, Any] = MappingProxyType({})
    ) -> Batch:
        """Chooses `rate` of each text's tokens (one at least) and changes them in the batch: 80 %
        to [MASK], 10 % to a random piece, 10 % not at all."""
        del frozen
        open_bl, count_b = self._choose_from(batch)
        slots = self._slots(batch.tokens.shape[1])
        key = jax.random.key(0) if key is None else key
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.example)
        draw = jax.vmap(lambda k, n: jax.random.uniform(k, (n,)), (0, None))
        length = batch.tokens.shape[1]
        drawn = draw(keys, length + 2 * slots)
        score_bl = jnp.where(open_bl, drawn[:, :length], -1)
        score_bt, position_bt = jax.lax.top_k(score_bl, slots)
        action_bt, piece_bt = drawn[:, length : length + slots], drawn[:, length + slots :]
        chosen_bt = (jnp.arange(slots) < count_b[:, None]) & (score_bt >= 0)
        label_bt = jnp.take_along_axis(batch.tokens, position_bt, 1)
        random_bt = (piece_bt * self.words).astype(jnp.int32)
        shown_bt = jnp.where(
            action_bt < 0.8, self._mask, jnp.where(action_bt < 0.9, random_bt, label_bt)
        )
        write = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))
        tokens = write(batch.tokens, position_bt, jnp.where(chosen_bt, shown_bt, label_bt))
        weight_bt = chosen_bt * batch.targets[self.term].weight[:, None]
        target = MaskTarget(position=position_bt, label=label_bt, weight=weight_bt)
        return dataclasses.replace(
            batch, tokens=tokens, targets={**batch.targets, self.term: target}
        )

    def _choose_from(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(bool[b, l]: tokens that can be predicted, i32[b]: how many of them will be)."""
        special_bl = (batch.tokens[..., None] == self._special).any(-1)
        open_bl = token_mask(batch) & ~special_bl
        total_b = open_bl.sum(1)
        count_b = jnp.maximum(jnp.round(self._rate * total_b).astype(jnp.int32), 1)
        return open_bl, jnp.minimum(count_b, total_b)

    def _slots(self, length: int) -> int:
        return max(1, int(np.ceil(self._rate * length)))

    def total(self, batch: Batch) -> jax.Array:
        _, count_b = self._choose_from(batch)
        return (count_b * batch.targets[self.term].weight).sum()

    def _log_likelihood(self, logits_btv: jax.Array, target: MaskTarget) -> jax.Array:
        taken = jnp.take_along_axis(logits_btv, target.label[..., None], 2)[..., 0]
        return taken - jax.nn.logsumexp(logits_btv, -1)

    def loss(self, logits_btv: jax.Array, target: MaskTarget) -> jax.Array:
        return -(target.weight * self._log_likelihood(logits_btv, target)).sum()

    def distributions(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """One for each chosen token; the mean over those of a text."""
        weight_bt = batch.targets[self.term].weight
        return logits, weight_bt / jnp.maximum(weight_bt.sum(1, keepdims=True), 1)

    def score(self, logits_btv: jax.Array, target: MaskTarget) -> dict[str, jax.Array]:
        right = (logits_btv.argmax(-1) == target.label) * target.weight
        count = target.weight.sum(1)
        likelihood = (target.weight * self._log_likelihood(logits_btv, target)).sum(1)
        return {
            "log_likelihood": likelihood / jnp.maximum(count, 1),
            "accuracy": right.sum(1) / jnp.maximum(count, 1),
            "right": right.sum(1),
            "count": count,
            "total_log_likelihood": likelihood,
        }

    def summarise(self, rows: Rows) -> dict[str, float]:
        """Over all predicted tokens of a split, each counted alike; log-likelihood in nats."""
        count = max(float(np.sum(rows["count"])), 1.0)
        likelihood = float(np.sum(rows["total_log_likelihood"])) / count
        return {
            "log_likelihood": likelihood,
            "accuracy": float(np.sum(rows["right"])) / count,
            "perplexity": float(np.exp(-likelihood)),
        }
