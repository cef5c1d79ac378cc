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
_DRAW, _EXAMPLES, _ORDER = range(3)


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


class BatchPlan:
    """Training batches without end.

    Args:
      lengths: int[examples], tokens of each example.
      batch_size: examples in every batch.
      buckets: rising text lengths; a batch is padded to one of them.
      seed: non-negative. Another seed draws other examples, in another order.
      draw: train on so many examples, drawn with the seed; the draw of a smaller number is part
        of that of a larger one. None or 0: all.
      strata: the class of each example; every draw then has the classes' shares of the whole.

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
    ) -> None:
        lengths = np.asarray(lengths)
        check(batch_size >= 1, "batch_size", batch_size, "use 1 or more")
        check(seed >= 0, "seed", seed, "use 0 or more")
        check(len(lengths) > 0, "examples", len(lengths), "there is nothing to train on")
        check(
            0 <= (draw or 0) <= len(lengths),
            "draw",
            draw,
            f"there are {len(lengths)} training examples; draw at most so many, or 0 for all",
        )
        self.batch_size, self.buckets, self.seed = batch_size, tuple(buckets), seed
        drawn = _permutation(len(lengths), seed, _DRAW)
        if strata is not None:
            drawn = drawn[_spread(np.asarray(strata)[drawn])]
        drawn = drawn[: draw or None]
        self.examples = np.sort(drawn).astype(np.int32)
        """int32[drawn], rising: the examples that the plan trains on."""
        bucket = assign_buckets(lengths[self.examples], self.buckets)
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
            turn = order[_permutation(len(order), self.seed, _ORDER, epoch), 0]
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
            found = members[_permutation(len(members), self.seed, _EXAMPLES, bucket, epoch)]
            for old in list(self._shuffled):
                if old[0] == bucket and abs(old[1] - epoch) > 1:
                    self._shuffled.pop(old, None)
            self._shuffled[key] = found
        return found


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
    """int64[n]: an order of which every beginning has the classes' shares of the whole."""
    number = np.unique(classes, return_inverse=True)[1]
    by_class = np.argsort(number, kind="stable")
    size = np.bincount(number)
    rank = np.empty(len(number))
    rank[by_class] = np.arange(len(number)) - np.repeat(np.cumsum(size) - size, size)
    return np.lexsort((number, (rank + 0.5) / size[number]))


def _permutation(size: int, seed: int, *stream: int) -> np.ndarray:
    """int64[size]. Sorts raw bits: unlike `Generator.permutation` these are the same in every
    release of numpy (NEP 19)."""
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(size)
    return np.argsort(bits, kind="stable")
