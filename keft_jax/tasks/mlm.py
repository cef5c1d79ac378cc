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

from keft_jax.config import Config, EntitiesConfig, MlmConfig
from keft_jax.data.batch import Batch, MaskTarget, TextTarget, own_mask
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens
from keft_jax.tasks.entities import entity_target
from keft_jax.tasks.hidden import hide
from keft_jax.tasks.task import OneRow, Rows

SPECIAL = ("[CLS]", "[SEP]", "[PAD]")
PASSES = 4
"""Over what is left, each for the units that still fit: after them a text has its rate of tokens,
but for the few whose every unit left is too long."""


class MaskedLM(OneRow):
    """Cross-entropy of the tokens chosen by `prepare`. They are drawn anew in each step, on the
    device, from a key of each text's own, so that neither the batch nor the devices that an
    example lands on change its masks; in evaluation they are always the same ones.

    Units of tokens are chosen whole: pieces (Devlin et al. 2019), words, or linked mentions and the
    words outside of them. Where some token of a linked mention is chosen, the graph tells nothing
    of its entity (tasks/hidden.py).
    """

    term = "mlm"
    metrics: tuple[str, ...] = ("log_likelihood", "accuracy")

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        rate: float,
        *,
        settings: MlmConfig | None = None,
        hops: int = 2,
        entities: EntitiesConfig | None = None,
        rows: int = 0,
        each: int = 1,
    ):
        """hops: of the subgraphs. entities: with a target for the prediction of entities, of so
        many `rows`. each: texts of a unit, that of the task beside."""
        self.each = each
        self.choices: Sequence[str] = ()  # no one answer for a text
        self.words, self._rate = tokenizer.get_vocab_size(), rate
        self.settings, self._hops = settings or MlmConfig(rate=rate), hops
        self._entities, self._rows = entities, rows
        self._mask, *special = (tokenizer.token_to_id(piece) or 0 for piece in ("[MASK]", *SPECIAL))
        self._special = np.array(special, np.int32)
        self._goes_on = np.zeros(self.words, bool)  # pieces inside of words
        for piece, number in tokenizer.get_vocab().items():
            self._goes_on[number] = piece.startswith("##")

    @classmethod
    def of(
        cls, config: Config, tokenizer: tokenizers.Tokenizer, rows: int, each: int = 1
    ) -> MaskedLM:
        """rows: entities of the model."""
        objective = config.objective
        return cls(
            tokenizer,
            objective.mlm.rate,
            settings=objective.mlm,
            hops=config.knowledge.hops,
            entities=objective.entities if objective.entities.weight > 0 else None,
            rows=rows,
            each=each,
        )

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> TextTarget:
        del tokens
        return TextTarget(weight=np.ones(len(rows), np.float32))

    def prepare(
        self, batch: Batch, key: jax.Array | None, frozen: Mapping[str, Any] = MappingProxyType({})
    ) -> Batch:
        """Chooses `rate` of each text's tokens (one at least where the unit is a token) and changes
        them in the batch: 80 % to [MASK], 10 % to a random piece, 10 % not at all, a unit's tokens
        alike."""
        del frozen
        training, key = key is not None, jax.random.key(0) if key is None else key
        open_bl, count_b = self._choose_from(batch)
        slots = self._slots(batch.tokens.shape[1])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.example)
        if self.each > 1:  # texts of one unit, each by itself
            keys = jax.vmap(jax.random.fold_in)(keys, jnp.arange(len(keys)) % self.each)
        draw = jax.vmap(lambda k, n: jax.random.uniform(k, (n,)), (0, None))
        length = batch.tokens.shape[1]
        drawn = draw(keys, length + 2 * slots)
        action_bt, piece_bt = drawn[:, length : length + slots], drawn[:, length + slots :]
        if self.settings.mask == "token":
            score_bl = jnp.where(open_bl, drawn[:, :length], -1)
            score_bt, position_bt = jax.lax.top_k(score_bl, slots)
            chosen_bt = (jnp.arange(slots) < count_b[:, None]) & (score_bt >= 0)
        else:
            head_bl = self._heads(batch)
            whole_bl = self._choose_units(batch, head_bl, open_bl, count_b, drawn[:, :length])
            # Equal ones come in the order of the text, so that a unit's tokens lie together.
            value_bt, position_bt = jax.lax.top_k(whole_bl.astype(jnp.float32), slots)
            chosen_bt = value_bt > 0
            head_bt = jnp.take_along_axis(head_bl, position_bt, 1)
            first_bt = jnp.diff(head_bt, axis=1, prepend=-1) != 0
            first_bt = jax.lax.cummax(jnp.where(first_bt, jnp.arange(slots), 0), axis=1)
            action_bt = jnp.take_along_axis(action_bt, first_bt, 1)
        label_bt = jnp.take_along_axis(batch.tokens, position_bt, 1)
        random_bt = (piece_bt * self.words).astype(jnp.int32)
        shown_bt = jnp.where(
            action_bt < 0.8, self._mask, jnp.where(action_bt < 0.9, random_bt, label_bt)
        )
        write = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))
        tokens = write(batch.tokens, position_bt, jnp.where(chosen_bt, shown_bt, label_bt))
        weight_bt = chosen_bt * batch.targets[self.term].weight[:, None]
        inside_bmt = _inside(batch, position_bt[:, None]) & chosen_bt[:, None]
        target = MaskTarget(
            position=position_bt, label=label_bt, weight=weight_bt, linked=inside_bmt.any(1)
        )
        targets = {**batch.targets, self.term: target}
        if self._entities is not None:
            targets["entities"] = entity_target(
                batch,
                inside_bmt.sum(2),
                jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys) if training else None,
                self._entities.candidates,
                self._rows,
            )
        batch = hide(batch, inside_bmt.any(2), self._hops)
        return dataclasses.replace(batch, tokens=tokens, targets=targets)

    def _heads(self, batch: Batch) -> jax.Array:
        """i32[b, l]: where the unit of each token begins. A mention that begins or ends inside of a
        word, or overlaps another one, makes one unit with it."""
        joined_bl = jnp.asarray(self._goes_on)[batch.tokens]
        at = jnp.arange(batch.tokens.shape[1])
        if self.settings.mask == "entity":
            within_bml = _inside(batch, at) & (at > batch.mentions.start[..., None])
            joined_bl |= within_bml.any(1)
        return jax.lax.cummax(jnp.where(joined_bl, 0, at), axis=1)

    def _choose_units(
        self,
        batch: Batch,
        head_bl: jax.Array,
        open_bl: jax.Array,
        count_b: jax.Array,
        drawn_bl: jax.Array,
    ) -> jax.Array:
        """bool[b, l]: tokens of whole units, no more than `count_b`. By the number drawn for its
        first token: linked mentions, `entity_share` of them, then words, the highest first."""
        at = jnp.arange(head_bl.shape[1])
        size_bl = ((head_bl[:, None] == at[:, None]) & open_bl[:, None]).sum(2)
        score_bl = drawn_bl
        if self.settings.mask == "entity":
            linked_bl = _inside(batch, at).any(1)
            linked_bl = ((head_bl[:, None] == at[:, None]) & linked_bl[:, None]).any(2)
            asked_bl = drawn_bl > 1 - self.settings.entity_share
            score_bl = jnp.where(linked_bl, jnp.where(asked_bl, 1 + drawn_bl, -1), drawn_bl)
        rest_bl = (size_bl > 0) & (score_bl >= 0)
        order_bl = jnp.argsort(jnp.where(rest_bl, -score_bl, 2), axis=1)
        size_bl, rest_bl = (jnp.take_along_axis(x, order_bl, 1) for x in (size_bl, rest_bl))
        taken_bl, room_b1 = jnp.zeros_like(rest_bl), count_b[:, None]
        for _ in range(PASSES):
            fits_bl = rest_bl & (size_bl <= room_b1)
            fits_bl &= jnp.cumsum(jnp.where(fits_bl, size_bl, 0), 1) <= room_b1
            taken_bl, rest_bl = taken_bl | fits_bl, rest_bl & ~fits_bl
            room_b1 = room_b1 - jnp.where(fits_bl, size_bl, 0).sum(1, keepdims=True)
        taken_bl = jnp.take_along_axis(taken_bl, jnp.argsort(order_bl, axis=1), 1)
        return jnp.take_along_axis(taken_bl, head_bl, 1) & open_bl

    def _choose_from(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(bool[b, l]: tokens that can be predicted, i32[b]: how many of them will be, at most
        where units have several)."""
        special_bl = (batch.tokens[..., None] == self._special).any(-1)
        open_bl = own_mask(batch) & ~special_bl
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
            "linked_count": (target.weight * target.linked).sum(1),
            "linked_log_likelihood": (
                target.weight * target.linked * self._log_likelihood(logits_btv, target)
            ).sum(1),
        }

    def summarise(self, rows: Rows) -> dict[str, float]:
        """Over all predicted tokens of a split, each counted alike, and over those of linked
        mentions and the others; log-likelihood in nats."""
        total, linked = (float(np.sum(rows[k])) for k in ("count", "linked_count"))
        of_all, of_linked = (
            float(np.sum(rows[k])) for k in ("total_log_likelihood", "linked_log_likelihood")
        )
        likelihood = of_all / max(total, 1.0)
        return {
            "log_likelihood": likelihood,
            "accuracy": float(np.sum(rows["right"])) / max(total, 1.0),
            "perplexity": float(np.exp(-likelihood)),
            "log_likelihood/linked": of_linked / max(linked, 1.0),
            "log_likelihood/other": (of_all - of_linked) / max(total - linked, 1.0),
        }


def _inside(batch: Batch, at: jax.Array) -> jax.Array:
    """bool[b, m, k]: which mentions these places (i32[k], or i32[b, 1, k]) lie in."""
    start, end = batch.mentions.start[..., None], batch.mentions.end[..., None]
    return (at >= start) & (at < end)
