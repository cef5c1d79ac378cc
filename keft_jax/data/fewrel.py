"""FewRel (Han et al. 2018), eight relations of it, with a graph of Wikidata facts, from the raw
files; and its mentions with types.

kg.tsv             facts of CoDEx-M and FB15k-237 (by Wikidata ids), without any fact between the
                   head and the tail of some sentence
descriptions.tsv   what Wikidata says of an entity in a line, where FB15k-237 has it
test.jsonl         sentences whose entities stand in no other file, in any role
select_N.jsonl     N sentences for choosing a checkpoint, likewise, each a part of the larger ones
pool.jsonl         the other sentences, to draw from
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.raw import (
    SPLIT_SEED,
    nested,
    read_gzip,
    read_jsonl_gzip,
    source_folder,
    write_jsonl,
)
from keft_jax.files import write_atomic

TEST_SENTENCES = 200  # of a relation, at most
SELECT_SIZES = (80, 240)
PARTS = ("relation/fewrel", "kg/CoDEx-M", "kg/FB15k-237")

Row = dict[str, Any]
Triple = tuple[str, str, str]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source."""
    raw = source_folder(source, PARTS)
    rows = read_sentences(raw)
    pairs = {(row[a][1], row[b][1]) for row in rows for a, b in ("ht", "th")}
    facts = {t for t in read_facts(raw) if (t[0], t[2]) not in pairs}
    known = {entity for head, _, tail in facts for entity in (head, tail)}
    rest, test = split(rows, TEST_SENTENCES)
    seen = {tuple(row["tokens"]) for row in test}
    rest = [row for row in rest if tuple(row["tokens"]) not in seen]
    pool, select = split(rest, SELECT_SIZES[-1] // len({row["relation"] for row in rest}))
    for row in test:
        row["balanced"] = ""
    for row in balance(test, known):
        row["balanced"] = "yes"
    select = nested(select, key=lambda row: row["relation"])
    for size in SELECT_SIZES:
        write_jsonl(folder / f"select_{size}.jsonl", select[:size])
    write_jsonl(folder / "test.jsonl", test)
    write_atomic(folder / "kg.tsv", "".join("\t".join(t) + "\n" for t in sorted(facts)))
    write_atomic(folder / "descriptions.tsv", "".join(read_descriptions(raw, known)))
    write_jsonl(folder / "pool.jsonl", pool)


def read_sentences(raw: Path) -> list[Row]:
    """The sentences, with the name of the relation as `label`."""
    return [
        {**row, "label": row["name"]}
        for row in read_jsonl_gzip(raw / "relation/fewrel/fewrel.jsonl.gz")
    ]


def read_facts(raw: Path) -> Iterator[Triple]:
    """Of CoDEx-M, and of FB15k-237 where both entities have a Wikidata id; all their splits."""
    wikidata = {mid: entry["wikidata_id"] for mid, entry in read_entries(raw).items()}
    for name, ids in (("CoDEx-M", None), ("FB15k-237", wikidata)):
        for part in ("train", "valid", "test"):
            file = raw / f"kg/{name}/{part}.txt.gz"
            for number, line in enumerate(read_gzip(file).rstrip("\n").split("\n"), 1):
                match line.split("\t"):
                    case [head, relation, tail]:
                        pass
                    case _:
                        raise KeftError(f"{file}:{number}: {line[:60]!r}; three columns, please")
                if ids is None:
                    yield head, relation, tail
                elif ids.get(head) and ids.get(tail):
                    yield ids[head], relation, ids[tail]


def read_descriptions(raw: Path, known: set[str]) -> Iterator[str]:
    lines = {}
    for entry in read_entries(raw).values():
        if entry["wikidata_id"] in known and entry.get("label"):
            text = f"{entry['label']}: {entry.get('description') or ''}".rstrip(": ")
            lines[entry["wikidata_id"]] = " ".join(text.split())
    return (f"{entity}\t{lines[entity]}\n" for entity in sorted(lines))


def read_entries(raw: Path) -> dict[str, dict[str, Any]]:
    """Freebase id -> its Wikidata id, label, other names and description."""
    file = raw / "kg/FB15k-237/entity2wikidata.json.gz"
    try:
        found: dict[str, dict[str, Any]] = json.loads(read_gzip(file))
    except ValueError as error:
        raise KeftError(f"{file}: not JSON ({error}); copy it again") from error
    return found


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
