"""Facts written into a text: after it in words, or as branches of a tree at its mentions.

verbalise   "Tim Cook is visiting Beijing [SEP] Beijing capital of China; ..."
visible     K-BERT's sentence tree (Liu et al. 2020): a fact follows its mention as a branch, which
            takes the positions behind the mention and is seen by the mention alone, so that it
            disturbs the sentence neither in its order nor in what its other words read

Of each mention the facts of the rarest relations come first, as in a subgraph; those that lead to
another mention of the text before all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from keft_jax.config import check
from keft_jax.kg.linking.string import StringLinker
from keft_jax.kg.store import KG, Triple

Form = Literal["verbalise", "visible"]
LOOK = 256  # facts of an entity that are ranked, so that hubs stay cheap
UNTYPED = "related to"


@dataclass(frozen=True, slots=True)
class Piece:
    """A written fact: `Injected.text[start:end]`."""

    start: int
    end: int
    mention: int  # number of the mention that it belongs to
    triple: Triple


@dataclass(frozen=True)
class Injected:
    """A text with facts in it. Spans are characters of `text`, half-open."""

    text: str
    form: Form
    mentions: tuple[tuple[int, int, str], ...]  # start, end, entity; those that name nothing aside
    pieces: tuple[Piece, ...]  # in the order of the text

    def arrange(self, offsets_l2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How a model has to read the text.

        Args:
          offsets_l2: int[l, 2], the characters of each token of `text`; (0, 0) for special ones.

        Returns:
          position i32[l]: the soft position of each token. branch i32[l]: 1 + the number of the
          piece that it belongs to, 0 for the sentence. sees bool[l, l]: whether the token of the
          row reads that of the column. A verbalised text is read as any other.
        """
        offsets_l2 = np.asarray(offsets_l2).reshape(-1, 2)
        size = len(offsets_l2)
        if self.form == "verbalise":
            every = np.ones((size, size), bool)
            return np.arange(size, dtype=np.int32), np.zeros(size, np.int32), every
        branch = np.zeros(size, np.int32)
        inside_lm = np.zeros((size, len(self.mentions)), bool)
        for number, piece in enumerate(self.pieces):
            branch[_overlap(offsets_l2, piece.start, piece.end)] = number + 1
        for number, (start, end, _) in enumerate(self.mentions):
            # Of two given mentions that overlap, one has the other's branches in its span.
            inside_lm[:, number] = _overlap(offsets_l2, start, end) & (branch == 0)
        position = np.where(branch == 0, np.cumsum(branch == 0) - 1, 0)
        sees = branch[:, None] == branch
        for number, piece in enumerate(self.pieces):
            own, anchor = np.flatnonzero(branch == number + 1), inside_lm[:, piece.mention]
            position[own] = position[anchor].max(initial=0) + 1 + np.arange(len(own))
            sees[np.ix_(own, anchor)] = sees[np.ix_(anchor, own)] = True
        return position.astype(np.int32), branch, sees


def _overlap(offsets_l2: np.ndarray, start: int, end: int) -> np.ndarray:
    return np.minimum(offsets_l2[:, 1], end) > np.maximum(offsets_l2[:, 0], start)


def inject_knowledge(
    text: str,
    kg: KG,
    *,
    form: Form = "verbalise",
    facts: int = 4,
    spans: Sequence[tuple[int, int] | tuple[int, int, str]] | None = None,
    linker: StringLinker | None = None,
    separator: str = " [SEP] ",
) -> Injected:
    """The text with what a graph says of the entities that it mentions.

    Args:
      form: verbalise: all facts in words, after the text. visible: each fact behind its mention, to
        be read with `Injected.arrange`.
      facts: of each mention, at most.
      spans: the mentions, as (start, end) or (start, end, name). None: names and aliases are looked
        for.
      linker: one of this graph, where many texts are asked for: making it reads all names.
      separator: what stands between the text and its facts (verbalise).

    Returns:
      A text without a linked mention, or without facts of it, comes back as it is, with no pieces.

    Raises:
      KeftError: a span beyond the text, another form, or fewer facts than one.
    """
    check(form in ("verbalise", "visible"), "form", form, "use 'verbalise' or 'visible'")
    check(facts >= 1, "facts", facts, "use 1 or more")
    linker = StringLinker(kg) if linker is None else linker
    found = linker.link([text])[0] if spans is None else linker.link_given(text, spans)
    found = sorted((m for m in found if m.entities), key=lambda m: (m.end, m.start))
    entities = [m.entities[0] for m in found]
    writer = Writer(kg, facts)
    chosen = sorted(writer.choose(entities), key=lambda item: item[0])  # stable: best first
    pieces: list[Piece] = []
    mentions: list[tuple[int, int, str]] = []
    if form == "verbalise":
        out = text
        mentions = [(m.start, m.end, kg.names[m.entities[0]]) for m in found]
        for mention, triple in chosen:
            out += "; " if pieces else separator
            fact = writer.whole(triple)
            pieces.append(Piece(len(out), len(out) + len(fact), mention, writer.triple(triple)))
            out += fact
        return Injected(out, form, tuple(mentions), tuple(pieces))
    put: list[tuple[int, int]] = []  # (place in the text, characters written there)
    out, at = "", 0
    for number, m in enumerate(found):
        out, at = out + text[at : m.end], m.end
        before = len(out)
        for triple in (triple for mention, triple in chosen if mention == number):
            fact = writer.branch(triple, entities[number])
            start = len(out) + 1
            pieces.append(Piece(start, start + len(fact), number, writer.triple(triple)))
            out += f" {fact}"
        if len(out) > before and text[at : at + 1].strip():
            out += " "
        put.append((at, len(out) - before))
    for m, entity in zip(found, entities, strict=True):
        start = m.start + sum(size for place, size in put if place <= m.start)
        end = m.end + sum(size for place, size in put if place < m.end)
        mentions.append((start, end, kg.names[entity]))
    return Injected(out + text[at:], form, tuple(mentions), tuple(pieces))


class Writer:
    """Chooses and writes facts of one graph."""

    def __init__(self, kg: KG, facts: int, relations: bool = True):
        """facts: of each entity, at most. relations: False: all are written the same."""
        self._kg, self._facts = kg, facts
        self._common = np.bincount(kg.rels, minlength=kg.n_relations)
        self._phrases = [phrase(r) if relations else UNTYPED for r in kg.relations]
        self._ranked: dict[int, list[tuple[int, int]]] = {}

    def choose(self, entities: Sequence[int]) -> list[tuple[int, int]]:
        """[(which of the entities, number of a triple)]: the best fact of each, then the second
        best of each, and so on; no triple twice. Entities of -1 have none."""
        seen: set[int] = set()
        near = set(entities) - {-1}
        lists: list[list[tuple[int, int]]] = []
        for place, entity in enumerate(entities):
            ranked: list[tuple[int, int]] = []
            if entity >= 0 and entity not in entities[:place]:
                ranked = self._rank(entity)
                ranked = sorted(ranked, key=lambda fact: fact[1] not in near)
            new = [(place, triple) for triple, _ in ranked if triple not in seen][: self._facts]
            seen.update(triple for _, triple in new)
            lists.append(new)
        return [some[i] for i in range(self._facts) for some in lists if i < len(some)]

    def _rank(self, entity: int) -> list[tuple[int, int]]:
        """[(triple, its other end)], those of rare relations first, then by the other end."""
        if entity not in self._ranked:
            kg = self._kg
            out = np.arange(kg.out_offsets[entity], kg.out_offsets[entity + 1])
            into = kg.in_triples[kg.in_offsets[entity] : kg.in_offsets[entity + 1]]
            into = into[kg.heads[into] != entity]  # a loop is there already
            triple = np.concatenate([out, into]).astype(np.int64)
            other = np.concatenate([kg.tails[out], kg.heads[into]])
            relation = kg.rels[triple]
            best = np.lexsort((relation, other, self._common[relation]))[:LOOK]
            self._ranked[entity] = list(
                zip(triple[best].tolist(), other[best].tolist(), strict=True)
            )
        return self._ranked[entity]

    def triple(self, number: int) -> Triple:
        kg = self._kg
        head, tail = int(kg.heads[number]), int(kg.tails[number])
        return kg.names[head], kg.relations[int(kg.rels[number])], kg.names[tail]

    def whole(self, number: int) -> str:
        """`France capital Paris`."""
        head, _, tail = self.triple(number)
        return f"{head} {self._phrases[self._kg.rels[number]]} {tail}"

    def branch(self, number: int, entity: int) -> str:
        """The fact without the mention that it hangs at: `capital Paris` behind France, `France
        capital` behind Paris."""
        head, _, tail = self.triple(number)
        relation = self._phrases[self._kg.rels[number]]
        return f"{relation} {tail}" if self._kg.heads[number] == entity else f"{head} {relation}"


def phrase(relation: str) -> str:
    """A relation's name as words: `birthPlace`, `birth_place`, `/people/person/birth_place` and
    `http://dbpedia.org/ontology/birthPlace` are all `birth place`. What has no word stays."""
    return " ".join(_words(relation)) or relation


def _words(relation: str) -> Iterator[str]:
    for part in relation.split("./"):  # Freebase joins two relations so
        last = re.split(r"[/#]", part.rstrip("/#"))[-1]
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"[_\s]+", " ", last)).split()
        yield from (word if word.isupper() else word.lower() for word in spaced)
