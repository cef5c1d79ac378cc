"""Subgraphs made inside the step: the same as `kg.subgraph.extract` makes on the host, bit for bit.

Of every example's seeds, with all shapes static: the neighbours of a hop are a prefix of each
node's sorted list, grouped by one sort and ranked by another. Edges are found by looking up every
pair of kept nodes. Lists cut over devices are read by plain gathers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from keft_jax.data.batch import Batch, Resident, Seeds
from keft_jax.kg.subgraph import DEAREST, LOOK, octaves
from keft_jax.sharding import shard

GRAPH = "graph"
"""The name of a Resident among what the step reads."""


def surround(batch: Any, frozen: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the batch with subgraphs in the place of seeds, what remains to be read)."""
    rest = dict(frozen)
    graph = rest.pop(GRAPH, None)
    return (batch if graph is None else _surround(batch, graph)), rest


def _surround(batch: Any, graph: Resident) -> Any:
    if not isinstance(batch, Batch):
        return batch

    def inner(x: Any) -> Any:  # the same texts in another wording stand among the targets
        return _surround(x, graph) if isinstance(x, Batch) else x

    targets = jax.tree.map(inner, batch.targets, is_leaf=lambda x: isinstance(x, Batch))
    made, node_bm = sample(graph, batch.graph)
    mentions = dataclasses.replace(batch.mentions, node=node_bm)
    return dataclasses.replace(batch, graph=made, mentions=mentions, targets=targets)


def sample(graph: Resident, seeds: Seeds) -> tuple[jraph.GraphsTuple, jax.Array]:
    """(subgraphs as `Knowledge.graph` makes them, i32[b, m] the node of each seed)."""
    parts = jax.vmap(partial(take, graph))(seeds.entity)
    entity_bn, n_node, n_edge = parts["entity"], parts["n_node"], parts["n_edge"]
    nodes, edges = graph.budget.nodes, graph.budget.edges
    at_bn = jnp.where(entity_bn >= 0, entity_bn, graph.room.entities - 1)  # a row of zeros
    told = {name: _at(x, at_bn) for name, x in graph.nodes.items()}
    seed_bm = parts["seed_node"]
    mention_bn = (seed_bm[:, :, None] == jnp.arange(nodes)).any(1).astype(jnp.int32)
    made = jraph.GraphsTuple(
        nodes={"entity": entity_bn, "mention": mention_bn, **told},
        edges={"relation": _at(graph.number, parts["relation"])},
        senders=parts["senders"],
        receivers=parts["receivers"],
        n_node=jnp.stack([n_node, nodes - n_node], 1),
        n_edge=jnp.stack([n_edge, edges - n_edge], 1),
        globals=None,
    )
    return jax.tree.map(lambda x: shard(x, "batch", *(None,) * (x.ndim - 1)), (made, seed_bm))


def take(graph: Resident, seeds_m: jax.Array) -> dict[str, jax.Array]:
    """One example's part of each field of `kg.subgraph.Subgraphs`."""
    out = _take_nodes(graph, seeds_m)
    edges = _take_edges(graph, out["entity"], out["n_node"])
    return out | edges | {"cut": out["cut"] | edges["cut"]}


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.asarray(x).at[index].get(mode="clip")


def _take_nodes(graph: Resident, seeds_m: jax.Array) -> dict[str, jax.Array]:
    budget, count = graph.budget, len(seeds_m)
    room = budget.nodes - 1
    real_m = seeds_m >= 0
    first_m = jnp.argmax(seeds_m[:, None] == seeds_m, axis=1)
    new_m = real_m & (first_m == jnp.arange(count))
    place_m = jnp.cumsum(new_m) - 1
    node_m = place_m[first_m]
    here_mn = (new_m[:, None]) & (place_m[:, None] == jnp.arange(budget.nodes))
    entity_n = jnp.where(here_mn, seeds_m[:, None], -1).max(0, initial=-1)
    entity_n = jnp.where(jnp.arange(budget.nodes) < room, entity_n, -1)
    cut, n_node = new_m.sum() > room, jnp.minimum(new_m.sum(), room)

    # What is expanded: entity, cost, whether there is one. An example that is cut has no room left.
    parents = seeds_m, jnp.zeros(count, jnp.int32), new_m & (place_m < room)
    slot_n, slot_r = jnp.arange(budget.nodes), jnp.arange(room)
    for hop in range(budget.hops):
        taken_r, cost_r, found = _rank(graph, entity_n, parents, hop)
        free = room - n_node
        added_n = taken_r[jnp.clip(slot_n - n_node, 0, room - 1)]
        added_n = jnp.where(slot_n - n_node < jnp.minimum(found, free), added_n, -1)
        entity_n = jnp.where(slot_n < n_node, entity_n, added_n)
        parents = taken_r, cost_r, slot_r < jnp.minimum(found, free)
        cut |= found > free
        n_node += jnp.minimum(found, free)
    seed_m = jnp.where(real_m & (node_m < room), node_m, -1)
    return {"entity": entity_n, "n_node": n_node, "seed_node": seed_m, "cut": cut}


def _rank(graph: Resident, kept_n: jax.Array, parents: Any, hop: int) -> tuple[Any, Any, Any]:
    """(the best new neighbours of the parents, as many as there may be nodes; their costs; how many
    there are of all)."""
    (entity_f, cost_f, there_f), room = parents, graph.budget.nodes - 1
    look = min(room if hop else LOOK * room, graph.room.widest)
    nobody = graph.room.entities
    begin_f = _at(graph.near_start, entity_f)
    count_f = jnp.where(there_f, _at(graph.near_start, entity_f + 1) - begin_f, 0)
    at_fl = begin_f[:, None] + jnp.arange(look)
    there_fl = jnp.arange(look) < count_f[:, None]
    near_k = jnp.where(there_fl, _at(graph.near, at_fl), nobody).ravel()
    cost_k = cost_f[:, None] + _at(graph.near_cost, at_fl)
    # A cost of 0 marks what is kept already, and nobody.
    entity_k = jnp.concatenate([jnp.where(kept_n >= 0, kept_n, nobody), near_k])
    cost_k = jnp.concatenate([jnp.zeros_like(kept_n), jnp.where(there_fl, cost_k, 0).ravel()])
    far = (hop + 1) * DEAREST + 1
    entity_k, cost_k = _sort(entity_k, cost_k, nobody, far)
    opens_k = jnp.concatenate([jnp.ones(1, bool), entity_k[1:] != entity_k[:-1]])
    place_k = jnp.arange(len(entity_k))
    next_k = jax.lax.cummin(jnp.where(opens_k, place_k, len(place_k)), reverse=True)
    ways_k = jnp.append(next_k[1:], len(place_k)) - place_k
    fewer = octaves(np.arange(1, len(entity_f) + 2))
    best_k = jnp.maximum(cost_k - jnp.asarray(fewer)[jnp.clip(ways_k - 1, 0, len(entity_f))], 1)
    best_k = jnp.where(opens_k & (cost_k > 0), best_k, far)
    # Not by top_k, which the partitioner would have every device do for the whole batch.
    cost_r, place_r = (x[:room] for x in _sort(best_k, place_k, far, len(place_k)))
    return entity_k[place_r], cost_r, (best_k < far).sum()


def _sort(x: jax.Array, y: jax.Array, most_x: int, most_y: int) -> tuple[jax.Array, jax.Array]:
    """By x, then y; as one number where both fit, which sorts several times as fast."""
    shift = most_y.bit_length()
    if most_x.bit_length() + shift > 32:
        x, y = jax.lax.sort((x, y), num_keys=2)
        return x, y
    both = jax.lax.sort(x.astype(jnp.uint32) << shift | y.astype(jnp.uint32))
    return (both >> shift).astype(jnp.int32), (both & ((1 << shift) - 1)).astype(jnp.int32)


def _take_edges(graph: Resident, entity_n: jax.Array, n_node: jax.Array) -> dict[str, jax.Array]:
    room, edges = graph.budget.nodes - 1, graph.budget.edges
    most = edges // 2
    # Pairs, by (far, near): the order in which facts are taken.
    far_q, near_q = (x.astype(np.int32) for x in np.tril_indices(room))
    last_r = np.cumsum(np.arange(1, room + 1)) - 1
    owner_q, other_q, first_q, count_q = _find_pairs(graph, entity_n[:room], far_q, near_q)
    count_q = jnp.where(far_q < n_node, count_q, 0)
    until_q = jnp.cumsum(count_q)
    # Each node's first fact goes before all others, so a prefix of each node's facts is kept.
    until_r = until_q[last_r]
    own_r = jnp.diff(until_r, prepend=0)
    firsts_r = jnp.cumsum(own_r > 0)
    before_r = firsts_r - (own_r > 0)
    others_r = jnp.clip(most - firsts_r[-1] - (until_r - own_r - before_r), 0, own_r - 1)
    keep_r = jnp.where((own_r > 0) & (before_r < most), 1 + others_r, 0)
    before_q = until_q - count_q - (until_r - own_r)[far_q]
    kept_q = jnp.clip(keep_r[far_q] - before_q, 0, count_q)

    end_q = jnp.cumsum(kept_q)
    total, fact = end_q[-1], jnp.arange(most)
    q = jnp.minimum(jnp.searchsorted(end_q, fact, side="right"), len(end_q) - 1)
    label = _at(graph.fact, first_q[q] + fact - (end_q - kept_q)[q])
    back = jnp.where(label < graph.relations, graph.relations, -graph.relations) + label
    owner, other = owner_q[q], other_q[q]
    nodes = graph.budget.nodes
    place = jnp.concatenate([owner * nodes + other, other * nodes + owner])
    label = jnp.concatenate([label, back])
    real = jnp.tile(fact < total, 2)
    place = jnp.where(real, place, nodes * nodes)
    label = jnp.where(real, label, 0)
    if edges % 2:
        place, label = jnp.append(place, nodes * nodes), jnp.append(label, 0)
    place, label = _sort(place, label, nodes * nodes, 2 * graph.room.relations)
    real = jnp.arange(edges) < 2 * total
    return {
        "senders": jnp.where(real, place % nodes, n_node),
        "receivers": jnp.where(real, place // nodes, n_node),
        "relation": label,
        "n_edge": 2 * total,
        "cut": until_q[-1] > most,
    }


def _find_pairs(
    graph: Resident, entity_r: jax.Array, far_q: np.ndarray, near_q: np.ndarray
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of each pair of nodes: the one whose list it would be in, the other, where its facts begin,
    and how many there are."""
    entity_r = jnp.maximum(entity_r, 0)
    width_r = _at(graph.near_start, entity_r + 1) - _at(graph.near_start, entity_r)
    begin_r, end_r = _at(graph.pair_start, entity_r), _at(graph.pair_start, entity_r + 1)
    far, near = (entity_r[far_q], width_r[far_q]), (entity_r[near_q], width_r[near_q])
    by_far = (far[1] < near[1]) | ((far[1] == near[1]) & (far[0] <= near[0]))
    owner_q, other_q = jnp.where(by_far, far_q, near_q), jnp.where(by_far, near_q, far_q)
    want_q = entity_r[other_q]
    low_q, end_q = begin_r[owner_q], end_r[owner_q]

    def halve(_: Any, span: Any) -> Any:
        low_q, high_q = span
        middle_q = (low_q + high_q) // 2
        right_q = (low_q < high_q) & (_at(graph.pair_to, middle_q) < want_q)
        low_q = jnp.where(right_q, middle_q + 1, low_q)
        return low_q, jnp.where(right_q, high_q, jnp.minimum(middle_q, high_q))

    low_q, _ = jax.lax.fori_loop(0, graph.room.halvings, halve, (low_q, end_q))
    hit_q = (low_q < end_q) & (_at(graph.pair_to, low_q) == want_q)
    first_q = _at(graph.pair_fact, low_q)
    return owner_q, other_q, first_q, jnp.where(hit_q, _at(graph.pair_fact, low_q + 1) - first_q, 0)
