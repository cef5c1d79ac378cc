"""The bootstrap of metrics that are functions of sums, against one that draws examples."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from keft_jax.gain.bootstrap import Sample, _cluster_weights, draw
from keft_jax.gain.cells import Split
from keft_jax.gain.stats import Cell, summarise
from keft_jax.tasks.corpus import SCORES, Corpus, count_labels

N, LABELS, SEEDS = 150, 4, 5
COUNT = count_labels(LABELS)


@pytest.fixture(scope="module")
def answers():
    """gold int[n], cluster int[n], {row: {seed: int[n]}}"""
    rng = np.random.default_rng(0)
    gold = rng.choice(LABELS, N, p=(0.5, 0.3, 0.15, 0.05))
    cluster = np.sort(rng.integers(0, 60, N))
    said = {
        row: {
            s: np.where(rng.random(N) < p, gold, rng.integers(0, LABELS, N)) for s in range(SEEDS)
        }
        for row, p in (("none", 0.3), ("true", 0.6))
    }
    return gold, np.unique(cluster, return_inverse=True)[1], said


def counts(gold, said):
    return {
        row: {seed: COUNT({"gold": gold, "choice": choice}) for seed, choice in seeds.items()}
        for row, seeds in said.items()
    }


def test_every_draw_is_the_f1_of_its_examples(answers):
    gold, cluster, said = answers
    keep = np.arange(N) % 3 > 0
    samples = [
        Sample(counts(gold, said), cluster, part, SCORES["macro_f1"])
        for part in (np.ones(N, bool), keep)
    ]
    draw(samples, 22, np.random.default_rng(7))
    weights = next(_cluster_weights(cluster.max() + 1, 22, np.random.default_rng(7)))
    for sample, part in zip(samples, (np.ones(N, bool), keep), strict=True):
        for x, (row, seed) in enumerate(sample.columns):
            for b in range(0, 22, 7):
                often = weights[b][cluster].astype(int) * part
                again = np.repeat(np.arange(N), often)
                answered = said[row][seed]
                expected = f1_score(
                    gold[again],
                    answered[again],
                    labels=np.union1d(gold[part], answered[part]),
                    average="macro",
                    zero_division=0,
                )
                assert sample.draws_bx[b, x] == pytest.approx(expected, abs=1e-5)


def test_a_label_that_a_draw_may_lack_moves_no_interval():
    """One that stands in one text, which nobody gets right: a draw without it is no better."""
    gold = np.arange(60) % 2
    said = np.where(np.arange(60) % 5 > 0, gold, 1 - gold)
    gold[0] = 2
    values = {"true": {0: count_labels(3)({"gold": gold, "choice": said})}}
    sample = Sample(values, np.arange(60), np.ones(60, bool), SCORES["macro_f1"])
    draw([sample], 2_000, np.random.default_rng(0))
    point = f1_score(gold, said, average="macro")
    assert sample.estimate("true").mean == pytest.approx(point)
    assert sample.draws_bx.mean() == pytest.approx(point, abs=0.01)


def test_the_interval_is_that_of_a_slow_bootstrap(answers):
    gold, cluster, said = answers
    sample = Sample(counts(gold, said), cluster, np.ones(N, bool), SCORES["macro_f1"])
    draw([sample], 2_000, np.random.default_rng(1))
    got = sample.estimate("true", "none")

    def gain(seed, which):
        one, two = (
            f1_score(
                gold[which],
                said[row][seed][which],
                labels=range(LABELS),
                average="macro",
                zero_division=0,
            )
            for row in ("true", "none")
        )
        return one - two

    whole = [gain(seed, np.arange(N)) for seed in range(SEEDS)]
    assert got.values == pytest.approx(whole) and got.mean == pytest.approx(np.mean(whole))
    rng, slow = np.random.default_rng(3), []
    members = [np.flatnonzero(cluster == c) for c in range(cluster.max() + 1)]
    for _ in range(30):
        picked = np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))])
        seeds = rng.integers(0, SEEDS, SEEDS - 1)
        fixed = np.mean([gain(seed, picked) for seed in range(SEEDS)])
        slow.append(fixed + np.mean([whole[seed] for seed in seeds]) - np.mean(whole))
    half = np.ptp(got.interval) / 2
    assert half == pytest.approx(1.96 * np.std(slow), rel=0.25)
    # The jackknife sees the variance of the draws.
    seed_var, cluster_var = got.variance
    spread = (sample.draws_bx[:, SEEDS:] - sample.draws_bx[:, :SEEDS]).mean(1).std()
    assert np.sqrt(cluster_var / len(members)) == pytest.approx(spread, rel=0.15)
    assert seed_var >= 0


def test_a_mean_by_sums_has_the_interval_of_the_mean(answers):
    """Accuracy as a function of sums is accuracy."""
    gold, cluster, said = answers
    SCORES["accuracy"] = lambda sums, split: (
        sums[..., :LABELS].sum(-1) / sums[..., -LABELS:].sum(-1)
    )
    try:
        split = Split("test", cluster.astype(str), np.full(N, ""), {"half": np.arange(N) < 75})
        cells = [
            [
                Cell(row, seed, {"test": {"m": values}})
                for row, seeds in said.items()
                for seed, choice in seeds.items()
                for values in [
                    COUNT({"gold": gold, "choice": choice})
                    if by_sums
                    else (gold == choice).astype(np.float32)
                ]
            ]
            for by_sums in (False, True)
        ]
        mean, sums = (
            summarise(some, [split], "m", task="t", score=score, draws=500)
            for some, score in zip(cells, ("", "accuracy"), strict=True)
        )
    finally:
        del SCORES["accuracy"]
    for part in ((), ("slices", "half")):
        one, two = mean, sums
        for key in part:
            one, two = one[key], two[key]
        assert two["gain"]["mean"] == pytest.approx(one["gain"]["mean"])
        assert two["gain"]["interval"] == pytest.approx(one["gain"]["interval"], abs=2e-3)
    assert mean["kind"] == sums["kind"]
    rows = {"gold": gold, "choice": said["true"][0]}
    macro = Corpus(COUNT, "macro_f1")(rows)
    assert macro == pytest.approx(f1_score(gold, said["true"][0], average="macro"))


def test_equal_answers_keep_the_rule_of_three_beside_a_row_below_zero(answers):
    gold, cluster, said = answers
    gold, cluster = gold % 2, cluster % 30
    two = {row: {seed: choice % 2 for seed, choice in said[row].items()} for row in said}
    two |= {"none": two["true"], "linear": {seed: 1 - c for seed, c in two["true"].items()}}
    values = {
        row: {seed: count_labels(2)({"gold": gold, "choice": choice}) for seed, choice in s.items()}
        for row, s in two.items()
    }
    sample = Sample(values, cluster, np.ones(N, bool), SCORES["matthews"])
    draw([sample], 500, np.random.default_rng(0))
    assert sample.estimate("linear").mean < 0
    assert sample.estimate("true", "none").interval == pytest.approx((-0.1, 0.1))
    low, high = sample.estimate("true", "linear").interval
    assert 0 < low < high <= 2


def test_a_row_more_moves_no_interval_of_the_others(answers):
    gold, cluster, said = answers
    found = []
    for rows in (said, {"untyped": said["none"], **said}):
        sample = Sample(counts(gold, rows), cluster, np.ones(N, bool), SCORES["macro_f1"])
        draw([sample], 500, np.random.default_rng(0))
        found.append(sample.estimate("true", "none"))
    assert found[0] == found[1]
