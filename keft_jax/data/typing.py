"""Types of mentions: sentences of FewRel with an entity each and the classes that Wikidata puts it
in, grouped; and a graph of facts about it that do not say its class.

kg.tsv             facts of CoDEx-M and FB15k-237 (named by data/wikidata.py) but those of
                   `TYPE_LIKE`
descriptions.tsv   what Wikidata says of an entity in a line, where FB15k-237 has it. It often names
                   the class: give it to no model that is to be told facts alone
test.jsonl         the validation part of the source, whose entities are not in its training part
select.jsonl       mentions for choosing a checkpoint, of entities that are in no other file, as are
                   their sentences
pool.jsonl         the other mentions, to draw from; no sentence of it stands in the files above

`GROUPS` is the map from the 499 fine classes to types. A class that it does not name says nothing
here, and a mention without any named class is left out; both are counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.raw import (
    read_jsonl_gzip,
    set_apart,
    source_folder,
    without,
    write_jsonl,
    write_tsv,
)
from keft_jax.data.wikidata import PARTS as WIKIDATA
from keft_jax.data.wikidata import Wikidata

logger = logging.getLogger(__name__)

SELECT_MENTIONS = 250
PARTS = ("typing/fewrel-typing", *WIKIDATA)

TYPE_LIKE = (
    "P31",  # instance of
    "P279",  # subclass of
    "P106",  # occupation: the class of a human
    "/people/person/profession",
    "/people/profession/specialization_of",
    "/common/topic/webpage./common/webpage/category",
    "/education/educational_institution/school_type",
    "/base/aareas/schema/administrative_area/administrative_area_type",
    "/time/event/instance_of_recurring_event",
    "/award/award_category/category_of",
    "/user/tsegaran/random/taxonomy_subject/entry./user/tsegaran/random/taxonomy_entry/taxonomy",
)
"""Relations whose tail is a class of the head. The first two are in neither graph; they stand here
for graphs that have them."""

_GROUPS = {
    "person": "human; historical figure; monarch; mononymous person; billionaire",
    "character": (
        "superhero; comics character; mutate; group of fictional characters; fictional "
        "organization; film character; fictional human; animated character"
    ),
    "language": "language; modern language; natural language; Hindustani; macrolanguage; Khariboli",
    "sport": (
        "type of sport; sport; sports discipline; team sport; Olympic sport; ball game; football; "
        "gridiron football; association football; rugby; hockey; ice skating; ice sport; water "
        "sport; swimming; watercraft rowing; skiing; Nordic skiing; winter sport; athletics; "
        "martial arts; combat sport; equestrian sport; animal racing; auto racing; cycle sport; "
        "cycling; road cycling; gymnastics; sledding; boules; esport de pala"
    ),
    "country": (
        "country; sovereign state; landlocked country; island nation; republic; federal republic; "
        "constitutional republic; democratic republic; Islamic republic; communist state; "
        "socialist state; unitary state; federal state; social state; legal state; secular state; "
        "Commonwealth realm; constitutional monarchy; kingdom; empire; emirate; historical "
        "country; Mediterranean country; countries bordering the Baltic Sea; transcontinental "
        "country; state with limited recognition; divided country; nation"
    ),
    "settlement": (
        "city; town; city/town; big city; capital; metropolis; human settlement; city with "
        "millions of inhabitants; urban municipality of Germany; independent city of Germany; "
        "district capital; major regional center; medium regional center; college town; Hanseatic "
        "city; urban district of Bavaria; city of the United States; county seat; state capital "
        "in Germany; municipality of Spain; municipality of Austria; municipality of Finland; "
        "commune of France; border town; residenz; area of London; borough of New York City; "
        "London borough; city with powiat rights; statutory city of Austria"
    ),
    "region": (
        "state of the United States; state of Australia; state of Germany; state of Austria; "
        "province of China; county of California; ceremonial county of England; cultural region; "
        "geographic region; continent; subcontinent; administrative territorial entity; "
        "administrative territorial entity of Russia; island; archipelago; region of France; "
        "region of Victoria"
    ),
    "water": "lake; ocean; mesotrophic lake; eutrophic lake; hypereutrophic lake; holomictic lake",
    "organisation": (
        "organization; international organization; intergovernmental organization; regional "
        "organization; political organisation; terrorist organization; religious organization; "
        "political party; communist party; political international; government organization; "
        "national academy; academy of sciences; academy; learned society; scientific society; "
        "artist society; research institute; publisher; open-access publisher; business; "
        "enterprise; airline; bank; confederation; supranational union; economic union; "
        "continental union; customs union; resistance movement; voluntary association; national "
        "association football team; professional sports league; Christian Church"
    ),
    "university": (
        "university; private university; public university; research university; public research "
        "university; private not-for-profit educational institution; higher education "
        "institution; graduate school; law school; film school; Colonial Colleges; college of the "
        "University of Oxford; university network; collegiate university; educational institution"
    ),
    "musical group": (
        "musical group; rock band; boy band; girl group; female idol group; supergroup"
    ),
    "work": (
        "film; documentary; animated series; miniseries; television series; American television "
        "sitcom; creative work; written work; literary work; comics; electronic game; "
        "entertainment software; religious text"
    ),
    "field": (
        "academic discipline; academic major; branch of science; science; exact science; formal "
        "science; natural science; physical science; social science; Earth sciences; biology; "
        "branch of biology; mathematics; area of mathematics; philology; art history; study of "
        "history; area of history"
    ),
    "movement": (
        "art movement; social movement; political ideology; philosophical system; new religious "
        "movement; religious denomination; Abrahamic religion; literary genre; film genre"
    ),
}
GROUPS = {fine: group for group, names in _GROUPS.items() for fine in names.split("; ")}
"""Class -> type. Beside these, every class called `... languages` is a language."""

Row = dict[str, Any]


def generate(source: str, folder: Path) -> None:
    """Writes all files, the pool last. Raises KeftError naming what is missing in the source, and
    file:line of a record of another form."""
    raw = source_folder(source, PARTS)
    rest, test = (read_mentions(raw, part) for part in ("train", "valid"))
    rest = without(rest, test, lambda row: row["cluster"])
    select, pool = set_apart(rest, lambda row: row["cluster"], SELECT_MENTIONS)
    select = without(select, test, tokens)
    pool = without(pool, test + select, tokens)
    wiki = Wikidata(raw)
    facts = [fact for fact in wiki.facts() if fact[1] not in TYPE_LIKE]
    known = {entity for head, _, tail in facts for entity in (head, tail)}
    for row in pool + select + test:
        row["in_graph"] = "yes" if row["cluster"] in known else "no"
        surface, entity, places = row["mention"]
        row["mention"] = [surface, wiki.name(entity), places]
    write_jsonl(folder / "test.jsonl", test)
    write_jsonl(folder / "select.jsonl", select)
    write_tsv(folder / "kg.tsv", wiki.in_words(facts))
    write_tsv(folder / "descriptions.tsv", wiki.descriptions(known))
    write_jsonl(folder / "pool.jsonl", pool)


def tokens(row: Row) -> tuple[str, ...]:
    return tuple(row["tokens"])


def read_mentions(raw: Path, part: str) -> list[Row]:
    """`mention` is [surface, Wikidata id, [[token numbers]]], `answers` its types, `fine` what they
    were grouped from."""
    file = raw / f"typing/fewrel-typing/{part}.jsonl.gz"
    rows: list[Row] = []
    unnamed: Counter[str] = Counter()
    without_type = 0
    for number, record in enumerate(read_jsonl_gzip(file), 1):
        match record:
            case {
                "tokens": [*tokens],
                "span": [int(start), int(end)],
                "qid": str(entity),
                "types": [*fine],
            } if 0 <= start < end <= len(tokens):
                pass
            case _:
                raise KeftError(
                    f"{file}:{number}: no record with tokens, span, qid and types; copy it again"
                )
        unnamed.update(name for name in fine if not group(name))
        types = sorted({t for name in fine if (t := group(name))})
        if not types:
            without_type += 1
            continue
        rows.append(
            {
                "tokens": tokens,
                "mention": [" ".join(tokens[start:end]), entity, [[*range(start, end)]]],
                "answers": types,
                "fine": fine,
                "cluster": entity,
            }
        )
    logger.info(
        "%s: %d mentions; %d left out, which have none of the named classes; %d classes say "
        "nothing here, the most frequent: %s",
        *(file, len(rows), without_type, len(unnamed)),
        ", ".join(f"{name} ({count})" for name, count in unnamed.most_common(5)),
    )
    return rows


def group(fine: str) -> str | None:
    """The type of a class of Wikidata, by its label."""
    return "language" if fine.endswith(" languages") else GROUPS.get(fine)
