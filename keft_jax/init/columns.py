"""What the columns of a text file hold: guesses from their names and values, each with its reason.

No guess is silent: every one says why, and which other columns could have been meant.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.records import SourceReport, read_records
from keft_jax.data.tfds import PREFIX, read_tfds
from keft_jax.kg.linking.string import parse_brackets

MOST = 50_000
"""Records that are looked at."""
TEXTS = (
    "text",
    "question",
    "sentence",
    "query",
    "utterance",
    "tokens",
    "content",
    "body",
    "review",
)
LABELS = ("label", "class", "category", "sentiment", "target", "relation", "stars", "rating", "y")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"))
PATTERNS = ("pattern", "qtype", "type", "kind", "template")
CLUSTERS = ("cluster", "group", "topic", "document", "doc", "doc_id", "user", "session", "subject")
NEVER_LABELS = ("id", "idx", "index", "split", "lang", "language")
MOST_LABELS = 200

Record = dict[str, Any]


@dataclass(frozen=True)
class Guess:
    what: str
    value: str
    why: str
    others: tuple[str, ...] = ()
    """What else it could be."""


@dataclass
class Columns:
    """Fields of the data config, and how they were found."""

    task: str
    fields: dict[str, Any]
    """Of DataConfig: text, label, answers, entity, ..."""
    labels: tuple[str, ...]
    records: int
    whole: bool
    """All records were looked at."""
    guesses: list[Guess] = field(default_factory=list)

    @property
    def given(self) -> bool:
        """The data mark their mentions."""
        return any(self.fields.get(f) for f in ("entity", "brackets", "spans", "token_spans"))


def read_sample(path: str, tfds_dir: str) -> tuple[list[Record], bool]:
    """(the first MOST records, whether columns are numbers for want of a header row)."""
    first = list(itertools.islice(_records(path, "1", tfds_dir), 1)) if _is_table(path) else []
    records = list(itertools.islice(_records(path, "text", tfds_dir), MOST))
    numbered = bool(first) and _has_no_header(list(first[0].values()), records)
    if numbered:
        records = list(itertools.islice(_records(path, "1", tfds_dir), MOST))
    if not records:
        raise KeftError(f"{path}: holds no record; give a file with one a line")
    return records, numbered


def _is_table(path: str) -> bool:
    return path.removesuffix(".gz").lower().endswith((".tsv", ".csv"))


def _records(path: str, text: str, tfds_dir: str) -> Iterator[Record]:
    report = SourceReport(path=path)
    if path.startswith(PREFIX):
        yield from (record for _, record in read_tfds(path, tfds_dir))
    else:
        yield from (record for _, record in read_records(path, report, text=text))


def _has_no_header(first: Sequence[str], records: Sequence[Record]) -> bool:
    """A header row has a short name of its own for each column, and none of them is a value."""
    columns = list(zip(*(r.values() for r in records), strict=True)) or [()] * len(first)
    return (
        len(set(first)) < len(first)
        or any(not name.strip() or len(name.split()) > 3 for name in first)
        or any(name in set(values) for name, values in zip(first, columns, strict=False))
    )


def guess_columns(
    path: str,
    known: Callable[[str], bool],
    told: dict[str, str],
    tfds_dir: str = "",
) -> Columns:
    """`known`: whether a string is a name of the graph. `told`: what the user says (text, label,
    answers, entity, cluster -> column). Raises KeftError where a column is not there, or nothing
    can be asked."""
    if tfds_dir and not path.startswith(PREFIX):
        raise KeftError(f"--tfds-dir {tfds_dir}: {path} is not {PREFIX}NAME:SPLIT; leave it out")
    records, numbered = read_sample(path, tfds_dir)
    names = list(dict.fromkeys(name for r in records[:1000] for name in r))
    for role, name in told.items():
        if name not in names:
            raise KeftError(f"--{role} {name}: no such column (there are: {', '.join(names)})")
    whole = len(records) < MOST
    look = _Look(records, names, known, told)
    fields = {"tfds_dir": tfds_dir} if tfds_dir else {}
    made = Columns("", fields | {"text": look.text}, (), len(records), whole, look.guesses)
    if numbered:
        look.say("header", "none", "the first row is like the others; columns are numbered")
    look.mentions(made.fields)
    look.task(made, path)
    look.rest(made)
    return made


class _Look:
    def __init__(
        self, records: list[Record], names: list[str], known: Callable[[str], bool], told: dict
    ):
        self.records, self.names, self.known, self.told = records, names, known, told
        self.guesses: list[Guess] = []
        self.values = {n: [r[n] for r in records if r.get(n) not in (None, "")] for n in names}
        self.text = self._text()
        self.texts = [_join(r.get(self.text)) for r in records]

    def say(self, what: str, value: str, why: str, others: Sequence[str] = ()) -> None:
        self.guesses.append(Guess(what, value, why, tuple(others)[:4]))

    def _text(self) -> str:
        if "text" in self.told:
            self.say("text", self.told["text"], "as told")
            return self.told["text"]
        words = {}
        for name, values in self.values.items():
            some = [v for v in values[:2000] if isinstance(v, str) or _is_tokens(v)]
            if len(some) < 0.5 * min(len(values), 2000) or not some:
                continue
            size = sum(len(_join(v).split()) for v in some) / len(some)
            distinct = len({_join(v) for v in some}) / len(some)
            words[name] = size * distinct * (3 if name.lower() in TEXTS else 1)
        if not words:
            raise KeftError(f"no column holds text (there are: {', '.join(self.names)})")
        best, *others = sorted(words, key=lambda n: -words[n])
        self.say(
            "text",
            best,
            "the longest and most varied texts",
            [n for n in others if words[n] > 2],
        )
        return best

    def _strings(self, name: str) -> list[list[str]]:
        """The values of each record as a list; those of a table are parted by `|`."""
        return [
            [str(x) for x in v]
            if isinstance(v, list)
            else v.split("|")
            if isinstance(v, str)
            else [_scalar(v)]
            for v in (r.get(name) or [] for r in self.records[:5000])
        ]

    def _shares(self, name: str) -> tuple[float, float]:
        """Of the records with a value: those with a name of the graph, and those where it stands in
        the text."""
        pairs = [
            (any(map(self.known, v)), any(x.casefold() in t for x in v if x))
            for v, t in zip(self._strings(name), map(str.casefold, self.texts), strict=False)
            if v
        ]
        size = max(len(pairs), 1)
        return sum(a for a, _ in pairs) / size, sum(b for _, b in pairs) / size

    def mentions(self, fields: dict[str, Any]) -> None:
        """How mentions are marked, if they are."""
        spans = [n for n, v in self.values.items() if v and all(map(_is_spans, v[:200]))]
        tokens = [n for n, v in self.values.items() if v and all(map(_is_token_span, v[:200]))]
        marked = [parse_brackets(text) for text in self.texts[:2000]]
        inside = [[plain[a:b] for a, b in places] for plain, places in marked]
        bracketed = sum(any(map(self.known, found)) for found in inside) / max(len(inside), 1)
        others = []
        if "entity" in self.told:
            fields["entity"] = self.told["entity"]
            self.say("mentions", f"column {self.told['entity']}", "as told")
            return
        for name in self.names:
            if name in (self.text, *spans, *tokens, *self.told.values()):
                continue
            if not isinstance(next(iter(self.values[name]), None), str | list):
                continue
            in_graph, in_text = self._shares(name)
            if in_graph >= 0.5 and in_text >= 0.8:
                others.append(name)
        if tokens:
            fields["token_spans"] = tuple(tokens)
            self.say("mentions", ", ".join(tokens), "[name, entity, token numbers] over the tokens")
        elif spans:
            fields["spans"] = spans[0]
            self.say("mentions", f"column {spans[0]}", "[start, end, entity] over the text", others)
        elif bracketed >= 0.5:
            fields["brackets"] = True
            why = f"{bracketed:.0%} of the texts mark a name of the graph so"
            self.say("mentions", "[brackets]", why, [f"column {n}" for n in others])
        elif others:
            fields["entity"] = others[0]
            why = "names of the graph that stand in the text"
            self.say("mentions", f"column {others[0]}", why, ["looked for in the text"])
        else:
            why = "no column marks them: names of the graph are looked for in the text"
            self.say("mentions", "by name", why)
        self.entities = others

    def task(self, made: Columns, path: str) -> None:
        """Questions about entities, or labels of texts."""
        taken = {self.text, made.fields.get("entity"), *made.fields.get("token_spans", ())}
        taken |= {made.fields.get("spans"), *getattr(self, "entities", ())}
        free = [n for n in self.names if n not in taken]
        answers = []
        for name in free:
            in_graph, in_text = self._shares(name)
            if in_graph >= 0.3 and in_text < 0.8:
                named = name.lower() in ("answer", "answers")
                is_list = any(isinstance(v, list) for v in self.values[name][:50])
                answers.append((named, is_list, in_graph, name))
        answers.sort(reverse=True)
        labels = {n: s for n in free if (s := self._like_label(n)) > 0}
        order = sorted(labels, key=lambda n: -labels[n])
        role = next((r for r in ("label", "answers") if r in self.told), "")
        if role:
            made.task = "classification" if role == "label" else "kgqa"
            made.fields[role] = self.told[role]
            self.say("task", made.task, f"--{role} is given")
        elif answers and (answers[0][0] or answers[0][1] or not order):
            made.task, made.fields["answers"] = "kgqa", answers[0][3]
            why = f"{answers[0][2]:.0%} of column {answers[0][3]} are names of the graph"
            self.say("task", "kgqa: answers are entities", why, [f"label: {n}" for n in order])
            self.say("answers", answers[0][3], why, [a[3] for a in answers[1:]])
        elif order:
            made.task, made.fields["label"] = "classification", order[0]
            counts = Counter(map(_scalar, self.values[order[0]]))
            why = f"{len(counts)} values: {', '.join(map(str, list(counts)[:5]))}"
            others = [f"{n} ({len(set(map(_scalar, self.values[n])))} values)" for n in order[1:]]
            self.say("task", "classification: a label for each text", "a column of few values")
            self.say("label", order[0], why, others)
        else:
            raise KeftError(
                f"{path}: no column has few values (labels) or names of the graph (answers); there "
                f"are {', '.join(self.names)}; name one with --label or --answers"
            )
        if made.task == "classification":
            counts = Counter(map(_scalar, self.values[made.fields["label"]]))
            made.labels = tuple(sorted(counts))
            if len(made.labels) < 2 or len(made.labels) > MOST_LABELS:
                raise KeftError(
                    f"{path}: column {made.fields['label']!r} has {len(made.labels)} values; "
                    f"labels are 2 to {MOST_LABELS} (name another with --label)"
                )

    def _like_label(self, name: str) -> float:
        values = self.values[name]
        if not values or any(isinstance(v, list | dict) for v in values[:50]):
            return 0.0
        if name.lower() in NEVER_LABELS or len(values) < 0.9 * len(self.records):
            return 0.0
        distinct = len(set(map(_scalar, values)))
        if not 2 <= distinct <= min(MOST_LABELS, max(2, len(values) / 4)):
            return 0.0
        named = next((1 - 0.05 * i for i, n in enumerate(LABELS) if n == name.lower()), 0.0)
        return 1 / distinct + 3 * named

    def rest(self, made: Columns) -> None:
        """A second text, the kind of question, what groups dependent examples."""
        fields = made.fields
        for first, second in PAIRS:
            if fields["text"] in (first, second) and {first, second} <= set(self.names):
                fields["text"], fields["pair"] = first, second
                self.say("second text", second, f"stands beside {first}")
        taken = {fields.get(f) for f in ("text", "pair", "label", "answers")}
        free = [n for n in self.names if n not in taken]
        sizes = {n: len({str(v) for v in self.values[n]}) for n in free}
        total = len(self.records)
        if made.task == "kgqa":
            kinds = [n for n in free if n.lower() in PATTERNS and 2 <= sizes[n] <= total / 4]
            if kinds:
                fields["pattern"] = kinds[0]
                self.say("kind of question", kinds[0], f"{sizes[kinds[0]]} values", kinds[1:])
        entity = fields.get("entity")
        named = [n for n in free if n.lower() in CLUSTERS]
        about = [n for n in dict.fromkeys([entity, *getattr(self, "entities", ())]) if n in free]
        usable = [
            n
            for n in dict.fromkeys([*named, *about])
            if sizes[n] >= 10 and isinstance(next(iter(self.values[n]), None), str | int)
        ]
        if "cluster" in self.told:
            fields["cluster"] = self.told["cluster"]
            self.say("cluster", fields["cluster"], "as told")
        elif usable:
            fields["cluster"] = usable[0]
            why = f"{sizes[usable[0]]:,} groups: examples of one stay in one split"
            self.say("cluster", usable[0], why, usable[1:])
        else:
            repeated = [n for n in free if 10 <= sizes[n] <= 0.7 * total]
            self.say(
                "cluster", "none", "each text is its own: equal texts alone stay together", repeated
            )


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip()


def _join(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) > 3 and all(isinstance(item, str) for item in value)
    )


def _is_spans(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and [type(part) for part in item] == [int, int, str]
        for item in value
    )


def _is_token_span(value: Any) -> bool:
    return (
        isinstance(value, list)
        and [type(part) for part in value] == [str, str, list]
        and all(isinstance(place, list) for place in value[2])
    )


def exists(path: str) -> bool:
    return path.startswith(PREFIX) or Path(path).exists()
