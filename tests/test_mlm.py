"""Masked language modelling: what is chosen, what is shown, what is counted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from keft_jax.config import (
    EntitiesConfig,
    KgeConfig,
    MlmConfig,
    ObjectiveConfig,
    TaskConfig,
    TriplesConfig,
)
from keft_jax.data.batch import TextTarget
from keft_jax.data.tokenize import train_wordpiece
from keft_jax.models.functional import Model
from keft_jax.tasks.entities import BANDS, EntityPrediction, entity_target, may_ask
from keft_jax.tasks.mlm import MaskedLM
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.run import train
from keft_jax.train.step import make_eval_step

WORDS = train_wordpiece(["alpha beta gamma delta epsilon zeta"] * 3, 200)


def texts(b=64, length=24, seed=0):
    """Batches of random words between [CLS] and [SEP]."""
    batch = toy.batch(seed, b=b, length=length)
    rng = np.random.default_rng(seed)
    tokens = np.where(batch.tokens > 0, rng.integers(5, WORDS.get_vocab_size(), (b, length)), 0)
    tokens[:, 0] = WORDS.token_to_id("[CLS]")
    tokens[np.arange(b), batch.length - 1] = WORDS.token_to_id("[SEP]")
    target = TextTarget(weight=np.ones(b, np.float32))
    return dataclasses.replace(batch, tokens=tokens.astype(np.int32), targets={"mlm": target})


def test_what_is_chosen():
    task, batch = MaskedLM(WORDS, 0.15), texts(b=512)
    shown = task.prepare(batch, jax.random.key(0))
    target = shown.targets["mlm"]
    chosen = np.asarray(target.weight) > 0
    words = batch.length - 2
    np.testing.assert_array_equal(chosen.sum(1), np.maximum(np.round(0.15 * words), 1))
    assert float(task.total(batch)) == chosen.sum()

    rows, slots = np.nonzero(chosen)
    at = np.asarray(target.position)[rows, slots]
    assert len(set(zip(rows.tolist(), at.tolist(), strict=True))) == len(rows)
    assert (at > 0).all() and (at < batch.length[rows] - 1).all()
    np.testing.assert_array_equal(np.asarray(target.label)[rows, slots], batch.tokens[rows, at])

    # Nothing else is touched, and of what is chosen 80 % is masked and 10 % replaced.
    touched = np.asarray(shown.tokens) != batch.tokens
    elsewhere = np.ones(touched.shape, bool)
    elsewhere[rows, at] = False
    assert not (touched & elsewhere).any()
    masked = (np.asarray(shown.tokens)[rows, at] == WORDS.token_to_id("[MASK]")).mean()
    assert abs(masked - 0.8) < 0.05 and abs(touched[rows, at].mean() - 0.9) < 0.04


def test_masks_belong_to_the_example_and_the_step():
    task, batch = MaskedLM(WORDS, 0.15), texts()
    one = task.prepare(batch, jax.random.key(0))
    order = np.random.default_rng(0).permutation(len(batch.tokens))
    other = task.prepare(jax.tree.map(lambda x: x[order], batch), jax.random.key(0))
    np.testing.assert_array_equal(one.tokens[order], other.tokens)
    assert (task.prepare(batch, jax.random.key(1)).tokens != one.tokens).any()
    again = task.prepare(batch, None).tokens
    np.testing.assert_array_equal(task.prepare(batch, None).tokens, again)


def test_texts_of_one_unit_have_masks_of_their_own():
    """Equal choices are masked each by itself; where a unit is one text, nothing changes."""
    batch = texts(b=16)
    batch = jax.tree.map(lambda x: np.repeat(x, 4, 0), batch)
    tokens = {
        each: np.asarray(MaskedLM(WORDS, 0.15, each=each).prepare(batch, jax.random.key(0)).tokens)
        for each in (1, 4)
    }
    alike = {n: (t.reshape(16, 4, -1) == t[::4, None]).all(2) for n, t in tokens.items()}
    assert alike[1].all() and alike[4][:, 1:].mean() < 0.3


def test_entities_that_may_be_asked_are_counted_once():
    """A second candidate of a mention, one without a row and padding are never asked."""
    batch = toy.batch(empty=(2,))
    start, end = np.array(batch.mentions.start), np.array(batch.mentions.end)
    start[:, 1], end[:, 1] = start[:, 0], end[:, 0]
    mentions = dataclasses.replace(batch.mentions, start=start, end=end)
    example = np.where(np.arange(16) == 5, -1, batch.example)
    batch = dataclasses.replace(batch, mentions=mentions, example=example)
    may = np.asarray(may_ask(batch))
    assert may.any() and not may[[2, 5]].any() and not may[:, 1].any()
    target = entity_target(batch, end - start, None, 0, 0)  # all are masked whole
    np.testing.assert_array_equal(target.weight, may)
    linked = EntityPrediction(MaskedLM(WORDS, 0.15), 0.5)
    assert float(linked.total(batch)) == 0.5 * float(target.weight.sum())


def test_a_text_of_special_tokens_has_nothing_to_predict():
    task, batch = MaskedLM(WORDS, 0.15), texts(b=4)
    batch = dataclasses.replace(batch, length=np.full(4, 2, np.int32))
    batch.tokens[:, 1] = WORDS.token_to_id("[SEP]")
    shown = task.prepare(batch, jax.random.key(0))
    assert float(task.total(batch)) == 0 and not np.asarray(shown.targets["mlm"].weight).any()
    np.testing.assert_array_equal(shown.tokens, batch.tokens)


def test_the_head_reads_the_predicted_positions_alone():
    """Its logits are those of a head on every position, taken there; padding rows never win."""
    c = toy.config(task=TaskConfig(kind="mlm"))
    batch, task = toy.batch(), MaskedLM(WORDS, 0.2)
    batch.targets["mlm"] = TextTarget(weight=np.ones(16, np.float32))
    shown, params = task.prepare(batch, None), toy.trained(c)
    output = jax.jit(toy.model(c).apply)(params, shown)
    head, word = params["head"], params["encoder"]["embed"]["word"]
    hidden = output.tokens @ head["transform"]["kernel"] + head["transform"]["bias"]
    hidden = jax.nn.gelu(hidden, approximate=False)
    centred = hidden - hidden.mean(-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-12)
    every = (normal * head["norm"]["scale"] + head["norm"]["bias"]) @ word.T + head["bias"]
    taken = np.take_along_axis(
        np.asarray(every), np.asarray(shown.targets["mlm"].position)[..., None], 1
    )
    real = toy.SIZES.pieces
    np.testing.assert_allclose(output.logits[..., :real], taken[..., :real], rtol=2e-4, atol=2e-4)
    assert (np.asarray(output.logits[..., real:]) <= -1e8).all()


def test_one_probability_for_each_text_whatever_its_length():
    c = toy.config(task=TaskConfig(kind="mlm"))
    batch, task = toy.batch(), MaskedLM(WORDS, 0.2)
    batch.targets["mlm"] = TextTarget(weight=np.ones(16, np.float32))
    step = make_eval_step(toy.model(c), task)
    rows = jax.eval_shape(step, toy.trained(c), {"names": toy.names()}, batch)
    assert all(value.shape == (16,) for value in rows.values())


def test_an_accumulated_part_has_the_masks_of_the_whole():
    c = toy.config(task=TaskConfig(kind="mlm"))  # without dropout
    batch, task, params = toy.batch(), MaskedLM(WORDS, 0.15), toy.trained(c)
    batch.targets["mlm"] = TextTarget(weight=np.ones(16, np.float32))
    objective = Objective(toy.model(c), make_terms(c.objective, task, None))
    totals, frozen, key = objective.totals(batch), {"names": toy.names()}, jax.random.key(5)
    loss = jax.jit(lambda p, b, part: objective(p, frozen, b, totals, key, part)[0])
    assert float(loss(params, batch, 0)) == float(loss(params, batch, 3))


def test_the_term_leaves_the_task_alone():
    """The loss of the task and its dropout are the same with the term beside it and without."""
    plain = toy.config(encoder=dataclasses.replace(toy.config().encoder, dropout=0.3))
    c = dataclasses.replace(plain, objective=ObjectiveConfig(mlm=MlmConfig(weight=0.5)))
    batch, beside = toy.batch(), MaskedLM(WORDS, 0.15)
    batch.targets["mlm"] = TextTarget(weight=np.ones(16, np.float32))
    frozen, key, params = {"names": toy.names()}, jax.random.key(5), toy.trained(c)
    told = {}
    for name, config in (("with", c), ("without", plain)):
        model: Model = toy.model(config)
        terms = make_terms(config.objective, toy.KGQA(toy.kg(), 0.5), None, beside)
        objective = Objective(model, terms)
        mine = {k: v for k, v in params.items() if k in model.abstract()}
        told[name] = jax.jit(objective)(mine, frozen, batch, objective.totals(batch), key)
    assert set(told["with"][1]) - set(told["without"][1]) == {"loss/mlm"}
    np.testing.assert_array_equal(*(told[n][1]["loss/task"][0] for n in ("with", "without")))
    own, total = told["with"][1]["loss/mlm"]
    expected = told["without"][0] + 0.5 * own / total
    np.testing.assert_allclose(told["with"][0], expected, rtol=1e-6)


def test_a_run_that_learns_words(tmp_path):
    """train.py with no label at all: words, entities and facts in one step."""
    tiny.write_files(tmp_path)
    c = tiny.config(
        tmp_path,
        task=TaskConfig(kind="mlm"),
        kge=KgeConfig(model="distmult", width=8, init=0.1),
        objective=ObjectiveConfig(
            mlm=MlmConfig(mask="entity", rate=0.4),
            entities=EntitiesConfig(weight=0.3, candidates=8),
            triples=TriplesConfig(weight=0.1, batch=16),
        ),
        optim=tiny.OptimConfig(steps=60, batch=8, learning_rate=1e-2),
    )
    summary = train(c, tmp_path / "run", quiet=True)
    assert summary["metric"] == "log_likelihood"
    told = summary["scores"]["test"]
    np.testing.assert_allclose(told["perplexity"], np.exp(-told["log_likelihood"]))
    assert told["entities/asked"] > 0 and 0 <= told["entities/hits@1"] <= 1
    assert told["entities/asked"] == sum(told[f"entities/asked/{band}"] for band in BANDS)
    losses = [
        value
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if (value := json.loads(line).get("loss/task")) is not None
    ]
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])


@pytest.mark.parametrize("weight", [-1.0, 0.5])
def test_refused(tmp_path, weight):
    with pytest.raises(ValueError, match=r"objective\.mlm\.weight"):
        tiny.config(
            tmp_path,
            task=TaskConfig(kind="mlm"),
            objective=ObjectiveConfig(mlm=MlmConfig(weight=weight)),
        )
