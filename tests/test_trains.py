"""How a head that reads text and graph learns both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from keft_jax.config import FusionConfig
from keft_jax.train.loop import Trainer
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.parts import build


def gradients(folder, trains, row):
    """Of a model that already reads something of the graph; no dropout."""
    config = tiny.classification(folder)
    fusion = FusionConfig(kind="cross_attention", layers=(0,), trains=trains)
    parts, splits = build(dataclasses.replace(config, fusion=fusion))
    trainer = Trainer(parts)
    config = dataclasses.replace(
        parts.config, knowledge=dataclasses.replace(parts.config.knowledge, row=row)
    )
    parts = dataclasses.replace(parts, config=config)
    batch = trainer.put(parts.ready(splits.train).batch(16, np.arange(8)))
    params = trainer.fresh(0).model_params
    kernel = params["head"]["around"]["kernel"]
    params["head"]["around"]["kernel"] = jax.random.normal(jax.random.key(3), kernel.shape)
    objective = Objective(parts.model, make_terms(config.objective, parts.task, None))
    totals = objective.totals(batch)

    def loss(params):
        return objective(params, trainer.frozen(), batch, totals, None)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("trains", ["together", "by_turns", "apart"])
def test_apart_the_text_learns_what_it_would_without_a_graph(tmp_path, trains):
    tiny.write_files(tmp_path)
    (loss, true), (plain_loss, plain) = (gradients(tmp_path, trains, r) for r in ("true", "none"))
    same = jax.tree.leaves(
        jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=1e-4, atol=1e-6)), true, plain)
    )
    text = [true["encoder"], true["head"]["out"]], [plain["encoder"], plain["head"]["out"]]
    equal = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=1e-4, atol=1e-6)), *text)
    assert all(jax.tree.leaves(equal)) == (trains == "apart")
    assert not all(same) and not np.allclose(loss, plain_loss)
    assert np.abs(true["head"]["around"]["kernel"]).max() > 1e-4
    assert not np.any(plain["head"]["around"]["kernel"])
