"""How a head that reads text and graph learns both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from keft_jax.config import FusionConfig
from keft_jax.data.features import with_row
from keft_jax.train.loop import Trainer
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.parts import build


def gradients(folder, kind, trains):
    """(loss, gradients) of a model that already reads something of the graph, on the rows `true`
    and `none`; no dropout."""
    config = tiny.classification(folder)
    fusion = FusionConfig(kind=kind, layers=(0,), trains=trains)
    parts, splits = build(dataclasses.replace(config, fusion=fusion))
    trainer, data = Trainer(parts), parts.dataset(splits.train)
    params = trainer.fresh(0).model_params
    kernel = params["head"]["around"]["kernel"]
    params["head"]["around"]["kernel"] = jax.random.normal(jax.random.key(3), kernel.shape)
    objective = Objective(parts.model, make_terms(config.objective, parts.task, None))

    def loss(params, batch):
        return objective(params, trainer.frozen(), batch, objective.totals(batch), None)[0]

    step = jax.jit(jax.value_and_grad(loss))
    for row in ("true", "none"):
        batch = with_row(data, parts.knowledge, row, 0).batch(16, np.arange(8))
        yield step(params, trainer.put(batch))


@pytest.mark.parametrize(
    ("kind", "trains"),
    [("cross_attention", "together"), ("cross_attention", "apart"), ("interaction", "apart")],
)
def test_apart_the_text_learns_what_it_would_without_a_graph(tmp_path, kind, trains):
    tiny.write_files(tmp_path)
    (loss, true), (plain_loss, plain) = gradients(tmp_path, kind, trains)
    text = [true["encoder"], true["head"]["out"]], [plain["encoder"], plain["head"]["out"]]
    equal = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=1e-4, atol=1e-6)), *text)
    assert all(jax.tree.leaves(equal)) == (trains == "apart")
    assert not np.allclose(loss, plain_loss)
    assert np.abs(true["head"]["around"]["kernel"]).max() > 1e-4
    assert not np.any(plain["head"]["around"]["kernel"])
