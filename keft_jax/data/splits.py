"""Train, selection and reported splits: files of their own, or parts of the training file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keft_jax.config import REST, DataConfig, KeftError
from keft_jax.data.source import Example, read_examples

HELD_OUT = "held_out"
"""Name of a reported split that was set aside from the training file."""


@dataclass(frozen=True)
class Splits:
    """Examples, or for link prediction triples as i32[t, 3]."""

    train: Any
    select: Any  # empty: none
    tests: dict[str, Any]
    unlabelled: Sequence[Example] = ()  # of data.unlabelled, where that is a file; beside the rest

    def __iter__(self):
        yield "train", self.train
        yield "select", self.select
        yield from self.tests.items()


def read_splits(data: DataConfig, need: Sequence[str] = ()) -> Splits:
    """All examples of a config. Raises KeftError, as `read_examples` does, and where a share sets
    nothing aside or leaves nothing to train on."""
    if not data.train:
        raise KeftError("data.train = '': name the file with the training examples")
    names = split_names(data.test)
    train = read_examples(data.train, data, need=need)
    select = read_examples(data.select, data, need=need) if data.select else []
    tests = {name: read_examples(path, data, need=need) for name, path in names.items()}
    file = data.unlabelled not in ("", REST)
    unlabelled = read_examples(data.unlabelled, data) if file else []
    if not data.select_share and not data.test_share:
        return Splits(train, select, tests, unlabelled)
    # What is reported first, so that it stays the same whatever the selection's share.
    parts = set_aside(train, {"test": data.test_share, "select": data.select_share})
    for name, share in (("select", data.select_share), ("test", data.test_share)):
        if share and not parts[name]:
            raise KeftError(
                f"data.{name}_share = {share}: sets no example of {data.train} aside ("
                f"{len(train)} examples); give more of them, or a file of their own"
            )
    if not parts["train"]:
        raise KeftError(
            f"data.select_share, data.test_share: leave none of the {len(train)} examples of "
            f"{data.train} to train on; lower them"
        )
    if data.test_share:
        tests = {HELD_OUT: parts["test"]}
    return Splits(parts["train"], parts["select"] or select, tests, unlabelled)


def set_aside(examples: Sequence[Example], shares: dict[str, float]) -> dict[str, list[Example]]:
    """Whole clusters go to one part, in the order of their hash, until its share is reached; the
    rest is "train". Without a cluster, texts that differ by case and spaces alone stay together.
    The order of the file changes nothing."""
    names = [e.cluster or f"{_folded(e.text)}\n{_folded(e.pair)}" for e in examples]
    sizes = Counter(names)
    order = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    part_of, filled = {}, dict.fromkeys(shares, 0)
    for name in order:
        part = next((p for p, s in shares.items() if filled[p] < s * len(examples) - 0.5), "train")
        part_of[name] = part
        if part in filled:
            filled[part] += sizes[name]
    out: dict[str, list[Example]] = {name: [] for name in (*shares, "train")}
    for name, example in zip(names, examples, strict=True):
        out[part_of[name]].append(example)
    return out


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def split_name(path: str) -> str:
    """`folder/valid.jsonl.gz` and `tfds:NAME:valid` are called `valid`, `films=folder/valid.jsonl`
    is called `films`."""
    if named := _named(path):
        return named[0]
    if path.startswith("tfds:"):
        return path.rpartition(":")[2]
    return Path(path).name.partition(".")[0]


def split_path(path: str) -> str:
    """The file of an entry of data.test."""
    named = _named(path)
    return named[1] if named else path


def _named(path: str) -> tuple[str, str] | None:
    """`films=FILE` -> (films, FILE). A file whose own name has an = is no such entry."""
    found = re.fullmatch(r"([\w-]+)=(.+)", path)
    return (found[1], found[2]) if found and not Path(path).exists() else None


def split_names(paths: Sequence[str]) -> dict[str, str]:
    """name -> path. Raises KeftError for two of one name."""
    out: dict[str, str] = {}
    for path in paths:
        name = split_name(path)
        if name in out:
            raise KeftError(
                f"data.test: {out[name]} and {path} have one name; rename one, as in other=FILE"
            )
        out[name] = split_path(path)
    return out
