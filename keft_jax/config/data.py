"""What is asked, the text, and the knowledge graph."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from keft_jax.config.errors import check

Row = Literal[
    "none", "dictionary", "candidates", "untyped", "shuffled", "kindred", "random", "true"
]
ROWS: tuple[str, ...] = typing.get_args(Row)
REST = "rest"
"""data.unlabelled: the training examples that are not drawn."""
MARKED = ("relation", "typing")
"""Kinds of task whose mentions are marked in the text."""
POOLED = ("classification", "choice", *MARKED)
"""Kinds of task that read one vector of a text."""


@dataclass(frozen=True)
class TaskConfig:
    """What is asked of the model."""

    kind: Literal[
        "kgqa",
        "classification",
        "relation",
        "typing",
        "tagging",
        "span",
        "choice",
        "mlm",
        "link_prediction",
    ] = "kgqa"
    """kgqa: score every entity of the graph. classification: one label for each text, or text and
    pair. relation: one label for the first two mentions that the data give. typing: any number of
    labels (in data.answers) for the first mention. tagging: a tag for each word (data.tags), as in
    named entity recognition. span: the part of the text that answers the question in data.pair, or
    none (data.answer_spans). choice: one of an example's own answers (data.choices). mlm: masked
    language modelling of texts without labels. link_prediction: triple embeddings (section kge) of
    the triples in data.train; no text."""
    pooling: Literal["auto", "cls", "mean", "marks"] = "auto"
    """What classification, relation, typing and choice read. cls: BERT's pooler on [CLS]. mean: the
    mean of all tokens (what sentence embedding models were trained for). marks: the marks before
    the mentions, and their nodes (relation and typing). auto: marks where there are some, else
    cls."""
    labels: tuple[str, ...] = ()
    """Class names, in order. Empty: those of the training file, sorted."""
    set_threshold: float = 0.5
    """Answer set of a question: entities with at least this share of the best one's probability."""
    stride: int = 128
    """span: a text too long for the last of data.buckets is read in windows, so many tokens from
    one beginning to the next."""
    answer_length: int = 30
    """span: tokens of an answer at most."""
    no_answer_threshold: float = 0.0
    """span: there is no answer where its score (of [CLS]) is above the best answer's by more than
    this. A large number, as 1e9: always answer."""

    def __post_init__(self) -> None:
        check(self.stride >= 1, "task.stride", self.stride, "use 1 or more tokens")
        check(self.answer_length >= 1, "task.answer_length", self.answer_length, "use 1 or more")
        check(0 < self.set_threshold <= 1, "task.set_threshold", self.set_threshold, "use (0, 1]")
        check(
            len(set(self.labels)) == len(self.labels), "task.labels", self.labels, "name each once"
        )
        check(
            self.pooling == "auto" or self.kind in POOLED,
            "task.pooling",
            self.pooling,
            f"does nothing in {self.kind}, which pools no tokens; leave it out",
        )
        check(
            self.pooling != "marks" or self.kind in MARKED,
            "task.pooling",
            self.pooling,
            f"{self.kind} has no marks; use cls or mean",
        )

    @property
    def reads(self) -> str:
        """cls, mean or marks."""
        if self.pooling != "auto":
            return self.pooling
        return "marks" if self.kind in MARKED else "cls"


@dataclass(frozen=True)
class DataConfig:
    """Text: where it stands and what its columns are called (JSONL, TSV, CSV; .gz too)."""

    generator: Literal[
        "",
        "quickstart",
        "sst2",
        "fewrel",
        "semeval",
        "typing",
        "commonsense",
        "squad",
        "wikigold",
        "cola",
        "wikialigned",
        "wikitext",
    ] = ""
    """Makes the files below where they are missing: the data set and its graph, from the raw files
    in `source` (docs/data-sets.md); quickstart, questions about a gazetteer, needs none."""
    source: str = ""
    """Folder with the raw files that a generator reads."""
    train: str = ""
    """Training examples: JSONL, TSV, CSV, Parquet or TXT (.gz too), or tfds:NAME:SPLIT. For
    link_prediction: a file of head, relation, tail, or a folder with train, valid and test (of
    OpenKE and DGL-KE too)."""
    unlabelled: str = ""
    """Texts to learn from without their labels, of which optim.unlabelled come in a step: a file or
    data set like `train`, or `rest` for the training examples that `draw` leaves over."""
    names: str = ""
    """Two-column TSV (entity, name to show), for link_prediction's answers."""
    select: str = ""
    """Examples that choose the checkpoint and the hyper-parameters; never reported as a result."""
    test: tuple[str, ...] = ()
    """Reported splits, each named by its file, or as in `films=FILE`; scored only after everything
    is chosen. The first one is what a gain table judges."""
    select_share: float = 0.0
    """Where `select` is empty: the share of the training examples set aside for it, by whole
    clusters (without the field `cluster`: texts equal but for case and spaces together)."""
    test_share: float = 0.0
    """Where `test` is empty: the share set aside to be reported, likewise."""
    tfds_dir: str = ""
    """Folder of prepared TFDS data sets. Empty: TFDS's own (~/tensorflow_datasets)."""
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
    token_spans: tuple[str, ...] = ()
    """Fields that hold [name, entity, [[token numbers], ...]], the text being a list of tokens
    (FewRel's form); each gives a mention."""
    tags: str = ""
    """Field with a tag for each token of the text (tagging), such as B-PER, I-PER or O; or with
    entities as [start, end, type]."""
    answer_spans: str = ""
    """Field with the right answers and where they begin in the text (span), in SQuAD's form, or as
    [start, answer]. An empty list: the text has no answer."""
    choices: str = ""
    """Field with the list of answers to choose from (choice). `label` names the right one: by its
    text, its letter (from A) or its number (from 0)."""
    brackets: bool = False
    """[Brackets] in the text mark its mentions; they are removed before the model reads it."""
    pattern: str = "pattern"
    """Field with the kind of question: for majorities and slices, never shown to the model. Empty:
    the text without the mentions that the data give."""
    cluster: str = "cluster"
    """Field whose values group dependent examples; intervals are drawn over groups."""
    slices: tuple[str, ...] = ()
    """Fields whose values name parts of the test splits that the gain table reports apart."""
    draw: int = 0
    """Training examples drawn for each seed. 0: all."""
    buckets: tuple[int, ...] = (64,)
    """At most three text lengths in tokens; one compilation for each."""
    pack: int = 0
    """Training texts stand one behind another in rows of so many tokens; each reads itself alone,
    and batches hold hardly any padding. 0: a row for each text, padded to the bucket that holds
    it. Evaluation always does the latter."""
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
            bool(self.spans) + bool(self.token_spans) + (bool(self.entity) or self.brackets) <= 1,
            "data.spans",
            self.spans,
            "mentions come from data.spans, from data.token_spans, or from data.entity and "
            "data.brackets; give one of these",
        )
        placed = self.tags or self.answer_spans
        check(
            not (self.brackets and placed),
            "data.brackets",
            self.brackets,
            f"moves the places of {placed!r}; give mentions in data.spans",
        )
        for name, files in (("select", self.select), ("test", self.test)):
            share = getattr(self, f"{name}_share")
            check(0 <= share < 1, f"data.{name}_share", share, "use a share, 0 to below 1")
            check(
                not (share and files),
                f"data.{name}_share",
                share,
                f"data.{name} = {files!r} is given; leave one of them out",
            )
        check(
            self.select_share + self.test_share < 1,
            "data.test_share",
            self.test_share,
            "with data.select_share it leaves nothing to train on",
        )
        check(
            not self.select
            or Path(self.select).resolve()
            not in [Path(test.rpartition("=")[2]).resolve() for test in self.test],
            "data.select",
            self.select,
            "is one of data.test; choose on examples of their own",
        )
        check(
            self.pack == 0 or self.pack >= self.buckets[-1],
            "data.pack",
            self.pack,
            f"a row must hold the longest text: {self.buckets[-1]} tokens or more (the last of "
            "data.buckets), or 0",
        )
        check(self.draw >= 0, "data.draw", self.draw, "use 0 (all) or a number of examples")
        check(
            self.unlabelled != REST or self.draw > 0,
            "data.draw",
            self.draw,
            f"data.unlabelled={REST} is what a draw leaves over; draw a number of examples",
        )
        check(self.vocab_size >= 64, "data.vocab_size", self.vocab_size, "use 64 or more")


@dataclass(frozen=True)
class KnowledgeConfig:
    """The knowledge graph, and which part of it the model is given."""

    kg: str = ""
    """A folder from `keft kg build`, or a file of head, relation, tail: TSV, CSV or TXT (as TSV),
    .gz too, or Parquet. Empty: no graph."""
    aliases: str = ""
    """Two-column TSV (entity, other name), where kg is a file."""
    descriptions: str = ""
    """Two-column TSV (entity, description), where kg is a file."""
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
    sample: Literal["host", "device"] = "host"
    """Where subgraphs are made, the same ones. host: once for each example, and shipped with every
    batch. device: inside the step, from the whole graph in the device's memory; a batch brings the
    linked entities alone."""
    name_pieces: int = 12
    """Word pieces of an entity's name that the model reads."""
    vectors: Literal["none", "name", "description"] = "none"
    """Frozen vectors of the entities: their name or description (name where there is none) encoded
    by the pre-trained text model, shipped with each batch. An entity met later has one too."""
    text: Literal["none", "verbalise", "visible"] = "none"
    """Facts of the mentioned entities written into the model's input, by themselves or beside a
    graph network. verbalise: in words behind the text. visible: as branches at their mentions, with
    K-BERT's soft positions and visible matrix (Liu et al. 2020). What does not fit into the last of
    data.buckets is left out."""
    text_facts: int = 4
    """Facts of a mention that are written, those of rare relations first."""
    text_tokens: int = 48
    """Tokens that the facts of a text may take."""
    attributes: str = ""
    """Three-column file (entity, attribute, value) of numbers and dates, which nodes of the graph
    network are given."""
    entities: str = ""
    """What the trainable rows of entities start as. Empty: zeros (small and random beside
    objective.triples). name, description: read by a text model; an entity met later has such a row
    too. random: normal numbers, the control of all these. Else the directory of a run of link
    prediction, or a folder of embeddings; what is not in there starts as zeros. To keep rows as
    they start, name them in optim.groups: match nodes/rows, scale 0. Link prediction can go on from
    other embeddings too, of its own width."""
    relations: str = ""
    """What the graph network's relations start as. Empty: random. name: their names, read by a text
    model. Else as in `entities`."""
    entity_width: int = 0
    """Length of an entity's row. 0: of what it starts as, else of kge's beside objective.triples,
    else graph.width. Rows of another length than graph.width go through a learned projection."""
    entity_rows: int = 0
    """Rows of the table of entities at least: for entities still to come, for numbers of devices
    that do not divide a small table, and to size one before its graph is there. 0: one for each
    entity."""
    text_model: str = ""
    """What reads names and descriptions for `entities` and `relations`: a folder as for
    encoder.pretrained. Empty: that one."""

    def __post_init__(self) -> None:
        check(1 <= self.hops <= 4, "knowledge.hops", self.hops, "use 1 to 4")
        check(self.nodes >= 2, "knowledge.nodes", self.nodes, "use 2 or more (one is padding)")
        check(self.edges >= 2, "knowledge.edges", self.edges, "use 2 or more (a fact takes two)")
        check(self.mentions >= 1, "knowledge.mentions", self.mentions, "use 1 or more")
        check(self.name_pieces >= 1, "knowledge.name_pieces", self.name_pieces, "use 1 or more")
        facts, tokens = self.text_facts, self.text_tokens
        check(facts >= 1, "knowledge.text_facts", facts, "use 1 or more")
        check(tokens >= 8, "knowledge.text_tokens", tokens, "use 8 or more")
        rows = self.entity_rows
        check(rows >= 0, "knowledge.entity_rows", rows, "use 0 (one for each entity) or more")
        width = self.entity_width
        check(width >= 0, "knowledge.entity_width", width, "use 0 (what fits) or more")
