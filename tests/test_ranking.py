"""Filtered ranks against counting by hand, to the last rank."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from keft_jax.config import KgeConfig, MeshConfig
from keft_jax.data.triples import Known, make_triple_dataset
from keft_jax.kg.triples import read_splits
from keft_jax.models.functional import Model
from keft_jax.models.kge import TripleModel
from keft_jax.sharding import make_mesh, replicated
from keft_jax.tasks.link_prediction import score_ranks
from keft_jax.train import ranking
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.ranking import Ranker, by_relation

ENTITIES, RELATIONS, BATCH = 30, 3, 8
UNSEEN = 29  # in no triple but one of test
MODELS = [
    ("distmult", "l2"),
    ("complex", "l2"),
    ("transe", "l1"),
    ("transe", "l2"),
    ("transr", "l1"),
]


@functools.cache
def graph() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (ENTITIES - 1, RELATIONS, ENTITIES - 1)
    drawn = rng.choice(np.prod(shape), 150, replace=False)
    triples = np.stack(np.unravel_index(drawn, shape), 1).astype(np.int32)
    test = np.append(triples[120:], [[3, 1, UNSEEN]], 0).astype(np.int32)
    return {"train": triples[:100], "select": triples[100:120], "test": test}


def whole(shape, seed, high=2):
    """Small whole numbers: scores are exact in every order of summation, and often tie."""
    return np.random.default_rng(seed).integers(-high, high + 1, shape).astype(np.float32)


def make(config: KgeConfig, entities: int, relations: int):
    """(model, parameters)"""
    model = Model(TripleModel(config, entities, entities + 2, relations))
    return model, jax.tree.map(lambda s: whole(s.shape, len(s.shape)), model.abstract())


def score_all(config: KgeConfig, params, source, relation, inverse, relations):
    """f64[n]: of every entity as the answer, by the papers' formulas."""
    e = params["entity"].astype(np.float64)[:-2]
    r = params["scorer"]["relation"].astype(np.float64)
    turned = config.reciprocal and config.model != "transr"
    swap = inverse and not turned
    r = r[relation + relations * (inverse and turned)]
    if config.model == "complex":
        e, r = (np.array_split(x, 2, -1) for x in (e, r))
        e, r = e[0] + 1j * e[1], r[0] + 1j * r[1]
    if config.model == "transr":
        e = e @ params["scorer"]["project"].astype(np.float64)[relation]
    h, t = (e, e[source]) if swap else (e[source], e)
    match config.model:
        case "distmult" | "complex":
            return np.sum(h * r * np.conj(t), -1).real
    return -np.linalg.norm(h + r - t, ord=1 if config.distance == "l1" else 2, axis=-1)


def rank_by_hand(config, params, triples, everything, relations):
    known = set(map(tuple, everything.tolist()))
    out = {"rank_tail": [], "rank_head": []}
    for h, r, t in triples.tolist():
        for name, source, answer, inverse in (("tail", h, t, False), ("head", t, h, True)):
            scores = score_all(config, params, source, r, inverse, relations)
            others = [
                s
                for e, s in enumerate(scores)
                if e != answer and ((e, r, source) if inverse else (source, r, e)) not in known
            ]
            higher = sum(s > scores[answer] for s in others)
            level = sum(s == scores[answer] for s in others)
            out[f"rank_{name}"].append(1 + higher + level / 2)
    return out


def rank(config, splits, names, params_of=None, mesh=None, batch=BATCH, **blocks):
    """(rows of the test split, the ranker)"""
    entities, relations = names
    known = Known.of(np.concatenate(list(splits.values())), entities, relations)
    model, params = make(config, entities, relations)
    params = params_of(params) if params_of else params
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    ranker = Ranker(model, known, mesh, batch, grouped=config.model == "transr")
    shown = tuple([str(i) for i in range(n)] for n in names)
    dataset = make_triple_dataset(splits["test"], known, shown)
    return ranker.evaluate(jax.device_put(params, replicated(mesh)), dataset), ranker


def check(rows, wanted):
    for side in ("rank_tail", "rank_head"):
        np.testing.assert_array_equal(rows[side], wanted[side])


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize(("model", "distance"), MODELS)
def test_ranks_are_those_counted_by_hand(model, distance, reciprocal, monkeypatch):
    if model == "transr" and reciprocal:
        pytest.skip("has no inverses")
    config = KgeConfig(
        model=model,
        distance=distance,
        width=3,
        reciprocal=reciprocal,
        share=4 * (model == "transr"),
    )
    splits, names = graph(), (ENTITIES, RELATIONS)
    rows, ranker = rank(config, splits, names)
    _, params = make(config, *names)
    wanted = rank_by_hand(
        config, params, splits["test"], np.concatenate(list(splits.values())), RELATIONS
    )
    check(rows, wanted)
    ranks = np.concatenate([wanted["rank_tail"], wanted["rank_head"]])
    assert (ranks % 1 > 0).any(), "no ties: they are not tested"
    assert ranker._rank._cache_size() == 1
    # Entities in blocks: the last one overlaps the one before.
    monkeypatch.setattr(ranking, "SCORES", 7 * BATCH)
    blocked, _ = rank(config, splits, names)
    check(blocked, wanted)


def test_umls_to_the_last_rank(shared):
    found = read_splits(str(shared / "data/kg/UMLS"), "", ())
    splits, names = found.splits, (len(found.entities), len(found.relations))
    config = KgeConfig(model="complex", width=4)
    rows, _ = rank(config, splits, names, batch=256)
    _, params = make(config, *names)
    everything = np.concatenate(list(splits.values()))
    wanted = rank_by_hand(config, params, splits["test"], everything, names[1])
    check(rows, wanted)
    assert len(rows["rank_tail"]) == len(splits["test"]) > 600


def test_a_table_cut_over_eight_devices_gives_the_same_ranks():
    splits, names = graph(), (ENTITIES, RELATIONS)
    config = KgeConfig(model="complex", width=3)
    alone, _ = rank(config, splits, names)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    known = Known.of(np.concatenate(list(splits.values())), *names)
    model, params = make(config, *names)
    rows = 32  # a multiple of the devices; make's has as many: 30 entities and 2 spare ones
    assert len(params["entity"]) == rows
    ranker = Ranker(model, known, mesh, BATCH, grouped=False)
    dataset = make_triple_dataset(splits["test"], known, (range(ENTITIES), range(RELATIONS)))
    placed = jax.device_put(params, model.shardings(mesh))
    assert len(placed["entity"].addressable_shards[0].data) == rows // 8
    check(ranker.evaluate(placed, dataset), alone)
    queries = dict.fromkeys(("source", "relation", "answer"), np.zeros(BATCH, np.int32))
    queries |= {"inverse": np.zeros(BATCH, bool), "row": np.full(8, BATCH, np.int32)}
    queries["column"] = np.zeros(8, np.int32)
    compiled = ranker._rank.lower(placed, queries).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled  # no chip has all rows


def test_all_alike_is_the_middle_and_the_only_one_left_is_first():
    triples = np.array([(h, 0, t) for h, t in itertools.product(range(4), range(4))], np.int32)
    config = KgeConfig(model="distmult", width=2)

    def alike(params):
        return jax.tree.map(np.zeros_like, params)

    rows, _ = rank(config, {"train": triples[:0], "test": triples[:1]}, (4, 1), alike)
    assert rows["rank_tail"] == rows["rank_head"] == 2.5
    rows, _ = rank(config, {"train": triples[1:], "test": triples[:1]}, (4, 1), alike)
    assert rows["rank_tail"] == rows["rank_head"] == 1  # all others are known


def test_ranks_of_triples_that_no_split_knows_leave_themselves_out():
    splits, names = graph(), (ENTITIES, RELATIONS)
    config = KgeConfig(model="distmult", width=3)
    model, params = make(config, *names)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    known = Known.of(splits["train"], *names)
    dataset = make_triple_dataset(splits["test"], known, (range(ENTITIES), range(RELATIONS)))
    rows = Ranker(model, known, mesh, BATCH, grouped=False).evaluate(params, dataset)
    check(rows, rank_by_hand(config, params, splits["test"], splits["train"], RELATIONS))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    def spoil(params):
        entity = params["entity"].copy()
        entity[UNSEEN] = bad
        return {**params, "entity": entity}

    with pytest.raises(NotFiniteError, match=r"2 of 62 queries .* \(3, 1, 29\)"):
        rank(KgeConfig(model="distmult", width=3), graph(), (ENTITIES, RELATIONS), spoil)


def test_no_triples_have_no_ranks():
    splits = {**graph(), "test": graph()["test"][:0]}
    rows, _ = rank(KgeConfig(model="distmult", width=3), splits, (ENTITIES, RELATIONS))
    assert all(len(x) == 0 for x in rows.values())


def test_means_of_ranks():
    out = score_ranks(np.array([1, 2, 3.5, 12]))
    wanted = {"mrr": (1 + 1 / 2 + 1 / 3.5 + 1 / 12) / 4, "mean_rank": 18.5 / 4}
    wanted |= {"hits@1": 0.25, "hits@3": 0.5, "hits@10": 0.75}
    assert out == pytest.approx(wanted)
    rows = {"relation": np.array([1, 0, 1]), "rank_head": np.array([1, 2, 20.0])}
    first, second = by_relation({**rows, "rank_tail": np.array([4, 1, 2.0])}, ["a", "b", "c"])
    assert first == pytest.approx(
        {"relation": "b", "triples": 2, "head/mrr": 0.525, "head/hits@10": 0.5}
        | {"tail/mrr": 0.375, "tail/hits@10": 1}
    )
    assert (second["relation"], second["triples"]) == ("a", 1)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_query_is_dealt_out_once_and_evenly(grouped):
    rng = np.random.default_rng(0)
    relation, known = rng.integers(0, 5, 1000), rng.zipf(1.5, 1000).clip(0, 2000)
    fake = dataclasses.make_dataclass("Fake", ["batch", "_grouped"])(64, grouped)
    batches = list(Ranker._batches(fake, relation, known))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert max(map(len, batches)) <= 64
    if grouped:
        assert all(len(set(relation[b])) == 1 for b in batches)
    else:
        sums = [known[b].sum() for b in batches]
        assert max(sums) - min(sums) <= known.max()
