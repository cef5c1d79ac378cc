"""Small random batches and models, in the shapes of the real ones."""

import dataclasses
import functools

import jax
import jraph
import numpy as np

from keft_jax.config import (
    Config,
    EncoderConfig,
    FusionConfig,
    GraphConfig,
    KnowledgeConfig,
    OptimConfig,
    TaskConfig,
)
from keft_jax.data.batch import AnswerTarget, Batch, LabelTarget, Mentions, Names
from keft_jax.kg.store import KG
from keft_jax.models.functional import Model
from keft_jax.models.fusion import FusedModel, Sizes
from keft_jax.sharding import batch_sharding, make_mesh, replicated
from keft_jax.tasks.kgqa import KGQA
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.optim import make_optimizer
from keft_jax.train.state import make_state, state_shardings
from keft_jax.train.step import compile_train_step, make_train_step

ENTITIES, RELATIONS, VOCAB, LABELS = 256, 5, 256, 8
SIZES = Sizes(vocab=VOCAB, pieces=VOCAB - 6, rows=ENTITIES, relations=RELATIONS, labels=LABELS)


def config(**sections) -> Config:
    """A small config; each keyword replaces a section."""
    base = Config(
        task=TaskConfig(kind="kgqa"),
        knowledge=KnowledgeConfig(kg="toy"),
        encoder=EncoderConfig(layers=2, width=32, heads=8, mlp=64, max_length=64, dropout=0.0),
        graph=GraphConfig(width=16, heads=8),
        fusion=FusionConfig(kind="mention_add", layers=(0,)),
        optim=OptimConfig(steps=20, batch=16, learning_rate=1e-4),
    )
    return dataclasses.replace(base, **sections)


def model(c: Config) -> Model:
    return Model(FusedModel(c, SIZES))


@functools.cache
def params(c: Config):
    """Fresh parameters."""
    return model(c).init(jax.random.key(0))


def trained(c: Config, seed=1):
    """Parameters as after training: nothing is zero by design."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype("f"), model(c).abstract())


@functools.cache
def kg() -> KG:
    return KG.from_triples([(f"e{i:03}", "next", f"e{i + 1:03}") for i in range(ENTITIES - 7)])


class Training:
    """A compiled step over the toy batch, on a mesh of its own."""

    def __init__(self, c: Config, teacher: tuple[Model, object] | None = None):
        self.mesh = make_mesh(c.mesh)
        self.model, self.optim = model(c), c.optim
        self.tx = make_optimizer(c.optim, self.model.abstract())
        terms = make_terms(c.objective, KGQA(kg(), 0.5), teacher[0] if teacher else None)
        self.objective = Objective(self.model, terms)
        self.shardings = state_shardings(self.model, c.optim, self.tx, self.mesh)
        step = make_train_step(self.objective, self.tx, c.optim)
        self.step = compile_train_step(step, self.shardings, self.mesh)
        everywhere = replicated(self.mesh)
        rate = np.float32(c.optim.learning_rate)
        self.frozen = jax.device_put({"names": names(), "learning_rate": rate}, everywhere)
        if teacher:
            self.frozen["teacher"] = jax.device_put(teacher[1], everywhere)

    def fresh(self):
        init = lambda key: make_state(self.model, self.optim, self.tx, key)  # noqa: E731
        return jax.device_put(_state(init), self.shardings)

    def put(self, b: Batch) -> Batch:
        return jax.device_put(b, batch_sharding(self.mesh))

    def run(self, steps: int):
        """(state, losses, gradient norms) after so many steps, each with a batch of its own."""
        state, losses, norms = self.fresh(), [], []
        for i in range(steps):
            state, metrics = self.step(state, self.frozen, self.put(batch(seed=i)))
            losses.append(float(metrics["loss/total"][0]))
            norms.append(float(metrics["grad_norm"][0]))
        return jax.device_get(state), np.array(losses), np.array(norms)


def _state(init):
    """Drawn without jit, which compiles for longer than a toy model takes to draw."""
    return init(jax.random.key(0))


def names(seed=0) -> Names:
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 4, ENTITIES).astype(np.int32)
    count[-6:] = 0
    owner = np.repeat(np.arange(ENTITIES), count).astype(np.int32)
    pieces = rng.integers(5, VOCAB, len(owner)).astype(np.int32)
    row = np.where(count > 0, np.arange(ENTITIES), 0).astype(np.int32)
    return Names(pieces=pieces, owner=owner, count=count, row=row)


def graph(rng, b, n, e, empty=()) -> jraph.GraphsTuple:
    """Random multigraphs with self-loops and parallel edges; those in `empty` have no node."""
    n_node = rng.integers(3, n, b).astype(np.int32)
    n_edge = rng.integers(1, e + 1, b).astype(np.int32)
    n_node[list(empty)] = n_edge[list(empty)] = 0
    entity = np.full((b, n), -1, np.int32)
    senders, receivers = np.zeros((2, b, e), np.int32)
    mention = np.zeros((b, n), np.int32)
    for i in range(b):
        entity[i, : n_node[i]] = rng.choice(ENTITIES - 6, n_node[i], replace=False)
        senders[i], receivers[i] = n_node[i], n_node[i]
        if n_node[i]:
            mention[i, :2] = 1
            senders[i, : n_edge[i]] = rng.integers(0, n_node[i], n_edge[i])
            receivers[i, : n_edge[i]] = np.sort(rng.integers(0, n_node[i], n_edge[i]))
    pieces = rng.integers(5, VOCAB, (b, n, 3)).astype(np.int32) * (entity >= 0)[..., None]
    return jraph.GraphsTuple(
        nodes={
            "entity": entity,
            "row": np.maximum(entity, 0),
            "mention": mention,
            "pieces": pieces,
        },
        edges={"relation": rng.integers(0, 2 * RELATIONS, (b, e)).astype(np.int32)},
        senders=senders,
        receivers=receivers,
        n_node=np.stack([n_node, n - n_node], 1),
        n_edge=np.stack([n_edge, e - n_edge], 1),
        globals=None,
    )


def batch(seed=0, b=16, length=16, n=12, e=24, empty=()) -> Batch:
    rng = np.random.default_rng(seed)
    g = graph(rng, b, n, e, empty)
    lengths = rng.integers(6, length + 1, b).astype(np.int32)
    real = np.arange(length) < lengths[:, None]
    node = np.where(g.n_node[:, :1] > 1, [[0, 1]], -1).astype(np.int32)
    answers = np.full((b, 4), -1, np.int32)
    answers[:, :2] = rng.integers(0, ENTITIES - 6, (b, 2))
    return Batch(
        tokens=(rng.integers(5, VOCAB, (b, length)) * real).astype(np.int32),
        types=np.zeros((b, length), np.int32),
        length=lengths,
        graph=g,
        mentions=Mentions(
            start=np.tile([[1, 3]], (b, 1)).astype(np.int32),
            end=np.tile([[2, 5]], (b, 1)).astype(np.int32),
            node=node,
        ),
        targets={
            "answer": AnswerTarget(
                answers=answers, total=np.full(b, 2, np.int32), weight=np.ones(b, np.float32)
            ),
            "label": LabelTarget(
                label=rng.integers(0, LABELS, b).astype(np.int32), weight=np.ones(b, np.float32)
            ),
        },
        example=np.arange(b, dtype=np.int32),
    )
