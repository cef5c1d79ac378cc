"""Every recipe runs."""

import dataclasses
import gzip
import itertools
import shutil
from pathlib import Path

import pytest

from keft_jax.config import EncoderConfig
from keft_jax.options import load_config_file
from keft_jax.train.parts import generate
from keft_jax.train.run import train

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT.parent / "shared/data"
SMALL = EncoderConfig(layers=2, width=16, heads=2, mlp=32)
"""In the place of a pre-trained encoder: what loads one is tested with it."""
SCORED = 60  # test examples


def cut_metaqa(folder: Path) -> Path:
    """Its graph and some of its questions."""
    raw = RAW / "kgqa/metaqa"
    if not raw.is_dir():
        pytest.skip(f"the raw data that the recipe reads is not at {raw}")
    shutil.copy(raw / "kg.tsv.gz", folder)
    for name, count in (("1hop-train", 20 * SCORED), ("1hop-valid", SCORED)):
        with gzip.open(raw / f"{name}.jsonl.gz", "rb") as whole:
            some = b"".join(itertools.islice(whole, count))
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(some))
    return folder


RECIPES = [f for f in sorted((ROOT / "configs").glob("*.py")) if f.stem != "bench"]  # has no data


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
        encoder=SMALL if config.encoder.pretrained else config.encoder,
        optim=dataclasses.replace(config.optim, steps=2),
    )
    generate(config)
    for name in data.test if data.source else ():
        lines = Path(name).read_text().splitlines(keepends=True)
        Path(name).write_text("".join(lines[:: len(lines) // SCORED]))
    summary = train(config, tmp_path / "run", quiet=True)
    assert summary["steps"] == 2
    assert set(summary["scores"]) == {Path(f).name.split(".")[0] for f in config.data.test}
