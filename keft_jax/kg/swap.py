"""Another name in the place of a mention: of the same entity, else of one with the same facts.

What the graph says of a text stays as it was, and the words change: an augmentation that only a
graph can make (with WordNet in the place of the graph: Zhang et al. 2015, "Character-level
convolutional networks"; by words of the same lexicon here)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keft_jax.kg.linking.string import Mention
from keft_jax.kg.store import KG

Span = tuple[int, int, str]


def group_by_facts(kg: KG, relations: bool = True) -> np.ndarray:
    """i64[entities]: equal where the sets of (relation, tail) are, and of one entity alone where
    there is no fact. relations: False tells facts by their tails alone."""
    rels = kg.rels if relations else np.zeros_like(kg.rels)
    facts = np.stack([rels, kg.tails], 1)
    number: dict[bytes, int] = {}
    out = np.arange(kg.n_entities, dtype=np.int64)
    for entity in range(kg.n_entities):
        own = facts[kg.out_offsets[entity] : kg.out_offsets[entity + 1]]
        if len(own):
            own = own if relations else np.unique(own, axis=0)
            out[entity] = number.setdefault(own.tobytes(), entity)
    return out


@dataclass(frozen=True)
class Swap:
    """Finds other names.

    counts: i64[entities], how often texts mention each. Only those that they do mention come in
    another's place, in proportion, so that the words are those of the texts.
    """

    kg: KG
    group: np.ndarray  # i64[entities], as of group_by_facts
    counts: np.ndarray

    def name(self, entity: int, surface: str, draw: float) -> tuple[int, str] | None:
        """(entity, name) in the place of a surface; None where there is no other. draw: 0 to 1."""
        own = [self.kg.names[entity], *self.kg.aliases(entity)]
        own = [name for name in own if name.casefold() != surface.casefold()]
        if own:
            return entity, own[int(draw * len(own))]
        alike = np.flatnonzero((self.group == self.group[entity]) & (self.counts > 0))
        alike = alike[alike != entity]
        if not len(alike):
            return None
        rising = np.cumsum(self.counts[alike])
        other = int(alike[np.searchsorted(rising, draw * rising[-1], side="right")])
        return other, self.kg.names[other]

    def text(
        self,
        text: str,
        mentions: Sequence[Mention],
        spans: Sequence[Span],
        share: float,
        draws: np.ndarray,
    ) -> tuple[str, list[Span]]:
        """The text with a share of its mentions under other names, and its given spans moved along.

        spans: mentions that the data gave, in which case `mentions` are these, one for one.
        draws: f64[2 * mentions], 0 to 1. Mentions that overlap stay as they are.
        """
        moved, shift, free = list(spans), 0, 0
        for i in sorted(range(len(mentions)), key=lambda i: mentions[i].start):
            mention = mentions[i]
            alone = all(
                other is mention or other.end <= mention.start or mention.end <= other.start
                for other in mentions
            )
            start, end = mention.start + shift, mention.end + shift
            if spans:
                moved[i] = (start, end, moved[i][2])
            if not (mention.entities and alone and mention.start >= free):
                continue
            if draws[2 * i] >= share:
                continue
            found = self.name(mention.entities[0], text[start:end], draws[2 * i + 1])
            if found is None:
                continue
            entity, name = found
            text = text[:start] + name + text[end:]
            shift, free = shift + len(name) - (end - start), mention.end
            if spans:
                same = entity == mention.entities[0]
                moved[i] = (start, start + len(name), moved[i][2] if same else name)
        return text, moved

    def same(self, one: Sequence[Mention], two: Sequence[Mention]) -> bool:
        """Whether the graph says the same of both."""

        def said(mentions: Sequence[Mention]) -> list[int]:
            return [int(self.group[m.entities[0]]) for m in mentions if m.entities]

        return said(one) == said(two)
