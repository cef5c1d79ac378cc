"""What recipes and benchmarks ask for exists in their models: no data, nothing compiled."""

import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import keft_jax.config
from keft_jax.config import Config, EncoderConfig
from keft_jax.models.functional import Model
from keft_jax.models.fusion import FusedModel, Sizes
from keft_jax.options import load_config_file
from keft_jax.train.optim import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
MODES = ("", "frozen", "scratch", "text")
OWN = {
    "quickstart": ("",),
    "metaqa": ("folder",),
    "sst2": ("100", *(f"100,{mode}" for mode in MODES[1:]), "1000,scratch", "all"),
    "semi": ("labelled", "self-training", "consistency", "soft", "mlm"),
    "pretrain": ("knowledge", "plain", "wikitext"),
    "squad": ("80", *(f"80,{mode}" for mode in MODES[1:]), "all", "answered", "answered,frozen"),
}
"""Arguments of recipes that are no number of labels with a mode."""
FILES = sorted((ROOT / "configs").glob("*.py"))
SPECS = [
    (file, arg)
    for file in FILES
    if not file.stem.startswith(("bench", "kge", "scale"))
    for arg in OWN.get(file.stem, ("80", *(f"80,{mode}" for mode in MODES[1:]), "all"))
]


def check_groups(config: Config) -> None:
    """Raises KeftError for a group of the optimizer that matches no parameter."""
    pretrained = config.encoder.pretrained
    encoder = EncoderConfig(pretrained=pretrained, layers=2, width=16, heads=2, mlp=32)
    sizes = Sizes(vocab=128, pieces=100, rows=128, relations=3, labels=4, entities=100)
    model = Model(FusedModel(dataclasses.replace(config, encoder=encoder), sizes))
    make_optimizer(config.optim, model.abstract())


@pytest.mark.parametrize(("file", "arg"), SPECS, ids=lambda x: getattr(x, "stem", x))
def test_groups_of_a_recipe(file, arg):
    check_groups(load_config_file(f"{file}:{arg}" if arg else str(file)))


def test_configs_in_the_docs_can_be_copied():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.S)
    made = [eval(block, vars(keft_jax.config).copy()) for block in blocks]
    assert [config.task.kind for config in made] == ["tagging", "span", "choice", "relation"]


def read(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


def test_arms_of_semi(monkeypatch):
    semi = read("semi", monkeypatch)
    args = semi.parse(["--source=raw", "--pretrained=bert", "--steps=40"])
    made = {mode: semi.make_config(args, mode) for mode in (*semi.MODES, "mlm")}
    for config in made.values():
        check_groups(config)
    assert len({(c.optim.steps, c.encoder.pretrained, c.data.draw) for c in made.values()}) == 1
    one, two = (semi.make_options(args, row, "") for row in ("soft-true", "soft-none"))
    assert one == two and one["steps"] == 40 and one["rates"] == list(args.rates)
    assert one["config_hash"] != semi.make_options(args, "labelled-none", "")["config_hash"]


def test_arms_of_distill(monkeypatch, tmp_path):
    distill, arms = read("distill", monkeypatch), read("arms", monkeypatch)
    own, rest = distill.parse(["--workdir", str(tmp_path), "--hidden=0.5", "--optim.batch=4"])
    assert rest == ["--optim.batch=4"]
    spec = f"{ROOT}/configs/fewrel.py:480"
    base, text = load_config_file(spec), load_config_file(f"{spec},text")
    first, second = (distill.arms(base, text, seed, own) for seed in (0, 1))
    for config in first.values():
        check_groups(config)
    hashes = {name: arms.hash_options(config) for name, config in first.items()}
    # The same arm of another seed has a teacher of its own; arms that differ in it alone do not.
    assert hashes == {name: arms.hash_options(config) for name, config in second.items()}
    assert len(set(hashes.values())) == len(hashes)


def test_arms_of_pretrain(monkeypatch, tmp_path):
    pretrain, arms = read("pretrain", monkeypatch), read("arms", monkeypatch)
    monkeypatch.setattr(pretrain, "generate", lambda config: None)
    options = pretrain.parse(["--source=raw", "--pretrained=bert", "--out", str(tmp_path)])
    for mode in pretrain.ARMS:
        check_groups(pretrain.pretraining(options, mode, 40))
    hashes = set()
    for start in pretrain.STARTS:
        for reads in pretrain.READS:
            one, two = (pretrain.fine_tuning(options, start, reads, 80, s) for s in (0, 1))
            check_groups(one)
            assert (one.fusion.kind == "none") == (reads == "text")
            assert arms.hash_options(one) == arms.hash_options(two)
            hashes.add(arms.hash_options(one))
    assert len(hashes) == 4  # none or some start, read so or so
    assert all(a != b for a, b in pretrain.pairs(options.labels))


def test_cells_of_other_options_are_refused(monkeypatch, tmp_path):
    arms = read("arms", monkeypatch)
    for seed in (0, 1):
        arms.Cell("a", seed, {}, info={"rates": [0.1]}).save(tmp_path)
    arms.Cell("b", 0, {}).save(tmp_path)
    cells = arms.read_cells(tmp_path, {"a": {"rates": [0.1]}}.get)
    assert [(cell.row, cell.seed) for cell in cells] == [("a", 0), ("a", 1)]
    with pytest.raises(SystemExit, match=r"a-0\.npz: was made with rates = \[0\.1\]"):
        arms.read_cells(tmp_path, {"a": {"rates": [0.2]}}.get)


def test_differences_of_arms_are_paired(monkeypatch, capsys):
    arms = read("arms", monkeypatch)
    rng, size = np.random.default_rng(0), 40
    right = rng.random(size) < 0.5
    better = right | (rng.random(size) < 0.3)
    cells = [
        arms.Cell(row, seed, {"test": {"accuracy": values.astype("f")}})
        for row, values in (("plain", right), ("knowledge", better))
        for seed in range(3)
    ]
    names = np.arange(size).astype(str)
    split = arms.Split("test", names, names, {"covered": np.arange(size) < 20})
    found = arms.compare(cells, split, [("knowledge", "plain"), ("gone", "plain")])
    gain = found["all"]["knowledge - plain"]
    assert gain.mean == pytest.approx(better.mean() - right.mean())
    assert gain.interval[0] > 0 and not gain.over_seeds
    assert "gone - plain" not in found["covered"]
    assert "knowledge - plain" in capsys.readouterr().out


def test_consistency_is_set_against_self_training(monkeypatch):
    semi, arms = read("semi", monkeypatch), read("arms", monkeypatch)
    rng = np.random.default_rng(0)
    cells = [
        arms.Cell(
            f"{mode}-{known}",
            0,
            {"test": {"accuracy": (rng.random(30) < 0.5).astype("f")}},
            info={"select": 0.5, "learning_rate": 1e-3},
        )
        for mode in semi.MODES
        for known in ("none", "true")
    ]
    gains = semi.summarise(cells)["gains"]
    for known in ("none", "true"):
        assert f"consistency-{known} - self-training-{known}" in gains
        assert f"self-training-{known} - labelled-{known}" in gains
