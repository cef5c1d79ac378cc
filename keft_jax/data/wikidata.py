"""Facts about Wikidata's entities, from CoDEx-M and FB15k-237, in words.

An entity is called by its label, by label and id where several have that label or it is a function
word (`It`, which texts shall not find), and by its id where there is no label: FB15k-237 has them,
CoDEx-M has none. The names do not depend on which facts are taken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.raw import is_grammar, read_gzip, read_lines

PARTS = ("kg/CoDEx-M", "kg/CoDEx-S", "kg/FB15k-237")

Triple = tuple[str, str, str]


class Wikidata:
    """The folder of raw files, read. Raises KeftError naming the file, and the line."""

    def __init__(self, raw: Path):
        self._raw = raw
        self._of_freebase: dict[str, str] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        """Wikidata id -> label, alternatives and description, of those with a label."""
        for mid, entry in _read_json(raw / "kg/FB15k-237/entity2wikidata.json.gz").items():
            if not isinstance(entry, dict):
                raise KeftError(
                    f"{raw / 'kg/FB15k-237/entity2wikidata.json.gz'}: {mid!r}: no object; copy it "
                    "again"
                )
            if entry.get("wikidata_id"):
                self._of_freebase[mid] = entry["wikidata_id"]
                if entry.get("label"):
                    self.entries[entry["wikidata_id"]] = entry
        self._shared = Counter(self.label(entity) for entity in self.entries)
        self._relations = _read_relations(raw)

    def label(self, entity: str) -> str:
        """Empty where there is none."""
        return one_line(self.entries[entity]["label"]) if entity in self.entries else ""

    def name(self, entity: str) -> str:
        label = self.label(entity)
        if not label:
            return entity
        own = self._shared[label] == 1 and not is_grammar(label)
        return label if own else f"{label} ({entity})"

    def relation(self, relation: str) -> str:
        return self._relations.get(relation, relation)

    def facts(self) -> Iterator[Triple]:
        """All of CoDEx-M, and of FB15k-237 those whose entities have Wikidata ids, in ids."""
        for kg, ids in (("CoDEx-M", None), ("FB15k-237", self._of_freebase)):
            for part in ("train", "valid", "test"):
                for where, line in read_lines(self._raw / f"kg/{kg}/{part}.txt.gz"):
                    match line.split("\t"):
                        case [head, relation, tail]:
                            pass
                        case _:
                            raise KeftError(f"{where}: {line[:60]!r}; three columns, please")
                    if ids is None:
                        yield head, relation, tail
                    elif head in ids and tail in ids:
                        yield ids[head], relation, ids[tail]

    def in_words(self, facts: Iterable[Triple]) -> list[Triple]:
        """Sorted, each once."""
        return sorted({(self.name(h), self.relation(r), self.name(t)) for h, r, t in facts})

    def descriptions(self, entities: Iterable[str]) -> list[tuple[str, str]]:
        """(name, `label: description`) of those that have one."""
        out = []
        for entity in sorted(self.entries.keys() & set(entities)):
            text = f"{self.label(entity)}: {self.entries[entity].get('description') or ''}"
            out.append((self.name(entity), one_line(text).rstrip(": ")))
        return out


def one_line(text: str) -> str:
    return " ".join(text.split())


def _read_relations(raw: Path) -> dict[str, str]:
    """Relation -> what it is called in words, no two alike."""
    file = raw / "kg/CoDEx-S/relations_en.json.gz"
    try:
        names = {r: one_line(entry["label"]) for r, entry in _read_json(file).items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise KeftError(f"{file}: no object of relations and labels; copy it again") from error
    for where, line in read_lines(raw / "kg/FB15k-237/relation2text.txt.gz"):
        relation, tab, _ = line.partition("\t")
        if not tab:
            raise KeftError(f"{where}: {line[:60]!r}; write relation<tab>text")
        first, _, second = relation.partition(".")  # /a/b/c./d/e/f says: b c f
        words = [*first.split("/")[-2:], second.rsplit("/", 1)[-1]]
        names[relation] = one_line(" ".join(dict.fromkeys(words)).replace("_", " "))
    count = Counter(names.values())
    return {r: name if count[name] == 1 else f"{name} ({r})" for r, name in names.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_gzip(file))
    except ValueError as error:
        raise KeftError(f"{file}: not JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise KeftError(f"{file}: no JSON object; copy it again")
    return found
