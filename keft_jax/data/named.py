"""A graph of facts between entities with names: FB15k-237, and CoDEx-M where both entities of a
fact are in FB15k-237 too, which has the names.

kg.tsv             facts. An entity is called by its label; where several have one label, those but
                   the most connected by label and Wikidata id; so are films that are called by
                   function words alone (`It`, `Up`), which texts shall not find
aliases.tsv        labels that stand for an entity with another name, and other names
descriptions.tsv   what Wikidata says of an entity in a line
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from keft_jax.config import KeftError
from keft_jax.data.fewrel import read_entries, read_facts
from keft_jax.data.raw import is_grammar, read_gzip, read_lines, write_tsv

PARTS = ("kg/CoDEx-M", "kg/CoDEx-S", "kg/FB15k-237")


def write_named_graph(raw: Path, folder: Path) -> None:
    """Raises KeftError naming what is missing in the source."""
    entries = {
        entry["wikidata_id"]: entry
        for entry in read_entries(raw).values()
        if entry.get("wikidata_id") and entry.get("label")
    }
    label = {entity: one_line(entry["label"]) for entity, entry in entries.items()}
    relation = read_relations(raw)
    facts = {fact for fact in read_facts(raw) if fact[0] in label and fact[2] in label}
    degree = Counter(entity for head, _, tail in facts for entity in (head, tail))
    names: dict[str, str] = {}
    taken: set[str] = set()
    for entity in sorted(degree, key=lambda e: (-degree[e], e)):
        own = label[entity] not in taken and not is_grammar(label[entity])
        names[entity] = label[entity] if own else f"{label[entity]} ({entity})"
        taken.add(label[entity])
    aliases, descriptions = [], []
    for entity, name in names.items():
        others = [label[entity], *map(one_line, entries[entity].get("alternatives") or ())]
        aliases += [(name, o) for o in others if o not in ("", name) and not is_grammar(o)]
        described = one_line(entries[entity].get("description") or "")
        descriptions += [(name, described)] if described else []
    write_tsv(folder / "kg.tsv", ((names[h], relation.get(r, r), names[t]) for h, r, t in facts))
    write_tsv(folder / "aliases.tsv", aliases)
    write_tsv(folder / "descriptions.tsv", descriptions)


def read_relations(raw: Path) -> dict[str, str]:
    """Relation -> what it is called in words."""
    file = raw / "kg/CoDEx-S/relations_en.json.gz"
    try:
        names = {r: one_line(entry["label"]) for r, entry in json.loads(read_gzip(file)).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise KeftError(f"{file}: no object of relations and labels; copy it again") from error
    for where, line in read_lines(raw / "kg/FB15k-237/relation2text.txt.gz"):
        relation, tab, _ = line.partition("\t")
        if not tab:
            raise KeftError(f"{where}: {line[:60]!r}; write relation<tab>text")
        first, _, second = relation.partition(".")  # /a/b/c./d/e/f says: b c f
        words = [*first.split("/")[-2:], second.rsplit("/", 1)[-1]]
        names[relation] = one_line(" ".join(dict.fromkeys(words)).replace("_", " "))
    return names


def one_line(text: str) -> str:
    return " ".join(text.split())
