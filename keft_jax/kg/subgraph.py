"""Seeds -> each example's neighbourhood under a budget, padded: numpy over the whole batch.

Nodes are taken hop by hop; within a hop the most relevant first, then by id. The relevance of the
best walk from a seed is the product over its steps u -r-> v of

    1 / ((1 + facts of r) * (1 + degree of u) * place of v among those that u has by r)

so rare relations and small parents come first, what lies behind a hub comes last, and of a node
with too many facts something of each of its relations is kept (places are by id). A node that
k kept nodes of the hop before lead to is k times as relevant (it joins them). Relevances are held
as integer costs, -64 log2, so that sums are exact and any machine gives the same subgraph.

Of each expanded node only the most relevant neighbours are looked at (of a seed 16 (nodes - 1), of
others nodes - 1), which keeps hubs cheap: when more exist the budget is exceeded anyway, and the
example counts as cut.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keft_jax.config import KeftError, check
from keft_jax.kg.store import KG

_SCALE = 64  # cost units an octave
DEAREST = _SCALE * (31 + 32 + 31)  # cost of a step, at most
_COST_BITS = 16  # 8 hops
_NODE_BITS = 31  # entity ids are int32
_CHUNK = 256  # examples at a time: their sort keys stay in the cache
LOOK = 16  # neighbours of a seed looked at, in budgets: enough to see what joins two seeds
_HUB = 64  # from this degree on, edges are found by pairs of kept nodes, not by listing neighbours


@dataclass(frozen=True)
class Budget:
    """nodes: padded size, of which at most nodes - 1 are real (jraph keeps one for padding).
    edges: padded size; a triple takes two. hops: radius."""

    nodes: int
    edges: int
    hops: int

    def __post_init__(self) -> None:
        check(2 <= self.nodes <= 1 << 14, "budget.nodes", self.nodes, "use 2 to 16,384")
        check(2 <= self.edges <= 1 << 20, "budget.edges", self.edges, "use 2 to 1,048,576")
        check(0 <= self.hops <= 8, "budget.hops", self.hops, "use 0 to 8")


@dataclass(frozen=True)
class Subgraphs:
    """A batch of padded subgraphs: b examples, n nodes, e edges, m seeds."""

    entity: np.ndarray  # int32[b, n]; -1 = pad
    n_node: np.ndarray  # int32[b], real ones
    senders: np.ndarray  # int32[b, e]; pads point to node n_node
    receivers: np.ndarray  # int32[b, e], rising
    relation: np.ndarray  # int32[b, e]; r, and r + n_relations against the arrow; 0 = pad
    n_edge: np.ndarray  # int32[b], real ones
    seed_node: np.ndarray  # int32[b, m]; -1 = none
    cut: np.ndarray  # bool[b]: something within reach was left out


@dataclass(frozen=True)
class _Index:
    """What `extract` looks up, made once for a graph."""

    offsets: np.ndarray  # int64[E + 1], into the next two
    neighbour: np.ndarray  # int32: other entities, each once, by (cost, id)
    cost: np.ndarray  # int32: of the cheapest step there
    is_hub: np.ndarray  # bool[E]
    hub_key: np.ndarray  # int64, rising: head * E + tail of triples between hubs
    hub_triple: np.ndarray  # int32: their numbers
    relation_cost: np.ndarray  # int32[R]


_indices: weakref.WeakKeyDictionary[KG, _Index] = weakref.WeakKeyDictionary()


def octaves(count: np.ndarray) -> np.ndarray:
    return np.rint(_SCALE * np.log2(count)).astype(np.int32)


def index_of(kg: KG) -> _Index:
    if kg not in _indices:
        _indices[kg] = _make_index(kg)
    return _indices[kg]


def _make_index(kg: KG) -> _Index:
    size = kg.n_entities
    relation_cost = octaves(1 + np.bincount(kg.rels, minlength=kg.n_relations))
    source = np.concatenate([kg.heads, kg.tails]).astype(np.int64)
    target = np.concatenate([kg.tails, kg.heads])
    relation = np.concatenate([kg.rels, kg.rels + kg.n_relations])
    cost = np.tile(relation_cost, 2)[relation] + octaves(1 + kg.degrees)[source]
    real = source != target
    source, target, relation, cost = source[real], target[real], relation[real], cost[real]
    order = np.lexsort((target, relation, source))
    source, target, relation, cost = source[order], target[order], relation[order], cost[order]
    opens = np.ones(len(source), bool)
    opens[1:] = (np.diff(source) != 0) | (np.diff(relation) != 0)
    place, _ = _rank(np.cumsum(opens) - 1, int(opens.sum()))
    cost = cost + octaves(1 + place)
    order = np.lexsort((cost, target, source))
    source, target, cost = source[order], target[order], cost[order]
    best = np.ones(len(source), bool)
    best[1:] = (np.diff(source) != 0) | (np.diff(target) != 0)
    source, target, cost = source[best], target[best], cost[best]
    order = np.lexsort((target, cost, source))
    is_hub = kg.degrees >= _HUB
    between = np.flatnonzero(is_hub[kg.heads] & is_hub[kg.tails])
    key = kg.heads[between].astype(np.int64) * size + kg.tails[between]
    by_key = np.argsort(key, kind="stable")
    return _Index(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(source, minlength=size))]),
        neighbour=target[order],
        cost=cost[order],
        is_hub=is_hub,
        hub_key=key[by_key],
        hub_triple=between[by_key].astype(np.int32),
        relation_cost=relation_cost,
    )


def extract(kg: KG, seeds: np.ndarray, budget: Budget) -> Subgraphs:
    """The subgraphs around seeds int32[b, m] (-1 = no seed).

    Seeds are the first nodes, in order, each once. Edges are all triples among the kept nodes, in
    both directions; over the budget, each node's link to the nearest kept node goes in first, then
    what is nearest to the seeds, and a triple's two edges stand or fall together.
    """
    seeds = np.asarray(seeds, np.int32)
    if seeds.ndim != 2:
        raise KeftError(f"seeds: shape {seeds.shape}; give [examples, seeds], padded with -1")
    if seeds.size and not -1 <= seeds.min() <= seeds.max() < kg.n_entities:
        raise KeftError(
            f"seeds: ids {seeds.min()} to {seeds.max()}; use -1 (none) to {kg.n_entities - 1}"
        )
    b, n, e = len(seeds), budget.nodes, budget.edges
    out = Subgraphs(
        entity=np.full((b, n), -1, np.int32),
        n_node=np.zeros(b, np.int32),
        senders=np.zeros((b, e), np.int32),
        receivers=np.zeros((b, e), np.int32),
        relation=np.zeros((b, e), np.int32),
        n_edge=np.zeros(b, np.int32),
        seed_node=np.full(seeds.shape, -1, np.int32),
        cut=np.zeros(b, bool),
    )
    index = index_of(kg)
    for first in range(0, b, _CHUNK):
        part = slice(first, first + _CHUNK)
        view = Subgraphs(**{name: getattr(out, name)[part] for name in Subgraphs.__annotations__})
        _take_nodes(index, seeds[part], budget, view)
        _take_edges(kg, index, budget, view)
    return out


def _ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """starts[i] + 0 .. counts[i] - 1 for every i, flat; and the i of each."""
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(len(owner)) + (starts - before)[owner], owner


def _rank(group: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For rising group numbers: each element's place in its group, and int64[size] group sizes."""
    counts = np.bincount(group, minlength=size)
    return np.arange(len(group)) - (np.cumsum(counts) - counts)[group], counts


def _take_nodes(index: _Index, seeds: np.ndarray, budget: Budget, out: Subgraphs) -> None:
    """Fills entity, n_node, seed_node and the nodes' part of cut."""
    b, room = len(seeds), budget.nodes - 1
    same = (seeds[:, :, None] == seeds[:, None, :]) & (seeds >= 0)[:, :, None]
    first_of = np.argmax(same, axis=2) if seeds.shape[1] else np.zeros(seeds.shape, np.int64)
    is_new = (first_of == np.arange(seeds.shape[1])) & (seeds >= 0)
    place = np.cumsum(is_new, axis=1) - 1
    node = np.take_along_axis(place, first_of, axis=1)
    out.seed_node[:] = np.where((seeds >= 0) & (node < room), node, -1)
    row, column = np.nonzero(is_new & (place < room))
    out.entity[row, place[row, column]] = seeds[row, column]
    out.cut[:] = is_new.sum(axis=1) > room
    out.n_node[:] = np.minimum(is_new.sum(axis=1), room)

    # Sort keys of (example, entity, cost); a cost of 0 marks what is kept already.
    kept = row << (_NODE_BITS + _COST_BITS) | seeds[row, column].astype(np.int64) << _COST_BITS
    parent, entity, cost = row, seeds[row, column], np.zeros(len(row), np.int64)
    for hop in range(budget.hops):
        open_ = ~out.cut[parent]
        parent, entity, cost = parent[open_], entity[open_], cost[open_]
        if not len(parent):
            break
        start = index.offsets[entity]
        look = room if hop else LOOK * room
        count = np.minimum(index.offsets[entity + 1] - start, look)
        at, owner = _ranges(start, count)
        key = parent << (_NODE_BITS + _COST_BITS)
        key = key[owner] | index.neighbour[at].astype(np.int64) << _COST_BITS
        key |= cost[owner] + index.cost[at]
        key = np.concatenate([kept, key])
        key.sort()
        pair = key >> _COST_BITS
        opens = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]]))
        ways = np.diff(opens, append=len(key))
        best = key[opens] & ((1 << _COST_BITS) - 1)
        fresh = best > 0
        pair, best, ways = pair[opens][fresh], best[fresh], ways[fresh]
        best = np.maximum(best - octaves(ways), 1)

        key = (pair >> _NODE_BITS) << (_NODE_BITS + _COST_BITS) | best << _NODE_BITS
        key |= pair & ((1 << _NODE_BITS) - 1)
        key.sort()
        parent = key >> (_NODE_BITS + _COST_BITS)
        entity = (key & ((1 << _NODE_BITS) - 1)).astype(np.int32)
        cost = (key >> _NODE_BITS) & ((1 << _COST_BITS) - 1)
        rank, found = _rank(parent, b)
        place = out.n_node[parent] + rank
        fits = place < room
        out.cut[:] |= out.n_node + found > room
        out.n_node[:] = np.minimum(out.n_node + found, room)
        parent, entity, cost, place = parent[fits], entity[fits], cost[fits], place[fits]
        out.entity[parent, place] = entity
        new = parent << (_NODE_BITS + _COST_BITS) | entity.astype(np.int64) << _COST_BITS
        kept = np.concatenate([kept, new])


def _take_edges(kg: KG, index: _Index, budget: Budget, out: Subgraphs) -> None:
    """Fills senders, receivers, relation, n_edge and the edges' part of cut."""
    b, n = out.entity.shape
    row, head, tail, triple = _triples_among(kg, index, out)

    counts = np.bincount(row, minlength=b)
    most = budget.edges // 2
    over = counts > most
    if over.any():
        far, near = np.maximum(head, tail), np.minimum(head, tail)
        cost = index.relation_cost[kg.rels[triple]]
        some = np.flatnonzero(over[row])
        order = some[np.lexsort((triple[some], cost[some], near[some], far[some], row[some]))]
        link = row[order] * n + far[order]
        later = np.concatenate([[False], link[1:] == link[:-1]])
        order = order[np.lexsort((later, row[order]))]  # stable: each node's first link, the rest
        rank, _ = _rank(row[order], b)
        keep = np.ones(len(row), bool)
        keep[order[rank >= most]] = False
        row, head, tail, triple = row[keep], head[keep], tail[keep], triple[keep]
        out.cut[:] |= over

    rel = kg.rels[triple].astype(np.int64)
    bits = max(n - 1, 1).bit_length()
    rel_bits = max(2 * kg.n_relations - 1, 1).bit_length()
    if rel_bits + 2 * bits + b.bit_length() > 63:
        raise KeftError(f"{kg.n_relations:,} relations: too many for {n} nodes; use fewer nodes")
    key = np.concatenate(
        [
            ((row << bits | tail) << bits | head) << rel_bits | rel,
            ((row << bits | head) << bits | tail) << rel_bits | rel + kg.n_relations,
        ]
    )
    key.sort()
    row = key >> (rel_bits + 2 * bits)
    rank, counts = _rank(row, b)
    mask = (1 << bits) - 1
    out.n_edge[:] = counts
    out.senders[:] = out.n_node[:, None]
    out.receivers[:] = out.n_node[:, None]
    out.receivers[row, rank] = (key >> (rel_bits + bits)) & mask
    out.senders[row, rank] = (key >> rel_bits) & mask
    out.relation[row, rank] = key & ((1 << rel_bits) - 1)


def _triples_among(
    kg: KG, index: _Index, out: Subgraphs
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(example, head node, tail node, triple number) of all triples between kept nodes, each once.

    Small nodes list their triples; two hubs look their pair up.
    """
    row, node = np.nonzero(out.entity >= 0)
    entity = out.entity[row, node]
    hub = index.is_hub[entity]
    key = row << _NODE_BITS | entity
    by_key = np.argsort(key)
    key, node_at = key[by_key], node[by_key]

    def find(owner: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        want = row[owner] << _NODE_BITS | other
        at = np.searchsorted(key, want)
        hit = np.flatnonzero(key[np.minimum(at, len(key) - 1)] == want) if len(key) else at
        return hit, node_at[at[hit]]

    small = np.flatnonzero(~hub)
    start = kg.out_offsets[entity[small]]
    triple, owner = _ranges(start, kg.out_offsets[entity[small] + 1] - start)
    owner = small[owner]
    hit, tail = find(owner, kg.tails[triple])
    parts = [(row[owner[hit]], node[owner[hit]], tail, triple[hit])]

    start = kg.in_offsets[entity[small]]
    at, owner = _ranges(start, kg.in_offsets[entity[small] + 1] - start)
    triple = kg.in_triples[at]
    from_hub = index.is_hub[kg.heads[triple]]  # those from small heads are listed above
    triple, owner = triple[from_hub], small[owner[from_hub]]
    hit, head = find(owner, kg.heads[triple])
    parts.append((row[owner[hit]], head, node[owner[hit]], triple[hit]))

    hubs = np.flatnonzero(hub)
    _, counts = _rank(row[hubs], len(out.entity))
    left_at = np.repeat(hubs, counts[row[hubs]])
    right_at, _ = _ranges((np.cumsum(counts) - counts)[row[hubs]], counts[row[hubs]])
    right_at = hubs[right_at]
    want = entity[left_at].astype(np.int64) * kg.n_entities + entity[right_at]
    low = np.searchsorted(index.hub_key, want)
    at, owner = _ranges(low, np.searchsorted(index.hub_key, want, side="right") - low)
    left_at, right_at = left_at[owner], right_at[owner]
    parts.append((row[left_at], node[left_at], node[right_at], index.hub_triple[at]))
    row, head, tail, triple = (np.concatenate(x) for x in zip(*parts, strict=True))
    return row, head, tail, triple


def survival(
    subgraphs: Subgraphs, answers: Sequence[set[int]], kg: KG, hops: int
) -> dict[str, float]:
    """How much of what is asked for the subgraphs still hold.

    answers: entity ids of each example; ids outside the graph count as not in it. Gives counts of
    `examples` and `answers`, and the shares `in_graph` (of answers), `near` (of those in the graph,
    the ones within `hops` of a mention), `survived` (of those near, the ones that the budget left
    in the subgraph; NaN where none is near), `reached` (of those in the graph, the ones in the
    subgraph: near x survived), `examples_with_answer` (at least one survived) and `examples_cut`.
    """
    b = len(subgraphs.entity)
    if len(answers) != b:
        raise KeftError(f"answers: {len(answers)} sets for {b} subgraphs; give one for each")
    counts = np.array([len(ids) for ids in answers], np.int64)
    row = np.repeat(np.arange(b), counts)
    ids = np.fromiter((i for some in answers for i in some), np.int64, int(counts.sum()))
    known = (ids >= 0) & (ids < kg.n_entities)
    at, node = np.nonzero(subgraphs.entity >= 0)
    held = np.isin(
        row << _NODE_BITS | np.where(known, ids, 0),
        at << _NODE_BITS | subgraphs.entity[at, node],
    )
    held &= known
    near = held.copy()
    for i in np.unique(row[known & ~held & subgraphs.cut[row]]):
        seeds = subgraphs.entity[i, subgraphs.seed_node[i, subgraphs.seed_node[i] >= 0]]
        asked = (row == i) & known
        near[asked] |= np.isin(ids[asked], _within(kg, seeds, hops))
    return {
        "examples": b,
        "answers": len(ids),
        "in_graph": float(known.sum() / max(len(ids), 1)),
        "near": float(near.sum() / max(known.sum(), 1)),
        "survived": float(held.sum() / near.sum()) if near.any() else math.nan,
        "reached": float(held.sum() / max(known.sum(), 1)),
        "examples_with_answer": len(np.unique(row[held])) / max(b, 1),
        "examples_cut": float(subgraphs.cut.mean()) if b else 0.0,
    }


def _within(kg: KG, seeds: np.ndarray, hops: int) -> np.ndarray:
    """All entities within so many edges of a seed, whatever their number."""
    seen = frontier = np.unique(seeds)
    for _ in range(hops):
        out = [kg.tails[kg.out_offsets[e] : kg.out_offsets[e + 1]] for e in frontier]
        back = [kg.heads[kg.in_triples[kg.in_offsets[e] : kg.in_offsets[e + 1]]] for e in frontier]
        frontier = np.setdiff1d(np.concatenate([*out, *back, frontier[:0]]), seen)
        seen = np.union1d(seen, frontier)
    return seen
