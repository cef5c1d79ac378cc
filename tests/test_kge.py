"""Scores, losses and gradients of triple embeddings against the papers' formulas."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_triples as toy

from keft_jax.config import KgeConfig, MeshConfig
from keft_jax.data.batch import QueryBatch, QueryTarget, take
from keft_jax.data.triples import Known, make_triple_dataset
from keft_jax.models import pairwise
from keft_jax.models.functional import Model
from keft_jax.models.kge import Scores, TripleModel
from keft_jax.tasks import link_prediction
from keft_jax.tasks.link_prediction import LinkPrediction, contains

ENTITIES, RELATIONS, WIDTH, OUT, BATCH, NEGATIVES = 13, 3, 4, 3, 8, 5
SHARE = 4  # queries in a row with the same negatives, and for transr of one relation
DISTANCES = ("l1", "l2", "l2_squared")
MODELS = [
    *(("transe", d, False) for d in DISTANCES),
    *((m, d, False) for m in ("transr", "rotate") for d in ("l1", "l2")),
    *((m, "l2", r) for m in ("distmult", "complex") for r in (False, True)),
    *((m, "l2", True) for m in ("transe", "rotate")),
]


def make(model, distance="l2", reciprocal=False, **settings) -> KgeConfig:
    width = {"relation_width": OUT} if model == "transr" else {}
    block = {"share": SHARE} if model == "transr" else {}
    given = {"width": WIDTH, "scale": 0.7, **width, **block, **settings}
    return KgeConfig(model=model, distance=distance, reciprocal=reciprocal, **given)


def parameters(config: KgeConfig):
    """(model, parameters of the size that training gives them)"""
    model, rng = Model(TripleModel(config, ENTITIES, ENTITIES + 3, RELATIONS)), rand(1)
    return model, jax.tree.map(lambda s: draw(rng, *s.shape), model.abstract())


def draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def rand(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def queries(config: KgeConfig, groups: int | None, seed=2) -> QueryTarget:
    """groups: of queries that share negatives; None: all entities are candidates."""
    rng = rand(seed)
    answers = rng.integers(0, ENTITIES, (BATCH, 2))
    answers[::3, 1] = -1
    relation = rng.integers(0, RELATIONS, BATCH)
    if config.model == "transr":
        relation = np.repeat(relation[::SHARE], SHARE)
    drawn = None if groups is None else rng.integers(0, ENTITIES, (groups, NEGATIVES))
    return QueryTarget(
        source=rng.integers(0, ENTITIES, BATCH),
        relation=relation,
        inverse=np.arange(BATCH) % 3 == 1,
        answers=answers,
        weight=np.ones(BATCH, np.float32),
        known=np.zeros((BATCH, 2), np.int32),
        negatives=drawn,
    )


def score(config: KgeConfig, params, source: int, relation: int, inverse: bool) -> np.ndarray:
    """f64[entities]: of all answers of a query, each a triple with the paper's formula."""
    e = np.asarray(params["entity"], np.float64)[:ENTITIES]
    r = np.asarray(params["scorer"]["relation"], np.float64)
    swap = inverse and not config.reciprocal
    number, order = relation + RELATIONS * (inverse and config.reciprocal), config.distance
    r = r[number]
    if config.model == "rotate":
        r = np.exp(1j * r)
    elif config.model == "complex":
        r = r[:WIDTH] + 1j * r[WIDTH:]
    if config.model in ("rotate", "complex"):
        e = e[:, :WIDTH] + 1j * e[:, WIDTH:]
    if config.model == "transr":
        e = e @ np.asarray(params["scorer"]["project"], np.float64)[relation]
    h, t = (e, e[source]) if swap else (e[source], e)
    if config.model in ("distmult", "complex"):
        return (h * r * np.conj(t)).sum(-1).real
    far = np.abs((h * r if config.model == "rotate" else h + r) - t)
    distance = {"l1": far.sum(-1), "l2_squared": (far**2).sum(-1)}
    return -config.scale * distance.get(order, np.sqrt((far**2).sum(-1)))


def show(model: Model, params, target: QueryTarget) -> Scores:
    batch = QueryBatch({"link": target}, np.arange(BATCH))
    return jax.jit(model.apply)(params, batch).logits


@pytest.mark.parametrize(("model", "distance", "reciprocal"), MODELS)
def test_scores_are_the_papers(model, distance, reciprocal, monkeypatch):
    config = make(model, distance, reciprocal)
    module, params = parameters(config)
    # Groups of SHARE, for each query its own (in chunks of 2 queries on a CPU), or all entities.
    monkeypatch.setattr(pairwise, "CHUNK", 2 * NEGATIVES * params["entity"].shape[1])
    for groups in (BATCH // SHARE, None) if model == "transr" else (BATCH // SHARE, BATCH, None):
        target = queries(config, groups)
        found = show(module, params, target)
        asked = zip(target.source, target.relation, target.inverse, strict=True)
        wanted = np.stack([score(config, params, *q) for q in asked])
        drawn = np.broadcast_to(np.arange(ENTITIES), (BATCH, ENTITIES))
        if groups is not None:
            drawn = np.repeat(target.negatives, BATCH // groups, 0)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        close(found.negative, np.take_along_axis(wanted, drawn, 1))
        there = target.answers >= 0
        right = np.take_along_axis(wanted, np.maximum(target.answers, 0), 1)
        close(np.asarray(found.positive)[there], right[there])


@pytest.mark.parametrize(
    ("model", "kind"), [("complex", "n3"), ("complex", "l2"), ("rotate", "n3"), ("transe", "n3")]
)
def test_penalties(model, kind):
    reciprocal = model == "complex"
    config = make(model, reciprocal=reciprocal, regularizer=kind, strength=0.5)
    module, params = parameters(config)
    in_plane = model in ("complex", "rotate")

    def norm(x):
        x = np.asarray(x, np.float64)
        moduli = np.abs(x[..., :WIDTH] + 1j * x[..., WIDTH:]) if in_plane else np.abs(x)
        return (moduli ** (3 if kind == "n3" else 2)).sum(-1)

    for groups in (BATCH, None):
        target = queries(config, groups)
        relation = params["scorer"]["relation"][
            target.relation + RELATIONS * (target.inverse & reciprocal)
        ]
        each = norm(params["entity"][target.source])
        each += 0 if model == "rotate" else norm(relation)  # a rotation has no length
        there = target.answers >= 0
        wanted = there.sum(1) * each + np.where(
            there, norm(params["entity"][target.answers]), 0
        ).sum(1)
        np.testing.assert_allclose(show(module, params, target).penalty, wanted, rtol=1e-5)


def naive(config: KgeConfig, q, e):
    """Distances or products by broadcasting, [g, c, k]."""
    difference = q[:, :, None] - e[:, None]
    if config.model == "rotate":
        real, imaginary = jnp.split(difference, 2, -1)
        return jnp.sqrt(real**2 + imaginary**2 + pairwise.TINY**2).sum(-1)
    if config.model == "distmult":
        return (q[:, :, None] * e[:, None]).sum(-1)
    return jnp.abs(difference).sum(-1)


@pytest.mark.parametrize("model", ["transe", "rotate"])
def test_gradients_of_l1_are_those_of_the_formula(model):
    config, rng = make(model, "l1"), rand(3)
    q, e, s = (draw(rng, *x) for x in ((2, 3, 2 * WIDTH), (2, 5, 2 * WIDTH), (2, 3, 5)))

    def ours(q, e):
        return (s * pairwise.l1_shared(q, e, model == "rotate")).sum()

    def theirs(q, e):
        return (s * naive(config, q, e)).sum()

    for mine, its in zip(
        *(jax.jit(jax.grad(f, (0, 1)))(q, e) for f in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["distmult", "transe", "rotate"])
def test_gradients_in_chunks_are_those_of_the_formula(model, monkeypatch):
    """An id that is drawn often gets the sum."""
    config, rng = make(model, "l1"), rand(4)
    module = TripleModel(config, ENTITIES, ENTITIES, RELATIONS).scorer
    q, table, s = (
        draw(rng, *x) for x in ((6, 2 * WIDTH), (ENTITIES, 2 * WIDTH), (6, 1, NEGATIVES))
    )
    ids = jnp.asarray(rng.integers(0, 4, (6, NEGATIVES)))
    monkeypatch.setattr(pairwise, "CHUNK", 2 * NEGATIVES * 2 * WIDTH)

    def ours(q, table):
        return (s * module.own(q[:, None], table, ids)).sum()

    def theirs(q, table):
        sign = 1 if model == "distmult" else -config.scale
        return (s * sign * naive(config, q[:, None], table[ids])).sum()

    for mine, its in zip(
        *(jax.jit(jax.grad(f, (0, 1)))(q, table) for f in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


def test_gradients_of_low_precision_are_near():
    rng = rand(5)
    a, b, s = (draw(rng, *x) for x in ((1, 6, 8), (1, 7, 8), (1, 6, 7)))

    def total(a, b, dtype):
        return (s * pairwise.matmul(a, b, dtype)).sum()

    low, high = (jax.grad(total, (0, 1))(a, b, d) for d in ("bfloat16", "float32"))
    for mine, its in zip(low, high, strict=True):
        np.testing.assert_allclose(mine, its, atol=0.05)
    assert total(a, b, "bfloat16") != total(a, b, "float32")


def test_cross_entropy_and_its_gradient():
    rng = rand(6)
    scores = rng.normal(size=(4, 9)).astype("f")
    answers = np.array([[1, 2, -1], [0, -1, -1], [8, 3, 4], [-1, -1, -1]])
    weight = np.array([1, 2, 0.5, 1], np.float32)

    def plain(s):
        log_p = jax.nn.log_softmax(s)
        each = -jnp.take_along_axis(log_p, jnp.maximum(answers, 0), 1)
        return (weight * jnp.where(answers >= 0, each, 0).sum(1)).sum()

    ours = functools.partial(link_prediction._cross_entropy, answers_ba=answers, weight_b=weight)
    np.testing.assert_allclose(ours(scores), plain(scores), rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda s: 3 * ours(s)))(scores),
        3 * jax.jit(jax.grad(plain))(scores),
        atol=1e-6,
    )


def loss_by_hand(config: KgeConfig, positive, negative, allowed, entities) -> float:
    """Of one answer and the negatives of its query."""
    negative = np.asarray(negative, np.float64)[allowed]
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
    match config.loss:
        case "softmax":
            rivals = np.exp(negative).sum() * entities / len(negative)
            return -np.log(np.exp(positive) / (np.exp(positive) + rivals))
        case "self_adversarial":
            weight = np.exp(negative * config.temperature)
            wrong = (weight / weight.sum() * log_sigmoid(-negative - config.margin)).sum()
            return -(log_sigmoid(config.margin + positive) + wrong) / 2
        case "margin":
            return np.maximum(config.margin - positive + negative, 0).mean()
    return -log_sigmoid(positive) - log_sigmoid(-negative).mean()


@pytest.mark.parametrize("loss", ["softmax", "self_adversarial", "margin", "bce"])
@pytest.mark.parametrize("drawn", [True, False])
def test_losses(loss, drawn):
    config = make("distmult", loss=loss, margin=0.4, temperature=1.3, strength=0)
    task, rng = LinkPrediction(config, range(ENTITIES)), rand(7)
    k = NEGATIVES if drawn else ENTITIES
    target = queries(config, BATCH if drawn else None)
    negative = rng.normal(size=(BATCH, k)).astype("f")
    positive = rng.normal(size=(BATCH, 2)).astype("f")
    there, weight = target.answers >= 0, rng.uniform(0.5, 2, BATCH).astype("f")
    if drawn:
        allowed = rng.random((BATCH, k)) < 0.6
        allowed[:, 0] = True
    else:
        positive = np.take_along_axis(negative, np.maximum(target.answers, 0), 1)
        allowed = np.ones((BATCH, k), bool)
        for row, answers in enumerate(target.answers):
            allowed[row, answers[answers >= 0]] = False
    wanted = 0.0
    for row, a in zip(*np.nonzero(there), strict=True):
        of = allowed[row]
        if loss == "softmax" and not drawn:  # each answer is a rival of the others
            of = np.arange(k) != target.answers[row, a]
            own = np.log(np.exp(np.float64(negative[row])).sum()) - positive[row, a]
        else:
            own = loss_by_hand(config, positive[row, a], negative[row], of, ENTITIES)
        wanted += weight[row] * own
    target = dataclasses.replace(target, weight=weight, allowed=allowed if drawn else None)
    given = Scores(positive, negative, np.zeros(BATCH))
    np.testing.assert_allclose(task.loss(given, target), wanted, rtol=1e-5)


def dataset(answers=2, block=1, triples=60, filtered_by=None):
    rng = rand(8)
    drawn = rng.choice(ENTITIES * RELATIONS * ENTITIES, triples, replace=False)
    rows = np.stack(np.unravel_index(drawn, (ENTITIES, RELATIONS, ENTITIES)), 1).astype(np.int32)
    known = Known.of(rows, ENTITIES, RELATIONS)
    names = (range(ENTITIES), range(RELATIONS))
    return make_triple_dataset(rows, known, names, answers=answers, block=block), known, rows


def answers_of(rows, target, i) -> set[int]:
    one, two = (2, 0) if target.inverse[i] else (0, 2)
    same = (rows[:, one] == target.source[i]) & (rows[:, 1] == target.relation[i])
    return set(rows[same, two].tolist())


def test_filtered_negatives_are_never_known_answers():
    config = make("distmult", negatives=40, share=SHARE, filtered=True)
    task, (data, known, rows) = LinkPrediction(config, range(ENTITIES)), dataset()
    batch = data.batch(0, np.arange(BATCH))
    frozen = {"known": jnp.asarray(known.answers)}
    target = task.prepare(batch, jax.random.key(0), frozen).targets["link"]
    assert target.negatives.shape == (BATCH // SHARE, 40)
    drawn = np.repeat(target.negatives, SHARE, 0)
    for i in range(BATCH):
        known_answers = answers_of(rows, target, i)
        assert known_answers and set(target.answers[i]) - {-1} <= known_answers
        np.testing.assert_array_equal(target.allowed[i], ~np.isin(drawn[i], list(known_answers)))
    # What is not allowed has no part in the loss.
    rng = rand(9)
    positive, negative = (rng.normal(size=x).astype("f") for x in ((BATCH, 2), (BATCH, 40)))
    other = np.where(target.allowed, negative, 50)

    @jax.jit
    def losses(negative):
        kinds = ("softmax", "self_adversarial", "margin", "bce")
        tasks = [
            LinkPrediction(dataclasses.replace(config, loss=k), range(ENTITIES)) for k in kinds
        ]
        return jnp.stack(
            [t.loss(Scores(positive, negative, jnp.zeros(BATCH)), target) for t in tasks]
        )

    np.testing.assert_allclose(losses(negative), losses(other), rtol=1e-6)


def test_bisection_finds_what_is_there():
    ids = np.array([1, 4, 6, 0, 2, 9, 3], np.int32)  # spans rise, the whole does not
    spans = np.array([[0, 3], [3, 6], [6, 7], [2, 2], [0, 0], [7, 7]], np.int32)
    asked = np.broadcast_to(np.arange(11), (len(spans), 11))
    found = contains(jnp.asarray(ids), jnp.asarray(spans), jnp.asarray(asked))
    wanted = [np.isin(range(11), ids[first:last]) for first, last in spans]
    np.testing.assert_array_equal(found, wanted)


def test_negatives_depend_on_seed_and_step_alone():
    training = toy.Training(toy.config(MeshConfig(data=1), "dense", share=1))
    training.frozen["learning_rate"] = np.float32(0)
    batch = training.put(toy.batch(0))

    def losses():
        state, out = training.fresh(), []
        for _ in range(3):
            state, metrics = training.step(state, training.frozen, batch)
            out.append(float(metrics["loss/total"][0]))
        return out

    first = losses()
    assert first == losses()
    assert len(set(first)) == 3, "other negatives at each step"


@pytest.mark.parametrize("groups", [BATCH, None])
def test_padding_weighs_nothing(groups):
    config = make("complex", regularizer="n3", strength=0.1, negatives=NEGATIVES)
    (module, params), task = parameters(config), LinkPrediction(config, range(ENTITIES))
    data, _, _ = dataset()
    padded = data.batch(0, np.array([3, 5, -1, -1])).targets["link"]
    np.testing.assert_array_equal(padded.weight, [1, 1, 0, 0])
    drawn = jnp.asarray(rand(0).integers(0, ENTITIES, (4, NEGATIVES))) if groups else None

    @jax.jit
    @jax.value_and_grad
    def loss(params, source):
        target = dataclasses.replace(padded, source=source, negatives=drawn)
        batch = QueryBatch({"link": target}, np.arange(4))
        return task.loss(module.apply(params, batch).logits, target)

    both = [loss(params, np.r_[padded.source[:2], x, x]) for x in (1, 7)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    batch = QueryBatch({"link": padded}, np.arange(4))
    assert task.total(batch) == (padded.answers[:2] >= 0).sum()


@pytest.mark.parametrize("answers", [1, 3])
def test_every_triple_is_asked_once_from_either_side(answers):
    data, _, rows = dataset(answers)
    target = data.batch(0, np.arange(len(data))).targets["link"]
    asked = {False: [], True: []}
    for i, a in itertools.product(range(len(data)), range(answers)):
        if target.answers[i, a] >= 0:
            ends = (target.source[i], target.relation[i], target.answers[i, a])
            asked[bool(target.inverse[i])].append(ends[:: -1 if target.inverse[i] else 1])
    assert sorted(asked[False]) == sorted(asked[True]) == sorted(map(tuple, rows))


def test_a_block_has_one_relation():
    data, _, _ = dataset(block=SHARE)
    plain, _, _ = dataset()
    target = data.batch(0, np.arange(len(data))).targets["link"]
    real = data.blocks.reshape(-1) >= 0
    np.testing.assert_array_equal(real, target.weight > 0)
    assert sorted(data.blocks.reshape(-1)[real]) == list(range(len(plain)))
    for block in range(len(data)):
        of = slice(block * SHARE, (block + 1) * SHARE)
        assert real[of].any()
        assert len(set(target.relation[of][real[of]])) == 1
        assert real[of][0], "the relation of a block is its first query's"
    assert len(take(data.table, np.array([-1])).targets["link"].source) == 1
