"""A small graph of random triples, and a compiled step on it."""

import jax
import numpy as np

from keft_jax.config import Config, DataConfig, KgeConfig, MeshConfig, OptimConfig, TaskConfig
from keft_jax.data.batch import QueryBatch, QueryTarget
from keft_jax.models.functional import Model
from keft_jax.models.kge import TripleModel
from keft_jax.sharding import batch_sharding, make_mesh
from keft_jax.tasks.link_prediction import LinkPrediction
from keft_jax.train.exchange import choose_exchange
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.optim import make_optimizer
from keft_jax.train.state import make_state, row_tables, state_shardings
from keft_jax.train.step import compile_train_step, make_train_step

ENTITIES, ROWS, RELATIONS, BATCH, WIDTH = 250, 256, 5, 64, 4


def config(mesh: MeshConfig, tables: str = "rows", kind: str = "adagrad", **kge) -> Config:
    settings = {"width": WIDTH, "negatives": 8, "share": 4, "answers": 2, "init": 0.3} | kge
    return Config(
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train="triples"),
        kge=KgeConfig(regularizer="n3", strength=0.01, **settings),
        optim=OptimConfig(
            kind=kind,
            tables=tables,
            batch=BATCH,
            steps=100,
            warmup=0,
            learning_rate=0.1,
            eps=1e-8,
            weight_decay=0,
            clip=0,
        ),
        mesh=mesh,
    )


class Training:
    def __init__(self, c: Config, entities: int = ENTITIES, rows: int = ROWS):
        self.entities, self.config = entities, c
        self.mesh = make_mesh(c.mesh)
        self.model = Model(TripleModel(c.kge, entities, rows, RELATIONS))
        paths = row_tables(self.model, c.optim)
        tx = make_optimizer(c.optim, self.model.abstract(), paths)
        names = [str(i) for i in range(entities)]
        terms = make_terms(c.objective, LinkPrediction(c.kge, names), None)
        self.shardings = state_shardings(self.model, c.optim, tx, self.mesh)
        self.init = lambda: make_state(self.model, c.optim, tx, jax.random.key(0))
        step = make_train_step(
            Objective(self.model, terms), tx, c.optim, choose_exchange(c, self.mesh)
        )
        self.step = compile_train_step(step, self.shardings, self.mesh)
        self.frozen = {"names": {}, "learning_rate": np.float32(c.optim.learning_rate)}

    def fresh(self):
        return jax.device_put(_fresh(self), self.shardings)

    def put(self, given: QueryBatch):
        return jax.device_put(given, batch_sharding(self.mesh))

    def compiled(self):
        """The step without a state: for what the compiler says of it."""
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(self.init),
            self.shardings,
        )
        return self.step.lower(state, self.frozen, self.put(batch(0, self.entities))).compile()

    def run(self, steps: int, state=None):
        """(state, metrics of each step), each step with a batch of its own."""
        state, rows = self.fresh() if state is None else state, []
        for _ in range(steps):
            state, metrics = self.step(
                state, self.frozen, self.put(batch(int(state.step), self.entities))
            )
            rows.append({k: float(s / w) for k, (s, w) in metrics.items()})
        return state, rows


def _fresh(training: Training):
    """Drawn without jit, which compiles for longer than a small table takes to draw."""
    return training.init()


def batch(seed: int, entities: int = ENTITIES, size: int = BATCH) -> QueryBatch:
    """Random queries; some answers are not there, and an entity may be named often."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(-1, entities, (size, 2)).astype(np.int32)
    answers[:, 0] = rng.integers(0, entities, size)
    source = rng.integers(0, entities, size).astype(np.int32)
    source[: size // 4] = source[0]
    target = QueryTarget(
        source=source,
        relation=rng.integers(0, RELATIONS, size).astype(np.int32),
        inverse=rng.integers(0, 2, size).astype(bool),
        answers=answers,
        weight=np.where(np.arange(size) % 7 == 3, 0, 1).astype(np.float32),
        known=np.zeros((size, 2), np.int32),
    )
    return QueryBatch(targets={"link": target}, example=np.arange(size, dtype=np.int32))
