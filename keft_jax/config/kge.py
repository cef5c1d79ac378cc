"""Triple embeddings: what link prediction trains, and what reasons beside a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keft_jax.config.errors import check


@dataclass(frozen=True)
class KgeConfig:
    """A score for every (head, relation, tail), and how it is trained."""

    model: Literal["transe", "transr", "distmult", "complex", "rotate"] = "complex"
    """transe (Bordes et al. 2013), transr (Lin et al. 2015), distmult (Yang et al. 2015), complex
    (Trouillon et al. 2016), rotate (Sun et al. 2019)."""
    width: int = 200
    """Length of an entity's vector, in complex numbers for complex and rotate."""
    relation_width: int = 0
    """Width of transr's relation spaces. 0: as `width`."""
    distance: Literal["l1", "l2", "l2_squared"] = "l2"
    """Of transe, transr and rotate, over real numbers (rotate's l1: over moduli). The l2 ones are
    matmuls, l1 is not."""
    scale: float = 1.0
    """Factor on the distance before the loss."""
    reciprocal: bool = True
    """An inverse of its own for every relation, so that (?, r, t) is asked as (t, r inverse, ?)
    (Lacroix et al. 2018). In transr both share the projection."""
    loss: Literal["softmax", "self_adversarial", "margin", "bce"] = "softmax"
    """softmax: cross-entropy of each answer among its negatives. self_adversarial: Sun et al. 2019.
    margin: hinge of each answer against each negative. bce: every score by itself."""
    margin: float = 9.0
    """Of self_adversarial and margin."""
    temperature: float = 1.0
    """Of the weights of negatives in self_adversarial."""
    negatives: int = 0
    """Entities drawn uniformly as wrong answers of a query. 0: all entities (1-vs-all)."""
    share: int = 0
    """Queries in a row that share their negatives: 1: each has its own, 0: the whole batch. With
    all entities only transr has a use for it."""
    filtered: bool = False
    """Drawn negatives that are answers of the query in training are left out. With all entities
    those of the example always are, but in softmax each is also a rival of the others."""
    answers: int = 1
    """Answers of a query that one example holds, at most; a query with more makes several examples.
    With all entities more are cheaper: they share their row of scores."""
    regularizer: Literal["none", "n3", "l2"] = "none"
    """On the vectors of each batch: sum of cubed moduli (Lacroix et al. 2018) or of squares."""
    strength: float = 0.0
    """Factor of the regularizer."""
    init: float = 1e-3
    """Standard deviation of first vectors."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matmuls of scores in training; evaluation, sums and parameters stay f32."""

    def __post_init__(self) -> None:
        for name in ("width", "answers"):
            value = getattr(self, name)
            check(value >= 1, f"kge.{name}", value, "use 1 or more")
        for name in ("relation_width", "negatives", "share", "strength"):
            value = getattr(self, name)
            check(value >= 0, f"kge.{name}", value, "use 0 or more")
        for name in ("scale", "init", "temperature"):
            value = getattr(self, name)
            check(value > 0, f"kge.{name}", value, "use above 0")
        check(
            self.model == "transr" or self.relation_width == 0,
            "kge.relation_width",
            self.relation_width,
            f"only transr has relation spaces of their own; leave it out for {self.model}",
        )
        check(
            not (self.model == "transr" and self.share == 1 and self.negatives),
            "kge.share",
            self.share,
            "transr projects candidates once for a block of queries of one relation, which share "
            "them; use 16 or more",
        )
        check(
            not (self.model == "transr" and self.share == 0),
            "kge.share",
            self.share,
            "name the number of queries in a row that have one relation for transr, such as 64",
        )
        check(
            (self.regularizer == "none") == (self.strength == 0),
            "kge.strength",
            self.strength,
            f"does not go with kge.regularizer = {self.regularizer!r}; give both or neither",
        )
