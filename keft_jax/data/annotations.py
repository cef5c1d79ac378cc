"""What a record says of its text beyond a label: tags of its words, places of answers, choices.

Each reader takes a field's value, or that as JSON in a table's cell, and raises BadRecord."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from string import ascii_uppercase
from typing import Any

WORD = re.compile(r"\w+(?:[.'’-]\w+)*|[^\w\s]")
"""What counts as a word of a text that does not come in tokens."""
LETTERS = ascii_uppercase
"""Names of choices, in order."""

Place = tuple[int, int]
Tag = tuple[int, int, str]


class BadRecord(ValueError):
    """One record cannot be an example; the message says why."""


def from_cell(value: Any, where: str, form: str) -> Any:
    """The JSON of a table's cell, [] for an empty one; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError):
        raise BadRecord(f"{where}: not JSON; write {form}") from None


def brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def check_span(start: int, end: int, text: str, where: str) -> None:
    if not 0 <= start < end <= len(text):
        raise BadRecord(
            f"{where}: [{start}, {end}] where 0 <= start < end <= {len(text)}, the length of the "
            "text in characters"
        )


def read_tags(value: Any, name: str, text: str, places: Sequence[Place] | None) -> tuple[Tag, ...]:
    """The words of a text with their tags, "" where the record has none.

    Args:
      value: a tag for each token; or entities, [[start, end, type], ...], whose words get B- and
        I-, and the others O. In a table's cell: tags with spaces between them, or JSON.
      places: of the tokens; None: the text is no list. It is then cut at its spaces for a list of
        tags, and else by `WORD` and where entities begin and end.
    """
    where = f"data.tags = {name!r}"
    if isinstance(value, str):
        is_json = value.lstrip().startswith("[")
        value = from_cell(value, where, "a list of tags") if is_json else value.split()
    if value is None:
        return tuple((*place, "") for place in (places or _places(WORD, text)))
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{where}: a {type(value).__name__} where a list of tags is expected")
    if any(isinstance(item, list | tuple) for item in value) or (not value and places is None):
        return _tag_entities(value, where, text, places)
    places = _places(re.compile(r"\S+"), text) if places is None else places
    if len(value) != len(places):
        raise BadRecord(f"{where}: {len(value)} tags for {len(places)} tokens")
    for tag in value:
        if not isinstance(tag, str) or not tag.strip():
            raise BadRecord(f"{where}: {brief(tag)} where a tag such as 'B-PER' or 'O' is expected")
    return tuple((*place, tag.strip()) for place, tag in zip(places, value, strict=True))


def _places(pattern: re.Pattern[str], text: str, start: int = 0, end: int = 1 << 62) -> list[Place]:
    return [match.span() for match in pattern.finditer(text, start, min(end, len(text)))]


def _tag_entities(
    value: Sequence[Any], where: str, text: str, places: Sequence[Place] | None
) -> tuple[Tag, ...]:
    entities: list[Tag] = []
    for item in value:
        match item:
            case [int(start), int(end), str(kind)] if kind.strip():
                check_span(start, end, text, where)
                entities.append((start, end, kind.strip()))
            case _:
                raise BadRecord(f"{where}: {brief(item)} where [start, end, type] is expected")
    entities.sort()
    for before, after in pairwise(entities):
        if before[1] > after[0]:
            raise BadRecord(
                f"{where}: {brief(before)} and {brief(after)} overlap; give one of them"
            )
    if places is None:
        cuts = sorted({0, len(text), *(at for s, e, _ in entities for at in (s, e))})
        places = [p for start, end in pairwise(cuts) for p in _places(WORD, text, start, end)]
    tags = ["O"] * len(places)
    for start, end, kind in entities:
        inside = [i for i, (s, e) in enumerate(places) if start <= s < e <= end]
        if not inside:
            raise BadRecord(f"{where}: [{start}, {end}, {kind!r}] has no whole word in it")
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{kind}"
    return tuple((*place, tag) for place, tag in zip(places, tags, strict=True))


def read_answer_spans(value: Any, name: str, text: str) -> tuple[Place, ...]:
    """Places of the right answers in the text, none for a question without an answer: SQuAD's
    {"text": [...], "answer_start": [...]} or [{"text":, "answer_start":}, ...], or
    [[start, text], ...]."""
    where = f"data.answer_spans = {name!r}"
    form = '{"text": [...], "answer_start": [...]} or [[start, text], ...]'
    value = from_cell(value, where, form)
    match value:
        case {"text": list() | tuple() as texts, "answer_start": list() | tuple() as starts}:
            if len(texts) != len(starts):
                raise BadRecord(f"{where}: {len(texts)} texts but {len(starts)} starts")
            pairs: list[Any] = list(zip(starts, texts, strict=True))
        case list() | tuple():
            pairs = [
                (item.get("answer_start"), item.get("text")) if isinstance(item, dict) else item
                for item in value
            ]
        case _:
            raise BadRecord(f"{where}: {brief(value)} where {form} is expected")
    spans = []
    for pair in pairs:
        match pair:
            case [int(start), str(answer)] if answer.strip() and not isinstance(start, bool):
                pass
            case _:
                raise BadRecord(f"{where}: {brief(pair)} where a start and a text are expected")
        end = start + len(answer)
        check_span(start, end, text, f"{where}: {answer!r}")
        if text[start:end] != answer:
            raise BadRecord(
                f"{where}: {answer!r} at {start}, where the text has {text[start:end]!r}"
            )
        spans.append((start, end))
    return tuple(spans)


def read_choices(value: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(texts of the choices, what the data call each, where they do), of a list of texts or
    {"text": [...], "label": [...]}."""
    where = f"data.choices = {name!r}"
    value, called = from_cell(value, where, "a list of texts"), ()
    if isinstance(value, dict):
        value, called = value.get("text"), value.get("label") or ()
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise BadRecord(f"{where}: {brief(value)} where a list of texts is expected")
    for number, text in enumerate(value):
        if not text.strip():
            raise BadRecord(f"{where}: choice {LETTERS[number % 26]} is empty")
    if not 2 <= len(value) <= len(LETTERS):
        raise BadRecord(f"{where}: {len(value)} choices; give 2 to {len(LETTERS)}")
    if called and len(called) != len(value):
        raise BadRecord(f"{where}: {len(value)} texts but {len(called)} labels")
    return tuple(text.strip() for text in value), tuple(map(str, called))


def letter_of(label: Any, name: str, choices: Sequence[str], called: Sequence[str]) -> str:
    """The letter of the right choice. A text names it by what the data call it, by its own text,
    its letter, or its number from 0; a number only so."""
    where = f"data.label = {name!r}"
    said = str(label).strip()
    if called:
        ways = [[i for i, c in enumerate(called) if c == said]]
    else:
        names = ((str(i), LETTERS[i]) for i in range(len(choices)))
        by_number = [i for i, both in enumerate(names) if said in both]
        by_text = [i for i, text in enumerate(choices) if text == said]
        ways = [by_number] if isinstance(label, int) else [by_text, by_number]
    found = sorted({i for way in ways for i in way})
    if len(found) == 1:
        return LETTERS[found[0]]
    shown = ", ".join(f"{LETTERS[i]}: {text}" for i, text in enumerate(choices))
    why = "could be several of" if found else "is none of"
    raise BadRecord(f"{where}: {brief(label)} {why} the choices ({brief(shown)})")
