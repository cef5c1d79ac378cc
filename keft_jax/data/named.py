"""A graph of facts between entities with names: FB15k-237, and CoDEx-M where both entities of a
fact are in FB15k-237 too, which has the names.

kg.tsv             facts. An entity is called by its label; where several have one label, those but
                   the most connected by label and Wikidata id; so are films that are called by
                   function words alone (`It`, `Up`), which texts shall not find
aliases.tsv        labels that stand for an entity with another name, and other names
descriptions.tsv   what Wikidata says of an entity in a line
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from keft_jax.data.raw import is_grammar, write_tsv
from keft_jax.data.wikidata import PARTS, Wikidata, one_line

__all__ = ["PARTS", "write_named_graph"]


def write_named_graph(raw: Path, folder: Path) -> None:
    """Raises KeftError naming what is missing in the source."""
    wiki = Wikidata(raw)
    label = {entity: wiki.label(entity) for entity in wiki.entries}
    facts = {fact for fact in wiki.facts() if fact[0] in label and fact[2] in label}
    degree = Counter(entity for head, _, tail in facts for entity in (head, tail))
    names: dict[str, str] = {}
    taken: set[str] = set()
    for entity in sorted(degree, key=lambda e: (-degree[e], e)):
        own = label[entity] not in taken and not is_grammar(label[entity])
        names[entity] = label[entity] if own else f"{label[entity]} ({entity})"
        taken.add(label[entity])
    aliases, descriptions = [], []
    for entity, name in names.items():
        others = [label[entity], *map(one_line, wiki.entries[entity].get("alternatives") or ())]
        aliases += [(name, o) for o in others if o not in ("", name) and not is_grammar(o)]
        described = one_line(wiki.entries[entity].get("description") or "")
        descriptions += [(name, described)] if described else []
    write_tsv(folder / "kg.tsv", ((names[h], wiki.relation(r), names[t]) for h, r, t in facts))
    write_tsv(folder / "aliases.tsv", aliases)
    write_tsv(folder / "descriptions.tsv", descriptions)
