"""Training: one compiled step, fed by a batch plan; evaluation on the selection split chooses the
best parameters. The same code serves `train.py` and every cell of the gain table."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from keft_jax.config import Config, KeftError
from keft_jax.data.pack import PackedPlan
from keft_jax.data.plan import BatchPlan, MixedPlan
from keft_jax.data.prefetch import prefetch
from keft_jax.data.unlabelled import Mixed
from keft_jax.distributed import Stop, exchange
from keft_jax.models.functional import Tree
from keft_jax.models.heads import GRAPH_SCALE
from keft_jax.models.pretrained import flat, load_weights, locate, overlay
from keft_jax.sharding import batch_sharding, make_mesh, place, replicated
from keft_jax.tasks.kinds import KINDS
from keft_jax.train.evaluator import Evaluator, NotFiniteError
from keft_jax.train.exchange import choose_exchange
from keft_jax.train.feed import feed
from keft_jax.train.given import Given
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.optim import make_optimizer
from keft_jax.train.parts import Parts
from keft_jax.train.ranking import Ranker
from keft_jax.train.resident import reside
from keft_jax.train.rows import at, without
from keft_jax.train.start import complete
from keft_jax.train.state import State, make_state, row_tables, state_shardings
from keft_jax.train.step import compile_train_step, make_train_step
from keft_jax.train.triple_parts import TripleParts
from keft_jax.train.weigh import Judged, Weigher, scale_of

logger = logging.getLogger(__name__)

Scalars = dict[str, float]
SHOWN = 32  # examples of a bad step that its message names


P = TypeVar("P", Parts, TripleParts)


class Trainer(Generic[P]):
    """Compiled functions of one model, reused over seeds, rows and learning rates."""

    def __init__(self, parts: P, given: Given | None = None, mesh: Mesh | None = None):
        """given: what the config names beside the data (train.run.load_given); None: nothing.
        mesh: None: the config's, over all devices. No array is made before it is asked for, so
        that a step can be compiled for devices that are not there."""
        config, self.given = parts.config, given or Given(parts)
        teacher, guide = self.given.teacher, self.given.guide
        self.parts: P = parts
        self.mesh = make_mesh(config.mesh) if mesh is None else mesh
        self._check_divides(self.mesh.shape["data"] * self.mesh.shape["fsdp"])
        rows = row_tables(parts.model, config.optim)
        model = parts.model
        self.tx = make_optimizer(config.optim, model.abstract(), rows, model.alone)
        terms = make_terms(
            config.objective,
            parts.task,
            teacher[0].model if teacher else None,
            parts.beside,
            parts.reasoning,
            guide.model if guide else None,
            parts.linked,
            consistency=parts.consistency,
        )
        objective = Objective(parts.model, terms)
        self.shardings = state_shardings(parts.model, config.optim, self.tx, self.mesh)
        self.init = jax.jit(
            lambda key: make_state(parts.model, config.optim, self.tx, key),
            out_shardings=self.shardings,
        )
        self.train_step = compile_train_step(
            make_train_step(objective, self.tx, config.optim, choose_exchange(config, self.mesh)),
            self.shardings,
            self.mesh,
        )
        self._teacher = {"teacher": teacher[1]} if teacher else {}

    @cached_property
    def _evaluator(self) -> Evaluator | Ranker:
        parts: Any = self.parts
        return Evaluator(parts) if isinstance(parts, Parts) else make_ranker(parts, self.mesh)

    @cached_property
    def _weigher(self) -> Weigher | None:
        evaluator, objective = self._evaluator, self.parts.config.objective
        if not isinstance(evaluator, Evaluator):
            return None
        there = GRAPH_SCALE in flat(self.parts.model.abstract())
        return Weigher(evaluator) if there and not objective.of_sum else None

    def judge(self, params: Tree, select: Any) -> Judged:
        """Parameters on a selection split, with the weight of the graph's answer that fits it,
        where they have one (train/weigh.py). Raises NotFiniteError."""
        if self._weigher:
            return self._weigher(params, select)
        rows = self.evaluate(params, select)
        return Judged(params, rows, rows)

    @property
    def eval_batch(self) -> int:
        return self._evaluator.batch

    @cached_property
    def _beside(self) -> dict[str, Any]:
        return self.parts.frozen(self.mesh)

    @cached_property
    def _start(self) -> Tree:
        """Parameters that every fresh state has alike."""
        pretrained = self.parts.config.encoder.pretrained
        if not pretrained:
            return {}
        return load_weights(locate(pretrained), self.parts.model.abstract())

    def warm(self) -> None:
        """Reads what every run with this trainer starts from, so that copies of it need not."""
        _ = self._beside, self._start

    def _check_divides(self, ways: int) -> None:
        optim = self.parts.config.optim
        size = (optim.batch + optim.unlabelled) // optim.accumulate
        if size % ways:
            more = " + optim.unlabelled" if optim.unlabelled else ""
            raise KeftError(
                f"optim.batch{more} / optim.accumulate = {size}: must be a "
                f"multiple of mesh.data x mesh.fsdp = {ways}; change either"
            )

    def frozen(self, learning_rate: float | None = None, data: Any = None) -> dict[str, Any]:
        """What the step reads and never changes, in training on `data` (None: what the config's
        row is given)."""
        peak = self.parts.config.optim.learning_rate if learning_rate is None else learning_rate
        own = {"learning_rate": np.float32(peak), **self.given.frozen(*self._row_of(data))}
        own = place(own, replicated(self.mesh))
        graph: dict[str, Any] = {}
        if isinstance(self.parts, Parts):
            knowledge = getattr(data, "knowledge", self.parts.knowledge)
            graph = reside(knowledge, self.mesh, *self._row_of(data))
        return {**self._beside, **own, **self._teacher, **graph}

    def _row_of(self, data: Any) -> tuple[str, int]:
        config = self.parts.config
        return getattr(data, "row", (config.knowledge.row, config.seed))

    def put(self, batch: Any) -> Any:
        """A whole batch to the devices, cut along its first axis."""
        return place(batch, batch_sharding(self.mesh))

    def evaluate(self, params: Any, dataset: Any) -> dict[str, np.ndarray]:
        """Per-example rows of a split, in its order. Raises NotFiniteError."""
        return self._evaluator.evaluate(params, dataset)

    def fresh(self, seed: int, data: Any = None) -> State:
        """The state before training on `data` (None: what the config's row is given)."""
        state = self.init(jax.random.key(seed))
        start = complete(self.given.start(*self._row_of(data)), state.model_params)
        tables = {
            path: table.replace(value=overlay({path: table.value}, {path: at(start, path)})[path])
            for path, table in state.tables.items()
            if path in flat(start)
        }
        start = without(start, tuple(tables))
        params = overlay(overlay(state.params, self._start), start)
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return state.replace(params=params, tables={**state.tables, **tables}, ema=ema)

    @property
    def compilations(self) -> int:
        """How many versions of the training step were compiled: one for each text length."""
        step: Any = self.train_step
        return step._cache_size()


@dataclass
class Progress:
    """What choosing the best and stopping early need to remember; saved with every checkpoint."""

    best: float | None = None
    """What the best step was chosen by."""
    best_step: int = 0
    select: float | None = None
    """The score of the model there."""
    stale: int = 0
    curve: list[Scalars] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.select is None:  # saved before the two were told apart
            self.select = self.best


@dataclass
class Hooks:
    """What happens around the steps; the gain table needs none of it."""

    log: Callable[[int, Scalars], None] = lambda step, scalars: None
    save: Callable[[State, Progress], None] = lambda state, progress: None
    save_best: Callable[[int, Any], None] | None = None  # None: the best is kept in memory
    stopping: Callable[[], bool] = lambda: False
    poll: Callable[[], None] = lambda: None


@dataclass
class Fit:
    state: State
    progress: Progress
    best_params: Any  # None where a hook has saved them
    interrupted: bool
    seconds: float


def fit(
    trainer: Trainer,
    train: Any,
    select: Any,
    *,
    seed: int,
    learning_rate: float | None = None,
    state: State | None = None,
    progress: Progress | None = None,
    hooks: Hooks | None = None,
) -> Fit:
    """Trains from `state` (or a fresh one) to the last step. Raises NotFiniteError with the step
    and the examples of its batch."""
    config = trainer.parts.config
    hooks, progress = hooks or Hooks(), progress or Progress()
    # What was restored may lie otherwise on the device than the step wants its tables.
    ready = None if state is None else jax.device_put(state, trainer.shardings)
    state = trainer.fresh(seed, train) if ready is None else ready
    plan = make_plan(config, train, seed)
    train = dataclasses.replace(train, seed=seed) if isinstance(train, Mixed) else train
    frozen = trainer.frozen(learning_rate, train)
    metric = config.eval.metric or trainer.parts.task.metrics[0]
    warn_of_overflow, stop = OverflowWarning(), Stop(hooks.stopping, trainer.mesh)
    waiting: tuple[int, np.ndarray, Any] | None = None
    best_params, interrupted, begin = None, False, time.perf_counter()
    first, mark = int(state.step), (int(state.step), begin)
    skipped = 0 if state.guard is None else int(state.guard["skipped"])

    def made(step: int) -> tuple[np.ndarray, Any]:
        length, indices = plan.batch(step)
        return indices, feed(train, length, indices, trainer.mesh)

    def judged(state: State) -> Any:
        return state.ema if config.eval.ema else state.model_params

    def settle(early: bool = False) -> None:
        """Looks at the metrics of the step before, when the next one is already under way; or
        earlier than that, when something else has to wait for them and there is no rate to tell.
        """
        nonlocal waiting, mark, skipped
        if waiting is None:
            return
        (step, indices, metrics), waiting = waiting, None
        scalars = {k: float(s / w) for k, (s, w) in jax.device_get(metrics).items()}
        stop.told(scalars)
        before, skipped = skipped, int(scalars.get("skipped", 0))
        bad = [k for k in ("loss/total", "grad_norm") if not np.isfinite(scalars[k])]
        if skipped > before or (bad and not config.optim.skip):
            where = describe_batch(train, indices)
            name = bad[0] if bad else "loss/total"
            what = f"step {step}: {name} is {scalars[name]}"
            what += f", {where}" if bad else f", far above what it was lately, {where}"
            if skipped > config.optim.skip or not config.optim.skip:
                told = f"; optim.skip = {config.optim.skip} are" if config.optim.skip else ""
                raise NotFiniteError(
                    f"{what}{told and told + ' skipped already'}; lower optim.learning_rate or "
                    "look at these examples. Checkpoints stay as they were"
                )
            logger.warning("%s; skipped, the %d. of optim.skip", what, skipped)
        now = time.perf_counter()
        if not early:
            examples = config.optim.batch + config.optim.unlabelled
            scalars["examples_per_s"] = examples * (step - mark[0]) / (now - mark[1])
        mark = (step, now)
        warn_of_overflow(step, scalars.get("row_overflow", 0.0))
        hooks.log(step, scalars)

    # A run that had stopped early stays stopped.
    over = bool(config.eval.patience) and progress.stale >= config.eval.patience
    steps = range(first, first if over else config.optim.steps)
    for step, (indices, batch) in zip(steps, prefetch(made, steps), strict=True):
        state, metrics = trainer.train_step(state, {**frozen, **stop.sent()}, batch)
        done = step + 1
        settle()
        waiting = (done, indices, metrics)
        hooks.poll()
        last, interrupted = done == config.optim.steps, bool(stop)
        if select is not None and (done % config.eval.every == 0 or last):
            settle(early=True)
            try:
                params, rows, chosen_by = trainer.judge(judged(state), select)
            except NotFiniteError as error:
                raise NotFiniteError(
                    f"step {done}: {error}. Checkpoints stay as they were"
                ) from error
            summarise = trainer.parts.task.summarise
            scores, deciding = summarise(rows), summarise(chosen_by)
            # What the first process finds: a last digit that differed would part them for good.
            value, decides = (
                float(exchange(repr(float(pick(s, metric))))[0]) for s in (scores, deciding)
            )
            main = {name: v for name, v in scores.items() if "/" not in name}
            main |= scale_of(params)
            hooks.log(done, {f"select/{name}": v for name, v in main.items()})
            progress.curve.append({"step": done, "select": value})
            if progress.best is None or decides > progress.best:
                progress.best, progress.best_step, progress.stale = decides, done, 0
                progress.select = value
                if hooks.save_best is not None:
                    hooks.save_best(done, params)
                else:
                    best_params = jax.tree.map(lambda x: x.copy(), params)
            else:
                progress.stale += 1
            mark = (done, time.perf_counter())
        stale = config.eval.patience and progress.stale >= config.eval.patience
        if done % config.checkpoint.every == 0 or last or interrupted or stale:
            settle(early=True)
            hooks.save(state, progress)
        if interrupted or stale:
            break
    settle(early=True)
    if select is None:
        best_params = judged(state)
    return Fit(state, progress, best_params, interrupted, time.perf_counter() - begin)


def describe_batch(data: Any, indices: np.ndarray) -> str:
    """The examples of a batch, for a message: numbers from 0, and where the first ones stand."""
    batch = [data.source(i) for i in indices[:SHOWN]]
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    dots = ", ..." if len(batch) > 4 else ""
    return (
        f"on the examples {', '.join(str(e.id) for e in batch)}{more} "
        f"({', '.join(e.where for e in batch[:4])}{dots})"
    )


class OverflowWarning:
    """Says that rows were lost, at once and then no more often than every thousand steps."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, step: int, rows: float) -> None:
        if rows > 0 and step >= self._next:
            self._next = step + 1000
            logger.warning(
                "step %d: %d rows of tables found no slot between devices; they read as zeros and "
                "learn nothing there (`row_overflow` in the metrics counts them): raise "
                "mesh.rows_slack, or set mesh.rows_slack=0 for a slot for each",
                step,
                rows,
            )


def make_plan(config: Config, train: Any, seed: int) -> BatchPlan | PackedPlan | MixedPlan:
    """train: a Dataset or a TripleDataset; an example of the latter may be several queries."""
    size = config.optim.batch // getattr(train, "block", 1)
    draw, kind = config.data.draw or None, KINDS.get(config.task.kind)
    strata = train.strata if draw and kind and kind.single else None
    owner = getattr(train, "owner", None)
    if config.data.pack:
        mesh, longest = make_mesh(config.mesh), config.data.buckets[-1]
        return PackedPlan(
            *(train.lengths, size, longest, seed, draw, strata, owner),
            row=config.data.pack,
            devices=mesh.shape["data"] * mesh.shape["fsdp"],
            parts=config.optim.accumulate,
        )
    plan = BatchPlan(train.lengths, size, config.data.buckets, seed, draw, strata, owner=owner)
    return train.mix(plan, config.optim.unlabelled) if isinstance(train, Mixed) else plan


def make_ranker(parts: TripleParts, mesh: Mesh) -> Ranker:
    transr = parts.config.kge.model == "transr"
    return Ranker(parts.model, parts.known, mesh, parts.config.eval.batch, grouped=transr)


def pick(scores: Mapping[str, float], metric: str) -> float:
    if metric not in scores:
        raise KeftError(f"eval.metric = {metric!r}: this task has {', '.join(scores)}")
    if metric.endswith("mean_rank"):
        raise KeftError(
            f"eval.metric = {metric!r}: the highest value chooses, and here low is good; use mrr"
        )
    return scores[metric]
