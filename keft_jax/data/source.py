"""Text examples, from files or from memory, under the names that the config gives their fields."""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keft_jax.config import DataConfig, KeftError
from keft_jax.data.annotations import (
    BadRecord,
    Place,
    Tag,
    brief,
    check_span,
    from_cell,
    letter_of,
    read_answer_spans,
    read_choices,
    read_tags,
)
from keft_jax.data.records import SourceReport, describe_missing, read_records
from keft_jax.data.tfds import PREFIX, read_tfds
from keft_jax.kg.linking.string import parse_brackets

logger = logging.getLogger(__name__)

STRINGS = ("text", "pair", "label", "answers", "entity", "pattern", "cluster")
ROLES = (*STRINGS, "spans", "tags", "answer_spans", "choices")
LISTS = ("answers", "entity")
Fields = Mapping[str, tuple[str, bool]]
"""role -> (name of its field, whether a record must have it)."""


@dataclass(frozen=True)
class Example:
    """One text with what is known about it. Spans are half-open, in characters of `text`."""

    id: int
    """Position among the examples read, from 0."""
    text: str
    pair: str = ""
    """Second text, encoded after the first."""
    label: str | None = None
    answers: tuple[str, ...] = ()
    spans: tuple[tuple[int, int, str], ...] = ()
    """Mentions given by the data: (start, end, entity name). An entity whose name does not stand
    in the text spans all of it."""
    tags: tuple[Tag, ...] = ()
    """The words of the text, (start, end, tag) each; tag "" where it is not known."""
    answer_spans: tuple[Place, ...] | None = None
    """Where the right answers stand; none of them: no answer is right. None: not known."""
    choices: tuple[str, ...] = ()
    """Answers to choose from; `label` is then the letter of the right one."""
    pattern: str = ""
    cluster: str = ""
    slices: tuple[str, ...] = ()
    """Values of the fields that `data.slices` names, "" where a record has none."""
    where: str = ""
    """file:line, for error messages."""
    pieces: tuple[Place, ...] = ((0, 0),)
    """Of a text that was made for the model: where each piece of the example's own text begins in
    it, and where in that one, rising."""

    def origin(self, place: int) -> int | None:
        """The place in the example's own text of a place in this one; None: it has none."""
        i = bisect_right(self.pieces, place, key=lambda piece: piece[0])
        if i == 0:
            return None
        here, there = self.pieces[i - 1]
        last = self.pieces[i][1] if i < len(self.pieces) else len(self.text) + there
        return min(there + place - here, last)


def read_examples(
    path: str | Path,
    data: DataConfig,
    *,
    need: Sequence[str] = (),
    report: SourceReport | None = None,
) -> list[Example]:
    """Examples of a file, in its order; formats as in `records.read_records`. Or of a prepared TFDS
    data set: `tfds:NAME:SPLIT`, as in `tfds.read_tfds`.

    In a table, several answers or entities in one cell stand between `|`, and spans as JSON. A
    field that holds a single answer in JSON may be a string. A text may be a list of tokens, which
    single spaces join.

    Args:
      path: file, `-` for stdin, or data set.
      data: which field holds what.
      need: roles besides the text that every record must have: "label", "answers", "tags",
        "answer_spans", "pattern" or "cluster". Otherwise they may be absent (texts to predict have
        no label). `pair`, `entity`, `spans`, `token_spans` and `choices` are needed whenever the
        config names them.
      report: filled with the count and the places of malformed lines, which are logged as well.

    Raises:
      KeftError: missing, empty or binary file, a field that is not there, or no example left.
    """
    report = SourceReport() if report is None else report
    report.path = "stdin" if str(path) == "-" else str(path)
    fields = _fields(data, need)
    columns = [name for name, needed in fields.values() if needed] + list(data.token_spans)
    examples: list[Example] = []
    if report.path.startswith(PREFIX):
        also = [name for name, _ in fields.values()] + list(data.slices)
        records = read_tfds(report.path, data.tfds_dir, columns, also)
    else:
        lists = [fields[role][0] for role in (*LISTS, "choices") if role in fields]
        records = read_records(path, report, text=data.text, columns=columns, lists=lists)
    for line, record in records:
        try:
            where = f"{report.path}:{line}"
            examples.append(_example(len(examples), record, fields, data, where))
        except BadRecord as bad:
            report.add(line, str(bad))
    report.examples = len(examples)
    if not examples and not report.malformed:
        raise KeftError(f"{report.path}: holds no example; give a file with one record a line")
    if not examples:
        _, line, reason = report.malformed[0]
        raise KeftError(
            f"{report.path}:{line}: {reason} (no example is left of {report.malformed_lines};"
            " correct the file, or the data.* fields that name its columns)"
        )
    if report.malformed_lines:
        logger.warning("%s", report.summary())
    return examples


def examples_from(
    items: Iterable[str | Mapping[str, Any]],
    data: DataConfig | None = None,
    *,
    need: Sequence[str] = (),
) -> list[Example]:
    """Examples from texts, or from dicts with the fields that the config names. Raises KeftError
    at the first item that is not one, naming its position (from 1)."""
    data = DataConfig() if data is None else data
    fields = _fields(data, need)
    examples = []
    for i, item in enumerate(items):
        record = {data.text: item} if isinstance(item, str) else item
        where = f"input:{i + 1}"
        if not isinstance(record, Mapping):
            kind = type(record).__name__
            raise KeftError(f"{where}: a {kind} where a text or a dict of fields is expected")
        try:
            examples.append(_example(i, record, fields, data, where))
        except BadRecord as bad:
            raise KeftError(f"{where}: {bad}") from None
    return examples


def _fields(data: DataConfig, need: Sequence[str]) -> Fields:
    fields = {}
    for role in ROLES:
        name, needed = getattr(data, role), role in need or role == "text"
        if role == "answers" and name == data.answer_spans:
            continue
        if needed and not name:
            raise KeftError(f"data.{role} = '': needed here; name the field that holds it")
        if name:
            fields[role] = (name, needed or role in ("pair", "entity", "spans", "choices"))
    return fields


def _example(
    id: int, record: Mapping[str, Any], fields: Fields, data: DataConfig, where: str
) -> Example:
    values: dict[str, tuple[str, ...]] = dict.fromkeys(ROLES, ())
    for role, (name, needed) in fields.items():
        if name in record and role not in STRINGS:
            continue  # see below; none at all is right for a text without a mention
        if name in record:
            value = record[name]
            if role == "text" and _is_list(value):
                value = " ".join(_tokens(value, name))
            values[role] = _strings(value, role, name)
        elif needed:
            raise BadRecord(f"data.{role} = {name!r}: {describe_missing(name, record)}")
        if needed and not values[role]:
            raise BadRecord(f"data.{role} = {name!r}: empty")
    text, entities = values["text"][0], values["entity"]
    places = _token_places(record[data.text], data.text) if _is_list(record[data.text]) else None
    spans: tuple[tuple[int, int, str], ...] = tuple(_locate(text, name) for name in entities)
    if data.spans:
        spans = _given_spans(record[data.spans], data.spans, text)
    if data.token_spans:
        if places is None:
            kind = type(record[data.text]).__name__
            raise BadRecord(
                f"data.text = {data.text!r}: a {kind} where data.token_spans needs a list of tokens"
            )
        spans = tuple(_token_span(record, name, places) for name in data.token_spans)
    if data.brackets:
        text, marked = parse_brackets(text)
        if len(entities) != len(marked):  # no name for each: what is marked is the name
            entities = tuple(text[start:end] for start, end in marked)
        spans = tuple((*place, name) for place, name in zip(marked, entities, strict=True))
        if not text.strip():
            raise BadRecord(f"data.text = {fields['text'][0]!r}: empty")
    one = {role: "".join(value) for role, value in values.items() if role not in LISTS}
    tags: tuple[Tag, ...] = ()
    if data.tags:
        if fields["tags"][1] and record[data.tags] is None:
            raise BadRecord(f"data.tags = {data.tags!r}: empty")
        tags = read_tags(record.get(data.tags), data.tags, text, places)
    answer_spans, answers = None, values["answers"]
    if data.answer_spans and data.answer_spans in record:
        answer_spans = read_answer_spans(record[data.answer_spans], data.answer_spans, text)
        answers = tuple(text[start:end] for start, end in answer_spans)
    choices: tuple[str, ...] = ()
    label = one["label"] if values["label"] else None
    if data.choices:
        choices, called = read_choices(record[data.choices], data.choices)
        if label is not None:
            label = letter_of(record[data.label], data.label, choices, called)
    if "pattern" not in fields:  # the kind of question is what is left without its mentions
        one["pattern"] = _without(text, spans)
    return Example(
        id=id,
        text=text,
        pair=one["pair"],
        label=label,
        answers=tuple(dict.fromkeys(answers)),
        spans=spans,
        tags=tags,
        answer_spans=answer_spans,
        choices=choices,
        pattern=one["pattern"],
        cluster=one["cluster"],
        slices=tuple("".join(_strings(record.get(f), "slices", f)) for f in data.slices),
        where=where,
    )


def _strings(value: Any, role: str, name: str) -> tuple[str, ...]:
    """The non-empty strings of a field: at most one, or any number for a list."""
    if isinstance(value, list | tuple) and role in LISTS:
        return tuple(text for item in value for text in _strings(item, "item", name))
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    elif value is None:
        return ()
    elif isinstance(value, list | tuple) and len(value) == 1:  # a list's column in a second role
        return _strings(value[0], role, name)
    if not isinstance(value, str):
        kind = "a list of texts" if role in LISTS else "a text"
        raise BadRecord(
            f"data.{role} = {name!r}: a {type(value).__name__} where {kind} is expected"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"data.{role} = {name!r}: half a UTF-16 surrogate pair") from None
    text = value if role in ("text", "pair") else value.strip()
    return (text,) if text.strip() else ()


def _given_spans(value: Any, name: str, text: str) -> tuple[tuple[int, int, str], ...]:
    """[[start, end, entity name], ...], or that as JSON in a table's cell."""
    where = f"data.spans = {name!r}"
    value = from_cell(value, where, "[[start, end, entity name], ...]")
    if not isinstance(value, list | tuple):
        raise BadRecord(
            f"{where}: a {type(value).__name__} where [[start, end, entity name], ...] is expected"
        )
    spans = []
    for item in value:
        if not (
            isinstance(item, list | tuple)
            and [type(part) for part in item] == [int, int, str]
            and _strings(item[2], "spans", name)
        ):
            raise BadRecord(f"{where}: {brief(item)} where [start, end, entity name] is expected")
        start, end, entity = item
        check_span(start, end, text, where)
        spans.append((start, end, entity.strip()))
    return tuple(spans)


def _tokens(value: list | tuple, name: str) -> list[str]:
    for token in value:
        if not isinstance(token, str):
            kind = type(token).__name__
            raise BadRecord(f"data.text = {name!r}: a {kind} in the list where a text is expected")
    return list(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _token_places(value: Any, name: str) -> list[tuple[int, int]]:
    """(start, end) of each token in the text that single spaces make of them."""
    places, start = [], 0
    for token in _tokens(value, name):
        places.append((start, start + len(token)))
        start += len(token) + 1
    return places


def _token_span(
    record: Mapping[str, Any], name: str, places: Sequence[tuple[int, int]]
) -> tuple[int, int, str]:
    """[name, entity, [[token numbers], ...]], or that as JSON in a table's cell -> the characters
    from the first to the last token of its first mention."""
    where, form = f"data.token_spans: {name!r}", "[name, entity, [[token numbers], ...]]"
    if name not in record:
        raise BadRecord(f"{where}: {describe_missing(name, record)}")
    match from_cell(record[name], where, form):
        case [_, str(entity), [[*numbers], *_]] if entity.strip() and numbers:
            pass
        case other:
            raise BadRecord(f"{where}: {brief(other)} where {form} is expected")
    if not all(type(n) is int and 0 <= n < len(places) for n in numbers):
        raise BadRecord(
            f"{where}: {brief(numbers)} where token numbers from 0 to {len(places) - 1} are "
            "expected"
        )
    start, end = places[min(numbers)][0], places[max(numbers)][1]
    if start == end:
        raise BadRecord(f"{where}: {brief(numbers)} is an empty token")
    return start, end, _strings(entity, "token_spans", name)[0]


def _without(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """The text with a dash for each mention; "" for a text without any."""
    for start, end, _ in sorted(spans, reverse=True):
        text = f"{text[:start]}–{text[end:]}"
    return text if spans else ""


def _locate(text: str, name: str) -> tuple[int, int, str]:
    """The first place of a name, by exact case or else folded; the whole text without one."""
    start = text.find(name)
    # Folding that changes the length would shift the span: such texts are matched exactly only.
    if start < 0 and len(text.lower()) == len(text) and len(name.lower()) == len(name):
        start = text.lower().find(name.lower())
    return (start, start + len(name), name) if start >= 0 else (0, len(text), name)
