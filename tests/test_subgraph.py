"""Subgraphs against a slow and plain reference, on random graphs; then the edge cases."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from keft_jax.config import KeftError
from keft_jax.kg import KG, Budget, extract, survival
from keft_jax.kg import subgraph as module


def random_graph(rng, entities=40, relations=4, triples=120, hubs=2):
    """Random triples, a good part of them at a few hubs; loops and parallel relations occur."""
    names = [f"e{i:03d}" for i in range(entities)]
    facts = []
    for _ in range(triples):
        h, t = rng.integers(entities, size=2)
        if rng.random() < 0.4:
            t = rng.integers(hubs)
        if rng.random() < 0.5:
            h, t = t, h
        facts.append((names[h], f"r{int(rng.integers(relations) ** 2 / relations)}", names[t]))
    return KG.from_triples(facts, aliases={name: () for name in names})


def reference(kg, seeds, budget):
    """Nodes, edges and cut of one example, by the definition, with dicts and loops."""
    octaves = lambda count: round(64 * math.log2(count))  # noqa: E731
    facts = list(zip(kg.heads.tolist(), kg.rels.tolist(), kg.tails.tolist(), strict=True))
    frequency = Counter(r for _, r, _ in facts)
    degree = Counter(x for h, _, t in facts for x in (h, t))
    step, place = {}, Counter()
    ways = [(h, r, "out", t) for h, r, t in facts] + [(t, r, "in", h) for h, r, t in facts]
    for u, r, way, v in sorted(way for way in ways if way[0] != way[3]):
        place[u, r, way] += 1
        cost = octaves(1 + frequency[r]) + octaves(1 + degree[u]) + octaves(place[u, r, way])
        step[u, v] = min(cost, step.get((u, v), cost))
    room = budget.nodes - 1
    seeds = list(dict.fromkeys(s for s in seeds if s >= 0))
    cut = len(seeds) > room
    nodes = seeds[:room]
    frontier = dict.fromkeys(nodes, 0)
    for hop in range(budget.hops):
        if cut:
            break
        ways = {}
        for u, cost in frontier.items():
            near = sorted((c, v) for (x, v), c in step.items() if x == u)[
                : room if hop else 16 * room
            ]
            for c, v in near:
                if v not in nodes:
                    ways.setdefault(v, []).append(cost + c)
        ranked = sorted((max(min(c) - octaves(len(c)), 1), v) for v, c in ways.items())
        cut = len(nodes) + len(ranked) > room
        frontier = {v: c for c, v in ranked[: room - len(nodes)]}
        nodes += list(frontier)
    place = {v: i for i, v in enumerate(nodes)}
    inside = [(place[h], r, place[t], i) for i, (h, r, t) in enumerate(facts) if {h, t} <= {*nodes}]
    inside.sort(
        key=lambda f: (max(f[0], f[2]), min(f[0], f[2]), octaves(1 + frequency[f[1]]), f[3])
    )
    most = budget.edges // 2
    if len(inside) > most:
        cut = True
        linked, first, rest = set(), [], []
        for fact in inside:
            far = max(fact[0], fact[2])
            (rest if far in linked else first).append(fact)
            linked.add(far)
        inside = (first + rest)[:most]
    edges = [(t, h, r) for h, r, t, _ in inside]
    edges += [(h, t, r + kg.n_relations) for h, r, t, _ in inside]
    return nodes, sorted(edges), cut


@pytest.mark.parametrize("trial", range(12))
@pytest.mark.parametrize("hub", [3, 10, 1000])
def test_equals_the_reference(trial, hub, monkeypatch):
    monkeypatch.setattr(module, "_HUB", hub)  # all, some and none of the edges through pairs
    monkeypatch.setattr(module, "_CHUNK", 7)
    rng = np.random.default_rng(trial)
    kg = random_graph(rng, triples=int(rng.integers(10, 200)))
    seeds = rng.integers(-1, kg.n_entities, size=(20, int(rng.integers(1, 5)))).astype(np.int32)
    budget = Budget(int(rng.integers(2, 30)), int(rng.integers(2, 80)), int(rng.integers(0, 4)))
    got = extract(kg, seeds, budget)
    for i in range(len(seeds)):
        nodes, edges, cut = reference(kg, seeds[i].tolist(), budget)
        n, e = got.n_node[i], got.n_edge[i]
        assert got.entity[i].tolist() == nodes + [-1] * (budget.nodes - len(nodes))
        columns = got.receivers[i, :e], got.senders[i, :e], got.relation[i, :e]
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == edges
        assert (n, e, got.cut[i]) == (len(nodes), len(edges), cut)
        place = {v: k for k, v in enumerate(nodes)}
        assert got.seed_node[i].tolist() == [place.get(s, -1) for s in seeds[i].tolist()]
        assert set(got.receivers[i, e:]) | set(got.senders[i, e:]) <= {n}
        assert not got.relation[i, e:].any()
    assert (np.diff(got.receivers, axis=1) >= 0).all()
    assert n < budget.nodes


def test_same_for_any_order_of_triples_and_any_batch():
    rng = np.random.default_rng(3)
    kg = random_graph(rng, triples=300)
    facts = [
        (kg.names[h], kg.relations[r], kg.names[t])
        for h, r, t in zip(kg.heads, kg.rels, kg.tails, strict=True)
    ]
    again = KG.from_triples(
        [facts[i] for i in rng.permutation(len(facts))], aliases=dict.fromkeys(kg.names, ())
    )
    seeds = rng.integers(0, kg.n_entities, (600, 2)).astype(np.int32)
    budget = Budget(12, 30, 2)
    whole, other = extract(kg, seeds, budget), extract(again, seeds, budget)
    for name in module.Subgraphs.__annotations__:
        field = getattr(whole, name)
        np.testing.assert_array_equal(field, getattr(other, name))
        parts = [getattr(extract(kg, seeds[i : i + 90], budget), name) for i in range(0, 600, 90)]
        np.testing.assert_array_equal(field, np.concatenate(parts))


def test_rare_relations_come_before_frequent_ones_and_hubs_last():
    facts = [("seed", "often", f"o{i}") for i in range(5)] + [("seed", "rare", "z")]
    facts += [("hub", "often", f"h{i:03d}") for i in range(100)]
    facts += [("seed", "often", "hub"), ("o3", "often", "zz")]
    kg = KG.from_triples(facts)
    got = extract(kg, np.array([[kg.id("seed")]]), Budget(13, 40, 2))
    names = [kg.names[i] for i in got.entity[0, : got.n_node[0]]]
    assert names[1] == "z"
    assert names.index("zz") < min(i for i, name in enumerate(names) if name.startswith("h0"))
    assert got.cut[0]


def test_what_joins_two_seeds_comes_first():
    facts = [("a", "r", f"m{i}") for i in range(9)] + [("b", "r", "m7")]
    facts += [("b", "r", f"n{i}") for i in range(8)]
    kg = KG.from_triples(facts)
    got = extract(kg, np.array([[kg.id("a"), kg.id("b")]]), Budget(4, 20, 1))
    assert [kg.names[i] for i in got.entity[0, :3]] == ["a", "b", "m7"]


def test_loop_gives_both_edges_and_no_seed_gives_nothing():
    kg = KG.from_triples([("a", "r", "a")])
    got = extract(kg, np.array([[0, -1], [-1, -1]]), Budget(3, 4, 2))
    assert got.n_node.tolist() == [1, 0] and got.n_edge.tolist() == [2, 0]
    assert got.relation[0].tolist() == [0, 1, 0, 0]
    assert got.senders[0].tolist() == got.receivers[0].tolist() == [0, 0, 1, 1]
    assert not got.receivers[1].any() and not got.cut.any()
    assert extract(kg, np.zeros((0, 2), np.int32), Budget(3, 4, 2)).entity.shape == (0, 3)
    assert extract(kg, np.zeros((2, 0), np.int32), Budget(3, 4, 2)).n_node.tolist() == [0, 0]


def test_an_odd_edge_budget_leaves_a_triple_whole():
    kg = KG.from_triples([("a", "r", "b"), ("a", "r", "c")])
    got = extract(kg, np.array([[0]]), Budget(8, 3, 1))
    assert got.n_edge[0] == 2 and got.cut[0] and got.relation[0].tolist() == [1, 0, 0]


def test_bad_input_says_what_to_do():
    kg = KG.from_triples([("a", "r", "b")])
    with pytest.raises(KeftError, match=r"use -1 .none. to 1"):
        extract(kg, np.array([[2]]), Budget(4, 4, 1))
    with pytest.raises(KeftError, match=r"\[examples, seeds\]"):
        extract(kg, np.array([1]), Budget(4, 4, 1))
    with pytest.raises(KeftError, match=r"budget.nodes = 1"):
        Budget(1, 4, 1)


def test_survival_counts_answers():
    kg = KG.from_triples([("a", "r", "b"), ("a", "r", "c"), ("x", "r", "y")])
    got = extract(kg, np.array([[kg.id("a")], [kg.id("x")]]), Budget(3, 8, 1))
    told = survival(got, [{kg.id("b"), kg.id("y")}, {kg.id("y"), -1}], kg, 1)
    assert told["answers"] == 4 and told["in_graph"] == 0.75
    assert told["near"] == pytest.approx(2 / 3) and told["survived"] == 1
    # The budget has room for one of a's two neighbours; an answer far off is not its fault.
    told = survival(got, [{kg.id("b"), kg.id("c"), kg.id("x")}, {kg.id("y")}], kg, 1)
    assert told["near"] == 0.75 and told["survived"] == pytest.approx(2 / 3)
    assert told["examples_with_answer"] == 1 and told["examples_cut"] == 0.5
    assert told["reached"] == pytest.approx(told["near"] * told["survived"])
    told = survival(got, [{kg.id("x")}, {kg.id("a"), -1}], kg, 1)  # nothing for a budget to keep
    assert told["near"] == told["reached"] == 0 and np.isnan(told["survived"])
