"""Reasoning over the graph beside a text task: link prediction with the model's own entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from keft_jax.data.batch import QueryTarget
from keft_jax.models.mentions import from_first
from keft_jax.tasks.link_prediction import LinkPrediction


class Reasoning(LinkPrediction):
    """Queries are drawn inside the step from `frozen["facts"]`, uniformly over the facts and both
    directions, so a batch brings none. Ids are rows of the model's table, which is shared with the
    graph network. A run without facts draws queries of weight 0 in the same compiled step."""

    term = "triples"
    metrics: tuple[str, ...] = ()

    def __init__(self, config: Any, entities: Any, queries: int):
        super().__init__(config, entities)
        self.queries = queries

    def prepare(self, batch: Any, key: jax.Array | None, frozen: Mapping[str, Any]) -> Any:
        assert key is not None, "a term of training alone"
        which, way, rest = jax.random.split(key, 3)
        facts = frozen["facts"]["triples"]
        chosen = facts[jax.random.randint(which, (self.queries,), 0, len(facts))]
        head, relation, tail = chosen.T
        inverse = jax.random.bernoulli(way, shape=(self.queries,))
        target = QueryTarget(
            source=jnp.where(inverse, tail, head),
            relation=relation,
            inverse=inverse,
            answers=jnp.where(inverse, head, tail)[:, None],
            weight=jnp.full(self.queries, frozen["facts"]["weight"]),
            known=jnp.zeros((self.queries, 2), jnp.int32),
        )
        batch = dataclasses.replace(batch, targets={**batch.targets, self.term: target})
        batch = super().prepare(batch, rest, frozen)
        target = batch.targets[self.term]
        if target.negatives is None:
            return batch
        target = dataclasses.replace(target, negatives=target.negatives + 1)  # row 0 is nobody's
        return dataclasses.replace(batch, targets={**batch.targets, self.term: target})

    def total(self, batch: Any) -> jax.Array:
        return jnp.asarray(self.queries)

    def loss(self, logits_bc: Any, target: QueryTarget) -> jax.Array:
        return super().loss(logits_bc, from_first(target))
