"""Mentions of which the graph tells nothing: a masked mention must not be read off its own node.

A hidden mention's entity leaves the graph, for all mentions of it: its node with name, description,
attributes and row, and its edges. What is left is what the other mentions reach without it, in as
many hops as the graph has. An entity near another mention leaves too, since of those near it a
budget may have kept just this one for having been a mention. Facts written behind such a text are
not read at all: those of other mentions may name it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from keft_jax.data.batch import Batch, edge_mask, node_mask


def hide(batch: Batch, hidden_bm: jax.Array, hops: int) -> Batch:
    """The batch as though these mentions (bool[b, m]) were linked to nothing, by jraph's padding
    convention; examples without any are as they were."""
    graph, mentions = batch.graph, batch.mentions
    nodes = graph.nodes["entity"].shape[1]
    of_bmn = mentions.node[..., None] == jnp.arange(nodes)
    gone_bn = (of_bmn & hidden_bm[..., None]).any(1)
    there_bn = node_mask(graph) & ~gone_bn
    link_be = edge_mask(graph) & _at(there_bn, graph.senders) & _at(there_bn, graph.receivers)
    seen_bn = of_bmn.any(1) & there_bn
    reach = jax.vmap(lambda seen, to, on: seen.at[to].max(on))
    for _ in range(hops):
        seen_bn = reach(seen_bn, graph.receivers, link_be & _at(seen_bn, graph.senders))
    keep_bn = jnp.where(gone_bn.any(1, keepdims=True), seen_bn, there_bn)
    link_be &= _at(keep_bn, graph.senders) & _at(keep_bn, graph.receivers)

    # What stays moves to the front in its order, so edges stay sorted by receiver.
    order_bn, order_be = (jnp.argsort(~keep, axis=1, stable=True) for keep in (keep_bn, link_be))
    place_bn = jnp.argsort(order_bn, axis=1)
    count_b1, count_e_b1 = (keep.sum(1, keepdims=True) for keep in (keep_bn, link_be))
    real_bn, real_be = (
        jnp.arange(x.shape[1]) < n for x, n in ((keep_bn, count_b1), (link_be, count_e_b1))
    )

    def ends(end_be: jax.Array) -> jax.Array:
        moved = _at(_at(place_bn, end_be), order_be)
        return jnp.where(real_be, moved, count_b1)

    entity = jnp.where(real_bn, _at(graph.nodes["entity"], order_bn), -1)
    graph = graph._replace(
        nodes=_pick(graph.nodes, order_bn, real_bn) | {"entity": entity},
        edges=_pick(graph.edges, order_be, real_be),
        senders=ends(graph.senders),
        receivers=ends(graph.receivers),
        n_node=jnp.concatenate([count_b1, nodes - count_b1], 1),
        n_edge=jnp.concatenate([count_e_b1, link_be.shape[1] - count_e_b1], 1),
    )
    node_bm = jnp.maximum(mentions.node, 0)
    left_bm = (mentions.node >= 0) & _at(keep_bn, node_bm)
    node_bm = jnp.where(left_bm, _at(place_bn, node_bm), -1)
    mentions = dataclasses.replace(mentions, node=node_bm)
    batch = dataclasses.replace(batch, graph=graph, mentions=mentions)
    if batch.own is None:
        return batch
    length_b = jnp.where(gone_bn.any(1), batch.own, batch.length)
    return dataclasses.replace(batch, length=length_b)


def _at(values_bn: jax.Array, index_bk: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values_bn, index_bk, 1)


def _pick(values: dict, order_bk: jax.Array, real_bk: jax.Array) -> dict:
    """Each array [b, k, ...] in another order, zeros where nothing is left."""

    def pick(x: jax.Array) -> jax.Array:
        inner = (1,) * (x.ndim - 2)
        taken = jnp.take_along_axis(x, order_bk.reshape(*order_bk.shape, *inner), 1)
        return jnp.where(real_bk.reshape(*real_bk.shape, *inner), taken, 0).astype(x.dtype)

    return {name: pick(jnp.asarray(x)) for name, x in values.items()}
