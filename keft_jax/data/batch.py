"""The one struct that crosses from host to device: static shapes, everything with a batch axis."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import jraph
import numpy as np

Array = Any  # a numpy array on the host, a jax.Array on the device


@flax.struct.dataclass
class Mentions:
    """Token spans of linked mentions, half-open, and the node that each stands for."""

    start: Array  # i32[b, m]
    end: Array  # i32[b, m]; start where there is no mention
    node: Array  # i32[b, m]; -1: none


@flax.struct.dataclass
class AnswerTarget:
    """Right answers of a question, as entity ids."""

    answers: Array  # i32[b, a]; -1: none
    total: Array  # i32[b]: right answers, those outside the graph counted too
    weight: Array  # f32[b]; 0: not for this term (padding, or no answer in the graph)


@flax.struct.dataclass
class LabelTarget:
    label: Array  # i32[b]
    weight: Array  # f32[b]


@flax.struct.dataclass
class AnchorTarget:
    """What is asked of marked mentions: a label, or which of all labels hold."""

    position: Array  # i32[b, k]: the first token of each mention's mark
    label: Array  # i32[b], or f32[b, c]: 1 for each label that holds
    weight: Array  # f32[b]


@flax.struct.dataclass
class TagTarget:
    """Tags at the first token of each word."""

    label: Array  # i32[b, t]; t the longest text, of which a batch may hold less
    weight: Array  # f32[b, t]
    word: Array  # i32[b, t]: which word of the text begins there; -1: none


@flax.struct.dataclass
class SpanTarget:
    """The part of a text that answers a question; token 0, [CLS], where none does."""

    offsets: Array  # i32[b, t, 2]: characters of each token that may be in an answer; else (0, 0)
    start: Array  # i32[b]
    end: Array  # i32[b]: its last token
    weight: Array  # f32[b]


@flax.struct.dataclass
class ChoiceTarget:
    """Choices of a question, which lie side by side; label and weight are their question's."""

    there: Array  # bool[b]: whether the row has a choice
    label: Array  # i32[b]: number of the right one among them
    weight: Array  # f32[b]


@flax.struct.dataclass
class TextTarget:
    """Texts that are their own target: what is predicted of them is chosen inside the step."""

    weight: Array  # f32[b]


@flax.struct.dataclass
class MaskTarget:
    """Tokens to predict, made of a TextTarget inside the step."""

    position: Array  # i32[b, t]
    label: Array  # i32[b, t]
    weight: Array  # f32[b, t]
    linked: Array | None = None  # bool[b, t]: of a linked mention


@flax.struct.dataclass
class EntityTarget:
    """Masked mentions, and the entities that they are of; made inside the step."""

    row: Array  # i32[b, m]: in the table of entities
    weight: Array  # f32[b, m]
    candidate: Array | None = None  # i32[b, k]: rows; those of all examples are compared. None: all
    there: Array | None = None  # bool[b, k]: candidates that are some


@flax.struct.dataclass
class ConsistencyTarget:
    """Texts whose answer is to stay the same when they are changed."""

    weight: Array  # f32[b]; 0: a text with a label
    label: Array  # i32[b], for a metric alone; -1: not known
    other: Any = None  # Batch: the texts in another wording; once prepared, the texts as they are.
    # None: the same wording


@flax.struct.dataclass
class QueryTarget:
    """Queries (source, relation, ?), or (?, relation, source) where `inverse`."""

    source: Array  # i32[b]: entity
    relation: Array  # i32[b]
    inverse: Array  # bool[b]
    answers: Array  # i32[b, a]; -1: none
    weight: Array  # f32[b]
    known: Array  # i32[b, 2]: where all its answers stand in `frozen["known"]`, half-open
    negatives: Array | None = None  # i32[g, k], drawn inside the step: b / g queries in a row
    # share a group's. None: all entities
    allowed: Array | None = None  # bool[b, k]: negatives that are not known answers. None: all are


@flax.struct.dataclass
class Seeds:
    """In the place of subgraphs that the step makes around them."""

    entity: Array  # i32[b, m]; -1: none


@flax.struct.dataclass
class QueryBatch:
    """A batch of link prediction: no text, no subgraph."""

    targets: dict[str, Any]  # {term: QueryTarget}
    example: Array  # i32[b]: number in its data set; -1: padding

    packing = None


@flax.struct.dataclass
class Packing:
    """Rows of the encoder that hold several texts each. A device holds whole rows with their texts
    (of each accumulated part), and numbers within it count from 0."""

    slot: Array  # i32[r, s]: which token of the device's texts, text * l + place; -1: none
    start: Array  # i32[b]: of each text, its first slot in the device's rows end to end


@flax.struct.dataclass
class Batch:
    """`graph` follows jraph's padding convention for each example: n_node and n_edge are
    [b, 2] (real, padding), and padding edges join the first padding node to itself."""

    tokens: Array  # i32[b, l]
    types: Array  # i32[b, l]: 0 first text, 1 second
    length: Array  # i32[b]: real tokens
    graph: jraph.GraphsTuple  # nodes: entity, row, mention i32[b, n], pieces i32[b, n, p], and
    # where knowledge.vectors asks for them vector f16[b, n, d]
    # and where knowledge.attributes has some attribute f16[b, n, 2 a]
    # edges: relation i32[b, e]; senders, receivers i32[b, e], sorted by receiver
    # Or Seeds, of which the step makes it (knowledge.sample)
    mentions: Mentions
    targets: dict[str, Any]  # {term: struct with a weight}
    example: Array  # i32[b]: unit of its data set; -1: padding
    # Of facts written behind the text (knowledge.text):
    own: Array | None = None  # i32[b]: tokens before them. None: all are the text's own
    position: Array | None = None  # i32[b, l]: soft positions. None: as the tokens lie
    branch: Array | None = None  # i32[b, l]: 0 for the text; of branch k of mention m: 1 + m + k *
    # mentions. None: every token sees every other
    packing: Packing | None = None  # None: a row for each text
    states: Array | None = None  # [b, l, d]: of layers that stay (FusedModel.read)


@flax.struct.dataclass
class Names:
    """The word pieces of every entity's name, end to end."""

    pieces: Array  # i32[p]; 0: padding
    owner: Array  # i32[p], rising: the entity that a piece belongs to
    count: Array  # i32[c]: pieces of each entity; 0: a spare row, never an answer
    row: Array  # i32[c]: its row in tables of entities; 0: met after training


@flax.struct.dataclass
class Resident:
    """A graph on the device, of which the step takes subgraphs (kg/resident.py, models/sample.py).
    E entities, p pairs of neighbours, t facts, R relations, all padded."""

    near_start: Array  # i32[E]: neighbours of entity i are near[near_start[i] : near_start[i + 1]]
    near: Array  # i32[2 t]: others, by (cost, id)
    near_cost: Array  # i32[2 t]: of the cheapest step there
    pair_start: Array  # i32[E]: likewise, into the next two; a pair is in one entity's list alone
    pair_to: Array  # i32[p]: the other entity, rising
    pair_fact: Array  # i32[p]: where the pair's facts begin; they end where the next one's begin
    fact: Array  # i32[t]: r where the list's entity is the tail, r + relations where it is the head
    relations: Array  # i32[]
    number: Array  # i32[2 R]: the model's numbers of relations
    nodes: dict[str, Array]  # [E, ...]: what each entity brings as a node
    budget: Any = flax.struct.field(pytree_node=False)  # kg.subgraph.Budget
    room: Any = flax.struct.field(pytree_node=False)  # kg.resident.Room


def token_mask(batch: Batch) -> jax.Array:
    """bool[b, l]: which tokens are real."""
    return jnp.arange(batch.tokens.shape[1])[None, :] < batch.length[:, None]


def own_mask(batch: Batch) -> jax.Array:
    """bool[b, l]: which tokens are the text's own, not those of facts written behind it."""
    own = batch.length if batch.own is None else batch.own
    return jnp.arange(batch.tokens.shape[1])[None, :] < own[:, None]


def sight(batch: Batch) -> jax.Array:
    """bool[b, l]: which tokens are read. With branches bool[b, l, l]: which ones each token reads
    (the visible matrix of Liu et al. 2020): those of its own branch, the text being one; a
    mention and its branches also read each other."""
    real_bl = token_mask(batch)
    if batch.branch is None:
        return real_bl
    mentions = batch.mentions
    at, slots = jnp.arange(real_bl.shape[1])[None, :, None], mentions.start.shape[1]
    inside_blm = (at >= mentions.start[:, None]) & (at < mentions.end[:, None])
    hung_bl1 = (batch.branch > 0)[..., None]
    hung_blm = hung_bl1 & ((batch.branch[..., None] - 1) % slots == jnp.arange(slots))
    hangs_bqk = jnp.einsum("bqm,bkm->bqk", hung_blm.astype("f4"), inside_blm.astype("f4")) > 0
    same_bqk = batch.branch[:, :, None] == batch.branch[:, None, :]
    return (same_bqk | hangs_bqk | hangs_bqk.swapaxes(1, 2)) & real_bl[:, None, :]


def node_mask(graph: jraph.GraphsTuple) -> jax.Array:
    """bool[b, n]: which nodes are real."""
    return jnp.arange(graph.nodes["entity"].shape[1])[None, :] < graph.n_node[:, :1]


def edge_mask(graph: jraph.GraphsTuple) -> jax.Array:
    """bool[b, e]: which edges are real."""
    return jnp.arange(graph.senders.shape[1])[None, :] < graph.n_edge[:, :1]


B = TypeVar("B", Batch, QueryBatch)


def take(batch: B, indices: np.ndarray) -> B:
    """Rows of a host batch; an index of -1 gives a padding row that weighs nothing."""
    real = indices >= 0
    rows = np.where(real, indices, 0)
    out: B = jax.tree.map(lambda x: x[rows], batch)
    if real.all():
        return out
    targets = {
        name: dataclasses.replace(target, weight=(target.weight.T * real).T)
        for name, target in out.targets.items()
    }
    return dataclasses.replace(out, targets=targets, example=np.where(real, out.example, -1))
