"""How it is learnt and judged: optimizer, devices, evaluation and the gain table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keft_jax.config.data import Row
from keft_jax.config.errors import check


@dataclass(frozen=True)
class GroupConfig:
    """A group of parameters with a learning rate of its own."""

    match: str
    """A part of the parameter's path, for example `encoder`, `graph`, `gate` or `embed/word`."""
    scale: float = 1.0
    """Factor on the learning rate. 0: frozen, with no optimizer state; the encoder's first layers,
    with its embeddings, then have no dropout either."""
    from_step: int = 0
    """Steps before which it is not changed: a new head learns first what a trained encoder says."""

    def __post_init__(self) -> None:
        check(self.match != "", "optim.groups.match", self.match, "name a part of a path")
        check(self.scale >= 0, "optim.groups.scale", self.scale, "use 0 or more")
        first = self.from_step
        check(first >= 0, "optim.groups.from_step", first, "use 0 or more")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, with warm-up and decay."""

    kind: Literal["adamw", "adagrad"] = "adamw"
    """adamw: Loshchilov and Hutter 2019. adagrad: Duchi et al. 2011."""
    tables: Literal["dense", "rows"] = "dense"
    """Of the table of entities. rows: a step reads and changes only the rows that its batch names,
    at a cost that does not grow with the table. With adagrad that is the same as dense; with adamw
    it is lazy Adam: rows that are not in the batch rest. The table has no weight decay and is not
    clipped."""
    steps: int = 1000
    batch: int = 32
    """Examples in a step, over all devices and all accumulated parts."""
    unlabelled: int = 0
    """Texts of data.unlabelled in a step, beside `batch`."""
    accumulate: int = 1
    """Parts that a batch is cut into, one after another; the result is that of the whole."""
    learning_rate: float = 1e-3
    """Peak."""
    warmup: float = 0.1
    """Share of the steps with a rising learning rate."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    """On everything but biases and the scales of norms."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    """BERT's. A smaller one lets rounding move parameters that hardly have a gradient. adagrad adds
    it to the sum of squares."""
    clip: float = 1.0
    """Largest global norm of the gradient; with fusion.trains=apart of either side's. 0: no
    clipping."""
    skip: int = 0
    """Steps of a run that may be skipped, changing nothing, since their loss or gradient is not
    finite or the loss jumps (`spike`). 0: the first one that is not finite is an error."""
    spike: float = 0.0
    """Skip a step whose loss is more than so many standard deviations above the mean of the last
    100 or so. 0: only those that are not finite."""
    groups: tuple[GroupConfig, ...] = ()
    """The first that matches a parameter holds for it."""
    ema: float = 0.0
    """Decay of a moving average of the parameters, which makes the targets of
    objective.consistency (Tarvainen and Valpola 2017). After t steps it is (1 + t) / (10 + t) where
    that is less, so that the start is soon forgotten. 0: none."""
    start: str = ""
    """Directory of a run on text, of whatever task: parameters of the same path and shape start as
    its best ones, rows of entities and relations by name. Empty: none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            value = getattr(self, name)
            check(value >= 1, f"optim.{name}", value, "use 1 or more")
        check(
            self.batch % self.accumulate == 0,
            "optim.accumulate",
            self.accumulate,
            f"must divide optim.batch = {self.batch}",
        )
        check(self.unlabelled >= 0, "optim.unlabelled", self.unlabelled, "use 0 or more")
        check(
            self.unlabelled % self.accumulate == 0,
            "optim.accumulate",
            self.accumulate,
            f"must divide optim.unlabelled = {self.unlabelled}",
        )
        check(0 <= self.ema < 1, "optim.ema", self.ema, "use [0, 1)")
        check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "use above 0")
        check(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "use a share, 0 to 1")
        check(self.clip >= 0, "optim.clip", self.clip, "use 0 (off) or more")
        check(self.skip >= 0, "optim.skip", self.skip, "use 0 (none) or more")
        check(self.spike >= 0, "optim.spike", self.spike, "use 0 (off) or more")
        check(
            not self.spike or self.skip > 0,
            "optim.spike",
            self.spike,
            "no step may be skipped; set optim.skip",
        )
        for name in ("b1", "b2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optim.{name}", value, "use [0, 1)")

    def group_of(self, path: str) -> GroupConfig | None:
        """The first group that the parameter at a path is in."""
        return next((group for group in self.groups if group.match in path), None)

    def scale_of(self, path: str) -> float:
        """Factor on the learning rate of the parameter at a path, from its group's `from_step`
        on."""
        group = self.group_of(path)
        return 1.0 if group is None else group.scale


@dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out: (data, fsdp, tensor). 0: all devices that are left."""

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    parallel: Literal["jit", "pmap"] = "jit"
    """pmap: every device on `data`, parameters replicated, as jax.pmap lays them out."""
    rows: Literal["auto", "gather", "all_to_all"] = "auto"
    """How rows of tables with optim.tables=rows reach the devices that want them. gather: the
    compiler's way, whose traffic grows with the mesh. all_to_all: each device asks the owners for
    its own rows alone; other parameters are whole on every device during the step. auto: all_to_all
    above 16 devices."""
    rows_slack: float = 2.0
    """Slots for rows between two devices with all_to_all, as a factor on the mean. Rows that find
    none count as `row_overflow`: they read as zeros and learn nothing in that step. 0: a slot for
    each, at the price of more traffic."""

    def __post_init__(self) -> None:
        check(self.rows_slack >= 0, "mesh.rows_slack", self.rows_slack, "use 0 (no limit) or more")
        sizes = (self.data, self.fsdp, self.tensor)
        check(min(sizes) >= 0, "mesh", sizes, "use 0 (what is left) or more")
        check(sizes.count(0) <= 1, "mesh", sizes, "only one axis can take the devices left")
        check(
            self.parallel == "jit" or sizes[1:] == (1, 1),
            "mesh.parallel",
            self.parallel,
            "pmap has no fsdp or tensor axis; use jit with them",
        )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation while training, on the selection split."""

    every: int = 100
    """Steps between evaluations."""
    metric: str = ""
    """Chooses the best checkpoint. Empty: the task's first metric."""
    batch: int = 128
    patience: int = 0
    """Stop after so many evaluations without a better one. 0: never."""
    ema: bool = False
    """Evaluate, and keep as the best, the moving average of optim.ema."""

    def __post_init__(self) -> None:
        check(self.every >= 1, "eval.every", self.every, "use 1 or more")
        check(self.batch >= 1, "eval.batch", self.batch, "use 1 or more")
        check(self.patience >= 0, "eval.patience", self.patience, "use 0 (never) or more")


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 200
    """Steps between checkpoints for resuming. The best one is kept beside them."""
    keep: int = 2

    def __post_init__(self) -> None:
        check(self.every >= 1, "checkpoint.every", self.every, "use 1 or more")
        check(self.keep >= 2, "checkpoint.keep", self.keep, "use 2 or more: one may be damaged")


@dataclass(frozen=True)
class WatchConfig:
    """What happens when a run hangs."""

    stall: float = 600.0
    """Seconds in which no batch is done (compiling counts) before the stacks of all threads are
    written to the run's directory. 0: no watch."""
    abort: float = 0.0
    """Seconds after which the process ends, with status 75, to be started again. 0: never."""

    def __post_init__(self) -> None:
        check(self.stall >= 0, "watch.stall", self.stall, "use 0 (off) or more")
        check(
            self.abort == 0 or self.abort >= self.stall > 0,
            "watch.abort",
            self.abort,
            f"use 0 (never), or watch.stall = {self.stall} (above 0) and more",
        )


Variant = Literal[
    "kge-init",
    "kge-init-shuffled",
    "description-init",
    "random-init",
    "kg-teacher",
    "kg-teacher-shuffled",
    "multi-task",
    "multi-task-shuffled",
    "transe-init",
    "distmult-init",
    "complex-init",
    "rotate-init",
    "text",
    "text-shuffled",
    "text-visible",
    "text-visible-shuffled",
    "triple-concat",
    "triple-concat-shuffled",
    "triple-sum",
    "triple-sum-shuffled",
    "attributes",
    "attributes-shuffled",
]


@dataclass(frozen=True)
class GainConfig:
    """The table that says what the knowledge was worth."""

    rows: tuple[Row, ...] = ("none", "dictionary", "shuffled", "random", "true")
    variants: tuple[Variant, ...] = ()
    """Further rows, which read all the knowledge: with first rows of entities, a teacher or a term
    of their own, or in another way than by the graph network (gain/variants.py), beside the same
    made of the shuffled graph."""
    attributes: str = ""
    """File that the variant `attributes` reads, as knowledge.attributes."""
    kge_steps: int = 2000
    """Steps of link prediction that make the triple embeddings of variants."""
    term_weight: float = 0.3
    """Weight of the loss that the variants kg-teacher and multi-task add."""
    corrupt: tuple[float, ...] = ()
    """Shares of the facts, whole percents, that are wrong in a further row each: `true-corrupt-30`
    for .3."""
    drop: tuple[float, ...] = ()
    """Shares of the facts that are missing in a further row each: `true-drop-60` for .6."""
    seeds: int = 5
    """A seed is a draw of training examples, an initialisation and an order."""
    learning_rates: tuple[float, ...] = ()
    """Peaks tried for every row alike, chosen on the selection split. Empty: optim's alone."""
    bootstrap: int = 10_000
    """Draws over clusters of examples and seeds."""
    explain: int = 6
    """Examples whose subgraphs the report draws."""

    def __post_init__(self) -> None:
        check("true" in self.rows, "gain.rows", self.rows, "the row `true` is what is judged")
        check("none" in self.rows, "gain.rows", self.rows, "the row `none` is what it is judged by")
        check(self.kge_steps >= 1, "gain.kge_steps", self.kge_steps, "use 1 or more")
        check(self.term_weight > 0, "gain.term_weight", self.term_weight, "use above 0")
        for name in ("corrupt", "drop"):
            for share in getattr(self, name):
                whole = 0 <= share < 1 and abs(100 * share - round(100 * share)) < 1e-9
                check(whole, f"gain.{name}", share, "use whole percents from 0 to .99, as .3")
        check(self.seeds >= 1, "gain.seeds", self.seeds, "use 1 or more; a verdict needs 5")
        check(self.bootstrap >= 100, "gain.bootstrap", self.bootstrap, "use 100 or more")

    @property
    def perturbed(self) -> tuple[str, ...]:
        """The rows of `corrupt` and `drop`; a share of 0 is the row `true`."""
        levels = [
            (name, round(100 * s)) for name in ("corrupt", "drop") for s in getattr(self, name)
        ]
        return tuple(dict.fromkeys(f"true-{name}-{n:02}" for name, n in levels if n))
