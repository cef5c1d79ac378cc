"""Which kernel computes attention, and that the fused one for TPU computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from keft_jax.config import EncoderConfig, KeftError
from keft_jax.models import attend
from keft_jax.models.encoder import Attention, Reads
from keft_jax.models.functional import Model

BERT = EncoderConfig(layers=1, width=768, heads=12, dtype="bfloat16", dropout=0.0)


@pytest.mark.parametrize(
    ("device", "length", "given", "kind"),
    [
        ("cpu", 512, {}, "xla"),
        ("gpu", 24, {}, "cudnn"),
        ("gpu", 512, {"dtype": "float32"}, "xla"),
        ("gpu", 512, {"dropout": 0.1}, "xla"),  # which the kernel has not
        ("gpu", 512, {"dropout": 0.1, "attention": "cudnn"}, "cudnn"),
        ("gpu", 512, {"attention": "xla"}, "xla"),
        ("tpu", 512, {}, "flash"),
        ("tpu", 512, {"dtype": "float32"}, "flash"),
        ("tpu", 128, {}, "xla"),  # short
        ("tpu", 128, {"attention": "flash"}, "flash"),
        ("tpu", 300, {}, "xla"),
        ("tpu", 512, {"width": 2304}, "xla"),  # heads of 192
    ],
)
def test_the_kernel_is_chosen_by_device_and_shape(monkeypatch, device, length, given, kind):
    monkeypatch.setattr(attend, "platform", lambda: device)
    config = dataclasses.replace(BERT, **given)
    assert attend.attention_kind(config, training=True, length=length) == kind
    assert attend.attention_kind(config, training=True, each=True, length=length) == "xla"
    packed = attend.attention_kind(config, training=True, packed=True, length=length)
    assert packed == ("xla" if kind == "cudnn" else kind)


@pytest.mark.parametrize(
    ("device", "attention", "need"),
    [("cpu", "cudnn", "an NVIDIA GPU"), ("gpu", "flash", "a TPU"), ("tpu", "flash", "128")],
)
def test_a_kernel_that_is_not_there_is_one_line(monkeypatch, device, attention, need):
    monkeypatch.setattr(attend, "platform", lambda: device)
    config = dataclasses.replace(BERT, attention=attention)
    with pytest.raises(KeftError, match=f"encoder.attention = '{attention}'.*{need}.*use auto"):
        attend.attention_kind(config, training=False, length=100)


def test_flash_is_plain_attention(monkeypatch):
    """As the kernel is written, by an interpreter; with its gradient, and texts in rows."""
    monkeypatch.setattr(attend, "platform", lambda: "tpu")
    config = EncoderConfig(layers=1, width=32, heads=2, attention="flash")
    rng = np.random.default_rng(0)
    flash, plain = (
        Model(Attention(dataclasses.replace(config, attention=kind))) for kind in ("flash", "xla")
    )
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype("f"), plain.abstract())
    x, w = rng.normal(size=(2, 2, 128, 32)).astype(np.float32)
    row = np.repeat([3, 1, 2, 0], [50, 1, 60, 17])
    texts = jnp.asarray(np.stack([row, np.arange(128) < 40]), jnp.int32)

    def out(model):
        return lambda p, x: (model.apply(p, x, Reads.of(texts), None) * w).sum()

    with pltpu.force_tpu_interpret_mode():
        ours = jax.value_and_grad(out(flash), (0, 1))(params, x)
    other = jax.jit(jax.value_and_grad(out(plain), (0, 1)))(params, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
