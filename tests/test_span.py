"""SQuAD's metrics against the rules of its published script, and windows of long texts."""

import collections
import itertools
import random
import re
import string
from types import SimpleNamespace

import numpy as np
import pytest

from keft_jax.config import DataConfig, KeftError, TaskConfig
from keft_jax.data.source import examples_from
from keft_jax.data.tokenize import encode, train_wordpiece
from keft_jax.tasks import squad
from keft_jax.tasks.span import SpanAnswering, cut_windows


# The rules, as SQuAD 2.0's evaluation script has them.
def normalize_answer(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", s).split())


def get_tokens(s):
    return normalize_answer(s).split() if s else []


def compute_f1(a_gold, a_pred):
    gold, pred = get_tokens(a_gold), get_tokens(a_pred)
    num_same = sum((collections.Counter(gold) & collections.Counter(pred)).values())
    if len(gold) == 0 or len(pred) == 0:
        return int(gold == pred)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred), num_same / len(gold)
    return 2 * precision * recall / (precision + recall)


def get_raw_scores(golds, said):
    gold_answers = [a for a in golds if normalize_answer(a)] or [""]
    exact = max(int(normalize_answer(a) == normalize_answer(said)) for a in gold_answers)
    return exact, max(compute_f1(a, said) for a in gold_answers)


def find_best_thresh(values, margins, has_answer):
    score = best = sum(not has for has in has_answer)
    threshold = 0.0
    for i in sorted(range(len(margins)), key=lambda i: margins[i]):
        score += values[i] if has_answer[i] else -1
        if score > best:
            best, threshold = score, margins[i]
    return best / len(margins), threshold


ODD = [
    *("", " ", "the", "The", "a an the", "A.", "an", "a-n", "'the'", "the a", "theatre", "a b"),
    *("U.S.", "US", "u s", "$5", "5", "5.0", "50", "1,000", "1000", "100%", "-3", "−3"),
    *("naïve", "naive", "nai\u0308ve", "İstanbul", "istanbul", "STRASSE", "straße", "ΑΣ", "ας"),
    *("東京", "東 京", "東京。", "…", "“quoted”", '"quoted"', "quoted", "—", "–", "-", "!!!", "?"),
    *("New\u00a0York", "New York", "new  york", "New\tYork\n", "the New York", "New York, the"),
    *("a\u200bb", "the\u00a0cat", "cat", "the cat sat", "cat cat sat", "sat the the cat", "Cat's"),
    *("cats", "rock-n-roll", "rock n roll", "rocknroll", "'", "''", "A", "b c a b", "c b", "b"),
]


def test_200_odd_cases_by_the_official_rules():
    rng = random.Random(0)
    cases = [([gold], said) for gold, said in zip(ODD, [*ODD[1:], ODD[0]], strict=True)]
    cases += [([gold], gold) for gold in ODD]
    while len(cases) < 260:
        golds = rng.choices(ODD, k=rng.randrange(5))
        pick = rng.random()
        said = rng.choice(ODD) if pick < 0.6 or not golds else rng.choice(golds)
        cases.append((golds, said if pick < 0.8 else f" the {said.upper()}. "))
    scores = []
    for golds, said in cases:
        answers = squad.rightful(golds)
        found = squad.exact(said, answers), squad.f1(said, answers)
        assert found == pytest.approx(get_raw_scores(golds, said)), (golds, said)
        scores.append(found)
    ones = np.array(scores).sum(0)
    assert (ones > 60).all() and (ones < len(cases) - 60).all()  # neither all right nor all wrong


def test_the_best_threshold_by_the_official_rules():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        for _ in range(10):
            margin, value = rng.normal(size=size), rng.random(size)
            has = rng.random(size) < 0.6
            expected = find_best_thresh(value, margin, has)
            score, threshold = squad.best_threshold(margin, value, has)
            assert score == pytest.approx(expected[0])
            reached = np.where(margin > threshold, ~has, has * value).mean()
            assert reached == pytest.approx(score)
            if (margin <= threshold).any():
                assert threshold == pytest.approx(expected[1])


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["one two three four five six seven who ? , ."] * 3, 90)


def ask(context, question="who ?", *answers):
    spans = [[context.index(a), a] for a in answers]
    record = {"context": context, "question": question, "answers": spans}
    data = DataConfig(text="context", pair="question", answer_spans="answers")
    return examples_from([record], data)[0]


@pytest.mark.parametrize(("room", "stride"), [(5, 1), (5, 3), (9, 4), (9, 100), (40, 8)])
def test_windows_cover_the_text_with_whole_words(room, stride):
    rng = random.Random(room)
    for _ in range(40):
        words = [w for w in range(rng.randrange(1, 30)) for _ in range(rng.randrange(1, 5))]
        windows = list(cut_windows(words, room, stride))
        assert windows[0][0] == 0 and windows[-1][1] == len(words)
        for (a, b), (c, d) in itertools.pairwise(windows):
            assert a < c <= b <= d  # no gap
            assert c - a <= max(stride, 4)  # or by one word
        for a, b in windows:
            assert 0 < b - a <= room
            assert (a == 0 or words[a] != words[a - 1]) and (
                b == len(words) or words[b] != words[b - 1]
            )
    assert list(cut_windows([0] * 9 + [1], 4, 2)) == [(0, 4), (9, 10)]  # a word too long


def test_windows_keep_the_question_and_places(tokenizer):
    context = "  ".join(["one", "two,", "three", "four", "five", "six", "seven."] * 4)
    example = examples_from(
        [
            {
                "context": context,
                "question": "who ? who",
                "answers": [[context.rindex("six"), "six"]],
            }
        ],
        DataConfig(text="context", pair="question", answer_spans="answers"),
    )[0]
    longest = 24
    task = SpanAnswering(tokenizer, longest, TaskConfig(stride=6))
    rows, owner = task.rows([example, ask("one", "who")])
    assert list(owner) == [0] * (len(rows) - 1) + [1] and len(rows) > 3
    tokens = encode(tokenizer, [r.text for r in rows], [r.pair for r in rows], longest)
    assert not tokens.cut.any()
    target = task.targets(rows, tokens)
    asked = tokenizer.encode("who ? who", add_special_tokens=False).ids
    answered = 0
    for i, row in enumerate(rows[:-1]):
        assert list(tokens.ids[i][tokens.types[i] == 1][:-1]) == asked
        start = row.pieces[0][1]
        assert context[start : start + len(row.text)] == row.text and row.origin(0) == start
        for piece, (a, b) in zip(tokens.ids[i], target.offsets[i], strict=False):
            if b > a:  # characters are those of the whole context
                shown = tokenizer.id_to_token(int(piece)).removeprefix("##")
                assert context[a:b].lower() == shown
        if target.start[i]:
            answered += 1
            at = target.offsets[i]
            assert context[at[target.start[i], 0] : at[target.end[i], 1]] == "six"
    assert 1 <= answered < len(rows) - 1 and target.weight.all()
    with pytest.raises(KeftError, match=r"^input:1: a question of 22 tokens leaves -1 of 24"):
        task.rows([ask("one", "who ? " * 11)])


def test_the_best_window_answers(tokenizer):
    context = " ".join(["one", "two", "three", "four", "five", "six", "seven"] * 3)
    examples = [ask(context, "who ?", "three four"), ask("one two", "who ?")]
    task = SpanAnswering(tokenizer, 16, TaskConfig(stride=5, answer_length=4))
    rows, owner = task.rows(examples)
    tokens = encode(tokenizer, [r.text for r in rows], [r.pair for r in rows], 16)
    target = task.targets(rows, tokens)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(rows), 2, 16)).astype(np.float32)
    inside = (target.offsets[..., 1] > target.offsets[..., 0]) | (np.arange(16) == 0)
    logits = np.where(inside[:, None], logits, -1e9)
    # By hand: all pairs of all windows of a question, and its lowest score of no answer.
    dataset = SimpleNamespace(examples=examples, owner=owner)
    found = {k: np.asarray(v) for k, v in task.guess(logits, target).items()}
    merged = task.merge(found, dataset)
    for n, example in enumerate(examples):
        windows = np.flatnonzero(owner == n)
        best = max(
            (logits[w, 0, i] + logits[w, 1, j], target.offsets[w, i, 0], target.offsets[w, j, 1])
            for w in windows
            for i in range(1, 16)
            for j in range(i, min(i + 4, 16))
            if inside[w, i] and inside[w, j]
        )
        null = min(logits[w, :, 0].sum() for w in windows)
        assert merged["margin"][n] == pytest.approx(null - best[0], rel=1e-5)
        text = "" if null > best[0] else example.text[best[1] : best[2]]
        assert merged["choice"][n] == text
        said = get_raw_scores(list(example.answers), text)
        assert (merged["exact"][n], merged["f1"][n]) == pytest.approx(said)
    for margin, none in ((merged["margin"].max() + 1, False), (merged["margin"].min() - 1, True)):
        config = TaskConfig(stride=5, answer_length=4, no_answer_threshold=float(margin))
        other = SpanAnswering(tokenizer, 16, config)
        assert all((text == "") == none for text in other.merge(found, dataset)["choice"])
        for record, example in zip(other.answers(found, dataset, 3), examples, strict=True):
            assert record["answer"] == record["answers"][0][0]
            assert (record["span"] is None) == none == (record["answer"] == "")
            if not none:
                assert example.text[slice(*record["span"])] == record["answer"]
    scores = task.summarise(merged)
    assert scores["exact"] == np.mean(merged["exact"])
    assert scores["HasAns_f1"] == merged["f1"][0] and scores["NoAns_f1"] == merged["f1"][1]
    assert scores["best_f1"] >= scores["f1"]
    only = task.summarise({k: v[:1] for k, v in merged.items()})
    assert set(only) == {"f1", "exact", "HasAns_exact", "HasAns_f1"}
