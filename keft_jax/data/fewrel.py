"""FewRel (Han et al. 2018), eight relations of it, with a graph of Wikidata facts, from the raw
files.

kg.tsv             facts of CoDEx-M and FB15k-237, without any fact between the head and the tail of
                   some sentence (data/wikidata.py has the names)
descriptions.tsv   what Wikidata says of an entity in a line, where FB15k-237 has it
test.jsonl         sentences whose entities stand in no other file, in any role
select_N.jsonl     N sentences for choosing a checkpoint, likewise, each a part of the larger ones;
                   but of `voice type`, whose few tails join all its sentences, by their heads alone
pool.jsonl         the other sentences, to draw from
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.data import wikidata
from keft_jax.data.raw import (
    SPLIT_SEED,
    nested,
    read_jsonl_gzip,
    source_folder,
    write_jsonl,
    write_tsv,
)

TEST_SENTENCES = 200  # of a relation, at most
SELECT_SIZES = (80, 240)
PARTS = ("relation/fewrel", *wikidata.PARTS)

Row = dict[str, Any]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source."""
    raw = source_folder(source, PARTS)
    rows, wiki = read_sentences(raw), wikidata.Wikidata(raw)
    pairs = pairs_of(rows)
    facts = [t for t in wiki.facts() if (t[0], t[2]) not in pairs]
    known = {entity for head, _, tail in facts for entity in (head, tail)}
    rest, test = split(rows, TEST_SENTENCES)
    seen = {tuple(row["tokens"]) for row in test}
    rest = [row for row in rest if tuple(row["tokens"]) not in seen]
    relations = {row["relation"] for row in rest}
    most = SELECT_SIZES[-1] // len(relations)
    pool, select = split(rest, most)
    for relation in sorted(relations - {row["relation"] for row in select}):
        chosen = by_heads([row for row in pool if row["relation"] == relation], most)
        heads = {row["h"][1] for row in chosen}
        select += chosen
        pool = [row for row in pool if row["h"][1] not in heads]
    for row in test:
        row["balanced"] = ""
    for row in balance(test, known):
        row["balanced"] = "yes"
    for row in (*pool, *select, *test):
        for side in "ht":
            row[side] = [row[side][0], wiki.name(row[side][1]), row[side][2]]
    select = nested(select, key=lambda row: row["relation"])
    for size in SELECT_SIZES:
        write_jsonl(folder / f"select_{size}.jsonl", select[:size])
    write_jsonl(folder / "test.jsonl", test)
    write_tsv(folder / "kg.tsv", wiki.in_words(facts))
    write_tsv(folder / "descriptions.tsv", wiki.descriptions(known))
    write_jsonl(folder / "pool.jsonl", pool)


def read_sentences(raw: Path) -> list[Row]:
    """The sentences, with the name of the relation as `label`; entities by their ids."""
    file, out = raw / "relation/fewrel/fewrel.jsonl.gz", []
    for number, row in enumerate(read_jsonl_gzip(file), 1):
        match row:
            case {
                "name": str(name),
                "relation": str(),
                "tokens": [*_],
                "h": [_, str(), [*_]],
                "t": [_, str(), [*_]],
            }:
                out.append({**row, "label": name})
            case _:
                raise KeftError(
                    f"{file}:{number}: no record with tokens, h, t, relation and name; copy it "
                    "again"
                )
    return out


def pairs_of(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """The two entities of each sentence, both ways round."""
    return {(row[a][1], row[b][1]) for row in rows for a, b in ("ht", "th")}


def by_heads(rows: Sequence[Row], most: int) -> list[Row]:
    """Some `most` of the sentences, with all of a head entity or none."""
    heads = sorted({row["h"][1] for row in rows})
    out: list[Row] = []
    for head in random.Random(SPLIT_SEED).sample(heads, len(heads)):
        if len(out) < most:
            out += [row for row in rows if row["h"][1] == head]
    return out[:most]


def split(rows: Sequence[Row], most: int) -> tuple[list[Row], list[Row]]:
    """(rest, set aside) that share no entity in any role: sentences that an entity joins stay
    together, and are set aside while no relation has more than `most` there. `cluster` names what
    was joined."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    number = {e: i for i, e in enumerate(sorted({row[s][1] for row in rows for s in "ht"}))}
    heads, tails = ([number[row[s][1]] for row in rows] for s in "ht")
    joined = csr_matrix((np.ones(len(rows)), (heads, tails)), shape=(len(number),) * 2)
    component = connected_components(joined, directed=False)[1][heads].tolist()
    members: dict[int, list[Row]] = defaultdict(list)
    for row, c in zip(rows, component, strict=True):
        members[c].append({**row, "cluster": str(c)})
    rest: list[Row] = []
    aside: list[Row] = []
    filled: Counter[str] = Counter()
    for c in random.Random(SPLIT_SEED).sample(sorted(members), len(members)):
        total = filled + Counter(row["relation"] for row in members[c])
        if max(total.values()) <= most:
            aside, filled = aside + members[c], total
        else:
            rest += members[c]
    return rest, aside


def balance(rows: Iterable[Row], known: set[str]) -> list[Row]:
    """As many sentences with an entity in the graph as without one, for each relation: there, to be
    in the graph tells nothing of the label."""
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["relation"], any(row[s][1] in known for s in "ht")].append(row)
    out = []
    for relation in sorted({relation for relation, _ in groups}):
        both = [groups[relation, covered] for covered in (False, True)]
        for some in both:
            out += some[: min(map(len, both))]
    return out
