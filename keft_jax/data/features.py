"""Examples and a graph -> batches. Host side, numpy, vectorised; deterministic.

The text half (tokens, mentions, targets) is made once for a data set; the graph half once for each
row of the gain table, which changes these arrays and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jraph
import numpy as np

from keft_jax.config import KnowledgeConfig
from keft_jax.data.batch import Batch, Mentions, Seeds, take
from keft_jax.data.inject import choose_facts, cover_facts, write_facts
from keft_jax.data.pack import Layout
from keft_jax.data.rows import ROWS
from keft_jax.data.source import Example
from keft_jax.data.tokenize import Tokens, encode
from keft_jax.data.vocabulary import Vocabulary, make_names
from keft_jax.kg.attributes import Attributes
from keft_jax.kg.linking.string import Mention, StringLinker
from keft_jax.kg.store import KG, Triple
from keft_jax.kg.subgraph import Budget, Subgraphs, extract
from keft_jax.kg.verbalise import Writer


class Knowledge:
    """A graph as one model reads it: linking, subgraphs, names and rows."""

    def __init__(
        self,
        kg: KG,
        vocabulary: Vocabulary,
        config: KnowledgeConfig,
        vectors: np.ndarray | None = None,
        starts: np.ndarray | None = None,
        attributes: Attributes | None = None,
    ):
        """vectors: f16[entities, d], where knowledge.vectors asks for some. starts: f32[entities,
        w], in the place of rows of entities that the model has not met. attributes: those of
        knowledge.attributes."""
        self.kg, self.config, self.vocabulary = kg, config, vocabulary
        self.vectors, self._starts, self.attributes = vectors, starts, attributes
        self._attributes = None if attributes is None else attributes.of(kg)
        self.linker = StringLinker(kg)
        self._rows = np.append(vocabulary.rows_of(kg), 0)
        self.names, self._pieces = make_names(
            kg, vocabulary.tokenizer, config.name_pieces, self._rows[:-1]
        )
        self._relations = vocabulary.relations_of(kg)
        self._drawn: tuple[tuple[str, int], KG] | None = None
        self._described: tuple[tuple[str, int], np.ndarray] | None = None
        self._writer: tuple[tuple[str, int], Writer] | None = None

    def link(self, examples: Sequence[Example]) -> list[list[Mention]]:
        """Mentions given in the data are taken as they are; else names are looked for."""
        found = (
            self.linker.link([e.text for e in examples])
            if self.config.link == "string"
            else [[] for _ in examples]
        )
        return [
            self.linker.link_given(e.text, e.spans) if e.spans else mentions
            for e, mentions in zip(examples, found, strict=True)
        ]

    def graph_of(self, row: str, seed: int) -> KG:
        """The graph that a row reads. The last one drawn is kept: it serves every split."""
        draw = ROWS[row].kg
        if draw is None:
            return self.kg
        if self._drawn is None or self._drawn[0] != (row, seed):
            self._drawn = (row, seed), draw(self.kg, seed)
        return self._drawn[1]

    @property
    def row_numbers(self) -> np.ndarray:
        """i32[entities]: each one's row in tables of entities."""
        return self._rows[:-1]

    def triples(self, row: str, seed: int) -> np.ndarray:
        """i32[t, 3]: the facts that a row of the gain table is given, as (row of the head,
        relation, row of the tail) in the model's numbers."""
        spec, kg = ROWS[row], self.graph_of(row, seed)
        if not spec.facts:
            return np.zeros((0, 3), np.int32)
        relation = self._relations[kg.rels] if spec.relations else np.zeros_like(kg.rels)
        return np.stack([self._rows[kg.heads], relation, self._rows[kg.tails]], 1).astype(np.int32)

    @property
    def budget(self) -> Budget:
        return Budget(nodes=self.config.nodes, edges=self.config.edges, hops=self.config.hops)

    def subgraphs(self, seeds_bm: np.ndarray, row: str, seed: int) -> Subgraphs:
        """The part of the graph that a row of the gain table is given."""
        spec, budget = ROWS[row], self.budget
        budget = replace(budget, hops=budget.hops if spec.neighbours else 0)
        seeds_bm = seeds_bm if spec.mentions else np.full_like(seeds_bm, -1)
        out = extract(self.graph_of(row, seed), seeds_bm, budget)
        if not spec.edges:
            pad = np.broadcast_to(out.n_node[:, None], out.senders.shape)
            nothing = np.zeros_like(out.relation)
            out = replace(
                out, senders=pad, receivers=pad, relation=nothing, n_edge=np.zeros_like(out.n_edge)
            )
        return out

    def graph(self, sub: Subgraphs, row: str) -> jraph.GraphsTuple:
        """Subgraphs in the model's numbers, padded by jraph's convention."""
        b, n = sub.entity.shape
        relation = self.numbers(row)[sub.relation] if self.kg.n_relations else sub.relation
        mention = np.zeros((b, n), np.int32)
        at = sub.seed_node >= 0
        mention[np.nonzero(at)[0], sub.seed_node[at]] = 1
        return jraph.GraphsTuple(
            nodes={
                "entity": sub.entity,
                "row": self._rows[sub.entity],
                "mention": mention,
            },
            edges={"relation": relation},
            senders=np.ascontiguousarray(sub.senders),
            receivers=np.ascontiguousarray(sub.receivers),
            n_node=np.stack([sub.n_node, n - sub.n_node], 1).astype(np.int32),
            n_edge=np.stack([sub.n_edge, sub.senders.shape[1] - sub.n_edge], 1).astype(np.int32),
            globals=None,
        )

    def numbers(self, row: str) -> np.ndarray:
        """i32[2 relations of the graph]: the model's, along and against the arrow."""
        own = self._relations
        if not ROWS[row].relations:  # the direction is structure, and stays
            own = np.zeros_like(own)
        return np.append(own, own + len(self.vocabulary.relations)).astype(np.int32)

    def show(self, batch: Batch, row: str, seed: int) -> Batch:
        """The batch with the subgraphs that the step makes of it, where the step does."""
        if not isinstance(batch.graph, Seeds):
            return batch
        sub = self.subgraphs(batch.graph.entity, row, seed)
        graph = self.graph(sub, row)
        nodes = graph.nodes | self.describe(sub.entity, row, seed)
        mentions = dataclasses.replace(batch.mentions, node=sub.seed_node)
        return dataclasses.replace(batch, graph=graph._replace(nodes=nodes), mentions=mentions)

    def describe(self, entity_bn: np.ndarray, row: str, seed: int) -> dict[str, np.ndarray]:
        """What a row tells of each node itself (-1: padding): pieces i32[b, n, p] of its name, its
        vector f16[b, n, d] and its attributes f16[b, n, 2 a]. Descriptions and attributes are
        knowledge, which the controls have not; a name stays."""
        out = {"pieces": self._pieces[entity_bn]}

        def tell(table: np.ndarray, of_bn: np.ndarray) -> np.ndarray:
            return np.where((of_bn >= 0)[..., None], table[of_bn], table.dtype.type(0))

        if self._starts is not None:
            out["start"] = tell(self._starts, entity_bn)
        whose_bn = self._whose(entity_bn, row, seed)
        if self.vectors is not None:
            own = self.config.vectors != "description"
            out["vector"] = tell(self.vectors, entity_bn if own else whose_bn)
        if self._attributes is not None:
            out["attribute"] = tell(self._attributes, whose_bn)
        return out

    def _whose(self, entity_bn: np.ndarray, row: str, seed: int) -> np.ndarray:
        """Whose description and attributes a row gives to each node."""
        draw = ROWS[row].described
        if draw is None or (self._attributes is None and self.config.vectors != "description"):
            return entity_bn
        kept = self._described  # as one tuple: threads may ask for two rows at once
        if kept is None or kept[0] != (row, seed):
            kept = self._described = (row, seed), np.append(draw(self.kg, seed), -1)
        return kept[1][entity_bn]

    def writer(self, row: str, seed: int) -> Writer | None:
        """Writes the facts that a row may read; None where it may read none."""
        if not ROWS[row].facts or self.config.text == "none":
            return None
        if self._writer is None or self._writer[0] != (row, seed):
            kg, relations = self.graph_of(row, seed), ROWS[row].relations
            self._writer = (row, seed), Writer(kg, self.config.text_facts, relations)
        return self._writer[1]

    def write(
        self,
        table: Batch,
        seeds_bm: np.ndarray,
        row: str,
        seed: int,
        without: Collection[Triple] = (),
    ) -> Batch:
        """The texts with what a row of the gain table is given of their entities written behind
        them, but for the facts `without`."""
        if self.config.text == "none" and table.own is None:
            return table
        writer, tokenizer = self.writer(row, seed), self.vocabulary.tokenizer
        return write_facts(table, seeds_bm, writer, tokenizer, self.config, without)

    def written(self, table: Batch, seeds_bm: np.ndarray, row: str, seed: int) -> list[Triple]:
        """The facts that `write` writes, where there is room for all."""
        writer = self.writer(row, seed)
        if writer is None:
            return []
        chosen = choose_facts(table, seeds_bm, writer)
        return list(dict.fromkeys(writer.triple(fact) for some in chosen for _, fact in some))


@dataclass(frozen=True)
class Dataset:
    """A split, ready: `batch(length, indices)` cuts a batch out of it."""

    knowledge: Knowledge
    row: tuple[str, int]  # of the gain table, and its seed
    examples: list[Example]
    texts: list[Example]  # R: what the model reads of them
    owner: np.ndarray  # i32[U]: the example of each unit
    lengths: np.ndarray  # i32[U] tokens, of a unit's longest text
    mentions: list[list[Mention]]  # R: linked in each text
    seeds: np.ndarray  # i32[R, m] linked entities, -1: none
    cut: np.ndarray  # bool[R]: a budget cut this subgraph; not known where the step makes it
    table: Batch  # of all R texts, its nodes without their pieces and vectors
    truncated: int  # texts longer than the last bucket
    rest: Dataset | None = None  # texts without labels beside them (data/unlabelled.py)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def each(self) -> int:
        """Texts of a unit."""
        return len(self.texts) // max(len(self.owner), 1)

    @property
    def text_owner(self) -> np.ndarray:
        """i32[R]: the example of each text."""
        return np.repeat(self.owner, self.each)

    @property
    def linked(self) -> np.ndarray:
        """bool[N]: examples that have a linked entity."""
        return self.any_of(self.seeds[:, 0] >= 0)

    def any_of(self, text_r: np.ndarray) -> np.ndarray:
        """bool[N]: whether it holds for some text of each example."""
        out = np.zeros(len(self), bool)
        np.logical_or.at(out, self.text_owner, text_r)
        return out

    @property
    def strata(self) -> np.ndarray | None:
        """str[N]: the label of each example, for draws that have all labels in their shares."""
        labels = [e.label for e in self.examples]
        return None if None in labels else np.array(labels)

    def source(self, unit: int) -> Example:
        """The example that a unit is of."""
        return self.examples[self.owner[unit]]

    def batch(self, length: int | Layout, indices: np.ndarray) -> Batch:
        """Units by number (-1: padding), texts cut to `length` tokens, or laid out in rows."""
        if isinstance(length, Layout):
            return length.place(self.batch(length.length, indices))
        if self.each > 1:
            at = indices[:, None] * self.each + np.arange(self.each)
            indices = np.where(indices[:, None] >= 0, at, -1).ravel()
        out = take(self.table, indices)
        if not isinstance(out.graph, Seeds):
            nodes = out.graph.nodes | self.knowledge.describe(out.graph.nodes["entity"], *self.row)
            out = dataclasses.replace(out, graph=out.graph._replace(nodes=nodes))
        of_tokens = ("tokens", "types", "position", "branch", "states")
        arrays = {name: getattr(out, name) for name in of_tokens}
        cut = {name: x[:, :length] for name, x in arrays.items() if x is not None}
        return dataclasses.replace(out, **cut)


class Asks(Protocol):
    """What a data set needs of a task (tasks/task.py)."""

    term: str
    each: int

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]: ...

    def targets(self, rows: Sequence[Example], tokens: Tokens) -> Any: ...


def make_dataset(
    examples: Sequence[Example], knowledge: Knowledge, tasks: Sequence[Asks], longest: int
) -> Dataset:
    """The text half; the graph half is that of row `none` until `with_row`.

    tasks: the main one, which says what rows there are, and those beside it.
    """
    (texts, owner), each = tasks[0].rows(examples), tasks[0].each
    tokens = encode(
        knowledge.vocabulary.tokenizer,
        [e.text for e in texts],
        [e.pair for e in texts] if any(e.pair for e in texts) else None,
        longest,
    )
    count, most = len(texts), knowledge.config.mentions
    ids, types = np.zeros((2, count, longest), np.int32)
    lengths = np.array([len(i) for i in tokens.ids], np.int32)
    start, end = np.zeros((2, count, most), np.int32)
    seeds = np.full((count, most), -1, np.int32)
    linked = knowledge.link(texts)
    for row, mentions in enumerate(linked):
        ids[row, : lengths[row]] = tokens.ids[row]
        types[row, : lengths[row]] = tokens.types[row]
        spans = tokens.spans(row, [(m.start, m.end) for m in mentions])
        # All first candidates before any second one.
        anchors = sorted(
            (rank, m) for m, mention in enumerate(mentions) for rank in range(len(mention.entities))
        )
        for slot, (rank, m) in enumerate(anchors[:most]):
            seeds[row, slot] = mentions[m].entities[rank]
            start[row, slot], end[row, slot] = spans[m]
    table = Batch(
        tokens=ids,
        types=types,
        length=lengths,
        graph=None,
        mentions=Mentions(start=start, end=end, node=np.full((count, most), -1, np.int32)),
        targets={task.term: task.targets(texts, tokens) for task in tasks},
        example=np.arange(count, dtype=np.int32) // each,
    )
    cut = np.zeros(count, bool)
    text = Dataset(
        knowledge=knowledge,
        row=("none", 0),
        examples=list(examples),
        texts=texts,
        owner=owner[::each],
        lengths=lengths.reshape(-1, each).max(1),
        mentions=linked,
        seeds=seeds,
        cut=cut,
        table=table,
        truncated=int(tokens.cut.sum()),
    )
    return with_row(text, knowledge, "none", 0)


def with_row(dataset: Dataset, knowledge: Knowledge, row: str, seed: int) -> Dataset:
    """The same texts with the knowledge of another row of the gain table. Lengths are those of the
    longest row, so that all rows have the same shapes."""
    if dataset.rest is not None:
        dataset = replace(dataset, rest=with_row(dataset.rest, knowledge, row, seed))
    table = knowledge.write(dataset.table, dataset.seeds, row, seed)
    nothing = np.full_like(dataset.seeds, -1)
    if knowledge.config.sample == "host":
        sub = knowledge.subgraphs(dataset.seeds, row, seed)
        graph, node, cut = knowledge.graph(sub, row), sub.seed_node, sub.cut
    else:
        graph = Seeds(dataset.seeds if ROWS[row].mentions else nothing)
        node, cut = nothing, np.zeros_like(dataset.cut)
    mentions = dataclasses.replace(table.mentions, node=node)
    table = dataclasses.replace(table, graph=graph, mentions=mentions)
    lengths = cover_facts(table, dataset.seeds, knowledge.config)
    return replace(
        dataset,
        knowledge=knowledge,
        row=(row, seed),
        lengths=lengths.reshape(-1, dataset.each).max(1),
        table=table,
        cut=cut,
    )
