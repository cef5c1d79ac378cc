"""The contract of a task: host targets in, a loss and per-example metrics out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from keft_jax.data.source import Example

Rows = Mapping[str, np.ndarray]  # one value for each example


class Task(Protocol):
    term: str
    """Key of its target in `Batch.targets`."""
    metrics: tuple[str, ...]
    """Per-example metrics; the first one chooses checkpoints unless the config says otherwise."""
    choices: Sequence[str]
    """What logit i stands for."""

    def targets(self, examples: Sequence[Example]) -> Any:
        """The target struct of these examples (numpy). Raises KeftError on an unknown label."""

    def loss(self, logits_bc: jax.Array, target: Any) -> jax.Array:
        """Sum over examples of weight * loss, f32. Its denominator is the sum of the weights."""

    def score(self, logits_bc: jax.Array, target: Any) -> dict[str, jax.Array]:
        """Per-example metrics f32[b], and `choice` i32[b]: the model's one answer."""

    def summarise(self, rows: Rows) -> dict[str, float]:
        """Scores of a whole split from its per-example rows, for reports."""
