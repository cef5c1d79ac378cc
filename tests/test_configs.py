"""Every recipe runs."""

import dataclasses
from pathlib import Path

import pytest

from keft_jax.options import load_config_file
from keft_jax.train.run import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.stem)
def test_two_steps(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a recipe's generator writes its data
    config = load_config_file(str(file))
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=2))
    summary = train(config, tmp_path / "run", quiet=True)
    assert summary["steps"] == 2
    assert set(summary["scores"]) == {Path(f).name.split(".")[0] for f in config.data.test}
