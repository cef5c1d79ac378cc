"""Graphs that look like the given one and know nothing, or less: what knowledge is measured
against."""

from __future__ import annotations

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg.store import KG

_TINY = 4  # smaller groups are shuffled with their next of kin
_ROUNDS = 12  # of pairwise swaps; every triple is offered one in each
_TRIES = 40  # entities offered to a fact that is to be wrong: half of like kind, half any


def shuffle_entities(
    kg: KG, seed: int, linkable: np.ndarray | None = None, alike: bool = False
) -> KG:
    """The whole graph under a permutation of its entities: (h, r, t) -> (pi h, r, pi t).

    Isomorphic to `kg`; names, aliases and descriptions stay with their ids, so text is linked as
    before and finds another entity's facts. pi stays among linkable entities (bool[E]; None: all)
    and among others, within like degree (its log2), and among those that are heads, tails or both.
    What relations an entity has is lost with the rest: it is most of what a graph tells of its
    type. `alike`: pi stays within a kind (the set of relations, with their direction), so that only
    what exactly the facts say is lost. Groups of fewer than 4 are joined, step by step: by the most
    frequent relation instead of the kind, then any degree, then all. pi has no fixed point but for
    an entity that is the only one of its linkability.
    """
    if linkable is None:
        linkable = np.ones(kg.n_entities, bool)
    if np.shape(linkable) != (kg.n_entities,):
        raise KeftError(
            f"linkable: shape {np.shape(linkable)}; give a bool for each of the "
            f"{kg.n_entities:,} entities"
        )
    moved = permute_entities(kg, seed, np.asarray(linkable, bool), alike)
    return kg.replace_triples(moved[kg.heads], kg.rels, moved[kg.tails])


def permute_entities(kg: KG, seed: int, linkable: np.ndarray, alike: bool = False) -> np.ndarray:
    """i64[E]: pi of `shuffle_entities`, the entity in whose place each one comes."""
    size, rng = kg.n_entities, np.random.default_rng(seed)
    degree = np.ceil(np.log2(1 + kg.degrees)).astype(np.int64)  # less than 64
    able, anything = linkable.astype(np.int64), np.zeros(size, np.int64)
    if alike:
        kind, main = _kinds(kg)
        keys = [kind * 64 + degree, main * 64 + degree, main, degree, anything]
    else:
        ends = [np.isin(np.arange(size), some).astype(np.int64) for some in (kg.heads, kg.tails)]
        keys = [(2 * ends[0] + ends[1]) * 64 + degree, degree, anything]
    moved = np.arange(size)
    left = np.arange(size)
    for key in keys:
        _, group = np.unique((2 * key + able)[left], return_inverse=True)
        counts = np.bincount(group)
        ready = counts[group] >= (_TINY if key.any() else 2)
        _cycle(moved, left[ready], group[ready], rng)
        left = left[~ready]
    for alone in left:  # at most one linkable, one not: let it into another's cycle
        others = np.flatnonzero((able == able[alone]) & (np.arange(size) != alone))
        if len(others):
            near = others[np.argmin(np.abs(degree[others] - degree[alone]))]
            moved[alone], moved[near] = moved[near], alone
    return moved


def _cycle(
    moved: np.ndarray, some: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> None:
    """Sends the members of each group round one cycle, in random order."""
    order = np.lexsort((rng.random(len(some)), group))
    some, group = some[order], group[order]
    counts = np.bincount(group)
    ends = np.cumsum(counts)
    following = np.arange(len(some)) + 1
    following[ends[counts > 0] - 1] = (ends - counts)[counts > 0]
    moved[some] = some[following]


def _kinds(kg: KG) -> tuple[np.ndarray, np.ndarray]:
    """For each entity the number of its set of (relation, direction), and its most frequent one."""
    wide = 2 * kg.n_relations
    own = np.concatenate([kg.heads, kg.tails]).astype(np.int64)
    pair = own * wide + np.concatenate([kg.rels, kg.rels + kg.n_relations])
    pair, counts = np.unique(pair, return_counts=True)
    own, role = pair // max(wide, 1), pair % max(wide, 1)
    # A set is known by the sum of its members' random numbers (Zobrist): no table of sets.
    mark = np.random.default_rng(0).integers(1 << 63, size=wide, dtype=np.uint64)
    kind = np.zeros(kg.n_entities, np.uint64)
    np.add.at(kind, own, mark[role])
    main = np.full(kg.n_entities, -1, np.int64)
    rising = np.lexsort((-role, counts, own))
    main[own[rising]] = role[rising]  # the last one written stays: the most frequent
    return np.unique(kind, return_inverse=True)[1], main


def rewire(kg: KG, seed: int) -> KG:
    """Edges at random: every entity keeps its in-degree and its out-degree, every relation its
    number of facts, and nothing else holds.

    The configuration model without repeated facts: rounds of random pairs of triples that swap
    their tails, then their relations, where no fact comes twice and no loop appears.
    """
    if kg.n_entities * max(kg.n_relations, 1) * kg.n_entities >= 1 << 63:
        raise KeftError(
            f"rewire: {kg.n_entities:,} entities and {kg.n_relations:,} relations are too many; "
            "leave out the row `random`"
        )
    rng = np.random.default_rng(seed)
    heads, rels, tails = kg.heads, np.array(kg.rels), np.array(kg.tails)
    for _ in range(_ROUNDS):
        for part in (tails, rels):
            _swap(heads, rels, tails, part, kg, rng)
    return kg.replace_triples(heads, rels, tails)


def _swap(
    heads: np.ndarray,
    rels: np.ndarray,
    tails: np.ndarray,
    part: np.ndarray,
    kg: KG,
    rng: np.random.Generator,
) -> None:
    """Offers every triple a swap of `part` (rels or tails, in place) with a random other."""
    half = len(part) // 2
    order = rng.permutation(len(part))
    left, right = order[:half], order[half : 2 * half]
    pair_of = np.full(len(part), -1)
    pair_of[left] = pair_of[right] = np.arange(half)
    loops_before = (heads == tails).copy()
    open_ = np.arange(half)
    part[left], part[right] = part[right], part[left]
    while len(open_):
        key = (heads.astype(np.int64) * kg.n_relations + rels) * kg.n_entities + tails
        by_key = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[by_key[1:]] == key[by_key[:-1]])
        bad = np.zeros(len(part), bool)
        bad[by_key[same]] = bad[by_key[same + 1]] = True
        bad |= (heads == tails) & ~loops_before
        # Undo every swap that takes part in a clash. Undoing can clash with a swap that stands,
        # so look again; in the worst case all are undone, and that was free of clashes.
        undo = np.intersect1d(pair_of[bad], open_)
        if not len(undo):
            return
        part[left[undo]], part[right[undo]] = part[right[undo]], part[left[undo]]
        open_ = np.setdiff1d(open_, undo)


def drop(kg: KG, seed: int, share: float) -> KG:
    """A graph that lacks this share of its facts, at random; all entities stay, and what a smaller
    share lacks a larger one lacks as well."""
    kept = np.sort(_in_order(kg, seed)[_count(kg, share) :])
    return kg.replace_triples(kg.heads[kept], kg.rels[kept], kg.tails[kept])


def corrupt(kg: KG, seed: int, share: float) -> KG:
    """A graph with this share of its facts wrong: the head or the tail of each is another entity,
    at random, which stands on that side of the relation elsewhere (type-consistent, as Krompass et
    al. 2015), or any where that gives nothing new. No wrong fact is one of the graph, none comes
    twice, and what a smaller share has wrong a larger one has wrong in the same way. A fact that
    no entity makes wrong stays."""
    wrong = _in_order(kg, seed)[: _count(kg, share)]
    heads, tails = (np.array(x) for x in (kg.heads, kg.tails))
    other_heads, other_tails = _falsify(kg, seed)
    heads[wrong], tails[wrong] = other_heads[wrong], other_tails[wrong]
    return kg.replace_triples(heads, kg.rels, tails)


def _count(kg: KG, share: float) -> int:
    if not 0 <= share <= 1:
        raise KeftError(f"share {share!r} of a graph's facts; use 0 to 1")
    return round(share * kg.n_triples)


def _in_order(kg: KG, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(kg.n_triples)


def _falsify(kg: KG, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(heads, tails) of all facts made wrong: by rounds of offers, of which a fact takes the first
    that gives a triple which is neither a fact nor taken by another."""
    rng = np.random.default_rng([seed, 1])
    sides = np.stack([kg.heads, kg.tails]).astype(np.int64)  # [2, t]
    new, at_tail = sides.copy(), rng.integers(0, 2, kg.n_triples)
    by_relation = np.argsort(kg.rels, kind="stable")
    first = np.searchsorted(kg.rels[by_relation], kg.rels, "left")
    last = np.searchsorted(kg.rels[by_relation], kg.rels, "right")
    taken = {*zip(kg.heads.tolist(), kg.rels.tolist(), kg.tails.tolist(), strict=True)}
    open_ = np.arange(kg.n_triples)
    for turn in range(_TRIES):
        if not len(open_):
            break
        if turn < _TRIES // 2:
            like = by_relation[rng.integers(first[open_], last[open_])]
            offer = sides[at_tail[open_], like]
        else:
            offer = rng.integers(0, kg.n_entities, len(open_))
        left = []
        for i, entity in zip(open_.tolist(), offer.tolist(), strict=True):
            pair = [int(sides[0, i]), int(sides[1, i])]
            pair[at_tail[i]] = entity
            triple = (pair[0], int(kg.rels[i]), pair[1])
            if triple in taken or pair[0] == pair[1]:
                left.append(i)
            else:
                taken.add(triple)
                new[at_tail[i], i] = entity
        open_ = np.array(left, int)
    return new[0], new[1]


PERTURBATIONS = {"corrupt": corrupt, "drop": drop}
"""What is done to a share of the facts -> the graph with it done."""
