"""Vocabularies are the same everywhere, and spans survive the way to word pieces and back."""

import hashlib
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from keft_jax.config import KeftError
from keft_jax.data.tokenize import (
    SPECIAL,
    encode,
    load_tokenizer,
    save_tokenizer,
    token_spans,
    train_wordpiece,
)

TEXT = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda São Tomé Zürich 東京"
WORDS = TEXT.split()


def corpus(seed=0, size=400):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=6)) + "?" for _ in range(size)]


@pytest.fixture(scope="module")
def tok():
    return train_wordpiece(corpus(), 200)


def test_special_pieces_have_their_numbers(tok):
    assert [tok.token_to_id(piece) for piece in SPECIAL] == [0, 1, 2, 3, 4]
    vocab = tok.get_vocab()
    assert sorted(vocab.values()) == list(range(len(vocab))) and len(vocab) <= 200


def test_the_vocabulary_does_not_depend_on_order_or_process(tok):
    texts = corpus()
    random.Random(1).shuffle(texts)
    assert train_wordpiece(texts, 200).to_str() == tok.to_str()
    code = (
        "import json, sys, hashlib; from keft_jax.data.tokenize import train_wordpiece as t;"
        "print(hashlib.sha256(t(json.load(sys.stdin), 200).to_str().encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True
    )
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip() == hashlib.sha256(tok.to_str().encode()).hexdigest()


def test_names_are_read_as_words_too():
    plain = train_wordpiece(corpus(), 300)
    named = train_wordpiece(corpus(), 300, names=["Ouagadougou", "Ouagadougou East"])
    (without,) = encode(plain, ["ouagadougou"], None, 32).ids
    (whole,) = encode(named, ["ouagadougou"], None, 32).ids
    assert len(whole) == 3 < len(without) or plain.token_to_id("[UNK]") in without


def test_case_and_accents(tok):
    a, b = encode(tok, ["São TOMÉ", "sao tome"], None, 32).ids
    assert a.tolist() == b.tolist()
    cased = train_wordpiece(corpus(), 200, lowercase=False)
    a, b = encode(cased, ["Zürich", "zürich"], None, 32).ids
    assert a.tolist() != b.tolist()


def test_the_alphabet_leaves_room_for_words():
    rare = [chr(0x4E00 + i) for i in range(500)]
    vocab = train_wordpiece([*corpus(), *rare], 128).get_vocab()
    assert len(vocab) <= 128 and sum(piece in vocab for piece in rare) < 100


def test_nothing_to_train_on():
    with pytest.raises(KeftError, match="no training text"):
        train_wordpiece(["", "  "], 200)
    with pytest.raises(KeftError, match="vocab_size = 3"):
        train_wordpiece(corpus(), 3)


def test_every_character_span_comes_back(tok):
    rng = random.Random(2)
    texts = [*corpus(3, 30), "İstanbul 😀 ﬁne  e\u0301tat", "a\u200bb 北京大学 ok"]
    tokens = encode(tok, texts, None, 128)
    assert not tokens.cut.any()
    for i, text in enumerate(texts):
        offsets = tokens.offsets[i]
        words = [(a, a + len(word)) for word in text.split() for a in [text.index(word)]]
        for start, end in rng.sample(words, min(5, len(words))):
            ((first, last),) = tokens.spans(i, [(start, end)])
            covered = offsets[first:last]
            assert 0 < first < last < len(offsets)
            assert covered[:, 0].min() <= start and covered[:, 1].max() >= end
            # and nothing beyond the word: its neighbours have no character in common with it
            assert offsets[first - 1, 1] <= start and (
                offsets[last, 0] >= end or last == len(offsets) - 1
            )


def test_spans_without_a_token():
    offsets = np.array([[0, 0], [0, 4], [5, 9], [0, 0]])
    spans = token_spans(offsets, [(0, 4), (4, 5), (2, 2), (3, 6), (0, 0), (40, 50), (0, 9)])
    assert spans.tolist() == [[1, 2], [0, 0], [0, 0], [1, 3], [0, 0], [0, 0], [1, 3]]
    assert token_spans(offsets, []).shape == (0, 2)


@pytest.mark.parametrize("sizes", [(3, 40), (40, 3), (40, 40), (0, 40), (5, 4)])
def test_pairs_share_the_room(tok, sizes):
    text, pair = ("alpha " * sizes[0]).strip(), ("beta " * sizes[1]).strip()
    tokens = encode(tok, [text], [pair], 16)
    whole = encode(tok, [text], [pair], 512)
    ids, types = tokens.ids[0], tokens.types[0]
    assert len(ids) == min(16, len(whole.ids[0])) == tokens.lengths[0]
    assert tokens.cut.sum() == (len(whole.ids[0]) > 16)
    assert ids[0] == 2 and ids[-1] == 3 and np.count_nonzero(ids == 3) == 2
    assert types.tolist() == sorted(types) and types[0] == 0 and types[-1] == 1
    kept, full = types.sum() - 1, whole.types[0].sum() - 1
    first, first_full = (types == 0).sum() - 2, (whole.types[0] == 0).sum() - 2
    # A part loses tokens only where it has at least as much room as the other.
    assert first == first_full or first >= kept
    assert kept == full or kept >= first - 1
    if sizes[1]:
        ((start, end),) = tokens.spans(0, [(0, 4)], part=1)
        assert types[start:end].tolist() == [1] * (end - start) and start < end


def test_saved_and_loaded(tok, tmp_path):
    file = tmp_path / "deep" / "tokenizer.json"
    save_tokenizer(tok, file)
    assert [p.name for p in file.parent.iterdir()] == ["tokenizer.json"]
    again = load_tokenizer(file.parent)
    texts = corpus(7, 20)
    ids = zip(encode(tok, texts, None, 64).ids, encode(again, texts, None, 64).ids, strict=True)
    assert all(np.array_equal(a, b) for a, b in ids)


def test_files_that_are_no_tokenizer(tok, tmp_path):
    with pytest.raises(KeftError, match="no such file"):
        load_tokenizer(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(KeftError, match=r"broken\.json: not a tokenizer"):
        load_tokenizer(broken)
    other = json.loads(tok.to_str())
    other["model"]["vocab"] = {"[UNK]": 0, "a": 1}
    other["added_tokens"] = []
    other["post_processor"] = None
    broken.write_text(json.dumps(other))
    with pytest.raises(KeftError, match=r"\[PAD\] \[CLS\]"):
        load_tokenizer(broken)


def test_a_published_tokenizer_does_not_cut_or_pad(tok, tmp_path):
    cutting = load_tokenizer(_saved(tok, tmp_path))
    cutting.enable_truncation(4)
    cutting.enable_padding(length=50)
    (ids,) = encode(load_tokenizer(_saved(cutting, tmp_path)), ["alpha " * 20], None, 64).ids
    assert len(ids) >= 22 and ids[-1] == 3


def _saved(tok, folder):
    save_tokenizer(tok, folder / "tokenizer.json")
    return folder / "tokenizer.json"
