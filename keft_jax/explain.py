"""Which facts an answer rests on, by occlusion: each fact is taken out, of the graph and of the
text that it is written into, and the model asked again.

Unlike attention or gradients this measures what it says: how much of the answer's probability goes
with the fact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from keft_jax.data.batch import Batch
from keft_jax.data.features import Dataset
from keft_jax.kg.store import Triple
from keft_jax.train.loop import Trainer


@dataclass(frozen=True)
class Fact:
    """An edge of one example's subgraph, in its forward direction, or a fact in its text."""

    head: int  # node
    relation: str
    tail: int  # node
    importance: float  # share of the answer's probability lost without it, 0 to 1


@dataclass(frozen=True)
class Explanation:
    answer: str
    probability: float
    nodes: list[str]
    mentioned: list[bool]
    facts: list[Fact]  # most important first


def make_explainer(trainer: Trainer) -> Callable[[Any, Dataset, int], Explanation]:
    """`explain(params, dataset, number)`: the answer to one example and the facts behind it. One
    compilation serves all examples of one text length."""
    parts, size = trainer.parts, trainer.eval_batch
    # An argument: closed over, the names of all entities would be a constant of the program.
    given = trainer.frozen()["names"]

    @jax.jit
    def probabilities(params: Any, names: Any, batch: Batch) -> jax.Array:
        return jax.nn.softmax(parts.model.apply(params, batch, names).logits)

    def ask(params: Any, batch: Batch) -> np.ndarray:
        out = []
        for start in range(0, len(batch.example), size):
            rows = np.minimum(np.arange(start, start + size), len(batch.example) - 1)
            part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
            out.append(np.asarray(probabilities(params, given, trainer.put(part))))
        return np.concatenate(out)[: len(batch.example)]

    def explain(params: Any, dataset: Dataset, number: int) -> Explanation:
        length = parts.config.data.buckets[-1]
        one = dataset.batch(length, np.array([number]))
        seeds, knowledge = dataset.seeds[[number]], dataset.knowledge
        one = knowledge.show(one, *dataset.row)
        count, names = int(one.graph.n_node[0, 0]), knowledge.kg.names
        nodes = [names[e] for e in one.graph.nodes["entity"][0, :count]]
        mentioned = [bool(m) for m in one.graph.nodes["mention"][0, :count]]
        edges = find_facts(one, nodes)
        written = knowledge.written(one, seeds, *dataset.row)

        def take_out(fact: Triple) -> Batch:
            left = remove_edges(one, edges.get(fact, []))
            return knowledge.write(left, seeds, *dataset.row, without=[fact])

        facts = list(dict.fromkeys((*edges, *written)))
        without = [one] + [take_out(fact) for fact in facts]
        asked = ask(params, jax.tree.map(lambda *x: np.concatenate(x), *without))
        choice = int(asked[0].argmax())
        before = float(asked[0, choice])
        # What is written may be of entities that the subgraph has no room for.
        nodes += sorted({end for head, _, tail in facts for end in (head, tail)} - set(nodes))
        mentioned += [False] * (len(nodes) - len(mentioned))
        found = [
            Fact(
                head=nodes.index(head),
                relation=relation,
                tail=nodes.index(tail),
                importance=max(0.0, 1 - float(asked[i + 1, choice]) / before),
            )
            for i, (head, relation, tail) in enumerate(facts)
        ]
        return Explanation(
            answer=parts.task.choices[choice],
            probability=before,
            nodes=nodes,
            mentioned=mentioned,
            facts=sorted(found, key=lambda fact: -fact.importance),
        )

    def find_facts(one: Batch, nodes: list[str]) -> dict[Triple, list[int]]:
        """{fact: its edges} of a batch of one."""
        graph, relations = one.graph, parts.knowledge.vocabulary.relations
        facts: dict[Triple, list[int]] = {}
        for edge in range(int(graph.n_edge[0, 0])):
            head, tail = nodes[graph.senders[0, edge]], nodes[graph.receivers[0, edge]]
            relation = int(graph.edges["relation"][0, edge])
            if relation >= len(relations):
                head, relation, tail = tail, relation - len(relations), head
            facts.setdefault((head, relations[relation], tail), []).append(edge)
        return facts

    return explain


def remove_edges(one: Batch, edges: list[int]) -> Batch:
    """A batch of one without some of its edges; the rest keeps its order."""
    graph = one.graph
    width = graph.senders.shape[1]
    keep = np.setdiff1d(np.arange(graph.n_edge[0, 0]), edges)

    def pack(x: np.ndarray, fill: int) -> np.ndarray:
        out = np.full_like(x, fill)
        out[0, : len(keep)] = x[0, keep]
        return out

    pad = int(graph.n_node[0, 0])
    n_edge = np.array([[len(keep), width - len(keep)]], graph.n_edge.dtype)
    return dataclasses.replace(
        one,
        graph=graph._replace(
            senders=pack(graph.senders, pad),
            receivers=pack(graph.receivers, pad),
            edges={"relation": pack(graph.edges["relation"], 0)},
            n_edge=n_edge,
        ),
    )
