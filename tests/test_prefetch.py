"""Made ahead by a thread, in order, and never more than asked for."""

import threading
import time

import pytest

from keft_jax.data.prefetch import prefetch


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_in_order_and_so_many_ahead():
    made = []

    def make(number):
        made.append(number)
        return number**2

    results = prefetch(make, range(3, 9), ahead=2)
    assert made == []
    assert next(results) == 9
    wait_for(lambda: made == [3, 4, 5])
    time.sleep(0.01)
    assert made == [3, 4, 5] and len(threads()) == 1
    assert list(results) == [16, 25, 36, 49, 64]
    assert made == [3, 4, 5, 6, 7, 8] and threads() == []
    assert list(prefetch(make, [], ahead=2)) == []


def test_an_error_comes_in_the_place_of_its_result():
    def make(number):
        if number == 2:
            raise ValueError("line 7 of train.tsv")
        return number

    results = prefetch(make, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="line 7"):
        next(results)
    assert threads() == []


def test_whoever_leaves_ends_the_thread():
    for number in prefetch(lambda n: n, range(100)):
        if number == 3:
            break
    assert threads() == []
    results = prefetch(lambda n: n, range(100))
    next(results)
    results.close()
    assert threads() == []
