"""A model with its mesh, ready to be asked: no objective, no optimizer, no teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.batch import Batch
from keft_jax.data.features import Dataset
from keft_jax.data.plan import eval_batches
from keft_jax.data.source import Example
from keft_jax.data.vocabulary import round_up
from keft_jax.models.fusion import Output
from keft_jax.sharding import batch_sharding, make_mesh, place
from keft_jax.train.feed import feed
from keft_jax.train.parts import Parts
from keft_jax.train.resident import reside, succeed
from keft_jax.train.step import compile_eval_step, make_eval_step
from keft_jax.train.watchdog import beat

Read = Callable[[Output, Any], dict[str, jax.Array]]
Step = Callable[[Any, Any, Batch], dict[str, jax.Array]]


class NotFiniteError(KeftError):
    """A loss, a score or a parameter is not a number any more."""

    exit_code = 1


class Evaluator:
    """The compiled evaluation of one model; a finished run needs no more than this."""

    def __init__(self, parts: Parts):
        config = parts.config
        self.parts, self.mesh = parts, make_mesh(config.mesh)
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.batch = round_up(config.eval.batch, ways)
        self.names = parts.frozen(self.mesh)["names"]
        self._score = self.compile()

    def over(self, parts: Parts) -> Evaluator:
        """The same compiled steps over the graph of `parts`, made by `with_kg` of these: its arrays
        take the place of the old ones. Where they are of other shapes a step is compiled anew."""
        succeed(self.parts.knowledge, parts.knowledge)
        other = copy.copy(self)
        other.parts, other.names = parts, parts.frozen(self.mesh)["names"]
        return other

    def compile(self, read: Read | None = None) -> Step:
        """The step that makes `read(output, target)` of a batch; None: the task's score."""
        return compile_eval_step(make_eval_step(self.parts.model, self.parts.task, read), self.mesh)

    def put(self, batch: Batch) -> Batch:
        """To the devices, cut along the batch."""
        return place(batch, batch_sharding(self.mesh))

    def evaluate(self, params: Any, dataset: Dataset) -> dict[str, np.ndarray]:
        """Per-example rows of a split, in its order. Raises NotFiniteError."""
        return dict(self.parts.task.merge(self.rows(self._score, params, dataset), dataset))

    def rows(self, step: Step, params: Any, dataset: Dataset) -> dict[str, np.ndarray]:
        """What a compiled step makes of each unit of a split, in its order. Raises NotFiniteError
        where the model's outputs are no numbers: a metric would count them as merely wrong."""
        buckets, frozen = self.parts.config.data.buckets, {"names": self.names}
        frozen |= reside(dataset.knowledge, self.mesh, *dataset.row)
        out = []
        for length, indices in eval_batches(dataset.lengths, self.batch, buckets):
            out.append(step(params, frozen, feed(dataset, length, indices, self.mesh)))
        rows = []
        for done in out:
            rows.append(jax.device_get(done))
            beat()
        order = np.concatenate([r["example"] for r in rows])
        merged = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
        place = np.argsort(np.where(order < 0, len(order), order), kind="stable")
        merged = {name: value[place[: len(dataset.owner)]] for name, value in merged.items()}
        owners = [dataset.source(unit) for unit in range(len(dataset.owner))]
        refuse_not_finite(merged["probability"], owners)
        return merged


def refuse_not_finite(probability: np.ndarray, examples: Sequence[Example]) -> None:
    """Raises NotFiniteError where a row of [examples, ...] is not finite."""
    bad = np.flatnonzero(~np.isfinite(probability.reshape(len(examples), -1)).all(1))
    if len(bad):
        raise NotFiniteError(
            f"the scores of {len(bad)} of {len(examples)} examples are not finite, first of "
            f"{examples[bad[0]].where}; train with a lower optim.learning_rate"
        )
