"""What is learnt: the loss terms and their weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from keft_jax.config.errors import check


@dataclass(frozen=True)
class DistillConfig:
    """L = L_task + weight * L_KD + hidden * L_hidden + attention * L_attention; the teacher runs in
    the same step, over all examples, labelled or not. A part of weight 0 is not built."""

    teacher: str = ""
    """Directory of a finished run, of any size, with or without a graph. Empty: none."""
    weight: float = 0.0
    """The factor of L_KD, on the task's outputs (Hinton et al. 2015)."""
    temperature: float = 1.0
    """Above 1 it softens both distributions; L_KD is scaled by its square."""
    hidden: float = 0.0
    """The factor of L_hidden, on the states after each layer: layer i of M learns from the
    teacher's ceil(i N / M) of N (Jiao et al. 2020, TinyBERT)."""
    hidden_loss: Literal["mse", "cosine"] = "mse"
    """mse: the mean square of the difference (TinyBERT). cosine: one minus the cosine (Sanh et al.
    2019, DistilBERT)."""
    width: int = 0
    """encoder.width of the teacher, where it is another than the student's: states then go through
    a learned projection. 0: the same."""
    attention: float = 0.0
    """The factor of L_attention, on the attention distributions of the last layer (Wang et al.
    2020, MiniLM)."""

    def __post_init__(self) -> None:
        for name in ("weight", "hidden", "attention", "width"):
            value = getattr(self, name)
            check(value >= 0, f"objective.distill.{name}", value, "use 0 or more")
        check(
            self.temperature > 0, "objective.distill.temperature", self.temperature, "use above 0"
        )
        check(
            not (self.active and not self.teacher),
            "objective.distill.teacher",
            self.teacher,
            "name the run that teaches, or set objective.distill.weight=0",
        )

    @property
    def active(self) -> bool:
        """Whether any part is built."""
        return max(self.weight, self.hidden, self.attention) > 0


@dataclass(frozen=True)
class MlmConfig:
    """Masked language modelling (Devlin et al. 2019), as the task or as a term beside one."""

    weight: float = 0.0
    """The factor of its loss beside the task's, on the same texts, in a forward pass of its own.
    0: the term is not built."""
    rate: float = 0.15
    """Share of the tokens that are predicted: 80 % of them masked, 10 % replaced, 10 % kept."""
    mask: Literal["token", "word", "entity"] = "token"
    """What is predicted together. word: all pieces of a word. entity: all tokens of a linked
    mention, for a share of the mentions; the rest of `rate` are whole words outside of mentions
    (Sun et al. 2019). What does not fit in whole is left out."""
    entity_share: float = 0.5
    """With mask=entity: the share of linked mentions that are predicted, within `rate`."""

    def __post_init__(self) -> None:
        check(self.weight >= 0, "objective.mlm.weight", self.weight, "use 0 or more")
        check(0 < self.rate < 1, "objective.mlm.rate", self.rate, "use a share, 0 to 1")
        share = self.entity_share
        check(0 < share <= 1, "objective.mlm.entity_share", share, "use a share, above 0 to 1")


@dataclass(frozen=True)
class EntitiesConfig:
    """Which entity a masked mention is of (Zhang et al. 2019), by the rows of entities; in the
    forward pass of masked language modelling, which has to mask whole mentions."""

    weight: float = 0.0
    """The factor of its loss, the mean over masked mentions. 0: the term is not built."""
    candidates: int = 0
    """Entities drawn from the graph at each step as wrong answers, beside those that the batch
    mentions. Evaluation has all entities as candidates."""

    def __post_init__(self) -> None:
        check(self.weight >= 0, "objective.entities.weight", self.weight, "use 0 or more")
        drawn = self.candidates
        check(drawn >= 0, "objective.entities.candidates", drawn, "use 0 (none) or more")


@dataclass(frozen=True)
class TriplesConfig:
    """Reasoning over the graph beside the text: link prediction with the model's own rows of
    entities, in the same step. Section kge has the scores and the loss."""

    weight: float = 0.0
    """The factor of its loss, the mean over queries. 0: the term is not built."""
    batch: int = 256
    """Queries drawn at each step from the facts that the run's graph has."""

    def __post_init__(self) -> None:
        check(self.weight >= 0, "objective.triples.weight", self.weight, "use 0 or more")
        check(self.batch >= 1, "objective.triples.batch", self.batch, "use 1 or more")


@dataclass(frozen=True)
class KgTeacherConfig:
    """L = L_task + weight * L_KD: for each mention the text model learns which entities around it
    triple embeddings hold to be related to it."""

    weight: float = 0.0
    """The factor of L_KD, the mean over mentions. 0: the term is not built."""
    embeddings: str = ""
    """Directory of a run of link prediction, which teaches as it is. Empty: the embeddings of
    objective.triples, trained jointly."""
    temperature: float = 1.0
    """Above 1 it softens the teacher's distribution."""

    def __post_init__(self) -> None:
        check(self.weight >= 0, "objective.kg_teacher.weight", self.weight, "use 0 or more")
        heat = self.temperature
        check(heat > 0, "objective.kg_teacher.temperature", heat, "use above 0")


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


@dataclass(frozen=True)
class ScheduleConfig:
    """A factor that goes from `start` at the first step to `end` at the last."""

    of: str
    """A loss term by its name in the metrics, loss/NAME (task, distill, hidden, attention, mlm,
    kg_teacher, triples, ...), whose weight it multiplies; or temperature: that of distillation."""
    start: float = 1.0
    end: float = 0.0
    kind: Literal["linear", "cosine"] = "linear"
    """cosine: half a wave, slow at both ends."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            check(value >= 0, f"objective.schedules.{name}", value, "use 0 or more")
            check(
                value > 0 or self.of != "temperature",
                f"objective.schedules.{name}",
                value,
                "a temperature needs a factor above 0",
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """A weighted sum of loss terms."""

    task: float = 1.0
    """Weight of the task's own loss."""
    mlm: MlmConfig = field(default_factory=MlmConfig)
    entities: EntitiesConfig = field(default_factory=EntitiesConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    triples: TriplesConfig = field(default_factory=TriplesConfig)
    kg_teacher: KgTeacherConfig = field(default_factory=KgTeacherConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    schedules: tuple[ScheduleConfig, ...] = ()
    """Weights and the temperature that change over the run; the rest are constant."""

    def __post_init__(self) -> None:
        check(self.task >= 0, "objective.task", self.task, "use 0 or more")
        beside = (self.mlm, self.triples, self.kg_teacher, self.consistency)
        check(
            self.task > 0 or self.distill.active or any(term.weight > 0 for term in beside),
            "objective.task",
            self.task,
            "at least one loss term needs a weight above 0",
        )
        names = [schedule.of for schedule in self.schedules]
        twice = sorted({name for name in names if names.count(name) > 1})
        check(not twice, "objective.schedules.of", twice, "one schedule for each")

    @property
    def of_sum(self) -> bool:
        """Whether a term trains what text and graph answer together (fusion.trains)."""
        return self.distill.active or self.consistency.weight > 0
