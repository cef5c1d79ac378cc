"""Batches made, and sent to the devices, while the steps before them run."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], numbers: Iterable[int], ahead: int = 2) -> Iterator[T]:
    """`make(number)` of each number in order, made by one thread, up to `ahead` of them before
    they are asked for.

    There is no state to save: whoever stops asks for the next number when it goes on. What `make`
    raises is raised where its result would have been given. The thread has ended when the iterator
    is exhausted, closed or dropped.
    """
    left = iter(numbers)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(make, number) for number in itertools.islice(left, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(make, number) for number in itertools.islice(left, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
