"""Runs a gain table: every row with every seed, through one compiled step, cell by cell.

A cell that is on disk is not run again, so the same command resumes.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from keft_jax.config import Config, KeftError, config_hash
from keft_jax.data.features import ROWS, Dataset, with_row
from keft_jax.gain.baselines import fit_char_ngram, majority_per_pattern, score_single
from keft_jax.gain.cells import (
    Cell,
    load_table,
    merge,
    save_manifest,
    save_splits,
    table_config,
    write_atomic,
)
from keft_jax.gain.cost import measure_cost
from keft_jax.gain.draw import draw_examples
from keft_jax.gain.lookup import measure_ceilings
from keft_jax.gain.probes import Probes
from keft_jax.gain.report import Drawn, plot, print_table, write_report
from keft_jax.gain.rows import CHAR_NGRAM, JUDGED, MAJORITY, PLAIN, PROBES
from keft_jax.gain.splits import audit_splits, given, gold_of, make_split, text_of
from keft_jax.gain.stats import summarise
from keft_jax.gain.variants import Variants
from keft_jax.models.pretrained import start_digest
from keft_jax.tasks.kinds import KINDS
from keft_jax.train.coverage import cover, fingerprint, refuse_selection_on_test
from keft_jax.train.loop import Fit, NotFiniteError, Trainer, fit, make_plan
from keft_jax.train.parts import build, digest
from keft_jax.train.run import identify, load_given


class GainRun:
    """One gain table under way."""

    def __init__(self, config: Config, workdir: Path, say: Callable[[str], None]):
        self.config, self.workdir, self.say = config, workdir, say
        if config.task.kind == "mlm":
            raise KeftError("task.kind = 'mlm': a gain table needs answers or labels; use train.py")
        if not (config.data.select or config.data.select_share):
            raise KeftError(
                "data.select = '': name the split that chooses checkpoints, or set "
                "data.select_share"
            )
        if not (config.data.test or config.data.test_share):
            raise KeftError(
                "data.test = (): name at least one split to report, or set data.test_share"
            )
        self.parts, splits = build(config)
        self.config = config = self.parts.config  # with the sizes of a pre-trained encoder
        for name, test in splits.tests.items():
            refuse_selection_on_test(config.data.select, splits.select, name, test)
        self.train = self.parts.dataset(splits.train)
        self.select = self.parts.dataset(splits.select)
        self.tests = {name: self.parts.dataset(test) for name, test in splits.tests.items()}
        given = load_given(self.parts)
        self._read = given.inputs()
        if given.teacher:
            self._read["objective.distill.teacher"] = identify(*given.teacher)
        self.trainer = Trainer(self.parts, given)
        self.variants = Variants(self.trainer, workdir, say)
        self.metric = config.eval.metric or self.parts.task.metrics[0]
        if self.metric not in self.parts.task.metrics:
            raise KeftError(
                f"eval.metric = {self.metric!r}: a gain table needs one value for each example: "
                f"{', '.join(self.parts.task.metrics)}"
            )

    def run(self) -> None:
        """Runs the cells that are not on disk yet."""
        self._claim()
        rows, seeds = self.config.gain.rows, range(self.config.seed, self.config.seed + self.seeds)
        baselines = [MAJORITY, CHAR_NGRAM]
        if KINDS[self.config.task.kind].single:
            baselines += PROBES
        missing = [
            (row, seed)
            for row in (*baselines, *rows, *self.config.gain.variants)
            for seed in seeds
            if not self._file(row, seed).is_file()
        ]
        begin = time.perf_counter()
        ready: tuple[tuple[str, int], list[Dataset]] | None = None
        for done, (row, seed) in enumerate(missing, 1):
            if row in baselines:
                cell = self._baseline(row, seed)
            else:
                reads = row if row in ROWS else JUDGED  # a variant
                key = (reads, seed if ROWS[reads].seeded else 0)
                if ready is None or ready[0] != key:
                    sets = [self.train, self.select, *self.tests.values()]
                    ready = key, [with_row(s, self.parts.knowledge, *key) for s in sets]
                cell = self._train(row, seed, ready[1])
            cell.save(self.workdir / "cells")
            left = (time.perf_counter() - begin) / done * (len(missing) - done)
            score = np.mean([np.mean(m[self.metric]) for m in cell.metrics.values()])
            self.say(
                f"[{done}/{len(missing)}] {row}, seed {seed}: {self.metric} {score:.3f}, "
                f"{cell.info['seconds']:.1f} s; about {left / 60:.1f} min left"
            )

    @cached_property
    def probes(self) -> Probes:
        return Probes(self.parts, self.train, self.tests)

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
            "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "data_hash": self.data_hash(),
            "kg_hash": self.parts.knowledge.kg.hash,
        }
        if (self.workdir / "manifest.json").is_file():
            there = json.loads((self.workdir / "manifest.json").read_text("utf-8"))
            if "vocabulary" not in there["data_hash"]:  # begun before it was kept
                manifest["data_hash"].pop("vocabulary", None)
            old, new = (
                table_config({**m, "config": {}}) | table_config(m["config"])
                for m in (there, manifest)
            )
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    raise KeftError(
                        f"{self.workdir}: holds a table with {key} = {old.get(key)!r}, this one "
                        f"has {new.get(key)!r}; give another --workdir"
                    )
        self.workdir.mkdir(parents=True, exist_ok=True)
        save_splits(self.workdir, [make_split(n, d, self.parts) for n, d in self.tests.items()])
        save_manifest(self.workdir, manifest)

    def data_hash(self) -> dict[str, str]:
        sets = {"train": self.train, "select": self.select, **self.tests}
        out = {name: fingerprint(dataset.examples) for name, dataset in sets.items()}
        start = start_digest(self.config)
        if start or self.config.data.vocab:  # else it follows from the training text
            tokenizer = self.parts.knowledge.vocabulary.tokenizer
            out = {"vocabulary": digest(tokenizer.to_str())} | out
        out |= {"encoder.pretrained": start} if start else {}
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

    def _train(self, row: str, seed: int, sets: Sequence[Dataset]) -> Cell:
        train, select, *tests = sets
        trainer = self.variants.trainer(row, seed)
        rates, spare = self._rates(row, seed)
        best: tuple[float, float, Fit] | None = None
        begin, trials, diverged = time.perf_counter(), 0, []
        while rates:
            rate, rates = rates[0], rates[1:]
            trials += 1
            try:
                one = fit(trainer, train, select, seed=seed, learning_rate=rate)
            except NotFiniteError as error:
                diverged.append(rate)
                self.say(f"{row}, seed {seed}: learning rate {rate:g} is left out: {error}")
                if not rates and best is None:
                    rates, spare = spare[:1], spare[1:]
                continue
            score = one.progress.best
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
        metrics, choice = {}, {}
        for name, dataset in zip(self.tests, tests, strict=True):
            rows = trainer.evaluate(chosen.best_params, dataset)
            metrics[name] = {m: rows[m] for m in self.parts.task.metrics}
            choice[name] = [self.parts.task.choices[int(i)] for i in rows["choice"]]
        info = {
            "steps": int(chosen.state.step),
            "best_step": chosen.progress.best_step,
            "select": score,
            "learning_rate": rate,
            "trials": trials,
            "diverged": diverged,
            "seconds": time.perf_counter() - begin,
            "compilations": trainer.compilations,
        }
        cell = Cell(row, seed, metrics, choice, chosen.progress.curve, info)
        if row == JUDGED and seed == self.config.seed:
            split, file = next(iter(self.tests)), self._file(PLAIN, seed)
            drawn = draw_examples(
                self.trainer,
                chosen.best_params,
                tests[0],
                split,
                self.metric,
                true=cell,
                plain=Cell.load(file) if file.is_file() else None,
                most=self.config.gain.explain,
            )
            text = json.dumps([dataclasses.asdict(d) for d in drawn], ensure_ascii=False)
            write_atomic(self.workdir / "drawn.json", text.encode())
        return cell

    def _baseline(self, row: str, seed: int) -> Cell:
        """A cheap model on the examples that this seed draws."""
        begin = time.perf_counter()
        config = self.config
        plan = make_plan(config, self.train, seed)
        drawn = [self.train.examples[i] for i in plan.examples]
        metrics, choice = {}, {}
        probed = self.probes.predict(row, plan.examples, seed) if row in PROBES else {}
        if row == CHAR_NGRAM:
            selected = self.select.examples
            model = fit_char_ngram(
                [text_of(e) for e in drawn],
                [gold_of(e) for e in drawn],
                [text_of(e) for e in selected],
                [gold_of(e) for e in selected],
            )
        for name, dataset in self.tests.items():
            if name in probed:
                said = probed[name]
            elif row == CHAR_NGRAM:
                said = model.predict([text_of(e) for e in dataset.examples])
            else:
                said = majority_per_pattern(
                    [e.pattern for e in drawn],
                    [gold_of(e) for e in drawn],
                    [e.pattern for e in dataset.examples],
                )
            scores = score_single(said, [gold_of(e) for e in dataset.examples])
            metrics[name] = {m: scores[m] for m in self.parts.task.metrics}
            choice[name] = list(said)
        return Cell(row, seed, metrics, choice, [], {"seconds": time.perf_counter() - begin})


def run_gain(config: Config, workdir: Path, *, quiet: bool = False) -> dict[str, Any]:
    """The whole of `keft gain`: cells, statistics, audit, summary.json, report.html, gain.png."""
    begin = time.perf_counter()
    console = Console(quiet=quiet, highlight=False, emoji=False)
    table = GainRun(config, workdir, console.print)
    kg = table.parts.knowledge.kg
    console.print(
        f"{len(table.train)} training examples, {kg.n_entities} entities, {kg.n_triples} triples, "
        f"{table.parts.model.size():,} parameters; {len(config.gain.rows)} rows x "
        f"{config.gain.seeds} seeds of {config.optim.steps} steps, in {workdir}"
    )
    table.run()
    summary = _finish(table, begin)
    print_table(summary, console)
    console.print(f"report: {workdir / 'report.html'}")
    return summary


def _finish(table: GainRun, begin: float) -> dict[str, Any]:
    config, workdir = table.config, table.workdir
    done = load_table(workdir)
    summary = summarise(
        done.cells,
        done.splits,
        table.metric,
        task=config.task.kind,
        draws=config.gain.bootstrap,
        seed=config.seed,
    )
    kg = table.parts.knowledge.kg
    summary["coverage"] = {
        name: cover(given(d, table.parts), table.parts) for name, d in table.tests.items()
    }
    if config.task.kind == "kgqa":
        plan = make_plan(config, table.train, config.seed)
        summary["ceiling"] = measure_ceilings(table.parts, table.train, plan.examples, table.tests)
    summary["leaks"] = audit_splits(
        table.parts, table.train.examples, table.select.examples, table.tests
    )
    summary["step_time_ratio"] = measure_cost(table.trainer, given(table.train, table.parts))
    own = given(table.train, table.parts)
    summary["variants"] = {
        row: {"step_time_ratio": table.variants.cost(row, own)} for row in config.gain.variants
    }
    summary["compilations"] = table.trainer.compilations
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    summary["config_hash"], summary["kg_hash"] = config_hash(config), kg.hash
    summary["data_hash"] = table.data_hash()
    summary["versions"] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    texts = {
        name: [
            {"text": text_of(e), "gold": ", ".join(gold_of(e)), "pattern": e.pattern}
            for e in d.examples
        ]
        for name, d in table.tests.items()
    }
    write_atomic(workdir / "examples.json", json.dumps(texts, ensure_ascii=False).encode())
    _write(workdir, summary, done.cells, workdir, dataclasses.asdict(config))
    return summary


def _write(
    folder: Path, summary: dict[str, Any], cells: Sequence[Cell], origin: Path, config: dict
) -> None:
    """summary.json, report.html and gain.png, with the examples and drawings of `origin`."""

    def read(name: str, empty: Any) -> Any:
        file = origin / name
        return json.loads(file.read_text("utf-8")) if file.is_file() else empty

    drawn = [Drawn(**d) for d in read("drawn.json", [])]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2, default=float).encode())
    write_report(folder / "report.html", summary, cells, read("examples.json", {}), drawn, config)
    plot(summary, cells, folder / "gain.png")


def merge_tables(folders: Sequence[Path], out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """One table from several: other rows or seeds, all else equal. What lies beside the scores
    (audit, coverage, cost, drawings) is that of the first. Raises KeftError naming what differs."""
    table = merge(folders)
    config = table.manifest["config"]
    gain = config.get("gain", {})
    if not (folders[0] / "summary.json").is_file():
        raise KeftError(f"{folders[0]}: not finished (no summary.json); finish it by its command")
    beside = json.loads((folders[0] / "summary.json").read_text("utf-8"))
    summary = summarise(
        table.cells,
        table.splits,
        table.manifest["metric"],
        task=table.manifest["task"],
        draws=gain.get("bootstrap", 10_000),
        seed=config.get("seed", 0),
    )
    summary = beside | summary
    table.save(out)
    for name in ("examples.json", "drawn.json"):
        if (folders[0] / name).is_file():
            write_atomic(out / name, (folders[0] / name).read_bytes())
    _write(out, summary, table.cells, folders[0], config)
    print_table(summary, Console(quiet=quiet, highlight=False, emoji=False))
    return summary
