"""The batch plan: which examples make up which step, a pure function of (seed, step).

There is no state to save: the position in the data is the step number, so a resumed run, another
number of hosts and a look at any single step all see the same batches.

Each bucket (a padded text length) is an endless stream: the permutation of its examples of epoch
0, then of epoch 1, and so on. Batches are cut from the stream one after another, so every batch is
full and of one bucket, and each example comes exactly once per epoch of its stream. What is left
of an epoch after its last full batch is carried over into the first batch of the next one (which
may therefore hold an example twice). A bucket's batch belongs to the epoch in which its last
example lies; the batches of one epoch are shuffled among the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keft_jax.config import KeftError, check

# What a stream of random numbers is for, so that no two uses share one.
DRAW, EXAMPLES, ORDER, UNLABELLED, LEFT = range(5)


def assign_buckets(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """int64[examples]: for each length the first bucket that holds it. Raises KeftError where
    none does."""
    check(
        len(buckets) >= 1 and list(buckets) == sorted(set(buckets)),
        "buckets",
        tuple(buckets),
        "give rising lengths",
    )
    bucket = np.searchsorted(np.asarray(buckets), lengths)
    if len(lengths) and bucket.max() == len(buckets):
        worst = int(np.argmax(lengths))
        raise KeftError(
            f"example {worst} has {lengths[worst]} tokens and the longest bucket {buckets[-1]};"
            " raise data.buckets, or cut texts to it when they are encoded"
        )
    return bucket


class Plan:
    """What all plans of training share: the units that are trained on, and random numbers."""

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        draw: int | None,
        strata: np.ndarray | None,
        stream: tuple[int, ...] = (),
        owner: np.ndarray | None = None,
    ) -> None:
        owner = np.arange(len(lengths)) if owner is None else np.asarray(owner)
        check(batch_size >= 1, "batch_size", batch_size, "use 1 or more")
        check(seed >= 0, "seed", seed, "use 0 or more")
        check(len(lengths) > 0, "examples", len(lengths), "there is nothing to train on")
        count = int(owner.max()) + 1
        check(
            0 <= (draw or 0) <= count,
            "draw",
            draw,
            f"there are {count} training examples; draw at most so many, or 0 for all",
        )
        self.batch_size, self.seed, self._stream = batch_size, seed, stream
        drawn = self._permutation(count, DRAW)
        if strata is not None:
            drawn = drawn[_spread(np.asarray(strata)[drawn])]
        of_draw = np.isin(owner, drawn[: draw or None])
        self.examples = np.flatnonzero(of_draw).astype(np.int32)
        """int32[drawn], rising: the units that the plan trains on."""

    def _bits(self, size: int, *purpose: int) -> np.ndarray:
        return random_bits(size, self.seed, *self._stream, *purpose)

    def _permutation(self, size: int, *purpose: int) -> np.ndarray:
        return np.argsort(self._bits(size, *purpose), kind="stable")


class BatchPlan(Plan):
    """Training batches without end.

    Args:
      lengths: int[units], tokens of each unit: an example, or a window of a long one.
      batch_size: units in every batch.
      buckets: rising text lengths; a batch is padded to one of them.
      seed: non-negative. Another seed draws other examples, in another order.
      draw: train on so many examples, drawn with the seed, with all their units; the draw of a
        smaller number is part of that of a larger one. None or 0: all.
      strata: the class of each example; every draw then has the classes' shares of the whole.
      stream: what this plan is for, so that its order is independent of another's of that seed.
      owner: int[units], the example of each, every one from 0 on. None: each is one.

    Raises:
      KeftError: no examples, more drawn than there are, or one longer than every bucket.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        buckets: Sequence[int],
        seed: int,
        draw: int | None = None,
        strata: np.ndarray | None = None,
        stream: tuple[int, ...] = (),
        owner: np.ndarray | None = None,
    ) -> None:
        super().__init__(lengths, batch_size, seed, draw, strata, stream, owner)
        self.buckets = tuple(buckets)
        bucket = assign_buckets(np.asarray(lengths)[self.examples], self.buckets)
        self._members = [self.examples[bucket == b] for b in range(len(self.buckets))]
        self._ordered: tuple[int, np.ndarray] | None = None
        self._shuffled: dict[tuple[int, int], np.ndarray] = {}

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(padded length, int32[batch_size] examples) of a step from 0 on."""
        check(step >= 0, "step", step, "use 0 or more")
        epoch = self.epoch(step)
        bucket, number = self._order(epoch)[step - self.first_step(epoch)]
        return self.buckets[bucket], self._slice(int(bucket), int(number))

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to."""
        low, high = 0, (step + len(self.buckets)) * self.batch_size // len(self.examples) + 1
        while low < high:  # the last epoch that begins at this step or before it
            middle = (low + high + 1) // 2
            if self.first_step(middle) <= step:
                low = middle
            else:
                high = middle - 1
        return low

    def first_step(self, epoch: int) -> int:
        """Steps that lie before an epoch."""
        return sum(self._batches_before(b, epoch) for b in range(len(self.buckets)))

    def _batches_before(self, bucket: int, epoch: int) -> int:
        return epoch * len(self._members[bucket]) // self.batch_size

    def _order(self, epoch: int) -> np.ndarray:
        """int64[batches of the epoch, 2]: bucket of each, and its number in the bucket's stream.
        The last one asked for is kept, as one tuple: threads may ask for two at once."""
        kept = self._ordered
        if kept is None or kept[0] != epoch:
            bounds = [
                (self._batches_before(b, epoch), self._batches_before(b, epoch + 1))
                for b in range(len(self.buckets))
            ]
            pairs = [(b, n) for b, (start, stop) in enumerate(bounds) for n in range(start, stop)]
            order = np.array(pairs, np.int64).reshape(-1, 2)
            # Which bucket comes when is shuffled; within a bucket the stream keeps its order.
            turn = order[self._permutation(len(order), ORDER, epoch), 0]
            order = order[np.argsort(np.argsort(turn, kind="stable"))]
            kept = self._ordered = (epoch, order)
        return kept[1]

    def _slice(self, bucket: int, number: int) -> np.ndarray:
        """Batch `number` of a bucket's stream."""
        size = len(self._members[bucket])
        position, stop = number * self.batch_size, (number + 1) * self.batch_size
        parts = []
        while position < stop:
            epoch, at = divmod(position, size)
            part = self._epoch_of(bucket, epoch)[at : at + stop - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def _epoch_of(self, bucket: int, epoch: int) -> np.ndarray:
        """The bucket's examples in the order of an epoch. Kept for the last epochs asked for;
        threads may ask at once, since what is kept depends on the key alone."""
        key = (bucket, epoch)
        found = self._shuffled.get(key)
        if found is None:
            members = self._members[bucket]
            found = members[self._permutation(len(members), EXAMPLES, bucket, epoch)]
            for old in list(self._shuffled):
                if old[0] == bucket and abs(old[1] - epoch) > 1:
                    self._shuffled.pop(old, None)
            self._shuffled[key] = found
        return found


class MixedPlan:
    """Batches of labelled examples, each with unlabelled ones behind them: two plans of their own
    buckets and epochs. A batch is padded to the longer of its two lengths, so that both streams
    hold each of their examples once an epoch; there are no more lengths than buckets.

    Args:
      labelled, unlabelled: plans of independent streams.
      numbers: int[examples of the second plan], by what number a batch knows each.
    """

    def __init__(self, labelled: BatchPlan, unlabelled: BatchPlan, numbers: np.ndarray) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self._numbers = np.asarray(numbers, np.int32)
        self.examples = labelled.examples
        """int32[drawn], rising: the examples that are trained on with their labels."""

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(padded length, int32[labelled + unlabelled]) of a step from 0 on."""
        first, labelled = self.labelled.batch(step)
        second, unlabelled = self.unlabelled.batch(step)
        return max(first, second), np.concatenate([labelled, self._numbers[unlabelled]])


def eval_batches(
    lengths: np.ndarray, batch_size: int, buckets: Sequence[int]
) -> list[tuple[int, np.ndarray]]:
    """(padded length, int32[batch_size] examples, -1 = pad) with each example exactly once, bucket
    by bucket in rising order."""
    check(batch_size >= 1, "batch_size", batch_size, "use 1 or more")
    bucket = assign_buckets(np.asarray(lengths), buckets)
    batches = []
    for b, length in enumerate(buckets):
        members = np.flatnonzero(bucket == b).astype(np.int32)
        members = np.pad(members, (0, -len(members) % batch_size), constant_values=-1)
        batches += [(length, row) for row in members.reshape(-1, batch_size)]
    return batches


def _spread(classes: np.ndarray) -> np.ndarray:
    """int64[n]: an order of which every beginning has the classes' shares of the whole. Of classes
    that are due alike the one goes first whose example does here."""
    number = np.unique(classes, return_inverse=True)[1]
    by_class = np.argsort(number, kind="stable")
    size = np.bincount(number)
    rank = np.empty(len(number))
    rank[by_class] = np.arange(len(number)) - np.repeat(np.cumsum(size) - size, size)
    return np.argsort((rank + 0.5) / size[number], kind="stable")


def random_bits(size: int, seed: int, *stream: int) -> np.ndarray:
    """uint64[size] of a stream. Raw bits: unlike what is drawn by a `Generator` these are the same
    in every release of numpy (NEP 19)."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(size)
