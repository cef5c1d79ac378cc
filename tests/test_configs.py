"""Every recipe runs."""

import dataclasses
import gzip
import itertools
from pathlib import Path

import pytest

from keft_jax.config import EncoderConfig, KnowledgeConfig
from keft_jax.options import load_config_file
from keft_jax.train.dry_run import dry_run
from keft_jax.train.parts import generate
from keft_jax.train.run import train

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT.parent / "shared/data"
SMALL = EncoderConfig(width=16, heads=2, mlp=32)
"""In the place of a pre-trained encoder: what loads one is tested with it."""
SCORED = 60  # test examples


def cut_metaqa(folder: Path) -> Path:
    """Some of its facts and questions."""
    raw = RAW / "kgqa/metaqa"
    if not raw.is_dir():
        pytest.skip(f"the raw data that the recipe reads is not at {raw}")
    parts = {"kg.tsv": 20_000, "1hop-train.jsonl": 20 * SCORED, "1hop-valid.jsonl": SCORED}
    for name, count in parts.items():
        with gzip.open(raw / f"{name}.gz", "rb") as whole:
            some = b"".join(itertools.islice(whole, count))
        (folder / f"{name}.gz").write_bytes(gzip.compress(some))
    return folder


FILES = [f for f in sorted((ROOT / "configs").glob("*.py")) if f.stem != "bench"]  # has no data
RECIPES = [f for f in FILES if not f.stem.startswith("kge")]


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_two_steps(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a recipe's generator writes its data
    spec = f"{file}:{cut_metaqa(tmp_path)}" if file.stem == "metaqa" else str(file)
    config = load_config_file(spec)
    data = dataclasses.replace(config.data, buckets=config.data.buckets[-1:])
    if data.source:
        if not RAW.is_dir():
            pytest.skip(f"the raw data that the recipe reads is not at {RAW}")
        data = dataclasses.replace(data, source=str(RAW))
    config = dataclasses.replace(
        config,
        data=data,
        encoder=dataclasses.replace(
            SMALL if config.encoder.pretrained else config.encoder, layers=1
        ),
        graph=dataclasses.replace(config.graph, layers=1),
        optim=dataclasses.replace(config.optim, steps=2),
    )
    generate(config)
    for name in data.test if data.source else ():
        lines = Path(name).read_text().splitlines(keepends=True)
        Path(name).write_text("".join(lines[:: len(lines) // SCORED]))
    summary = train(config, tmp_path / "run", quiet=True)
    assert summary["steps"] == 2
    assert set(summary["scores"]) == {Path(f).name.split(".")[0] for f in config.data.test}


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
