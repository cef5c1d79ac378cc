"""All sections together, and what must hold between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from keft_jax.config.data import MARKED, POOLED, DataConfig, KnowledgeConfig, TaskConfig
from keft_jax.config.errors import check
from keft_jax.config.kge import KgeConfig
from keft_jax.config.model import EncoderConfig, FusionConfig, GraphConfig
from keft_jax.config.objective import ObjectiveConfig
from keft_jax.config.train import (
    CheckpointConfig,
    EvalConfig,
    GainConfig,
    MeshConfig,
    OptimConfig,
    WatchConfig,
)


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    name: str = "run"
    seed: int = 0
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    kge: KgeConfig = field(default_factory=KgeConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    gain: GainConfig = field(default_factory=GainConfig)

    def __post_init__(self) -> None:
        if self.task.kind == "link_prediction":
            self._check_link_prediction()
            return
        if not self.encoder.pretrained:  # else its folder tells the sizes
            self.check_sizes()
        check(
            bool(self.knowledge.kg) or self.fusion.kind == "none",
            "knowledge.kg",
            self.knowledge.kg,
            "name a graph, or set fusion.kind=none",
        )
        check(
            self.task.kind != "mlm" or self.objective.mlm.weight == 0,
            "objective.mlm.weight",
            self.objective.mlm.weight,
            "the task itself is masked language modelling; leave the term out",
        )
        check(
            self.task.kind != "kgqa" or bool(self.knowledge.kg),
            "knowledge.kg",
            self.knowledge.kg,
            "kgqa answers with entities of a graph; name one",
        )
        check(
            self.knowledge.vectors == "none" or bool(self.encoder.pretrained),
            "knowledge.vectors",
            self.knowledge.vectors,
            "needs encoder.pretrained: only a trained text model gives vectors worth having",
        )
        check(
            self.fusion.trains != "apart" or self.task.kind in ("classification", *MARKED),
            "fusion.trains",
            self.fusion.trains,
            f"what {self.task.kind} reads of text and graph is not taken apart; use together",
        )
        for name, value in self.fusion.asked_of_fit.items():
            check(
                bool(self.data.select or self.data.select_share),
                f"fusion.{name}",
                value,
                "is fitted on the selection split; name one by data.select or data.select_share",
            )
            check(
                not self.objective.of_sum,
                f"fusion.{name}",
                value,
                "objective.distill and objective.consistency train the sum of text and graph as it "
                "is, and nothing is fitted; leave it out",
            )
        self._check_knowledge()
        self._check_unlabelled()
        if self.data.pack:
            self._check_pack()

    def _check_pack(self) -> None:
        """Texts one behind another in rows."""
        kind, distil = self.task.kind, self.objective.distill
        for fits, name, value, remedy in (
            (kind != "choice", "task.kind", kind, "the choices of a question lie side by side"),
            (not self.data.unlabelled, "data.unlabelled", self.data.unlabelled, "leave it out"),
            (
                kind != "mlm" or distil.weight == 0,
                "objective.distill.weight",
                distil.weight,
                "distil the states of masked language modelling, by objective.distill.hidden",
            ),
            (
                self.encoder.attention != "cudnn",
                "encoder.attention",
                self.encoder.attention,
                "the kernel knows lengths alone and cannot keep the texts of a row apart; use auto",
            ),
        ):
            check(fits, name, value, f"with data.pack = {self.data.pack}: {remedy}; or data.pack=0")

    def _check_knowledge(self) -> None:
        """What rows of entities start as, and the terms that reason over the graph."""
        known, triples = self.knowledge, self.objective.triples
        read = {"name", "description"} & {known.entities}
        read |= {"name"} & {known.relations}
        model = known.text_model or self.encoder.pretrained
        check(
            not read or bool(model),
            "knowledge.text_model",
            model,
            "only a trained text model reads names and descriptions; name one, or set "
            "encoder.pretrained",
        )
        check(
            known.text == "none" or bool(known.kg),
            "knowledge.text",
            known.text,
            "there are no facts to write; name a graph in knowledge.kg",
        )
        check(
            known.text != "visible" or self.encoder.attention in ("auto", "xla"),
            "encoder.attention",
            self.encoder.attention,
            "knowledge.text=visible gives each token other ones to read, which the fused kernels "
            "have no lengths for; use auto",
        )
        fused = self.fusion.kind != "none"
        check(
            fused or self.objective.distill.active or not known.attributes,
            "knowledge.attributes",
            known.attributes,
            "only a graph network reads them; set fusion.kind",
        )
        for name, value in (
            ("knowledge.entities", known.entities),
            ("knowledge.relations", known.relations),
            ("objective.entities.weight", self.objective.entities.weight),
            ("objective.triples.weight", triples.weight),
            ("objective.kg_teacher.weight", self.objective.kg_teacher.weight),
        ):
            check(fused or not value, name, value, "needs a graph network; set fusion.kind")
        teacher = self.objective.kg_teacher
        check(
            not teacher.weight or bool(teacher.embeddings) or triples.weight > 0,
            "objective.kg_teacher.embeddings",
            teacher.embeddings,
            "name a run of link prediction, or train one jointly with objective.triples.weight",
        )
        self._check_entities()
        if triples.weight == 0:
            return
        check(
            self.kge.model != "transr",
            "kge.model",
            self.kge.model,
            "its batches need queries of one relation in a row, which objective.triples does not "
            "draw; use another model",
        )
        check(
            triples.batch % (self.kge.share or triples.batch) == 0,
            "kge.share",
            self.kge.share,
            f"must divide objective.triples.batch = {triples.batch}",
        )
        check(
            not self.kge.filtered,
            "kge.filtered",
            self.kge.filtered,
            "objective.triples does not filter its negatives; set it to false",
        )
        check(
            self.optim.accumulate == 1,
            "optim.accumulate",
            self.optim.accumulate,
            "objective.triples takes its queries in one part; set it to 1",
        )
        check(
            self.optim.tables == "dense" or self.kge.negatives > 0,
            "optim.tables",
            self.optim.tables,
            "with kge.negatives=0 every step reads the whole table; use dense, or draw negatives",
        )

    def _check_entities(self) -> None:
        """The prediction of entities, and rows that two fields would start."""
        known, objective = self.knowledge, self.objective
        check(
            not (known.entities and self.optim.start),
            "knowledge.entities",
            known.entities,
            "rows of entities start as those of optim.start; leave one of them out",
        )
        weight = objective.entities.weight
        if weight == 0:
            return
        check(
            self.task.kind == "mlm" or objective.mlm.weight > 0,
            "objective.entities.weight",
            weight,
            "entities are predicted at masked mentions; set objective.mlm.weight",
        )
        check(
            objective.mlm.mask == "entity",
            "objective.mlm.mask",
            objective.mlm.mask,
            "objective.entities needs mentions that are masked whole; use entity",
        )
        check(
            self.task.kind != "choice",
            "objective.entities.weight",
            weight,
            "is for texts of their own, not for the choices of a question; set it to 0",
        )
        check(
            self.optim.accumulate == 1,
            "optim.accumulate",
            self.optim.accumulate,
            "objective.entities compares with all of the batch; set it to 1",
        )

    def _check_unlabelled(self) -> None:
        """Texts without labels, and the moving average of the parameters."""
        data, optim, objective = self.data, self.optim, self.objective
        check(
            bool(data.unlabelled) == bool(optim.unlabelled),
            "optim.unlabelled",
            optim.unlabelled,
            f"data.unlabelled = {data.unlabelled!r}; give both or neither",
        )
        readers = (objective.consistency, objective.mlm, objective.kg_teacher)
        reads = objective.distill.active or any(term.weight > 0 for term in readers)
        check(
            not optim.unlabelled or reads,
            "optim.unlabelled",
            optim.unlabelled,
            "no loss reads a text without a label; give objective.consistency or "
            "objective.mlm a weight",
        )
        check(
            not optim.unlabelled or self.task.kind != "mlm",
            "data.unlabelled",
            data.unlabelled,
            "masked language modelling has no labels; add these texts to data.train",
        )
        weight = objective.consistency.weight
        check(
            not weight or optim.unlabelled > 0,
            "objective.consistency.weight",
            weight,
            "needs texts without labels; set data.unlabelled and optim.unlabelled",
        )
        check(
            not weight or self.task.kind in ("classification", "relation"),
            "objective.consistency.weight",
            weight,
            f"is for tasks of one label for each text, not for {self.task.kind}",
        )
        swap = objective.consistency.swap
        check(
            not (weight and swap) or bool(self.knowledge.kg),
            "objective.consistency.swap",
            swap,
            "other names come from a graph; name one in knowledge.kg, or set it to 0",
        )
        check(
            not optim.ema or weight > 0 or self.eval.ema,
            "optim.ema",
            optim.ema,
            "nothing reads the average; set objective.consistency.weight or eval.ema",
        )
        averaged = optim.ema > 0 or objective.consistency.weight > 0
        check(
            not averaged or optim.tables == "dense",
            "optim.tables",
            optim.tables,
            "optim.ema and objective.consistency read all parameters as they are; use dense",
        )
        check(
            not self.eval.ema or optim.ema > 0,
            "eval.ema",
            self.eval.ema,
            "there is no moving average; set optim.ema",
        )

    def _check_link_prediction(self) -> None:
        batch, share = self.optim.batch, self.kge.share
        check(bool(self.data.train), "data.train", self.data.train, "name a file of triples")
        data, objective = self.data, self.objective
        for name, value in (
            ("data.generator", data.generator),
            ("data.select_share", data.select_share),
            ("data.test_share", data.test_share),
            ("encoder.pretrained", self.encoder.pretrained),
            ("knowledge.kg", self.knowledge.kg),
            ("knowledge.sample", self.knowledge.sample.replace("host", "")),
            ("objective.mlm.weight", objective.mlm.weight),
            ("objective.distill.teacher", objective.distill.teacher),
            ("objective.schedules", objective.schedules),
            ("objective.triples.weight", objective.triples.weight),
            ("objective.kg_teacher.weight", objective.kg_teacher.weight),
            ("objective.consistency.weight", objective.consistency.weight),
            ("data.unlabelled", data.unlabelled),
            ("data.pack", data.pack),
            ("optim.unlabelled", self.optim.unlabelled),
            ("optim.ema", self.optim.ema),
        ):
            check(not value, name, value, "does nothing in link prediction; leave it out")
        check(
            self.optim.accumulate == 1,
            "optim.accumulate",
            self.optim.accumulate,
            "link prediction takes its batch in one part; set it to 1",
        )
        check(
            batch % (share or 1) == 0,
            "kge.share",
            share,
            f"must divide optim.batch = {batch}",
        )
        check(
            self.optim.tables == "dense" or self.kge.negatives > 0,
            "optim.tables",
            self.optim.tables,
            "with kge.negatives=0 every step reads the whole table; use dense, or draw negatives",
        )
        for name in ("clip", "weight_decay"):
            value = getattr(self.optim, name)
            check(
                self.optim.tables == "dense" or value == 0,
                f"optim.{name}",
                value,
                "is not for tables by rows; set it to 0, or optim.tables=dense",
            )
        for name in ("entities", "relations"):
            kind = getattr(self.knowledge, name)
            check(
                kind not in ("name", "description", "random"),
                f"knowledge.{name}",
                kind,
                "link prediction starts from a run of link prediction or a folder of embeddings",
            )
        check(
            not (self.kge.filtered and self.kge.negatives == 0),
            "kge.filtered",
            self.kge.filtered,
            "is for drawn negatives; with all entities raise kge.answers instead",
        )

    def check_sizes(self) -> None:
        """What depends on the encoder's sizes. Raises KeftError."""
        depth = self.encoder.layers
        for layer in self.fusion.layers:
            check(
                self.fusion.kind == "none" or -depth <= layer < depth,
                "fusion.layers",
                self.fusion.layers,
                f"the encoder has layers 0 to {depth - 1}",
            )
        last = max((layer % depth for layer in self.fusion.layers), default=0)
        check(
            self.task.kind not in POOLED
            or self.task.reads != "cls"
            or self.fusion.kind != "mention_add"
            or last < depth - 1,
            "fusion.layers",
            self.fusion.layers,
            "what is added at mentions after the last layer never reaches [CLS], which "
            f"{self.task.kind} reads; name an earlier layer, or use fusion.kind=cross_attention",
        )
        check(
            self.task.kind not in ("tagging", "span")
            or self.fusion.kind != "interaction"
            or last < depth - 1,
            "fusion.layers",
            self.fusion.layers,
            "what [CLS] is told of the graph after the last layer never reaches the words, which "
            f"{self.task.kind} reads; name an earlier layer, or use fusion.kind=cross_attention",
        )
        longest = self.data.buckets[-1]
        check(
            longest <= self.encoder.max_length,
            "data.buckets",
            self.data.buckets,
            f"no more than encoder.max_length = {self.encoder.max_length}",
        )
