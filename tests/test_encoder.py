"""The encoder against BERT written out in NumPy, float64, from the paper's formulas."""

import jax
import numpy as np
import pytest
from scipy.special import erf

from keft_jax.config import EncoderConfig
from keft_jax.models.encoder import Encoder
from keft_jax.models.functional import Model

CONFIG = EncoderConfig(layers=2, width=24, heads=3, mlp=40, max_length=16, dropout=0.1)


def norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * p["scale"] + p["bias"]


def bert(params, tokens, types, mask):
    p = params["embed"]
    x = p["word"][tokens] + p["position"][: tokens.shape[1]] + p["type"][types]
    x = norm(x, p["norm"])
    for i in range(CONFIG.layers):
        p = params["blocks"][str(i)]
        q, k, v = (
            np.einsum("bld,dhk->bhlk", x, p["attention"]["qkv"]["kernel"][:, j])
            + p["attention"]["qkv"]["bias"][j][None, :, None]
            for j in range(3)
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(CONFIG.width / CONFIG.heads)
        scores = np.where(mask[:, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads = (weights @ v).swapaxes(1, 2).reshape(x.shape)
        out = p["attention"]["out"]
        x = norm(x + heads @ out["kernel"] + out["bias"], p["attention_norm"])
        hidden = x @ p["up"]["kernel"] + p["up"]["bias"]
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        x = norm(x + hidden @ p["down"]["kernel"] + p["down"]["bias"], p["mlp_norm"])
    return x


@pytest.fixture(scope="module")
def made():
    model = Model(Encoder(CONFIG, vocab=50))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype("f"), model.abstract())
    tokens = rng.integers(0, 50, (3, 12)).astype(np.int32)
    types = (np.arange(12) > 6).astype(np.int32)[None].repeat(3, 0)
    mask = np.arange(12) < np.array([[12], [7], [3]])
    return model, params, tokens, types, mask


class Run:
    """The encoder's two calls as one."""

    def __init__(self, model):
        self.model = model

    def __call__(self, params, tokens, types, mask, key=None):
        from flax import nnx

        encoder = nnx.merge(self.model._graphdef, params)
        x = encoder.embed(tokens, types, key)
        return encoder.run(x, mask, key, 0, CONFIG.layers)


def test_equals_bert(made):
    model, params, tokens, types, mask = made
    out = np.asarray(jax.jit(Run(model))(params, tokens, types, mask))
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    expected = bert(wide, tokens, types, mask)
    np.testing.assert_allclose(out[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_padding_is_never_read(made):
    model, params, tokens, types, mask = made
    run = jax.jit(Run(model))
    other = np.where(mask, tokens, 49)
    one, two = (np.asarray(run(params, t, types, mask)) for t in (tokens, other))
    np.testing.assert_array_equal(one[mask], two[mask])


def test_dropout_is_off_without_a_key_and_keeps_the_mean(made):
    model, params, tokens, types, mask = made
    run = jax.jit(Run(model))
    clean = np.asarray(run(params, tokens, types, mask))
    one, again, two = (
        np.asarray(run(params, tokens, types, mask, jax.random.key(seed))) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-2 and np.abs(one - clean).max() > 1e-2
