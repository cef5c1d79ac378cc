"""The schema of every run: frozen dataclasses, checked when they are made.

A config file defines `get_config(arg="") -> Config`. Every field can be set on the command line by
its dotted path (`--optim.learning_rate=1e-4`); `--help` lists them with the texts below.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


class KeftError(ValueError):
    """Something the user can put right. The message is one line: thing, value, place, remedy."""

    exit_code = 2


def check(ok: bool, path: str, value: object, remedy: str) -> None:
    """Raises a KeftError that names the dotted path, its value and the remedy."""
    if not ok:
        raise KeftError(f"{path} = {value!r}: {remedy}")


Row = Literal["none", "dictionary", "candidates", "untyped", "shuffled", "random", "true"]
ROWS: tuple[str, ...] = typing.get_args(Row)


@dataclass(frozen=True)
class TaskConfig:
    """What is asked of the model."""

    kind: Literal["kgqa", "classification"] = "kgqa"
    """kgqa: score every entity of the graph. classification: one label for each text."""
    labels: tuple[str, ...] = ()
    """Class names, in order. Empty: those of the training file, sorted."""
    set_threshold: float = 0.5
    """Answer set of a question: entities with at least this share of the best one's probability."""

    def __post_init__(self) -> None:
        check(0 < self.set_threshold <= 1, "task.set_threshold", self.set_threshold, "use (0, 1]")
        check(
            len(set(self.labels)) == len(self.labels), "task.labels", self.labels, "name each once"
        )


@dataclass(frozen=True)
class DataConfig:
    """Text: where it stands and what its columns are called (JSONL, TSV, CSV; .gz too)."""

    generator: Literal["", "quickstart"] = ""
    """Makes the files below where they are missing. quickstart: questions about a gazetteer."""
    train: str = ""
    """Training examples."""
    select: str = ""
    """Examples that choose the checkpoint and the hyper-parameters; never reported as a result."""
    test: tuple[str, ...] = ()
    """Reported splits, each named by its file; scored only after everything is chosen."""
    text: str = "question"
    """Field with the text."""
    pair: str = ""
    """Field with a second text, encoded after the first."""
    label: str = "label"
    """Field with the class (classification)."""
    answers: str = "answers"
    """Field with the list of right answers, as entity names (kgqa)."""
    entity: str = ""
    """Field with the name of an entity that the text mentions, taken as given."""
    spans: str = ""
    """Field with the list of mentions as [start, end, entity name]: characters, half-open."""
    brackets: bool = False
    """[Brackets] in the text mark its mentions; they are removed before the model reads it."""
    pattern: str = "pattern"
    """Field with the kind of question: for majorities and slices, never shown to the model."""
    cluster: str = "cluster"
    """Field whose values group dependent examples; intervals are drawn over groups."""
    slices: tuple[str, ...] = ()
    """Fields whose values name parts of the test splits that the gain table reports apart."""
    draw: int = 0
    """Training examples drawn for each seed. 0: all."""
    buckets: tuple[int, ...] = (64,)
    """At most three text lengths in tokens; one compilation for each."""
    vocab: str = ""
    """A tokenizer.json to use. Empty: a WordPiece vocabulary trained on the training text."""
    vocab_size: int = 8000
    """Size of the trained vocabulary, before it is padded to a multiple of 128."""

    def __post_init__(self) -> None:
        check(1 <= len(self.buckets) <= 3, "data.buckets", self.buckets, "give 1 to 3 lengths")
        check(
            list(self.buckets) == sorted(set(self.buckets)) and self.buckets[0] >= 8,
            "data.buckets",
            self.buckets,
            "give rising lengths of 8 tokens or more",
        )
        check(
            not self.spans or not (self.entity or self.brackets),
            "data.spans",
            self.spans,
            "gives the mentions alone; leave data.entity and data.brackets out",
        )
        check(
            not self.select
            or Path(self.select).resolve() not in [Path(test).resolve() for test in self.test],
            "data.select",
            self.select,
            "is one of data.test; choose on examples of their own",
        )
        check(self.draw >= 0, "data.draw", self.draw, "use 0 (all) or a number of examples")
        check(self.vocab_size >= 64, "data.vocab_size", self.vocab_size, "use 64 or more")


@dataclass(frozen=True)
class KnowledgeConfig:
    """The knowledge graph, and which part of it the model is given."""

    kg: str = ""
    """A folder from `keft kg build`, or a TSV/CSV of head, relation, tail. Empty: no graph."""
    aliases: str = ""
    """Two-column TSV (entity, other name), where kg is a TSV."""
    row: Row = "true"
    """Which row of the gain table this run is; `true` is the knowledge, the rest are controls."""
    link: Literal["string", "given"] = "string"
    """string: find names and aliases in the text. given: only mentions marked in the data."""
    hops: int = 2
    """Radius of an example's subgraph."""
    nodes: int = 64
    """Node budget of a subgraph, one of them padding."""
    edges: int = 256
    """Edge budget of a subgraph; a fact takes two, one for each direction."""
    mentions: int = 4
    """Mentions of a text that get an anchor."""
    name_pieces: int = 12
    """Word pieces of an entity's name that the model reads."""

    def __post_init__(self) -> None:
        check(1 <= self.hops <= 4, "knowledge.hops", self.hops, "use 1 to 4")
        check(self.nodes >= 2, "knowledge.nodes", self.nodes, "use 2 or more (one is padding)")
        check(self.edges >= 2, "knowledge.edges", self.edges, "use 2 or more (a fact takes two)")
        check(self.mentions >= 1, "knowledge.mentions", self.mentions, "use 1 or more")
        check(self.name_pieces >= 1, "knowledge.name_pieces", self.name_pieces, "use 1 or more")


@dataclass(frozen=True)
class EncoderConfig:
    """The text encoder: BERT, post-LN (Devlin et al. 2019)."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    mlp: int = 512
    max_length: int = 512
    """Rows of the position table."""
    dropout: float = 0.1
    """On embeddings, attention and both sub-layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matmuls and activations; parameters, softmax, LayerNorm, logits and losses stay f32."""
    scan: bool = False
    """One compiled layer, scanned: shorter compile, same result."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute in the backward pass: nothing, each layer, or all but its matmuls."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp", "max_length"):
            value = getattr(self, name)
            check(value >= 1, f"encoder.{name}", value, "use 1 or more")
        check(
            self.width % self.heads == 0,
            "encoder.heads",
            self.heads,
            f"must divide encoder.width = {self.width}",
        )
        check(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "use [0, 1)")


@dataclass(frozen=True)
class GraphConfig:
    """The graph network over each example's subgraph."""

    kind: Literal["gcn", "gat", "rgcn", "rgat"] = "rgat"
    """gcn (Kipf and Welling 2017), gat (Velickovic et al. 2018), and their relation-aware kin
    rgcn (Schlichtkrull et al. 2018, basis decomposition) and rgat."""
    layers: int = 2
    """Layers at each exchange with the text."""
    width: int = 64
    heads: int = 4
    """Attention heads (gat, rgat) or bases (rgcn)."""
    gate: bool = True
    """Weigh nodes and edges by their relevance to the text; all weights can go to zero."""
    compute: Literal["auto", "dense", "segment"] = "auto"
    """dense: batched adjacency matmuls. segment: jraph's segment operations. auto: dense
    up to 200 nodes on accelerators, else segment. Equal results."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            value = getattr(self, name)
            check(value >= 1, f"graph.{name}", value, "use 1 or more")
        check(
            self.width % self.heads == 0,
            "graph.heads",
            self.heads,
            f"must divide graph.width = {self.width}",
        )


@dataclass(frozen=True)
class FusionConfig:
    """How node states reach the tokens."""

    kind: Literal["none", "mention_add", "cross_attention"] = "mention_add"
    """none: plain BERT. mention_add: a node's state is added at its mention. cross_attention:
    every token attends to the nodes, or to nothing."""
    layers: tuple[int, ...] = (0,)
    """Encoder layers followed by an exchange; -1 is the last."""

    def __post_init__(self) -> None:
        check(
            self.kind == "none" or len(self.layers) > 0,
            "fusion.layers",
            self.layers,
            "name a layer, or set fusion.kind=none",
        )


@dataclass(frozen=True)
class DistillConfig:
    """L = L_task + weight * L_KD (Hinton et al. 2015); the teacher runs in the same step."""

    teacher: str = ""
    """Directory of a finished run, of any size, with or without a graph. Empty: none."""
    weight: float = 0.0
    """The factor of L_KD. 0: the term is not built."""
    temperature: float = 1.0
    """Above 1 it softens both distributions; L_KD is scaled by its square."""

    def __post_init__(self) -> None:
        check(self.weight >= 0, "objective.distill.weight", self.weight, "use 0 or more")
        check(
            self.temperature > 0, "objective.distill.temperature", self.temperature, "use above 0"
        )
        check(
            not (self.weight > 0 and not self.teacher),
            "objective.distill.teacher",
            self.teacher,
            "name the run that teaches, or set objective.distill.weight=0",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """A weighted sum of loss terms."""

    task: float = 1.0
    """Weight of the task's own loss."""
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        check(self.task >= 0, "objective.task", self.task, "use 0 or more")
        check(
            self.task > 0 or self.distill.weight > 0,
            "objective.task",
            self.task,
            "at least one loss term needs a weight above 0",
        )


@dataclass(frozen=True)
class GroupConfig:
    """A group of parameters with a learning rate of its own."""

    match: str
    """A part of the parameter's path, for example `encoder`, `graph`, `gate` or `embed/word`."""
    scale: float = 1.0
    """Factor on the learning rate. 0: frozen, with no optimizer state."""

    def __post_init__(self) -> None:
        check(self.match != "", "optim.groups.match", self.match, "name a part of a path")
        check(self.scale >= 0, "optim.groups.scale", self.scale, "use 0 or more")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) with warm-up and decay."""

    steps: int = 1000
    batch: int = 32
    """Examples in a step, over all devices and all accumulated parts."""
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
    """BERT's. A smaller one lets rounding move parameters that hardly have a gradient."""
    clip: float = 1.0
    """Largest global norm of the gradient. 0: no clipping."""
    groups: tuple[GroupConfig, ...] = ()
    """The first that matches a parameter holds for it."""

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
        check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "use above 0")
        check(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "use a share, 0 to 1")
        check(self.clip >= 0, "optim.clip", self.clip, "use 0 (off) or more")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optim.{name}", value, "use [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out: (data, fsdp, tensor). 0: all devices that are left."""

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    parallel: Literal["jit", "pmap"] = "jit"
    """pmap: every device on `data`, parameters replicated, as jax.pmap lays them out."""

    def __post_init__(self) -> None:
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
class GainConfig:
    """The table that says what the knowledge was worth."""

    rows: tuple[Row, ...] = ("none", "dictionary", "shuffled", "random", "true")
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
        check(self.seeds >= 1, "gain.seeds", self.seeds, "use 1 or more; a verdict needs 5")
        check(self.bootstrap >= 100, "gain.bootstrap", self.bootstrap, "use 100 or more")


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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    gain: GainConfig = field(default_factory=GainConfig)

    def __post_init__(self) -> None:
        depth = self.encoder.layers
        for layer in self.fusion.layers:
            check(
                -depth <= layer < depth,
                "fusion.layers",
                self.fusion.layers,
                f"the encoder has layers 0 to {depth - 1}",
            )
        last = max((layer % depth for layer in self.fusion.layers), default=0)
        check(
            self.task.kind != "classification"
            or self.fusion.kind != "mention_add"
            or last < depth - 1,
            "fusion.layers",
            self.fusion.layers,
            "what is added at mentions after the last layer never reaches [CLS], which "
            "classification reads; name an earlier layer, or use fusion.kind=cross_attention",
        )
        longest = self.data.buckets[-1]
        check(
            longest <= self.encoder.max_length,
            "data.buckets",
            self.data.buckets,
            f"no more than encoder.max_length = {self.encoder.max_length}",
        )
        check(
            bool(self.knowledge.kg) or self.fusion.kind == "none",
            "knowledge.kg",
            self.knowledge.kg,
            "name a graph, or set fusion.kind=none",
        )


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False)


def config_hash(config: Config) -> str:
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def from_json(text: str, where: str = "config") -> Config:
    """The config that `to_json` wrote. Raises KeftError naming the field that does not fit."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise KeftError(f"{where}: not JSON ({error}); write it anew by training again") from error
    return _build(Config, value, where)


def _build(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise KeftError(f"{path} = {value!r}: expected the fields of {kind.__name__}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(key, hints, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise KeftError(f"{path}.{key}: no such field{hint}")
        return kind(**{k: _build(hints[k], v, f"{path}.{k}") for k, v in value.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise KeftError(f"{path} = {value!r}: expected a list")
        return tuple(_build(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise KeftError(f"{path} = {value!r}: one of {', '.join(map(str, args))}{hint}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise KeftError(f"{path} = {value!r}: expected {kind.__name__}")
    return value
