"""Dropout's masks: the share asked for, and nothing that tells one element, key or part from
another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keft_jax.models.layers import dropout, random_words

SHAPE = (8, 4, 64, 64)
SIZE = int(np.prod(SHAPE))
FAR = 4.5 / np.sqrt(SIZE)  # standard deviations of a correlation


def bits(number: int) -> np.ndarray:
    """[32, elements] of a key: -1 or 1."""
    words = np.asarray(random_words(jax.random.fold_in(jax.random.key(7), number), SHAPE)).ravel()
    return 2.0 * ((words >> np.arange(32, dtype=np.uint32)[:, None]) & 1) - 1


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_scale(rate):
    y = np.asarray(dropout(jnp.ones(SHAPE), rate, jax.random.key(1)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert (y == 0).mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / SIZE))


def test_bits_are_even_and_unlike_their_neighbours():
    own = bits(0)
    assert np.abs(own.mean(1)).max() < FAR
    assert np.abs(own @ own.T / SIZE - np.eye(32)).max() < FAR
    for lag in (1, 2, 64, 64 * 64, 4 * 64 * 64):  # along each axis
        assert np.abs((own[:, lag:] * own[:, :-lag]).mean(1)).max() < FAR * 1.2


def test_keys_give_masks_that_have_nothing_in_common():
    first = bits(0)
    for other in range(1, 5):
        assert np.abs((first * bits(other)).mean(1)).max() < FAR


def test_the_same_key_gives_the_same_mask_in_any_dtype_and_compiled():
    key, x = jax.random.key(3), jnp.ones((5, 7))
    zeros = np.asarray(dropout(x, 0.3, key) == 0)
    assert (zeros == np.asarray(dropout(x.astype(jnp.bfloat16), 0.3, key) == 0)).all()
    assert (zeros == np.asarray(jax.jit(dropout, static_argnums=1)(x, 0.3, key) == 0)).all()
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, key) is x
