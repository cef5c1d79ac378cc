"""What is learnt from texts without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keft_jax.config.errors import check


@dataclass(frozen=True)
class ConsistencyConfig:
    """Texts without labels: the answer for a text as it stands is the target for the same text
    changed (FixMatch, Sohn et al. 2020; UDA, Xie et al. 2020). With mask=0 and swap=0 this is plain
    self-training. docs/semi-supervised.md."""

    weight: float = 0.0
    """The factor of its loss, the mean over all unlabelled texts of a step. 0: the term is not
    built."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: the likeliest label. soft: the distribution, sharpened by `temperature`."""
    threshold: float = 0.95
    """Texts whose likeliest label has a lower probability are left out."""
    temperature: float = 0.4
    """Of soft labels. Below 1 it sharpens them."""
    mask: float = 0.1
    """Share of the tokens that the changed text has [MASK] in place of."""
    swap: float = 0.0
    """Share of the linked mentions that the changed text has another name for: of the same entity,
    else of one with the same facts. Needs knowledge.kg."""

    def __post_init__(self) -> None:
        check(self.weight >= 0, "objective.consistency.weight", self.weight, "use 0 or more")
        for name in ("threshold", "mask", "swap"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"objective.consistency.{name}", value, "use a share, 0 to 1")
        heat = self.temperature
        check(heat > 0, "objective.consistency.temperature", heat, "use above 0")
