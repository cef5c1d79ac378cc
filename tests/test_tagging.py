"""Entities and their metrics against seqeval, and words against tokens."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from keft_jax.config import DataConfig, KeftError
from keft_jax.data.source import examples_from
from keft_jax.data.tokenize import encode, train_wordpiece
from keft_jax.tasks.tagging import Tagging, find_entities

CASES = json.loads((Path(__file__).parent / "goldens" / "seqeval.json").read_text())
LONGEST = 16


def read(sentences):
    """Examples of words w0, w1, ... with these tags."""
    records = [{"text": [f"w{i}" for i in range(len(tags))], "tags": tags} for tags in sentences]
    return examples_from(records, DataConfig(text="text", tags="tags"))


def score(task, examples, said):
    """Metrics where every word is read and tagged so."""
    tag, word = np.zeros((2, len(examples), LONGEST), np.int32)
    word -= 1
    for i, tags in enumerate(said):
        tag[i, 1 : len(tags) + 1] = [task.choices.index(name) for name in tags]
        word[i, 1 : len(tags) + 1] = np.arange(len(tags))
    rows = {"tag": tag, "word": word, "p": np.full(tag.shape, 0.5)}
    return task.merge(rows, SimpleNamespace(examples=examples))


@pytest.mark.parametrize("part", range(3))
def test_equal_to_seqeval(part):
    for case in CASES[part::3]:
        gold, said = ([line.split() for line in case[key]] for key in ("gold", "said"))
        assert [[list(e) for e in find_entities(tags)] for tags in said] == case["entities"]
        labels = sorted({tag for tags in (*gold, *said) for tag in tags})
        task = Tagging(labels, LONGEST)
        scores = task.summarise(score(task, read(gold), said))
        for metric in ("precision", "recall", "f1", "accuracy"):
            assert scores[metric] == pytest.approx(case[metric]), (metric, gold, said)


def test_other_spellings_of_schemes():
    bioes = ["S-A", "B-A", "I-A", "E-A", "O", "B-B", "E-B"]
    bilou = ["U-A", "B-A", "I-A", "L-A", "O", "B-B", "L-B"]
    assert find_entities(bioes) == find_entities(bilou) == [(0, 1, "A"), (1, 4, "A"), (5, 7, "B")]
    plain = ["person-actor", "person-actor", "O", "art"]  # types without a prefix
    assert find_entities(plain) == [(0, 2, "person-actor"), (3, 4, "art")]
    iob1 = ["I-A", "B-A", "I-A", "O", "I-B"]
    assert find_entities(iob1) == [(0, 1, "A"), (1, 3, "A"), (4, 5, "B")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["Marie Curie moved to Paris . unbelievably"] * 3, 80)


def test_labels_stand_at_first_pieces_and_cut_words_are_missed(tokenizer):
    tokens = ["Marie", "Zzyzx", "", *["to"] * 5, "Paris"]
    record = {"text": tokens, "tags": ["B-P", "I-P", *["O"] * 6, "B-L"]}
    examples = examples_from([record], DataConfig(text="text", tags="tags"))
    task = Tagging(["B-L", "B-P", "I-P", "O"], LONGEST)
    whole = encode(tokenizer, [examples[0].text], None, LONGEST)
    read = [0, 1, 3, 4, 5, 6, 7, 8]  # the empty token has no piece
    at = whole.spans(0, [examples[0].tags[w][:2] for w in read])[:, 0]
    target = task.targets(examples, whole)
    assert list(np.flatnonzero(target.weight[0])) == list(at)
    assert list(target.word[0, at]) == read
    tags = ["B-P", "I-P", *["O"] * 5, "B-L"]
    assert [task.choices[k] for k in target.label[0, at]] == tags

    cut = encode(tokenizer, [examples[0].text], None, int(at[-1]) + 1)  # Paris is behind the end
    target = task.targets(examples, cut)
    assert list(target.word[0, at]) == [*read[:-1], -1]
    # The right tag everywhere is not enough.
    rows = {"tag": target.label, "word": target.word, "p": np.ones(target.label.shape)}
    found = task.merge(rows, SimpleNamespace(examples=examples))
    assert (found["hit"][0], found["said"][0], found["gold"][0]) == (1, 1, 2)
    assert (found["right"][0], found["words"][0]) == (7, 9)
    (record,) = task.answers(rows, SimpleNamespace(examples=examples), 5)
    assert record == {"entities": [[0, 11, "P", 1.0]], "unread": 2}
    assert task.said(found) == ["Marie Zzyzx (P)"]


def test_loss_is_that_of_the_words(tokenizer):
    examples = read([["O", "B-P"], ["O"]])
    task = Tagging(["B-P", "O"], LONGEST)
    target = task.targets(examples, encode(tokenizer, [e.text for e in examples], None, LONGEST))
    logits = np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)  # a short bucket
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -sum(log_p[i, t, target.label[i, t]] for i, t in np.argwhere(target.weight))
    assert float(task.loss(logits, target)) == pytest.approx(expected, rel=1e-5)
    assert target.weight.sum() == 3
    assert task.guess(logits, target)["tag"].shape == (2, LONGEST)


def test_an_unknown_tag_has_its_place(tokenizer):
    with pytest.raises(KeftError, match=r"^input:1: tag 'B-X' never occurs in training \(O\)"):
        Tagging(["O"], LONGEST).targets(read([["B-X"]]), encode(tokenizer, ["w0"], None, LONGEST))
