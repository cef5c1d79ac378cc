"""Metrics of sums over a split, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from keft_jax.tasks.anchors import EntityTyping, RelationClassification
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.corpus import SCORES


@pytest.mark.parametrize(("labels", "n"), [(2, 40), (5, 60), (9, 20), (4, 1)])
def test_single_labels_equal_scikit_learn(labels, n):
    rng = np.random.default_rng(labels)
    names = ["Other", *(f"r{i}" for i in range(labels - 1))]
    gold, said = rng.integers(0, labels, (2, n))
    if labels > 4:
        gold[gold == 3] = said[said == 3] = 2  # a label that never occurs
        gold[gold == 1] = 2  # one that is only answered
    rows = {"gold": gold, "choice": said, "accuracy": (gold == said).astype(np.float32)}
    got = RelationClassification(names).summarise(rows)
    macro = {"average": "macro", "zero_division": 0}
    assert got["accuracy"] == pytest.approx((gold == said).mean())
    assert got["precision"] == pytest.approx(metrics.precision_score(gold, said, **macro))
    assert got["recall"] == pytest.approx(metrics.recall_score(gold, said, **macro))
    assert got["f1"] == pytest.approx(metrics.f1_score(gold, said, **macro))
    assert got["matthews"] == pytest.approx(metrics.matthews_corrcoef(gold, said))
    named = sorted({*gold.tolist(), *said.tolist()} - {0})
    expected = metrics.f1_score(gold, said, labels=named, **macro) if named else 0
    assert got["f1_named"] == pytest.approx(expected)
    assert "f1_named" not in Classification(names[1:]).corpus


def test_sets_equal_scikit_learn():
    rng = np.random.default_rng(0)
    gold, said = rng.random((2, 30, 6)) < 0.3
    gold[~gold.any(1), 0] = True
    hit, said_n, gold_n = (gold & said).sum(1), said.sum(1), gold.sum(1)
    each = 2 * hit / (said_n + gold_n)
    rows = {"hit": hit, "said": said_n, "gold": gold_n, "f1": each, "accuracy": each == 1}
    got = EntityTyping([f"t{i}" for i in range(6)]).summarise(rows)
    assert got["f1"] == pytest.approx(metrics.f1_score(gold, said, average="samples"))
    assert got["micro_f1"] == pytest.approx(metrics.f1_score(gold, said, average="micro"))
    precision = (hit / np.maximum(said_n, 1))[said_n > 0].mean()
    recall = (hit / gold_n).mean()
    assert got["macro_f1"] == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("score", SCORES)
def test_no_count_is_no_error_and_many_sums_are_scored_at_once(score):
    sums = np.zeros((3, 2, 12))
    rng = np.random.default_rng(1)
    sums[1] = rng.integers(1, 9, (2, 12))
    got = SCORES[score](sums, sums)
    assert got.shape == (3, 2) and np.isfinite(got).all() and not got[0].any()
    np.testing.assert_array_equal(got[1, 1], SCORES[score](sums[1, 1], sums[1, 1]))
