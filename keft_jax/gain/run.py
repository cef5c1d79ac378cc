"""Runs a gain table: every row with every seed, through one compiled step, cell by cell.

A cell that is on disk is not run again, so the same command resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from keft_jax.config import Config, FusionConfig, KeftError, config_hash
from keft_jax.data.features import ROWS, Dataset, with_row
from keft_jax.data.plan import BatchPlan
from keft_jax.data.source import Example
from keft_jax.explain import make_explainer
from keft_jax.gain.audit import Audited, audit
from keft_jax.gain.baselines import fit_char_ngram, majority_per_pattern
from keft_jax.gain.cells import (
    Cell,
    Split,
    load_table,
    merge,
    save_manifest,
    save_splits,
    table_config,
    write_atomic,
)
from keft_jax.gain.report import Drawn, plot, print_table, write_report
from keft_jax.gain.rows import CHAR_NGRAM, JUDGED, MAJORITY, PLAIN
from keft_jax.gain.stats import summarise
from keft_jax.kg.subgraph import Subgraphs, survival
from keft_jax.train.loop import Fit, Trainer, fit
from keft_jax.train.parts import assemble, build


class Table:
    """One gain table under way."""

    def __init__(self, config: Config, workdir: Path, say: Callable[[str], None]):
        self.config, self.workdir, self.say = config, workdir, say
        if not config.data.select:
            raise KeftError("data.select = '': name the split that chooses checkpoints")
        if not config.data.test:
            raise KeftError("data.test = (): name at least one split to report")
        self.parts, examples = build(config)
        self.train = self.parts.dataset(examples)
        self.select = self.parts.dataset(self.parts.read(config.data.select))
        self.tests = {Path(f).name.split(".")[0]: self._read_test(f) for f in config.data.test}
        if len(self.tests) < len(config.data.test):
            raise KeftError(f"data.test = {config.data.test!r}: two files give one split name")
        self.trainer = Trainer(self.parts)
        self.metric = config.eval.metric or self.parts.task.metrics[0]
        if self.metric not in self.parts.task.metrics:
            raise KeftError(
                f"eval.metric = {self.metric!r}: a gain table needs one value for each example: "
                f"{', '.join(self.parts.task.metrics)}"
            )

    def _read_test(self, path: str) -> Dataset:
        return self.parts.dataset(self.parts.read(path))

    # -- cells ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs the cells that are not on disk yet."""
        self._claim()
        rows, seeds = self.config.gain.rows, range(self.config.seed, self.config.seed + self.seeds)
        baselines = [MAJORITY, CHAR_NGRAM]
        missing = [
            (row, seed)
            for row in (*baselines, *rows)
            for seed in seeds
            if not self._file(row, seed).is_file()
        ]
        begin = time.perf_counter()
        ready: tuple[tuple[str, int], list[Dataset]] | None = None
        for done, (row, seed) in enumerate(missing, 1):
            if row in baselines:
                cell = self._baseline(row, seed)
            else:
                key = (row, seed if ROWS[row].seeded else 0)
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
            old, new = table_config(there), table_config(manifest)
            old, new = ({k.removeprefix("config."): v for k, v in x.items()} for x in (old, new))
            old, new = table_config(old), table_config(new)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    raise KeftError(
                        f"{self.workdir}: holds a table with {key} = {old.get(key)!r}, this one "
                        f"has {new.get(key)!r}; give another --workdir"
                    )
        self.workdir.mkdir(parents=True, exist_ok=True)
        save_splits(self.workdir, self.splits())
        save_manifest(self.workdir, manifest)

    def data_hash(self) -> dict[str, str]:
        sets = {"train": self.train, "select": self.select, **self.tests}
        return {name: _hash(dataset.examples) for name, dataset in sets.items()}

    def _train(self, row: str, seed: int, sets: Sequence[Dataset]) -> Cell:
        train, select, *tests = sets
        rates = self.config.gain.learning_rates or (self.config.optim.learning_rate,)
        best: tuple[float, float, Fit] | None = None
        seconds = 0.0
        for rate in rates:
            one = fit(self.trainer, train, select, seed=seed, learning_rate=rate)
            seconds += one.seconds
            score = one.progress.best
            if score is not None and (best is None or score > best[0]):
                best = score, rate, one
        if best is None:
            raise KeftError(f"row {row}, seed {seed}: no evaluation on {self.config.data.select}")
        score, rate, chosen = best
        metrics, choice = {}, {}
        for name, dataset in zip(self.tests, tests, strict=True):
            rows = self.trainer.evaluate(chosen.best_params, dataset)
            metrics[name] = {m: rows[m] for m in self.parts.task.metrics}
            choice[name] = [self.parts.task.choices[int(i)] for i in rows["choice"]]
        info = {
            "steps": int(chosen.state.step),
            "best_step": chosen.progress.best_step,
            "select": score,
            "learning_rate": rate,
            "trials": len(rates),
            "seconds": seconds,
            "compilations": self.trainer.compilations,
        }
        cell = Cell(row, seed, metrics, choice, chosen.progress.curve, info)
        if row == JUDGED and seed == self.config.seed:
            self._explain(cell, chosen.best_params, tests[0])
        return cell

    def _baseline(self, row: str, seed: int) -> Cell:
        """A text-only model on the examples that this seed draws."""
        begin = time.perf_counter()
        config = self.config
        plan = BatchPlan(self.train.lengths, 1, config.data.buckets, seed, config.data.draw or None)
        drawn = [self.train.examples[i] for i in plan.examples]
        metrics, choice = {}, {}
        if row == CHAR_NGRAM:
            selected = self.select.examples
            model = fit_char_ngram(
                [_text(e) for e in drawn],
                [_gold(e) for e in drawn],
                [_text(e) for e in selected],
                [_gold(e) for e in selected],
            )
        for name, dataset in self.tests.items():
            if row == CHAR_NGRAM:
                said = model.predict([_text(e) for e in dataset.examples])
            else:
                said = majority_per_pattern(
                    [e.pattern for e in drawn],
                    [_gold(e) for e in drawn],
                    [e.pattern for e in dataset.examples],
                )
            right = [s in _gold(e) for s, e in zip(said, dataset.examples, strict=True)]
            metrics[name] = {self.metric: np.array(right, np.float32)}
            choice[name] = list(said)
        return Cell(row, seed, metrics, choice, [], {"seconds": time.perf_counter() - begin})

    # -- what is known beside the scores -------------------------------------------------------

    def splits(self) -> list[Split]:
        out = []
        for name, dataset in self.tests.items():
            examples = dataset.examples
            cluster = [e.cluster or str(e.id) for e in examples]
            pattern = [e.pattern for e in examples]
            out.append(Split(name, np.array(cluster), np.array(pattern), self._slices(dataset)))
        return out

    def _slices(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """Covered or not, frequent or rare entities, hops to an answer, and `data.slices`."""
        slices = {}
        covered = dataset.seeds[:, 0] >= 0
        degree = np.append(self.parts.knowledge.kg.degrees, 0)[dataset.seeds].max(1)
        frequent = covered & (degree > np.median(degree[covered])) if covered.any() else covered
        parts = {"covered": covered, "uncovered": ~covered}
        parts |= {"frequent entity": frequent, "rare entity": covered & ~frequent}
        if self.config.task.kind == "kgqa":
            far = hops_to_answer(self.subgraphs(dataset), self.answers(dataset))
            for k in range(1, self.config.knowledge.hops + 1):
                parts[f"{k} hop{'s' if k > 1 else ''}"] = far == k
        for i, field in enumerate(self.config.data.slices):
            values = np.array([e.slices[i] for e in dataset.examples])
            for value in np.unique(values)[:8]:
                parts[f"{field}={value}"] = values == value
        for name, mask in parts.items():
            if 0 < mask.sum() < len(mask):
                slices[name] = mask
        return slices

    def subgraphs(self, dataset: Dataset) -> Subgraphs:
        return self.parts.knowledge.subgraphs(dataset.seeds, JUDGED, 0)

    def answers(self, dataset: Dataset) -> list[set[int]]:
        kg = self.parts.knowledge.kg
        found = [{kg.find(name) for name in e.answers} for e in dataset.examples]
        return [{i for i in ids if i is not None} for ids in found]

    def audit(self) -> dict[str, Any]:
        def look(name: str, dataset: Dataset) -> Audited:
            kgqa = self.config.task.kind == "kgqa"
            sub = self.subgraphs(dataset)
            inside = None
            names = self.parts.knowledge.kg.names
            if kgqa:
                nodes = [
                    set(row[:n].tolist()) for row, n in zip(sub.entity, sub.n_node, strict=True)
                ]
                pairs = zip(nodes, self.answers(dataset), strict=True)
                inside = np.array([bool(n & a) for n, a in pairs])
            return Audited(
                name=name,
                texts=[_text(e) for e in dataset.examples],
                topics=[row[row >= 0].tolist() for row in dataset.seeds],
                labels=[e.pattern if kgqa else e.label or "" for e in dataset.examples],
                covered=dataset.seeds[:, 0] >= 0,
                node_texts=None
                if kgqa
                else [
                    " ".join(names[i] for i in row[:n])
                    for row, n in zip(sub.entity, sub.n_node, strict=True)
                ],
                answer_in_graph=inside,
            )

        return audit(
            look("train", self.train),
            [look(name, dataset) for name, dataset in self.tests.items()],
            task=self.config.task.kind,
            selected_on=[Path(self.config.data.select).name.split(".")[0]],
            vocab_from_test=False,
            linker_from_test=False,
        )

    def measure_cost(self, steps: int = 20) -> float | None:
        """Step time with the graph network over that without, median of alternating pairs."""
        if self.config.fusion.kind == "none":
            return None
        plain = dataclasses.replace(self.config, fusion=FusionConfig(kind="none"))
        groups = tuple(g for g in self.config.optim.groups if "encoder" in g.match)
        plain = dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, groups=groups))
        vocabulary, kg = self.parts.knowledge.vocabulary, self.parts.knowledge.kg
        trainers = [self.trainer, Trainer(assemble(plain, kg, vocabulary, self.parts.labels))]
        train = with_row(self.train, self.parts.knowledge, JUDGED, 0)
        length, indices = BatchPlan(
            train.lengths, self.config.optim.batch, self.config.data.buckets, 0
        ).batch(0)
        states = [t.fresh(0) for t in trainers]
        times: list[list[float]] = [[], []]
        for _ in range(steps + 2):
            for i, trainer in enumerate(trainers):
                batch = trainer.put(train.batch(length, indices))
                begin = time.perf_counter()
                states[i], metrics = trainer.train_step(states[i], trainer.frozen(), batch)
                jax.block_until_ready((states[i], metrics))
                times[i].append(time.perf_counter() - begin)
        ratios = np.array(times[0][2:]) / np.array(times[1][2:])
        return float(np.median(ratios))

    def _explain(self, cell: Cell, params: Any, dataset: Dataset) -> None:
        """Draws subgraphs of a handful of examples: won, lost and missed ones, of each kind."""
        split = next(iter(self.tests))
        right = cell.metrics[split][self.metric] > 0.5
        plain = self._file(PLAIN, cell.seed)
        other = np.zeros(len(right), bool)
        if plain.is_file():
            other = Cell.load(plain).metrics[split][self.metric] > 0.5
        chosen: list[tuple[int, str]] = []
        seen: set[str] = set()
        most = self.config.gain.explain
        for mask, note in (
            (right & ~other, "right with the knowledge, wrong without"),
            (~right, "wrong with the knowledge"),
        ):
            quota = most - 2 if not chosen else most
            for i in np.flatnonzero(mask):
                pattern = dataset.examples[i].pattern + note
                if len(chosen) < quota and (pattern not in seen or not dataset.examples[i].pattern):
                    chosen.append((int(i), note))
                    seen.add(pattern)
        explain = make_explainer(self.trainer)
        drawn = []
        for number, note in chosen:
            example, found = dataset.examples[number], explain(params, dataset, number)
            gold = set(_gold(example))
            weight = np.zeros(len(found.nodes))
            for fact in found.facts:
                for node in (fact.head, fact.tail):
                    weight[node] = max(weight[node], fact.importance)
            roles = [
                "mention" if mentioned else "answer" if name in gold | {found.answer} else "other"
                for name, mentioned in zip(found.nodes, found.mentioned, strict=True)
            ]
            nodes = list(zip(found.nodes, weight.tolist(), roles, strict=True))
            edges = [(f.head, f.tail, f.relation, f.importance) for f in found.facts]
            answers = {JUDGED: found.answer}
            if plain.is_file():
                answers[PLAIN] = Cell.load(plain).choice[split][number]
            drawn.append(Drawn(_text(example), list(_gold(example)), answers, nodes, edges, note))
        text = json.dumps([dataclasses.asdict(d) for d in drawn], ensure_ascii=False)
        write_atomic(self.workdir / "drawn.json", text.encode())


def _text(example: Example) -> str:
    return f"{example.text} {example.pair}".strip()


def _gold(example: Example) -> tuple[str, ...]:
    return example.answers or ((example.label,) if example.label is not None else ())


def _hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for e in examples:
        record = (e.text, e.pair, e.label, e.answers, e.spans)
        digest.update(json.dumps(record, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def hops_to_answer(sub: Subgraphs, answers: Sequence[set[int]]) -> np.ndarray:
    """i32[b]: edges between a mention and its nearest right answer; -1: not in the subgraph."""
    b, n = sub.entity.shape
    far = np.full((b, n), n, np.int32)
    rows, slots = np.nonzero(sub.seed_node >= 0)
    far[rows, sub.seed_node[rows, slots]] = 0
    row, edge = np.nonzero(np.arange(sub.senders.shape[1]) < sub.n_edge[:, None])
    sender, receiver = sub.senders[row, edge], sub.receivers[row, edge]
    for _ in range(4):
        np.minimum.at(far, (row, receiver), far[row, sender] + 1)
    out = np.full(b, -1, np.int32)
    for i, ids in enumerate(answers):
        at = np.isin(sub.entity[i, : sub.n_node[i]], list(ids))
        if at.any():
            nearest = far[i, : sub.n_node[i]][at].min()
            out[i] = nearest if nearest < n else -1
    return out


def run_gain(config: Config, workdir: Path, *, quiet: bool = False) -> dict[str, Any]:
    """The whole of `keft gain`: cells, statistics, audit, summary.json, report.html, gain.png."""
    begin = time.perf_counter()
    console = Console(quiet=quiet, highlight=False)
    table = Table(config, workdir, console.print)
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


def _finish(table: Table, begin: float) -> dict[str, Any]:
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
        name: {"linked": float((d.seeds[:, 0] >= 0).mean())} for name, d in table.tests.items()
    }
    if config.task.kind == "kgqa":
        summary["survival"] = {
            name: survival(table.subgraphs(d), table.answers(d), kg)
            for name, d in table.tests.items()
        }
    summary["leaks"] = table.audit()
    summary["step_time_ratio"] = table.measure_cost()
    summary["compilations"] = table.trainer.compilations
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    summary["config_hash"], summary["kg_hash"] = config_hash(config), kg.hash
    summary["data_hash"] = table.data_hash()
    summary["versions"] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    drawn = []
    if (workdir / "drawn.json").is_file():
        drawn = [Drawn(**d) for d in json.loads((workdir / "drawn.json").read_text("utf-8"))]
    examples = {
        name: [
            {"text": _text(e), "gold": ", ".join(_gold(e)), "pattern": e.pattern}
            for e in d.examples
        ]
        for name, d in table.tests.items()
    }
    write_atomic(workdir / "summary.json", json.dumps(summary, indent=2, default=float).encode())
    write_report(
        workdir / "report.html", summary, done.cells, examples, drawn, dataclasses.asdict(config)
    )
    plot(summary, done.cells, workdir / "gain.png")
    return summary


__all__ = ["Table", "hops_to_answer", "merge", "run_gain"]
