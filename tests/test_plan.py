"""The plan is a pure function of (seed, step): full batches, every example once an epoch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keft_jax.config import KeftError
from keft_jax.data.plan import BatchPlan, assign_buckets, eval_batches

BUCKETS = (16, 32, 64)


def lengths(size, seed=0):
    return np.random.default_rng(seed).integers(1, 65, size)


def same(a, b):
    return a[0] == b[0] and np.array_equal(a[1], b[1])


@pytest.mark.parametrize("size, batch", [(1000, 32), (257, 16), (64, 64), (10, 32), (1, 4), (7, 1)])
def test_each_example_once_an_epoch_in_full_batches(size, batch):
    plan = BatchPlan(lengths(size), batch, BUCKETS, seed=3)
    streams: dict[int, list[np.ndarray]] = {}
    for step in range(12 * size // batch + 12):
        bucket, indices = plan.batch(step)
        assert indices.shape == (batch,) and indices.dtype == np.int32
        assert (assign_buckets(lengths(size)[indices], BUCKETS) == BUCKETS.index(bucket)).all()
        streams.setdefault(bucket, []).append(indices)
    bucket_of = assign_buckets(lengths(size), BUCKETS)
    for bucket, parts in streams.items():
        members = np.flatnonzero(bucket_of == BUCKETS.index(bucket))
        stream = np.concatenate(parts)
        epochs = len(stream) // len(members)
        assert epochs >= 3
        for epoch in stream[: epochs * len(members)].reshape(epochs, -1):
            assert np.array_equal(np.sort(epoch), members)


def test_epochs_lie_one_after_another_and_hold_their_examples():
    sizes = lengths(1000)
    plan = BatchPlan(sizes, 32, BUCKETS, seed=1)
    epochs = [plan.epoch(step) for step in range(200)]
    assert epochs == sorted(epochs)
    for epoch in range(5):
        steps = range(plan.first_step(epoch), plan.first_step(epoch + 1))
        assert {plan.epoch(step) for step in steps} == {epoch}
        assert abs(len(steps) - 1000 / 32) < len(BUCKETS)


def test_an_epoch_of_full_batches_is_exact():
    plan = BatchPlan(np.full(96, 5), 32, (8,), seed=0)
    for epoch in range(4):
        steps = [plan.batch(3 * epoch + i)[1] for i in range(3)]
        assert np.array_equal(np.sort(np.concatenate(steps)), np.arange(96))


def test_a_step_does_not_depend_on_the_steps_before():
    forward = BatchPlan(lengths(500), 16, BUCKETS, seed=2)
    batches = [forward.batch(step) for step in range(150)]
    jumping = BatchPlan(lengths(500), 16, BUCKETS, seed=2)
    for step in np.random.default_rng(0).permutation(150):
        assert same(jumping.batch(int(step)), batches[step])
    far = BatchPlan(lengths(500), 16, BUCKETS, seed=2)
    assert same(far.batch(10**9), forward.batch(10**9))
    with ThreadPoolExecutor(8) as pool:
        plan = BatchPlan(lengths(500), 16, BUCKETS, seed=2)
        for step, found in enumerate(pool.map(plan.batch, range(150))):
            assert same(found, batches[step])


def test_the_order_is_shuffled_anew_by_epoch_and_seed():
    plans = [BatchPlan(np.full(320, 5), 32, (8,), seed=seed) for seed in (0, 1)]
    first, second = (np.concatenate([p.batch(i)[1] for i in range(10)]) for p in plans)
    later = np.concatenate([plans[0].batch(i)[1] for i in range(10, 20)])
    for a, b in ((first, second), (first, later), (first, np.arange(320))):
        assert (a == b).mean() < 0.1
    buckets = [BatchPlan(lengths(2000), 8, BUCKETS, seed=0).batch(i)[0] for i in range(60)]
    assert len(set(buckets[:20])) == 3  # buckets come mixed, not one after another


def test_the_order_is_the_one_it_always_was():
    plan = BatchPlan(np.arange(20) % 3 * 10 + 5, 4, (16, 32), seed=5)
    assert [plan.batch(i)[1].tolist() for i in range(3)] == [
        [18, 15, 4, 6],
        [3, 13, 0, 1],
        [17, 2, 11, 14],
    ]


def test_draws_are_nested_and_differ_by_seed():
    plans = {n: BatchPlan(lengths(400), 8, BUCKETS, 7, draw=n) for n in (10, 50, 399)}
    small, middle, large = (set(plans[n].examples.tolist()) for n in (10, 50, 399))
    assert (len(small), len(middle), len(large)) == (10, 50, 399)
    assert small < middle < large
    assert small != set(BatchPlan(lengths(400), 8, BUCKETS, 8, draw=10).examples.tolist())
    seen = {int(i) for step in range(40) for i in plans[10].batch(step)[1]}
    assert seen == small
    for everything in (None, 0, 400):
        assert len(BatchPlan(lengths(400), 8, BUCKETS, 7, draw=everything).examples) == 400


def test_a_small_draw_of_many_classes_is_of_all_of_them_in_turn():
    strata = np.arange(200) % 25
    drawn = [BatchPlan(np.full(200, 5), 4, (8,), s, 4, strata).examples for s in range(40)]
    classes = [set(strata[some]) for some in drawn]
    assert all(len(some) == 4 for some in classes)
    assert len(set().union(*classes)) == 25
    whole = BatchPlan(np.full(200, 5), 4, (8,), 0, 50, strata).examples
    assert (np.bincount(strata[whole]) == 2).all() and set(drawn[0]) < set(whole)


def test_examples_are_drawn_with_all_their_windows():
    owner = np.repeat(np.arange(60), np.arange(60) % 4 + 1)
    plans = [BatchPlan(lengths(len(owner)), 8, BUCKETS, 7, n, owner=owner) for n in (10, 20)]
    drawn = [set(owner[plan.examples]) for plan in plans]
    assert [len(some) for some in drawn] == [10, 20] and drawn[0] < drawn[1]
    for plan, some in zip(plans, drawn, strict=True):
        np.testing.assert_array_equal(plan.examples, np.flatnonzero(np.isin(owner, list(some))))
    with pytest.raises(KeftError, match="there are 60 training examples"):
        BatchPlan(lengths(len(owner)), 8, BUCKETS, 7, 61, owner=owner)


@pytest.mark.parametrize("size, batch", [(1000, 32), (5, 32), (32, 32), (0, 4)])
def test_evaluation_sees_each_example_once(size, batch):
    batches = eval_batches(lengths(size), batch, BUCKETS)
    assert all(indices.shape == (batch,) for _, indices in batches)
    real = np.concatenate([indices for _, indices in batches] or [np.array([], int)])
    assert np.array_equal(np.sort(real[real >= 0]), np.arange(size))
    for bucket, indices in batches:
        assert (lengths(size)[indices[indices >= 0]] <= bucket).all()
        assert (indices >= 0).any()
    assert (real < 0).sum() < len(BUCKETS) * batch


def test_what_cannot_be_planned():
    with pytest.raises(KeftError, match="example 2 has 70 tokens"):
        BatchPlan(np.array([5, 6, 70]), 2, BUCKETS, 0)
    with pytest.raises(KeftError, match="draw = 9"):
        BatchPlan(np.array([5, 6, 7]), 2, BUCKETS, 0, draw=9)
    with pytest.raises(KeftError, match="nothing to train on"):
        BatchPlan(np.array([], int), 2, BUCKETS, 0)
    with pytest.raises(KeftError, match="rising"):
        eval_batches(np.array([5]), 2, (32, 16))
