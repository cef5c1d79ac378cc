"""Rows whose text and graph are trained apart have one text model for each seed. It is trained
once, and the graph of each row then learns beside what it said in every step: the same cells, to
rounding, without the encoder's time."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from keft_jax.config import GroupConfig
from keft_jax.data.features import Dataset, with_row
from keft_jax.gain.rows import PLAIN
from keft_jax.models.functional import Tree
from keft_jax.models.heads import GRAPH_OFFSET, GRAPH_SCALE
from keft_jax.models.pretrained import flat, overlay
from keft_jax.models.sample import surround
from keft_jax.sharding import on_mesh
from keft_jax.tasks.task import AsGiven
from keft_jax.train.loop import Fit, Trainer, fit
from keft_jax.train.parts import Parts, make_model
from keft_jax.train.remember import MOST, make_reader, reads_for_the_task_alone, remember
from keft_jax.train.rows import at, put_at
from keft_jax.train.weigh import Judged


def can_share(
    trainer: Trainer[Parts], train: Dataset, select: Dataset, tests: Iterable[Dataset]
) -> bool:
    """Whether the text model of a seed is the same in all rows, and what it says can be kept: of
    the steps' batches, of the selection split in each evaluation and of the test splits."""
    parts, config, model = trainer.parts, trainer.parts.config, trainer.parts.model
    optim, depth = config.optim, config.encoder.layers
    moving = [path for path in flat(model.abstract()) if optim.scale_of(path)]
    buckets = np.array(config.data.buckets)
    of_text = buckets[np.searchsorted(buckets[:-1], train.lengths)].mean()
    judged = -(-optim.steps // config.eval.every) * len(select.texts)
    whole = judged + sum(len(test.texts) for test in tests)
    tokens = optim.steps * optim.batch * of_text + whole * buckets[-1]
    return (
        bool(model.alone)
        and model.module.at == (depth - 1,)
        and model.module.frozen < depth  # else there is little to save (train/remember.py)
        and isinstance(parts.task, AsGiven)
        # Tokens read nothing of the nodes, whose names are of a word table that stays.
        and not any(path.startswith(("exchanges/", "encoder/embed/word")) for path in moving)
        and not optim.start
        and reads_for_the_task_alone(config)
        and len(config.gain.learning_rates) < 2  # of which each row chooses its own
        and not (optim.skip or config.eval.ema or optim.accumulate > 1)
        and trainer.mesh.size == 1
        and tokens * config.encoder.width * 4 <= MOST
    )


@dataclass
class Text:
    """What the text model of a seed said."""

    seed: int
    steps: list[np.ndarray] = field(default_factory=list)  # [b, l, d] of each step's batch
    judged: list[tuple[Tree, np.ndarray, Any]] = field(default_factory=list)
    """Of each evaluation: the parameters behind the encoder, the states of the selection split, and
    what a step is chosen by."""
    best: Tree = field(default_factory=dict)  # its parameters at the best step
    said: dict[int, np.ndarray] = field(default_factory=dict)  # by the best ones, of a data set


class SharedText:
    """Trains and evaluates the cells of a table of which `can_share` holds."""

    def __init__(self, trainer: Trainer[Parts]):
        self._whole, parts = trainer, trainer.parts
        names = list(flat(parts.model.abstract()))
        of_graph = (*parts.model.alone, GRAPH_SCALE, GRAPH_OFFSET)
        ours = [p for p in names if not p.startswith(of_graph)]
        self._of_text, self._behind = ours, [p for p in ours if not p.startswith("encoder/")]
        # The same optimizer, under which what is of the text stays. A path may begin another.
        groups = [
            GroupConfig(path, 0.0 if path in ours else group.scale, group.from_step)
            for path in sorted(names, key=len, reverse=True)
            for group in [parts.config.optim.group_of(path) or GroupConfig(path, 1.0)]
        ]
        optim = dataclasses.replace(parts.config.optim, groups=tuple(groups))
        config = dataclasses.replace(parts.config, optim=optim)
        model = make_model(config, parts.knowledge, parts.labels)
        parts = dataclasses.replace(parts, config=config, model=model)
        self._graph: Trainer[Parts] = Trainer(parts, trainer.given)
        self._read, self._say_in_step = make_reader(self._graph), jax.jit(self._states_of_step)
        self._text: Text | None = None
        self.seconds = 0.0
        """That texts have taken: to train, and to be read."""

    def over(self, trainer: Trainer[Parts]) -> SharedText:
        """The same compiled steps for other draws, and another selection split."""
        other, config = copy.copy(self), trainer.parts.config
        other._whole, other._graph, other._text = trainer, copy.copy(self._graph), None
        config = dataclasses.replace(config, optim=self._graph.parts.config.optim)
        other._graph.parts = dataclasses.replace(self._graph.parts, config=config)
        other._graph.given = trainer.given
        return other

    def fit(self, train: Dataset, select: Dataset, *, seed: int, learning_rate: float) -> Fit:
        """As `train.loop.fit`, of the row that the data sets are of."""
        if self._text is None or self._text.seed != seed:
            self._text = None  # the last seed's memory is free before this one takes its own
            self._text = self._learn(train, select, seed, learning_rate)
        text, graph = self._text, self._graph
        states, judged = iter(text.steps), iter(text.judged)

        def step(state: Any, frozen: Any, batch: Any) -> Any:
            batch = dataclasses.replace(batch, states=graph.put(next(states)))
            return graph.train_step(state, frozen, batch)

        def judge(params: Tree, select: Dataset) -> Judged:
            behind, said, chosen_by = next(judged)
            found = graph.judge(overlay(params, behind), _with_states(select, said))
            return found._replace(chosen_by=chosen_by)  # in which rounding has decided already

        other = _replace(graph, step, judge)
        done = fit(other, train, select, seed=seed, learning_rate=learning_rate)
        return dataclasses.replace(done, best_params=overlay(done.best_params, text.best))

    def evaluate(self, params: Tree, dataset: Dataset) -> dict[str, np.ndarray]:
        """As the trainer's; params: what `fit` has found last."""
        if self._text is None:
            raise ValueError("nothing is trained yet")
        said = self._text.said
        if id(dataset.texts) not in said:
            begin = time.perf_counter()
            said[id(dataset.texts)] = self._say(params, dataset)
            self.seconds += time.perf_counter() - begin
        return self._graph.evaluate(params, _with_states(dataset, said[id(dataset.texts)]))

    def _learn(self, train: Dataset, select: Dataset, seed: int, rate: float) -> Text:
        """Trains on the row of text alone, and keeps what is said meanwhile."""
        text, whole, begin = Text(seed), self._whole, time.perf_counter()

        def step(state: Any, frozen: Any, batch: Any) -> Any:
            text.steps.append(np.asarray(self._say_in_step(state, frozen, batch)))
            return whole.train_step(state, frozen, batch)

        def judge(params: Tree, select: Dataset) -> Judged:
            own = {path: jax.device_get(at(params, path)) for path in self._behind}
            found = whole.judge(params, select)
            text.judged.append((put_at({}, own), self._say(params, select), found.chosen_by))
            return found

        plain = [with_row(one, one.knowledge, PLAIN, 0) for one in (train, select)]
        other = _replace(whole, step, judge)
        best = fit(other, *plain, seed=seed, learning_rate=rate).best_params
        text.best = put_at({}, {path: at(best, path) for path in self._of_text})
        self.seconds += time.perf_counter() - begin
        return text

    def _say(self, params: Tree, dataset: Dataset) -> np.ndarray:
        """[texts, l, d]: the last states."""
        states = remember(self._graph, self._read, params, dataset).table.states
        if states is None:
            raise ValueError(f"{len(dataset.texts)} texts: more than `can_share` was asked of")
        return states

    def _states_of_step(self, state: Any, frozen: Any, batch: Any) -> jax.Array:
        """[b, l, d]: the last states in the step that follows `state`, with its dropout."""
        parts = self._whole.parts
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch, frozen = surround(batch, frozen)
        with on_mesh(self._whole.mesh):
            params, names, term = state.model_params, frozen["names"], parts.task.term
            return parts.model.apply(params, batch, names, key, head=term).tokens


def _replace(trainer: Trainer[Parts], step: Any, judge: Any) -> Trainer[Parts]:
    trainer.warm()
    other: Any = copy.copy(trainer)
    other.train_step, other.judge = step, judge
    return other


def _with_states(dataset: Dataset, states: np.ndarray) -> Dataset:
    return dataclasses.replace(dataset, table=dataclasses.replace(dataset.table, states=states))
