"""The schedule's corners, and what is decayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from keft_jax.config import FusionConfig, GroupConfig, OptimConfig
from keft_jax.models.functional import paths
from keft_jax.models.pretrained import flat
from keft_jax.train.optim import make_optimizer, scale_at, schedule, stop_frozen


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_schedule(decay):
    rate = schedule(OptimConfig(steps=100, warmup=0.1, decay=decay))
    assert float(rate(0)) == pytest.approx(0.1) and float(rate(9)) == pytest.approx(1.0)
    assert float(rate(10)) == pytest.approx(1.0)
    rising = [float(rate(i)) for i in range(10)]
    falling = [float(rate(i)) for i in range(10, 100)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    last = {"linear": 1 / 90, "cosine": 0.000305, "constant": 1.0}[decay]
    assert falling[-1] == pytest.approx(last, rel=1e-2)
    assert float(schedule(OptimConfig(steps=100, warmup=0.0, decay=decay))(0)) == 1.0


def test_biases_and_norms_are_not_decayed():
    """With no gradient at all, what moves is what decays."""
    c = toy.config()
    params = jax.tree.map(lambda s: np.ones(s.shape, "f"), toy.model(c).abstract())
    tx = make_optimizer(OptimConfig(steps=10, warmup=0.0, weight_decay=0.1), params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    for path, update in zip(jax.tree.leaves(paths(params)), jax.tree.leaves(updates), strict=True):
        spared = path.rpartition("/")[2] in ("bias", "relation_bias", "scale")
        assert np.allclose(update, 0.0 if spared else -0.1), path


def test_no_work_goes_into_frozen_gradients():
    """Nor into what lies before them alone: the backward pass ends at the lowest trained layer."""
    c = toy.config(fusion=FusionConfig(kind="none"))
    model, batch, names = toy.model(c), toy.batch(), toy.names()
    params = toy.trained(c)

    def matmuls(*frozen):
        optim = OptimConfig(groups=tuple(GroupConfig(match, 0.0) for match in frozen))

        def loss(params):
            return model.apply(stop_frozen(optim, params), batch, names).logits.sum()

        return jax.jit(jax.grad(loss)).lower(params).as_text().count("dot_general")

    counts = [matmuls(), matmuls("embed/", "blocks/0"), matmuls("encoder/")]
    forward = jax.jit(model.apply).lower(params, batch, names).as_text().count("dot_general")
    whole, upper, head = (count - forward for count in counts)
    assert head < 6 < upper < 0.6 * whole


def test_a_group_that_rests_at_first():
    """A new head alone, then all of it."""
    groups = (GroupConfig("encoder/", 0.5, from_step=2), GroupConfig("nodes/rows", 0.0))
    optim = OptimConfig(steps=10, warmup=0.0, decay="constant", groups=groups)
    params = {
        "encoder": {"x": np.ones(3)},
        "head": {"x": np.ones(3)},
        "nodes": {"rows": np.ones(3)},
    }
    tx = make_optimizer(optim, params)
    state, ones, move = tx.init(params), jax.tree.map(jnp.ones_like, params), jax.jit(tx.update)
    for step in range(4):
        updates, state = move(ones, state, params)
        moved = {p: bool(u.any()) for p, u in flat(updates).items()}
        assert all(m == (step >= 2) for p, m in moved.items() if p.startswith("encoder/"))
        assert all(m for p, m in moved.items() if p.startswith("head/"))
        assert not moved["nodes/rows"]
        assert float(scale_at(optim, "encoder/x", jnp.int32(step))) == 0.5 * (step >= 2)
