"""Runs a gain table: every row with every seed, through one compiled step, cell by cell.

A cell that is on disk is not run again, so the same command resumes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from keft_jax.config import Config, KeftError
from keft_jax.data.features import Dataset, Knowledge, with_row
from keft_jax.data.rows import ROWS
from keft_jax.gain.cells import Cell, find_difference, save_manifest, save_splits, write_atomic
from keft_jax.gain.cheap import Cheap, keep_values, score_of
from keft_jax.gain.cost import measure_cost
from keft_jax.gain.draw import can_draw, draw_examples
from keft_jax.gain.finish import finish
from keft_jax.gain.report import print_table
from keft_jax.gain.rows import DEFINITION, JUDGED, PLAIN
from keft_jax.gain.shared_text import SharedText, can_share
from keft_jax.gain.splits import given, make_split
from keft_jax.gain.variants import Variants
from keft_jax.models.pretrained import start_digest
from keft_jax.train.coverage import count_shared, fingerprint, refuse_selection_on_test
from keft_jax.train.loop import Fit, NotFiniteError, Trainer, fit, make_plan
from keft_jax.train.parts import build, digest
from keft_jax.train.remember import can_remember, make_reader, remember
from keft_jax.train.run import identify, load_given
from keft_jax.train.vectors import resolve
from keft_jax.train.weigh import scale_of


class GainRun:
    """One gain table under way."""

    def __init__(self, config: Config, workdir: Path, say: Callable[[str], None]):
        self.config, self.workdir, self.say = config, workdir, say
        refuse_config(config)
        self.parts, splits = build(config)
        self.config = config = self.parts.config  # with the sizes of a pre-trained encoder
        self.unlabelled = splits.unlabelled
        for name, test in splits.tests.items():
            refuse_selection_on_test(config.data.select, splits.select, name, test)
            count_shared(config.data.unlabelled, splits.unlabelled, name, test)
        self.train = self.parts.training(splits)
        self.select = self.parts.dataset(splits.select)
        self.tests = {name: self.parts.dataset(test) for name, test in splits.tests.items()}
        self.given = load_given(self.parts)
        self._read = self.given.inputs()
        if len(self.unlabelled):
            self._read["data.unlabelled"] = fingerprint(self.unlabelled)
        if self.given.teacher:
            self._read["objective.distill.teacher"] = identify(*self.given.teacher)
        self.trainer = Trainer(self.parts, self.given)
        self._costs: dict[Any, float | None] = {}
        self._reader = make_reader(self.trainer)
        self._remembered: dict[int, tuple[Dataset, Dataset]] = {}
        self._ready()

    def _ready(self, shared: SharedText | None = None) -> None:
        """What follows from the parts, the data and the trainer. shared: whose compiled steps this
        table can go on with."""
        task = self.parts.task
        self.variants = Variants(self.trainer, self.workdir, self.say)
        self.metric = self.config.eval.metric or task.metrics[0]
        if self.metric not in (*task.metrics, *task.corpus):
            raise KeftError(
                f"eval.metric = {self.metric!r}: a gain table needs one of "
                f"{', '.join((*task.metrics, *task.corpus))}"
            )
        own = task.corpus.get(self.metric)
        self.score = own.score if own else ""
        """Of tasks/corpus.py, where the metric is no mean over examples."""
        self.cheap = Cheap(self.parts, self.metric, self.train, self.select, self.tests)
        self.shared: SharedText | None = None
        if can_share(self.trainer, self.train, self.select, self.tests.values()):
            kept = shared and shared.over(self.trainer)
            self.shared = kept or SharedText(self.trainer)

    def again(self, config: Config, workdir: Path) -> GainRun:
        """A table by another config, which takes over all that is equal: files and graph (unless
        they differ in more than the draw and the selection split), then the compiled step."""
        config = resolve(config)
        refuse_config(config)
        if _of_files(config) != _of_files(self.config):
            return GainRun(config, workdir, self.say)
        other = copy.copy(self)
        other.config, other.workdir = config, workdir
        other.parts = dataclasses.replace(self.parts, config=config)
        if config.data.select != self.config.data.select:
            examples = other.parts.read(config.data.select)
            for name, test in self.tests.items():
                refuse_selection_on_test(config.data.select, examples, name, test.examples)
            other.select = other.parts.dataset(examples)
        other.given = dataclasses.replace(self.given, parts=other.parts)
        if config.optim == self.config.optim:
            other.trainer = copy.copy(self.trainer)
            other.trainer.parts, other.trainer.given = other.parts, other.given
            other._ready(self.shared)
        else:
            other.trainer = Trainer(other.parts, other.given)
            other._ready()
        return other

    def run(self) -> None:
        """Runs the cells that are not on disk yet."""
        self._claim()
        gain = self.config.gain
        seeds = range(self.config.seed, self.config.seed + self.seeds)
        missing = [
            (row, seed)
            for row in (*self.cheap.rows, *gain.rows, *gain.perturbed, *gain.variants)
            for seed in seeds
            if not self._file(row, seed).is_file()
        ]
        if self.shared:  # all rows of a seed beside its text
            missing.sort(key=lambda cell: (cell[0] not in self.cheap.rows, cell[1]))
        took: dict[bool, list[float]] = {}
        ready: dict[tuple[str, int, Knowledge], list[Dataset]] = {}
        for done, (row, seed) in enumerate(missing, 1):
            begin = time.perf_counter()
            if row in self.cheap.rows:
                cell = self.cheap.cell(row, seed, self.drawn(seed))
            else:
                reads, knowledge = self.variants.reads(row)
                key = (reads, seed if ROWS[reads].seeded else 0, knowledge)
                if key not in ready:
                    again = {k: v for k, v in ready.items() if not ROWS[k[0]].seeded}
                    ready = again if self.shared else {}
                    sets = [self.train, self.select, *self.tests.values()]
                    ready[key] = [with_row(self._remember(s), knowledge, *key[:2]) for s in sets]
                cell = self._train(row, seed, ready[key])
            cell.save(self.workdir / "cells")
            took.setdefault(row in self.cheap.rows, []).append(time.perf_counter() - begin)
            score = np.mean([score_of(m[self.metric], self.score) for m in cell.metrics.values()])
            self.say(
                f"[{done}/{len(missing)}] {row}, seed {seed}: {self.metric} {score:.3f}, "
                f"{cell.info['seconds']:.1f} s{self._left(took, missing[done:])}"
            )

    def _left(self, took: Mapping[bool, list[float]], missing: list[tuple[str, int]]) -> str:
        """How long the missing cells will take, where some of their kind (cheap or not) are done:
        a cheap one is no measure of the others."""
        kinds = [row in self.cheap.rows for row, _ in missing]
        if not set(kinds) <= set(took):
            return ""
        return f"; about {sum(np.mean(took[kind]) for kind in kinds) / 60:.1f} min left"

    def _remember(self, dataset: Dataset) -> Dataset:
        """With the states after the layers that stay, the same for every row and seed."""
        if not can_remember(self.config, self.parts.model):
            return dataset
        if id(dataset) not in self._remembered:
            params = self.trainer.fresh(self.config.seed).model_params
            remembered = remember(self.trainer, self._reader, params, dataset)
            self._remembered[id(dataset)] = dataset, remembered
        return self._remembered[id(dataset)][1]

    def step_time_ratio(self) -> float | None:
        """Step time over that without the graph network; measured once for tables of one model."""
        kind = _of_files(self.config)
        if kind not in self._costs:
            self._costs[kind] = measure_cost(self.trainer, given(self.train, self.parts))
        return self._costs[kind]

    def drawn(self, seed: int) -> np.ndarray:
        """i32[n]: the training examples that a seed draws."""
        return make_plan(self.config, self.train, seed).examples

    @property
    def seeds(self) -> int:
        return self.config.gain.seeds

    def _file(self, row: str, seed: int) -> Path:
        return self.workdir / "cells" / f"{row}-{seed}.npz"

    def _claim(self) -> None:
        """Writes what the table is about, or checks that the directory holds the same table."""
        manifest = {
            "task": self.config.task.kind,
            "metric": self.metric,
            **({"score": self.score} if self.score else {}),
            "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "data_hash": self.data_hash(),
            "kg_hash": self.parts.knowledge.kg.hash,
            "rows": DEFINITION,
        }
        if (self.workdir / "manifest.json").is_file():
            there = json.loads((self.workdir / "manifest.json").read_text("utf-8"))
            if found := find_difference(there, manifest):
                key, old, new = found
                name = "definition of its rows (gain/rows.py)" if key == "rows" else key
                raise KeftError(
                    f"{self.workdir}: holds a table with {name} = {old!r}, this one has {new!r}; "
                    "give another --workdir"
                )
        self.workdir.mkdir(parents=True, exist_ok=True)
        save_splits(self.workdir, [make_split(n, d, self.parts) for n, d in self.tests.items()])
        save_manifest(self.workdir, manifest)

    def data_hash(self) -> dict[str, str]:
        sets = {"train": self.train, "select": self.select, **self.tests}
        out = {name: fingerprint(dataset.examples) for name, dataset in sets.items()}
        out["vocabulary"] = digest(self.parts.knowledge.vocabulary.tokenizer.to_str())
        if start := start_digest(self.config):
            out["encoder.pretrained"] = start
        return out | {name: value for name, value in self._read.items() if value}

    def _rates(self, row: str, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """All learning rates for the first seed; for the others the one it chose, and the lower
        ones for where that diverges."""
        rates = self.config.gain.learning_rates or (self.config.optim.learning_rate,)
        first = self._file(row, self.config.seed)
        if seed == self.config.seed or not first.is_file():
            return rates, ()
        chosen = Cell.load(first).info["learning_rate"]
        return (chosen,), tuple(sorted((r for r in rates if r < chosen), reverse=True))

    def _clock(self) -> float:
        """Seconds, but for those of texts that rows share."""
        return time.perf_counter() - (self.shared.seconds if self.shared else 0)

    def _train(self, row: str, seed: int, sets: Sequence[Dataset]) -> Cell:
        train, select, *tests = sets
        trainer = self.variants.trainer(row, seed)
        model = self.shared or trainer
        learn = self.shared.fit if self.shared else partial(fit, trainer)
        rates, spare = self._rates(row, seed)
        best: tuple[float, float, Fit] | None = None
        begin, trials, diverged = self._clock(), 0, []
        while rates:
            rate, rates = rates[0], rates[1:]
            trials += 1
            try:
                one = learn(train, select, seed=seed, learning_rate=rate)
            except NotFiniteError as error:
                diverged.append(rate)
                self.say(f"{row}, seed {seed}: learning rate {rate:g} is left out: {error}")
                if not rates and best is None:
                    rates, spare = spare[:1], spare[1:]
                continue
            score = one.progress.select
            if score is not None and (best is None or score > best[0]):
                best = score, rate, one
        if best is None and diverged:
            raise NotFiniteError(
                f"row {row}, seed {seed}: diverges at every learning rate, "
                f"{', '.join(f'{rate:g}' for rate in diverged)}; add a lower one"
            )
        if best is None:
            raise KeftError(f"row {row}, seed {seed}: no evaluation on {self.config.data.select}")
        score, rate, chosen = best
        metrics, choice, task = {}, {}, self.parts.task
        for name, dataset in zip(self.tests, tests, strict=True):
            rows = model.evaluate(chosen.best_params, dataset)
            metrics[name] = keep_values(task, rows, self.metric)
            choice[name] = task.said(rows)
        info = {
            "steps": int(chosen.state.step),
            "best_step": chosen.progress.best_step,
            **scale_of(chosen.best_params),
            "select": score,
            "learning_rate": rate,
            "trials": trials,
            "diverged": diverged,
            "seconds": self._clock() - begin,
            "compilations": trainer.compilations,
        }
        cell = Cell(row, seed, metrics, choice, chosen.progress.curve, info)
        if row == JUDGED and seed == self.config.seed and can_draw(self.parts, tests[0]):
            split, file = next(iter(self.tests)), self._file(PLAIN, seed)
            drawn = draw_examples(
                self.trainer,
                chosen.best_params,
                with_row(next(iter(self.tests.values())), self.parts.knowledge, row, seed),
                split,
                self.metric,
                true=cell,
                plain=Cell.load(file) if file.is_file() else None,
                most=self.config.gain.explain,
            )
            text = json.dumps([dataclasses.asdict(d) for d in drawn], ensure_ascii=False)
            write_atomic(self.workdir / "drawn.json", text.encode())
        return cell


def refuse_config(config: Config) -> None:
    """Raises KeftError where a config lacks what a gain table needs."""
    data, known = config.data, config.knowledge
    if config.task.kind == "mlm":
        raise KeftError("task.kind = 'mlm': a gain table needs answers or labels; use train.py")
    if not (data.select or data.select_share):
        raise KeftError(
            "data.select = '': name the split that chooses checkpoints, or set data.select_share"
        )
    if not (data.test or data.test_share):
        raise KeftError("data.test = (): name at least one split to report, or set data.test_share")
    told = {"knowledge.entities": known.entities, "knowledge.relations": known.relations}
    told["objective.kg_teacher.embeddings"] = config.objective.kg_teacher.embeddings
    for name, value in told.items():
        if config.gain.perturbed and value not in ("", "name", "description", "random"):
            raise KeftError(
                f"{name} = {value!r}: embeddings of the whole graph tell what gain.corrupt and "
                "gain.drop take away; leave one of the two out"
            )


def _of_files(config: Config) -> tuple[Any, ...]:
    """What files, graph, vocabulary, model and loss follow from, the selection split apart. The
    groups of `optim` say which layers of a model have no dropout."""
    data = {**vars(config.data), "draw": 0, "select": bool(config.data.select)}
    rest = {k: v for k, v in vars(config).items() if k not in _APART}
    return (*data.items(), *rest.items(), config.optim.groups)


_APART = ("name", "seed", "data", "optim", "eval", "checkpoint", "gain")


def run_gain(config: Config, workdir: Path, *, quiet: bool = False) -> dict[str, Any]:
    """The whole of `keft gain`: cells, statistics, audit, summary.json, report.html, gain.png."""
    console = Console(quiet=quiet, highlight=False, emoji=False)
    return run_table(GainRun(config, workdir, console.print), console)


def run_table(table: GainRun, console: Console) -> dict[str, Any]:
    begin, config, workdir = time.perf_counter(), table.config, table.workdir
    kg = table.parts.knowledge.kg
    rows = len(config.gain.rows) + len(config.gain.perturbed) + len(config.gain.variants)
    console.print(
        f"{len(table.train)} training examples, {kg.n_entities} entities, {kg.n_triples} triples, "
        f"{table.parts.model.size():,} parameters; {rows} rows x "
        f"{config.gain.seeds} seeds of {config.optim.steps} steps, in {workdir}"
    )
    table.run()
    summary = finish(table, begin)
    print_table(summary, console)
    console.print(f"report: {workdir / 'report.html'}")
    return summary
