"""Texts without labels: the model's answer for a text as it stands is the target for the same text
changed (FixMatch, Sohn et al. 2020; UDA, Xie et al. 2020).

The text as it stands is read without dropout, by the moving average of the parameters where there
is one (Tarvainen and Valpola 2017), and gives no gradient. The changed text has tokens masked and
mentions under other names, and is read with dropout, in one forward pass with the labelled texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from keft_jax.config import ConsistencyConfig
from keft_jax.data.batch import Batch, ConsistencyTarget, own_mask
from keft_jax.models.functional import Model
from keft_jax.models.fusion import Output
from keft_jax.tasks.mlm import SPECIAL
from keft_jax.tasks.task import Task
from keft_jax.train.objective import Frozen, Term

NAME = "consistency"


class Consistency:
    """Shows the task's model the labelled texts as they are and the others changed, and makes the
    loss term of the latter. What is masked is drawn from a key of each example's own."""

    def __init__(
        self,
        model: Model,
        task: Task,
        tokenizer: tokenizers.Tokenizer,
        settings: ConsistencyConfig,
    ):
        self.model, self.task, self.settings = model, task, settings
        self.term, self.each = task.term, task.each
        self._mask, *special = (tokenizer.token_to_id(p) or 0 for p in ("[MASK]", *SPECIAL))
        self._special = np.array(special, np.int32)

    def prepare(self, batch: Batch, key: jax.Array | None, frozen: Mapping[str, Any]) -> Batch:
        """The batch with the texts of its ConsistencyTarget changed, and as they were in there."""
        batch = self.task.prepare(batch, key, frozen)
        target: ConsistencyTarget = batch.targets[NAME]
        weak = dataclasses.replace(batch, targets={self.term: batch.targets[self.term]})
        changed = weak if target.other is None else target.other
        tokens = changed.tokens
        if self.settings.mask and key is not None:
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.example)
            drawn_bl = jax.vmap(lambda k: jax.random.uniform(k, tokens.shape[1:]))(keys)
            special_bl = (tokens[..., None] == self._special).any(-1)
            hidden_bl = own_mask(changed) & ~special_bl & (target.weight > 0)[:, None]
            tokens = jnp.where(hidden_bl & (drawn_bl < self.settings.mask), self._mask, tokens)
        target = dataclasses.replace(target, other=weak)
        targets = {**batch.targets, **changed.targets, NAME: target}
        return dataclasses.replace(changed, tokens=tokens, targets=targets)

    def make_term(self) -> Term:
        """The sum over texts without labels of the divergence from their targets; of those alone
        that are answered with `threshold` or more, but divided by the number of all."""

        def loss(output: Output, frozen: Frozen, batch: Batch) -> Any:
            target: ConsistencyTarget = batch.targets[NAME]
            teacher = frozen.get("ema", frozen["params"])
            weak = self.model.apply(teacher, target.other, frozen["names"], head=self.term)
            taught = jax.lax.stop_gradient(weak.logits)
            kept = target.weight * (jax.nn.softmax(taught).max(-1) >= self.settings.threshold)
            right = kept * (taught.argmax(-1) == target.label)
            each = diverge(aim(self.settings, taught), output.logits)
            return (kept * each).sum(), {"kept": kept.sum(), "right": right.sum()}

        def total(batch: Batch) -> jax.Array:
            return batch.targets[NAME].weight.sum()

        return Term(NAME, self.settings.weight, self, loss, total)


def aim(settings: ConsistencyConfig, logits_bc: jax.Array) -> jax.Array:
    """f32[b, c]: the distribution that is aimed at."""
    if settings.labels == "hard":
        return jax.nn.one_hot(logits_bc.argmax(-1), logits_bc.shape[-1])
    return jax.nn.softmax(logits_bc / settings.temperature)


def diverge(aim_bc: jax.Array, logits_bc: jax.Array) -> jax.Array:
    """f32[b]: KL(aim || softmax of the logits). Of a single label that is cross-entropy."""
    return (jax.scipy.special.xlogy(aim_bc, aim_bc) - aim_bc * jax.nn.log_softmax(logits_bc)).sum(
        -1
    )
