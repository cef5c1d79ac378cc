"""Texts put together from numbers of word pieces, and articles that stay together."""

import gzip
import json
from pathlib import Path

import pytest

from keft_jax.config import KeftError
from keft_jax.data.tokenize import load_tokenizer
from keft_jax.data.wikialigned import (
    LENGTH,
    VOCABULARY,
    make_atoms,
    pack,
    read_articles,
    write,
    write_splits,
)
from keft_jax.data.wikitext import WORDS, cut, plain

RAW = Path(__file__).resolve().parents[2] / "shared/data"
PIECES = ["[UNK]", "new", "york", "##er", "is", "a", "city", "."]


def test_links_cover_whole_words():
    """A link stands at the first pieces of words alone."""
    links = ["#UNK#", "Q60", "Q60", "#UNK#", "#UNK#", "Q515", "#UNK#"]
    atoms = list(make_atoms([4, 1, 2, 3, 5, 6, 7], links, PIECES))
    assert atoms == [([4], ""), ([1, 2, 3], "Q60"), ([5], ""), ([6], "Q515"), ([7], "")]
    text, spans = write(atoms, PIECES)
    assert text == "is new yorker a city ."
    assert [(text[a:b], q) for a, b, q in spans] == [("new yorker", "Q60"), ("city", "Q515")]


def test_texts_are_whole_sentences_where_they_fit():
    words = [[([i], "")] * n for i, n in enumerate((3, 4, 2, 12, 1))]
    sizes = [[ids[0] for ids, _ in text] for text in pack(words, 7)]
    assert sizes == [[0] * 3 + [1] * 4, [2] * 2, [3] * 7, [3] * 5 + [4]]


def test_no_article_in_two_files(tmp_path):
    articles = [
        [{"text": "word " * (5 + i % 7), "article": str(i)}] * (1 + i % 3) for i in range(90)
    ]
    write_splits(tmp_path, articles)
    parts = [
        {json.loads(line)["article"] for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()}
        for n in ("train", "select", "test")
    ]
    assert sum(map(len, parts)) == 90 == len(set().union(*parts))
    assert 2 <= len(parts[1]) < len(parts[2]) < 20


@pytest.mark.parametrize(
    ("ids", "links", "why"),
    [
        ("1 2 1 x", "1 2 a b", r"wiki_token\.gz:2: no number .*; copy it again"),
        ("1 2 1 99", "1 2 a b", r"wiki_token\.gz:2: 99 where 0 to 7 is expected"),
        ("1 3 1 2", "1 3 a b", r"wiki_token\.gz:2: lengths that do not add up"),
        ("1 2 1 2", "1 2 a", r"wiki_token\.gz:2: lengths that do not add up"),
        ("1 2 1 2", None, r"wiki_token\.gz: 2 lines, and wiki_entity\.gz has 1"),
    ],
)
def test_damaged_lines_are_named(tmp_path, ids, links, why):
    folder = tmp_path / "mlm/ernie-wiki-aligned"
    folder.mkdir(parents=True)
    for kind, line in (("token", ids), ("entity", links)):
        lines = ["1 1 1" if kind == "token" else "1 1 a", *([] if line is None else [line])]
        (folder / f"wiki_{kind}.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(KeftError, match=why):
        list(read_articles(tmp_path, PIECES, set()))


def test_wikitext_is_joined_again():
    assert plain(" 1 @,@ 000 self @-@ made <unk> 's ") == "1,000 self-made [UNK] 's"
    paragraph = " . ".join(["some words here and there"] * 40) + " ."
    texts = list(cut(paragraph))
    assert " ".join(texts) == paragraph
    assert all(len(text.split()) <= WORDS and text.endswith(" .") for text in texts)


def test_the_tokenizer_gives_the_same_pieces_again():
    if not (RAW / VOCABULARY).is_dir() or not (RAW / "mlm/ernie-wiki-aligned").is_dir():
        pytest.skip(f"no articles at {RAW}, or no vocabulary beside them")
    tokenizer = load_tokenizer(RAW / VOCABULARY)
    pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    same = total = linked = 0
    for number, sentences in enumerate(read_articles(RAW, pieces, set())):
        for atoms in pack(sentences, LENGTH):
            text, spans = write(atoms, pieces)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            same += ids == [i for word, _ in atoms for i in word]
            total, linked = total + 1, linked + len(spans)
        if number == 8:
            break
    assert total > 700 and linked > 1000
    assert same == total
