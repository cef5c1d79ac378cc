"""The knowledge graph: immutable arrays of entities, relations, triples, aliases, descriptions.

Ids follow the sorted names, so neither the order of the input nor the machine changes them. The
inverse of relation r is r + n_relations and is never stored.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg import disk
from keft_jax.kg.names import Names

Triple = tuple[str, str, str]
_SUGGEST_AMONG = 50_000  # difflib reads every name: half a second for so many


@dataclass(frozen=True, eq=False)
class KG:
    """A graph of one version; `add` and `remove` make the next. Made by `from_triples` or `load`.

    Arrays are read-only. E entities, t triples.
    """

    names: Names  # id -> name, sorted
    relations: tuple[str, ...]  # sorted
    heads: np.ndarray  # int32[t]; triples are sorted by (head, relation, tail), each once
    rels: np.ndarray  # int32[t]
    tails: np.ndarray  # int32[t]
    out_offsets: np.ndarray  # int64[E + 1]: triples of head e are out_offsets[e]:out_offsets[e + 1]
    in_offsets: np.ndarray  # int64[E + 1]: the same for tails, into in_triples
    in_triples: np.ndarray  # int32[t]: triple numbers, sorted by (tail, relation, head)
    degrees: np.ndarray  # int32[E]: in and out; a loop counts twice
    alias_names: Names = field(repr=False)  # [a], sorted by (entity, alias)
    alias_entity: np.ndarray = field(repr=False)  # int32[a]
    descriptions: Names = field(repr=False)  # [d]
    description_entity: np.ndarray = field(repr=False)  # int32[d], rising
    version: int = 1

    @classmethod
    def from_triples(
        cls,
        triples: Iterable[Triple],
        *,
        aliases: Mapping[str, Sequence[str]] = {},
        descriptions: Mapping[str, str] = {},
        version: int = 1,
    ) -> KG:
        """Interns names; drops duplicates. Entities known only by an alias or a description stay,
        without edges. KeftError on an empty name."""
        triples = list(triples)
        entities = {h for h, _, _ in triples} | {t for _, _, t in triples}
        names = _sorted_names(entities.union(aliases, descriptions), "entity")
        relations = _sorted_names({r for _, r, _ in triples}, "relation")
        entity_id = {name: i for i, name in enumerate(names)}
        relation_id = {name: i for i, name in enumerate(relations)}
        size = len(triples)
        heads = np.fromiter((entity_id[h] for h, _, _ in triples), np.int32, size)
        rels = np.fromiter((relation_id[r] for _, r, _ in triples), np.int32, size)
        tails = np.fromiter((entity_id[t] for _, _, t in triples), np.int32, size)
        pairs = sorted(
            (entity_id[name], alias)
            for name, others in aliases.items()
            for alias in set(others)
            if alias and alias != name
        )
        notes = sorted((entity_id[name], text) for name, text in descriptions.items() if text)
        return cls(
            names=Names.of(names, "entity"),
            relations=tuple(Names.of(relations, "relation")),
            **_index(heads, rels, tails, len(names)),
            alias_names=Names.of((alias for _, alias in pairs), "alias"),
            alias_entity=_freeze(np.array([e for e, _ in pairs], np.int32)),
            descriptions=Names.of((text for _, text in notes), "description"),
            description_entity=_freeze(np.array([e for e, _ in notes], np.int32)),
            version=version,
        )

    @property
    def n_entities(self) -> int:
        return len(self.names)

    @property
    def n_relations(self) -> int:
        return len(self.relations)

    @property
    def n_triples(self) -> int:
        return len(self.heads)

    @cached_property
    def hash(self) -> str:
        """sha256 of the content: the same for any version, input order and machine."""
        digest = hashlib.sha256(b"keft kg 1")
        relations = Names.of(self.relations)
        for part in (
            *(self.names.data, self.names.offsets, relations.data, relations.offsets),
            *(self.heads, self.rels, self.tails),
            *(self.alias_names.data, self.alias_names.offsets, self.alias_entity),
            *(self.descriptions.data, self.descriptions.offsets, self.description_entity),
        ):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(np.asarray(part, part.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def find(self, name: str) -> int | None:
        return self.names.find(name)

    def id(self, name: str) -> int:
        """The id of an entity. KeftError, with the nearest name, where there is none."""
        found = self.find(name)
        if found is None:
            place = self.names.rank(name)
            some = self.names[max(place - 500, 0) : place + 500]
            near = difflib.get_close_matches(
                name, self.names if self.n_entities <= _SUGGEST_AMONG else some, 1
            )
            hint = f"did you mean {near[0]!r}?" if near else "names are case-sensitive"
            raise KeftError(f"entity {name!r}: not in the graph ({self.n_entities:,}); {hint}")
        return found

    def relation_id(self, name: str) -> int:
        """The id of a relation. KeftError, with the nearest name, where there is none."""
        try:
            return self.relations.index(name)
        except ValueError:
            near = difflib.get_close_matches(name, self.relations, 1)
            hint = f"did you mean {near[0]!r}?" if near else "names are case-sensitive"
            raise KeftError(
                f"relation {name!r}: not in the graph ({self.n_relations:,}); {hint}"
            ) from None

    def aliases(self, entity: int) -> tuple[str, ...]:
        first, last = np.searchsorted(self.alias_entity, [entity, entity + 1])
        return tuple(self.alias_names[first:last])

    def alias_table(self) -> tuple[list[str], np.ndarray]:
        """Every alias and int32[a], its entity. Names are not among them."""
        return list(self.alias_names), self.alias_entity

    def description(self, entity: int) -> str:
        """Its text, or "" where it has none."""
        place = int(np.searchsorted(self.description_entity, entity))
        known = place < len(self.descriptions) and self.description_entity[place] == entity
        return self.descriptions[place] if known else ""

    def replace_triples(self, heads: np.ndarray, rels: np.ndarray, tails: np.ndarray) -> KG:
        """The same entities, relations and aliases with other edges; ids keep their meaning."""
        for thing, ids, limit in (
            ("heads", heads, self.n_entities),
            ("rels", rels, self.n_relations),
            ("tails", tails, self.n_entities),
        ):
            if len(ids) and not 0 <= np.min(ids) <= np.max(ids) < limit:
                raise KeftError(
                    f"{thing}: ids {np.min(ids)} to {np.max(ids)}; use 0 to {limit - 1}"
                )
        return KG(**{**self._fields(), **_index(heads, rels, tails, self.n_entities)})

    def add(self, triples: Iterable[Triple]) -> KG:
        """The next version, with these facts too. New names shift the ids of those behind them."""
        new = KG.from_triples(triples)
        names = sorted({*self.names, *new.names})
        relations = sorted({*self.relations, *new.relations})
        place = {name: i for i, name in enumerate(names)}
        kind = {name: i for i, name in enumerate(relations)}
        old_to, new_to = (np.array([place[n] for n in kg.names], np.int32) for kg in (self, new))
        old_kind, new_kind = (
            np.array([kind[n] for n in kg.relations], np.int32) for kg in (self, new)
        )
        edges = _index(
            np.concatenate([old_to[self.heads], new_to[new.heads]]),
            np.concatenate([old_kind[self.rels], new_kind[new.rels]]),
            np.concatenate([old_to[self.tails], new_to[new.tails]]),
            len(names),
        )
        return KG(
            names=Names.of(names),
            relations=tuple(relations),
            **edges,
            alias_names=self.alias_names,  # the map of ids rises, so their order holds
            alias_entity=_freeze(old_to[self.alias_entity]),
            descriptions=self.descriptions,
            description_entity=_freeze(old_to[self.description_entity]),
            version=self.version + 1,
        )

    def remove(self, triples: Iterable[Triple]) -> KG:
        """The next version, without these facts; entities and relations stay, so ids hold.

        KeftError on a fact that is not there.
        """
        keep = np.ones(self.n_triples, bool)
        for head, relation, tail in triples:
            place = self._place(head, relation, tail)
            if place is None:
                raise KeftError(
                    f"remove ({head!r}, {relation!r}, {tail!r}): no such fact in version "
                    f"{self.version}; names are case-sensitive"
                )
            keep[place] = False
        edges = _index(self.heads[keep], self.rels[keep], self.tails[keep], self.n_entities)
        return KG(**{**self._fields(), **edges, "version": self.version + 1})

    def _place(self, head: str, relation: str, tail: str) -> int | None:
        h, t = self.find(head), self.find(tail)
        if h is None or t is None or relation not in self.relations:
            return None
        low, high = self.out_offsets[h], self.out_offsets[h + 1]
        key = (self.rels[low:high] == self.relations.index(relation)) & (self.tails[low:high] == t)
        return int(low + np.flatnonzero(key)[0]) if key.any() else None

    def _fields(self) -> dict:
        return {name: getattr(self, name) for name in KG.__dataclass_fields__}

    def save(self, folder: str | Path) -> None:
        """Writes a folder of memory-mappable arrays, whole or not at all; see `disk.write`."""
        relations = Names.of(self.relations)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name, strings in (("relations", relations), *((n, getattr(self, n)) for n in _NAMES)):
            arrays |= {f"{name}.bytes": strings.data, f"{name}.offsets": strings.offsets}
        disk.write(Path(folder), arrays, {"version": self.version, "hash": self.hash})

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> KG:
        """Maps a saved graph; pages are read when they are used.

        Sizes are always checked, checksums with `verify`. KeftError naming the file.
        """
        arrays, meta = disk.read(Path(folder), verify=verify)
        try:
            parts: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
            strings: dict[str, Any] = {
                name: Names(arrays[f"{name}.bytes"], arrays[f"{name}.offsets"])
                for name in ("relations", *_NAMES)
            }
            relations = tuple(strings.pop("relations"))
            kg = cls(relations=relations, version=int(meta["version"]), **parts, **strings)
            kg.__dict__["hash"] = str(meta["hash"])
        except KeyError as error:
            raise KeftError(
                f"{folder}: {error} is missing from meta.json; build it again (keft kg build)"
            ) from error
        return kg


_ARRAYS = (
    *("heads", "rels", "tails", "out_offsets", "in_offsets", "in_triples", "degrees"),
    *("alias_entity", "description_entity"),
)
_NAMES = ("names", "alias_names", "descriptions")


def _freeze(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _sorted_names(names: Iterable[str], thing: str) -> list[str]:
    names = set(names)
    for name in names:
        if not isinstance(name, str) or not name:
            raise KeftError(f"{thing} {name!r}: a name is text of 1 character or more")
    return sorted(names)


def _index(heads: np.ndarray, rels: np.ndarray, tails: np.ndarray, n_entities: int) -> dict:
    """Sorted triples, each once, and their index by head and by tail."""
    heads, rels, tails = (np.asarray(x, np.int32) for x in (heads, rels, tails))
    order = np.lexsort((tails, rels, heads))
    heads, rels, tails = heads[order], rels[order], tails[order]
    new = np.ones(len(heads), bool)
    new[1:] = (np.diff(heads) != 0) | (np.diff(rels) != 0) | (np.diff(tails) != 0)
    heads, rels, tails = heads[new], rels[new], tails[new]
    n_out = np.bincount(heads, minlength=n_entities)
    n_in = np.bincount(tails, minlength=n_entities)
    index: dict[str, np.ndarray] = {
        "heads": heads,
        "rels": rels,
        "tails": tails,
        "out_offsets": np.concatenate([[0], np.cumsum(n_out)]).astype(np.int64),
        "in_offsets": np.concatenate([[0], np.cumsum(n_in)]).astype(np.int64),
        "in_triples": np.lexsort((heads, rels, tails)).astype(np.int32),
        "degrees": (n_out + n_in).astype(np.int32),
    }
    return {name: _freeze(array) for name, array in index.items()}
