"""`mixed`: matmuls in bfloat16, everything else in float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from keft_jax.config import FusionConfig, TaskConfig
from keft_jax.data.batch import MaskTarget
from keft_jax.models.layers import activation_dtype, matmul, transpose


@pytest.mark.parametrize("rows", [1, 24, 64, 33])
def test_transposition_by_blocks_is_one(rows):
    x = np.random.default_rng(0).normal(size=(2, rows, 7)).astype("f")
    np.testing.assert_array_equal(jax.jit(transpose)(x), x.swapaxes(-1, -2))


@pytest.mark.parametrize("dtype", ["float32", "mixed", "bfloat16"])
def test_a_product_and_its_gradients_are_those_of_rounded_factors(dtype):
    rng = np.random.default_rng(1)
    x_id, kernel, s = (rng.normal(size=d).astype("f") for d in ((40, 12), (12, 3, 8), (40, 3, 8)))

    def low(x):  # bfloat16 has 8 bits of a number
        return x if dtype == "float32" else np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)

    def total(x, kernel):
        return (s * matmul(x, kernel, dtype)).sum()

    y = matmul(x_id, kernel, dtype)
    assert y.dtype == activation_dtype(dtype) == ("bfloat16" if dtype == "bfloat16" else "float32")
    dx, dk = jax.jit(jax.grad(total, (0, 1)))(x_id, kernel)
    assert dx.dtype == dk.dtype == "float32"
    near = {"rtol": 1e-2, "atol": 0.05} if dtype == "bfloat16" else {"rtol": 1e-5, "atol": 1e-5}
    expected = np.tensordot(low(x_id), low(kernel), 1)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, **near)
    np.testing.assert_allclose(dx, np.einsum("iab,dab->id", low(s), low(kernel)), **near)
    np.testing.assert_allclose(dk, np.einsum("id,iab->dab", low(x_id), low(s)), **near)


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16"])
def test_the_head_over_the_vocabulary_takes_every_precision(dtype):
    config = toy.config(task=TaskConfig(kind="mlm"), fusion=FusionConfig(kind="none"))
    config = replace(config, encoder=replace(config.encoder, dtype=dtype))
    batch, at = toy.batch(b=2), np.zeros((2, 3), np.int32)
    target = MaskTarget(position=at, label=at, weight=np.ones((2, 3), np.float32))
    batch = replace(batch, targets={"mlm": target})
    model = toy.model(config)
    logits = jax.eval_shape(model.apply, model.abstract(), batch, None, None).logits
    assert logits.dtype == "float32" and logits.shape[:2] == (2, 3)
