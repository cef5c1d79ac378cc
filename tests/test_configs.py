"""Every recipe runs."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import raw_data

from keft_jax.config import Config, EncoderConfig, KnowledgeConfig, MeshConfig
from keft_jax.options import load_config_file
from keft_jax.train.checkpoint import abstract_like
from keft_jax.train.dry_run import dry_run
from keft_jax.train.evaluator import Evaluator
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import build_any, generate
from keft_jax.train.run import load_given, train

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT.parent / "shared/data"
SMALL = EncoderConfig(width=16, heads=2, mlp=32)
"""In the place of a pre-trained encoder: what loads one is tested with it."""
SCORED = 40  # examples of a split
TRAINED = ("quickstart", "metaqa", "sst2", "fewrel")
"""Compiling is what takes the time: other recipes are traced; tests of tasks train each kind."""


def make_metaqa(folder: Path) -> Path:
    """Facts and questions in that data's form."""
    for i, name in enumerate(("1hop-train", "1hop-valid")):
        rows = [
            {"question": f"who made [film {k}]", "topic": f"film {k}", "answers": [f"man {k % 9}"]}
            for k in range(i * SCORED, (i + 1) * SCORED)
        ]
        raw_data.write(folder / f"{name}.jsonl.gz", map(json.dumps, rows))
    facts = (f"film {k}\tmade by\tman {k % 9}" for k in range(2 * SCORED))
    raw_data.write(folder / "kg.tsv.gz", facts)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return raw_data.write_all(tmp_path_factory.mktemp("raw"))


NO_DATA = ("bench", "scale")
FILES = [f for f in sorted((ROOT / "configs").glob("*.py")) if f.stem not in NO_DATA]
RECIPES = [f for f in FILES if not f.stem.startswith("kge")]


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_two_steps(file, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a recipe's generator writes its data
    spec = f"{file}:{make_metaqa(tmp_path)}" if file.stem == "metaqa" else str(file)
    config = load_config_file(spec)
    data = dataclasses.replace(config.data, buckets=(32,), draw=min(config.data.draw, SCORED // 2))
    if data.source:
        data = dataclasses.replace(data, source=str(raw))
    config = dataclasses.replace(
        config,
        data=data,
        encoder=dataclasses.replace(
            SMALL if config.encoder.pretrained else config.encoder, layers=1
        ),
        graph=dataclasses.replace(config.graph, layers=1),
        fusion=dataclasses.replace(config.fusion, layers=(-1,)),
        optim=dataclasses.replace(config.optim, steps=2),
        mesh=MeshConfig(data=1),
        eval=dataclasses.replace(config.eval, every=2, batch=32),
    )
    generate(config)
    tests = [path.rpartition("=")[2] for path in data.test]
    for name in (data.train, data.select, *tests) if data.source else ():
        lines = Path(name).read_text().splitlines(keepends=True)
        Path(name).write_text("".join(lines[:: len(lines) // SCORED or 1]))
    if file.stem not in TRAINED:
        trace(config)
        return
    summary = train(config, tmp_path / "run", quiet=True)
    assert summary["steps"] == 2
    assert set(summary["scores"]) == {Path(f).name.split(".")[0] for f in tests}


def trace(config: Config) -> None:
    """Both steps of the recipe on its data, all but their compilation."""
    parts, splits = build_any(config)
    trainer, evaluator = Trainer(parts, load_given(parts)), Evaluator(parts)
    data = parts.given(parts.training(splits))
    abstract = jax.eval_shape(trainer.init, jax.random.key(0))
    state = abstract_like(abstract, trainer.shardings)
    length, indices = make_plan(parts.config, data, 0).batch(0)
    batch = trainer.put(data.batch(length, indices))
    trainer.train_step.lower(state, trainer.frozen(), batch)
    metric = parts.config.eval.metric
    assert metric in ("", *parts.task.metrics, *parts.task.corpus)
    for examples in (splits.select, *splits.tests.values()):
        ready = parts.ready(examples)
        assert ready.linked.any()
        batch = evaluator.put(ready.batch(length, np.arange(min(4, len(ready.owner)))))
    step = evaluator.compile()
    rows = jax.eval_shape(step, state.params, {"names": evaluator.names}, batch)
    assert rows["example"].shape == batch.length.shape[:1] or parts.task.each > 1


@pytest.mark.parametrize("model", ["complex", "distmult", "transe", "transr", "rotate"])
def test_two_steps_of_triples(model, tmp_path):
    """Each kind of recipe, on a small graph and narrow."""
    if not RAW.is_dir():
        pytest.skip(f"no triples at {RAW}")
    for spec in ("kge_umls.py", f"kge.py:{model}_fb15k237"):
        config = load_config_file(str(ROOT / "configs" / spec))
        if config.kge.model != model:
            continue
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, train=str(RAW / "kg/UMLS")),
            kge=dataclasses.replace(config.kge, width=8),
            knowledge=KnowledgeConfig(),  # one recipe goes on from another's run
            optim=dataclasses.replace(config.optim, steps=2),
        )
        summary = train(config, tmp_path / spec, quiet=True)
        assert summary["steps"] == 2
        assert set(summary["scores"]) == {"test"}


def test_a_dry_run_of_triples_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("train.tsv").write_text("a\tr\tb\nb\tr\tc\nc\tr\ta\n")
    config = load_config_file(str(ROOT / "configs/kge_umls.py"))
    data = dataclasses.replace(config.data, train="train.tsv")
    dry_run(dataclasses.replace(config, data=data))
    assert "(b, r, ?)" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["train.tsv"]
