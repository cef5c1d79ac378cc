"""The control graphs keep what they promise to keep, and lose the rest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from keft_jax.config import KeftError
from keft_jax.kg import KG, build_kg
from keft_jax.kg.controls import (
    PERTURBATIONS,
    _kinds,
    corrupt,
    drop,
    permute_entities,
    rewire,
    shuffle_entities,
)


def world(rng, cities=200, countries=20):
    facts = []
    for i in range(cities):
        country = f"country{int(rng.integers(countries)):02d}"
        facts.append((f"city{i:03d}", "located_in", country))
        if i % 3 == 0:
            facts.append((f"city{i:03d}", "twin_of", f"city{int(rng.integers(cities)):03d}"))
    facts += [(f"country{i:02d}", "speaks", f"language{i % 5}") for i in range(countries)]
    return KG.from_triples(facts, aliases={"city000": ["first"], "alone": ["nobody"]})


def triples(kg):
    return set(zip(kg.heads.tolist(), kg.rels.tolist(), kg.tails.tolist(), strict=True))


def permutation(kg, seed, linkable=None, alike=False):
    able = np.ones(kg.n_entities, bool) if linkable is None else linkable
    return permute_entities(kg, seed, able, alike)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alike", [False, True])
def test_shuffled_is_isomorphic_by_a_permutation_without_fixed_points(seed, alike):
    kg = world(np.random.default_rng(seed))
    pi = permutation(kg, seed, alike=alike)
    other = shuffle_entities(kg, seed, alike=alike)
    assert sorted(pi.tolist()) == list(range(kg.n_entities))
    assert (pi != np.arange(kg.n_entities)).all()
    assert triples(other) == {(pi[h], r, pi[t]) for h, r, t in triples(kg)}
    np.testing.assert_array_equal(other.degrees[pi], kg.degrees)
    assert list(other.names) == list(kg.names) and other.aliases(other.id("city000")) == ("first",)
    again, another = (shuffle_entities(kg, s, alike=alike) for s in (seed, seed + 9))
    assert other.hash == again.hash != another.hash


def test_kindred_stays_within_kind_degree_and_linkability():
    rng = np.random.default_rng(1)
    kg = world(rng, cities=2000, countries=60)
    linkable = rng.random(kg.n_entities) < 0.5
    pi = permutation(kg, 0, linkable, alike=True)
    np.testing.assert_array_equal(linkable[pi], linkable)
    kind, _ = _kinds(kg)
    assert (kind[pi] == kind).mean() > 0.99
    ratio = np.log2((1 + kg.degrees[pi]) / (1 + kg.degrees))
    assert (np.abs(ratio) <= 1).mean() > 0.95
    other = shuffle_entities(kg, 0, alike=True)
    assert (kg.tails[kg.rels == 0] != other.tails[kg.rels == 0]).mean() > 0.5


def test_shuffled_says_nothing_of_what_relations_an_entity_has():
    rng = np.random.default_rng(3)
    facts = [(f"e{i}", f"r{i % 5}", f"v{int(rng.integers(300))}") for i in range(600)]
    kg = KG.from_triples(facts)
    pi, alike = permutation(kg, 0), permutation(kg, 0, alike=True)
    own = np.full(kg.n_entities, -1)  # the relation that an entity is the head of
    own[kg.heads] = kg.rels
    heads = own >= 0
    assert (own[alike][heads] == own[heads]).mean() > 0.9
    assert 0.1 < (own[pi][heads] == own[heads]).mean() < 0.3  # one in five by chance
    for moved in (pi, alike):
        ratio = np.log2((1 + kg.degrees[moved]) / (1 + kg.degrees))
        assert (np.abs(ratio) <= 1).mean() > 0.9
        assert (heads[moved] == heads).mean() > 0.9


def test_kinds_tell_sets_of_directed_relations_apart():
    facts = [("a", "r", "b"), ("a", "r", "c"), ("d", "r", "e"), ("d", "s", "e"), ("f", "s", "g")]
    kg = KG.from_triples(facts)
    kind, main = _kinds(kg)
    ids = {name: kind[i] for i, name in enumerate(kg.names)}
    assert ids["b"] == ids["c"] and len(set(ids.values())) == 6
    assert main[kg.id("a")] == 0 and main[kg.id("b")] == 2


@pytest.mark.parametrize("facts", [[], [("a", "r", "b")], [("a", "r", "a")]])
def test_smallest_graphs_pass(facts):
    kg = KG.from_triples(facts)
    assert shuffle_entities(kg, 0).n_triples == rewire(kg, 0).n_triples == len(facts)
    with pytest.raises(KeftError, match="linkable: shape"):
        shuffle_entities(kg, 0, np.ones(9, bool))


@pytest.mark.parametrize("seed", range(3))
def test_rewired_keeps_degrees_and_relation_counts_only(seed):
    kg = world(np.random.default_rng(seed), cities=1000)
    other = rewire(kg, seed)
    assert other.n_triples == kg.n_triples
    np.testing.assert_array_equal(np.diff(other.out_offsets), np.diff(kg.out_offsets))
    np.testing.assert_array_equal(np.diff(other.in_offsets), np.diff(kg.in_offsets))
    np.testing.assert_array_equal(np.bincount(other.rels), np.bincount(kg.rels))
    assert (other.heads == other.tails).sum() <= (kg.heads == kg.tails).sum()
    assert len(triples(other) & triples(kg)) < 0.2 * kg.n_triples
    assert other.hash == rewire(kg, seed).hash


def test_rewired_holds_in_a_graph_that_is_nearly_full():
    facts = [(f"e{h}", f"r{r}", f"e{t}") for h in range(6) for r in range(2) for t in range(6)]
    kg = KG.from_triples(facts[:-3])
    other = rewire(kg, 0)
    assert other.n_triples == kg.n_triples
    np.testing.assert_array_equal(other.degrees, kg.degrees)


def test_on_real_facts(shared):
    path = shared / "data/kgqa/metaqa/kg.tsv.gz"
    if not path.exists():
        pytest.skip("no MetaQA graph in shared/")
    kg, _ = build_kg(path)
    other = shuffle_entities(kg, 0)
    assert len(triples(other) & triples(kg)) < 0.02 * kg.n_triples
    np.testing.assert_array_equal(np.sort(other.degrees), np.sort(kg.degrees))


@pytest.mark.parametrize("change", PERTURBATIONS)
def test_what_a_smaller_share_changes_a_larger_one_changes_too(change):
    kg = world(np.random.default_rng(4))
    shares = (0.0, 0.1, 0.3, 0.5, 1.0)
    graphs = [PERTURBATIONS[change](kg, 7, share) for share in shares]
    true = triples(kg)
    gone = [true - triples(graph) for graph in graphs]
    new = [triples(graph) - true for graph in graphs]
    for some in (gone, new):
        assert all(a <= b for a, b in itertools.pairwise(some))
    assert [len(some) for some in gone] == [round(share * len(true)) for share in shares]
    assert [len(some) for some in new] == [len(g) if change == "corrupt" else 0 for g in gone]
    assert all(list(graph.names) == list(kg.names) for graph in graphs)
    assert PERTURBATIONS[change](kg, 7, 0.3).hash == graphs[2].hash
    assert PERTURBATIONS[change](kg, 8, 0.3).hash != graphs[2].hash


def test_wrong_facts_are_of_like_kind():
    kg = world(np.random.default_rng(5))
    wrong = corrupt(kg, 0, 1.0)
    assert wrong.n_triples == kg.n_triples
    for r in range(kg.n_relations):
        before, after = kg.rels == r, wrong.rels == r
        np.testing.assert_array_equal(before.sum(), after.sum())
        like = np.isin(wrong.heads[after], kg.heads[before])
        like &= np.isin(wrong.tails[after], kg.tails[before])
        assert like.mean() > 0.9


def test_a_fact_that_cannot_be_made_wrong_stays():
    kg = KG.from_triples([("a", "r", "b"), ("b", "r", "a")])
    assert triples(corrupt(kg, 0, 1.0)) == triples(kg)
    with pytest.raises(KeftError, match="share 2"):
        drop(kg, 0, 2)
