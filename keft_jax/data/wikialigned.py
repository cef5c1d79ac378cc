"""Wikipedia articles with the Wikidata entities that they link to (a sample of ERNIE's pre-training
data, Zhang et al. 2019), and the graph of FewRel.

kg.tsv             facts of CoDEx-M and FB15k-237 (named by data/wikidata.py), without any fact
                   between the head and the tail of some sentence of FewRel: a model trained on
                   these is to be tried there
descriptions.tsv   what Wikidata says of an entity in a line, where FB15k-237 has it
test.jsonl         texts of articles that are in no other file
select.jsonl       texts for choosing a checkpoint, likewise
train.jsonl        the other articles

A text is as many sentences of an article in a row as fit into `LENGTH` word pieces; sentences that
are in FewRel are left out. The raw files hold numbers of bert-base-uncased's pieces, from which the
texts are put together again; `spans` has the links, [start, end, name].
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError
from keft_jax.data.fewrel import pairs_of, read_sentences
from keft_jax.data.raw import SPLIT_SEED, read_gzip, source_folder, write_jsonl, write_tsv
from keft_jax.data.tokenize import load_tokenizer
from keft_jax.data.wikidata import PARTS as WIKIDATA
from keft_jax.data.wikidata import Wikidata

LENGTH = 94
VOCABULARY = "../models/all-MiniLM-L6-v2"  # has bert-base-uncased's pieces
PARTS = ("mlm/ernie-wiki-aligned", "relation/fewrel", *WIKIDATA, VOCABULARY)
NOTHING = "#UNK#"

Atom = tuple[list[int], str]  # the pieces of a word, or of all words of a link; its entity, or ""


def generate(source: str, folder: Path) -> None:
    """Writes all files, train.jsonl last. Raises KeftError naming what is missing in the source."""
    raw = source_folder(source, PARTS)
    tokenizer = load_tokenizer(raw / VOCABULARY)
    pieces = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    rows = read_sentences(raw)
    wiki, pairs = Wikidata(raw), pairs_of(rows)
    facts = [t for t in wiki.facts() if (t[0], t[2]) not in pairs]
    known = {entity for head, _, tail in facts for entity in (head, tail)}
    test_sentences = tokenizer.encode_batch(
        [" ".join(row["tokens"]) for row in rows], add_special_tokens=False
    )
    elsewhere = {tuple(e.ids) for e in test_sentences}
    articles = [
        [
            {
                "text": text,
                "spans": [(start, end, wiki.name(entity)) for start, end, entity in spans],
                "article": str(number),
            }
            for text, spans in (write(atoms, pieces) for atoms in pack(sentences, LENGTH))
        ]
        for number, sentences in enumerate(read_articles(raw, pieces, elsewhere))
    ]
    write_tsv(folder / "kg.tsv", wiki.in_words(facts))
    write_tsv(folder / "descriptions.tsv", wiki.descriptions(known))
    write_splits(folder, articles)


def read_articles(
    raw: Path, pieces: Sequence[str], elsewhere: set[tuple[int, ...]]
) -> Iterator[list[list[Atom]]]:
    """The sentences of each article but those of which the pieces are `elsewhere`. A line is an
    article: the number of its sentences, then each one's length and pieces; the file of links has
    an entity in the place of each word's first piece."""
    folder = raw / PARTS[0]
    files = [folder / f"wiki_{kind}.gz" for kind in ("token", "entity")]
    lines = [read_gzip(file).rstrip("\n").split("\n") for file in files]
    if len(lines[0]) != len(lines[1]):
        raise KeftError(
            f"{files[0]}: {len(lines[0])} lines, and {files[1].name} has {len(lines[1])}; copy "
            "both again"
        )
    for number, (ids, links) in enumerate(zip(*lines, strict=True), 1):
        numbers, names = _read_numbers(ids, f"{files[0]}:{number}", len(pieces)), links.split()
        at, sentences = 1, []
        while at < min(len(numbers), len(names)):
            end = at + 1 + numbers[at]
            if end > min(len(numbers), len(names)):
                break
            sentence = numbers[at + 1 : end]
            if tuple(sentence) not in elsewhere:
                sentences.append(list(make_atoms(sentence, names[at + 1 : end], pieces)))
            at = end
        if not len(numbers) == len(names) == at:
            raise KeftError(f"{files[0]}:{number}: lengths that do not add up; copy both again")
        yield sentences


def _read_numbers(line: str, where: str, below: int) -> list[int]:
    """Of pieces, and lengths: raises KeftError where one is neither."""
    try:
        numbers = [int(number) for number in line.split()]
    except ValueError as error:
        raise KeftError(f"{where}: no number ({error}); copy it again") from error
    bad = next((n for n in numbers if not 0 <= n < below), None)
    if bad is not None:
        raise KeftError(f"{where}: {bad} where 0 to {below - 1} is expected; copy it again")
    return numbers


def make_atoms(ids: Sequence[int], links: Sequence[str], pieces: Sequence[str]) -> Iterator[Atom]:
    """Words, and runs of words that link to one entity."""
    words: list[Atom] = []
    for i, link in zip(ids, links, strict=True):
        if words and pieces[i].startswith("##"):
            words[-1][0].append(i)
        else:
            words.append(([i], "" if link == NOTHING else link))
    for entity, some in groupby(words, key=lambda word: word[1]):
        if entity:
            yield [i for word, _ in some for i in word], entity
        else:
            yield from some


def pack(sentences: Iterable[list[Atom]], length: int) -> Iterator[list[Atom]]:
    """Sentences in a row of at most so many pieces together; a longer one is cut between words."""
    text: list[Atom] = []
    room = length
    for sentence in sentences:
        if sum(len(ids) for ids, _ in sentence) > room and text:
            yield text
            text, room = [], length
        for atom in sentence:
            if len(atom[0]) > room and text:
                yield text
                text, room = [], length
            text.append(atom)
            room -= len(atom[0])
    if text:
        yield text


def write(atoms: Sequence[Atom], pieces: Sequence[str]) -> tuple[str, list[tuple[int, int, str]]]:
    """(the text, its links as (start, end, entity) in characters)."""
    text, spans = "", []
    for ids, entity in atoms:
        start = len(text) + bool(text)
        for i in ids:
            piece = pieces[i]
            goes_on = piece.startswith("##") and text
            text += piece[2:] if goes_on else (" " if text else "") + piece
        if entity:
            spans.append((start, len(text), entity))
    return text, spans


def write_splits(folder: Path, articles: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """By whole articles: test.jsonl a tenth of the text, select.jsonl a twentieth, train.jsonl."""
    rest = random.Random(SPLIT_SEED).sample(list(articles), len(articles))
    size = sum(len(row["text"]) for article in articles for row in article)
    for name, share in (("test", 0.1), ("select", 0.05)):
        some: list[Mapping[str, Any]] = []
        while rest and sum(len(row["text"]) for row in some) < share * size:
            some += rest.pop()
        write_jsonl(folder / f"{name}.jsonl", some)
    write_jsonl(folder / "train.jsonl", [row for article in rest for row in article])
