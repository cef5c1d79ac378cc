"""Losses and metrics against plain NumPy and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from keft_jax.data.source import examples_from
from keft_jax.data.tokenize import Tokens
from keft_jax.kg.store import KG
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.kgqa import KGQA

NAMES = [f"e{i:02}" for i in range(60)]


NO_TOKENS = Tokens([], [], [], np.zeros(0, np.int32), np.zeros(0, bool))


@pytest.fixture(scope="module")
def task():
    return KGQA(KG.from_triples([(n, "next", NAMES[0]) for n in NAMES]), 0.5)


def ask(task, *answers):
    return task.targets(
        examples_from([{"question": "?", "answers": list(a)} for a in answers]), NO_TOKENS
    )


def test_rank_metrics_equal_plain_ones(task):
    rng = np.random.default_rng(0)
    answers = [rng.choice(NAMES, rng.integers(1, 45), replace=False) for _ in range(40)]
    logits = rng.normal(size=(40, 64)).astype(np.float32)  # 4 spare candidates
    logits[:, 60:] = -1e9
    rows = {k: np.asarray(v) for k, v in task.score(logits, ask(task, *answers)).items()}
    for i, gold in enumerate(answers):
        ids = [NAMES.index(a) for a in gold]
        wrong = np.setdiff1d(np.arange(64), ids)
        rank = 1 + (logits[i, wrong] > logits[i, ids].max()).sum()
        assert rows["hits@1"][i] == (rank == 1) == (logits[i].argmax() in ids)
        assert rows["mrr"][i] == pytest.approx(1 / rank)
        chosen = np.flatnonzero(logits[i] >= logits[i].max() + np.log(0.5))
        hit = len(set(chosen) & set(ids))
        precision, recall = hit / len(chosen), hit / len(ids)
        assert rows["precision"][i] == pytest.approx(precision)
        assert rows["recall"][i] == pytest.approx(recall)
        f1 = 2 * precision * recall / (precision + recall) if hit else 0
        assert rows["set_f1"][i] == pytest.approx(f1, abs=1e-6)


def test_ties_count_as_a_fair_pick(task):
    rows = task.score(np.zeros((1, 60), np.float32), ask(task, ["e00"]))
    # The constant model knows nothing, wherever argmax points.
    assert rows["hits@1"][0] == pytest.approx(1 / 60)
    assert rows["mrr"][0] == pytest.approx(1 / (1 + 59 / 2))
    several = np.zeros((1, 60), np.float32)
    several[0, :3] = 1  # three right answers on one level: a hit
    assert task.score(several, ask(task, NAMES[:3]))["hits@1"][0] == 1
    assert task.score(several, ask(task, NAMES[:2]))["hits@1"][0] == pytest.approx(2 / 3)
    several[0, 9] = 2  # a wrong one above them: a miss
    assert task.score(several, ask(task, NAMES[:3]))["hits@1"][0] == 0


def test_answers_outside_the_graph(task):
    """Weigh nothing in training and count as wrong in evaluation; recall divides by all."""
    target = ask(task, ["nowhere"], ["e03", "nowhere"])
    np.testing.assert_array_equal(target.weight, [0, 1])
    logits = np.zeros((2, 60), np.float32)
    logits[:, 3] = 9
    rows = task.score(logits, target)
    np.testing.assert_array_equal(rows["hits@1"], [0, 1])
    np.testing.assert_array_equal(rows["mrr"], [0, 1])
    np.testing.assert_allclose(rows["recall"], [0, 0.5])
    log_p = logits[1] - np.log(np.exp(logits[1]).sum())
    assert float(task.loss(logits, target)) == pytest.approx(-log_p[3], rel=1e-3)


def test_loss_is_the_mean_over_right_answers(task):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 60)).astype(np.float32)
    target = ask(task, ["e01", "e05", "e09"], ["e02"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(log_p[0, [1, 5, 9]].mean() + log_p[1, 2])
    assert float(task.loss(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_classification_summary_equals_scikit_learn():
    rng = np.random.default_rng(2)
    labels = ["a", "b", "c"]
    task = Classification(labels)
    gold = rng.choice(labels, 50)
    target = task.targets(examples_from([{"question": "?", "label": g} for g in gold]), NO_TOKENS)
    logits = rng.normal(size=(50, 3)).astype(np.float32)
    rows = {k: np.asarray(v) for k, v in task.score(logits, target).items()}
    scores = task.summarise(rows)
    said = np.array(labels)[logits.argmax(1)]
    assert scores["accuracy"] == pytest.approx((said == gold).mean())
    for name, function in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
    ):
        expected = function(gold, said, average="macro", zero_division=0)
        assert scores[name] == pytest.approx(expected)
