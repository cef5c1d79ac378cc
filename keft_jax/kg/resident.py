"""A graph as flat arrays in which a device finds subgraphs by itself (models/sample.py).

What decides the order in which `extract` takes nodes and facts does not depend on the example, so
it is sorted here once for each version of a graph: neighbours by cost, the facts of a pair by rank.
An example then reads prefixes of these lists, however long they are.

Sizes are padded, so that a graph with some facts more has the same shapes: a compiled step goes on
with its arrays.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg.store import KG
from keft_jax.kg.subgraph import LOOK, Budget, index_of

MOST = 1 << 18
"""Neighbours that an example's step may rank in a hop, and pairs of nodes that it may look up."""


@dataclass(frozen=True)
class Room:
    """Padded sizes. What is compiled for a graph serves all graphs of the same room."""

    entities: int
    triples: int
    relations: int
    widest: int  # facts of an entity, at most
    halvings: int  # of a list, to find a pair in it


def pad_size(count: int) -> int:
    """A size with at least a sixteenth of `count` to spare: 8 to 15 times a power of two, which
    divides over devices where it is large."""
    least = count + count // 16 + 1
    unit = 1 << max(least.bit_length() - 4, 0)
    return -(-least // unit) * unit


def _find_room(need: Room, had: Room | None) -> Room:
    """Those that were had where they are enough, else with something to spare."""
    if had is not None and all(x >= y for x, y in zip(astuple(had), astuple(need), strict=True)):
        return had
    *sizes, halvings = astuple(need)
    padded = Room(*(*map(pad_size, sizes), halvings + 1))  # for lists of twice the length
    return padded if had is None else Room(*map(max, astuple(padded), astuple(had)))


def lay_out(
    kg: KG, *, neighbours: bool = True, edges: bool = True, room: Room | None = None
) -> tuple[Room, dict[str, np.ndarray]]:
    """(the sizes, the arrays of `data.batch.Resident` but for `number` and `nodes`).

    neighbours, edges: whether an example finds some; the shapes are the same without. (Edges are
    looked up by the numbers of neighbours: there are none without these.) room: sizes that are
    enough for another graph, to be kept where they are for this one too. Raises KeftError for a
    graph of more than some 940 million facts.
    """
    index = index_of(kg)
    width = np.diff(index.offsets)
    owned = (width[kg.heads], kg.heads), (width[kg.tails], kg.tails)
    by_head = (owned[0][0] < owned[1][0]) | ((owned[0][0] == owned[1][0]) & (kg.heads < kg.tails))
    # A pair stands with the entity of fewer neighbours, so no list is longer than sqrt(2 facts).
    owner, other = np.where(by_head, (kg.heads, kg.tails), (kg.tails, kg.heads))
    label = kg.rels + np.where(by_head, kg.n_relations, 0)
    order = np.lexsort((index.relation_cost[kg.rels], other, owner))  # stable: then by number
    owner, other, label = owner[order], other[order], label[order]
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(owner) != 0) | (np.diff(other) != 0)
    fact = np.flatnonzero(first)
    pairs = np.bincount(owner[fact], minlength=kg.n_entities)

    need = Room(
        entities=kg.n_entities + 1,
        triples=kg.n_triples + 1,
        relations=kg.n_relations,
        widest=int(kg.degrees.max(initial=8)),  # its neighbours, whatever the rewiring
        halvings=int(pairs.max(initial=4)).bit_length(),
    )
    own = _find_room(need, room)
    if 2 * own.triples >= 1 << 31:
        raise KeftError(
            f"knowledge.sample = 'device': a graph of {kg.n_triples:,} facts; some 940 million are "
            "the most, use knowledge.sample=host"
        )

    def pad(x: np.ndarray, size: int) -> np.ndarray:
        out = np.full(size, x[-1] if len(x) else 0, np.int32)
        out[: len(x)] = x
        return out

    def starts(counts: np.ndarray, wanted: bool) -> np.ndarray:
        return pad(np.concatenate([[0], np.cumsum(counts)]) if wanted else counts[:0], own.entities)

    return own, {
        "near_start": starts(width, neighbours),
        "near": pad(index.neighbour, 2 * own.triples),
        "near_cost": pad(index.cost, 2 * own.triples),
        "pair_start": starts(pairs, neighbours and edges),
        "pair_to": pad(other[fact], own.triples),
        "pair_fact": pad(np.append(fact, kg.n_triples), own.triples),
        "fact": pad(label, own.triples),
        "relations": np.array(kg.n_relations, np.int32),
    }


def refuse_large(budget: Budget, seeds: int, room: Room) -> None:
    """Raises KeftError where an example's step would be too much work."""
    space = budget.nodes - 1
    pairs = space * (space + 1) // 2
    first = seeds * min(LOOK * space, room.widest)
    later = space * min(space, room.widest) if budget.hops > 1 else 0
    most = max(pairs, first, later)
    if most > MOST:
        raise KeftError(
            f"knowledge.sample = 'device': knowledge.nodes = {budget.nodes} and knowledge.mentions "
            f"= {seeds} take {most:,} look-ups an example and {MOST:,} are the most; lower "
            "knowledge.nodes, or use knowledge.sample=host"
        )
