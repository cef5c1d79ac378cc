"""The tables of docs/results.md whose cells are kept beside it."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from keft_jax.gain.cells import find_difference, load_table
from keft_jax.gain.cheap import score_of
from keft_jax.gain.rows import DEFINITION
from keft_jax.kg import KG
from keft_jax.options import load_config, override

ROOT = Path(__file__).parents[1]
TABLES = sorted((ROOT / "benchmarks/tables").iterdir())
TOLD = (ROOT / "docs/results.md").read_text()


def recipe(name):
    """sst2-32-frozen is configs/sst2.py:32,frozen."""
    config, labels, *mode = name.split("-")
    config = load_config(str(ROOT / f"configs/{config}.py:{','.join([labels, *mode])}"))
    return override(config, ["--encoder.dtype", "mixed"])


@pytest.mark.parametrize("folder", TABLES, ids=lambda folder: folder.name)
def test_a_kept_table_is_of_its_recipe_and_told_as_it_is(folder):
    table = load_table(folder)
    assert table.manifest["rows"] == DEFINITION
    config = json.loads(json.dumps(dataclasses.asdict(recipe(folder.name))))
    sizes = [f"encoder.{name}" for name in config["encoder"] if name != "dtype"]  # of the weights
    found = find_difference(table.manifest, table.manifest | {"config": config}, free=sizes)
    assert found is None, f"{folder} is of another recipe: measure it anew, or take it away"
    (split,) = table.splits
    for row in ("none", "true"):
        metric, kind = table.manifest["metric"], table.manifest.get("score", "")
        cells = [c.metrics[split.name][metric] for c in table.cells if c.row == row]
        assert len(cells) >= 5, row
        score = 100 * np.mean([score_of(values, kind) for values in cells])
        assert f"| {score:.1f} |" in TOLD
    assert not Path(table.manifest["config"]["data"]["source"]).is_absolute()
    assert not Path(table.manifest["config"]["encoder"]["pretrained"]).is_absolute()


def test_gains_of_the_readme_stand_in_the_tables():
    _, _, table = (ROOT / "README.md").read_text().partition("| task, facts |")
    gains = re.findall(r"\*{0,2}([+-]\S+?)\*{0,2} (\[[^]]+\]) \|", table.partition("\n\n")[0])
    assert len(gains) > 30
    told = TOLD.replace("**", "")
    assert [gain for gain in gains if " ".join(gain) not in told] == []


def test_the_lexicons_vote_beside_a_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from lexicon_vote import compare, vote

    facts = [
        ("fine", "polarity", "positive word"),
        ("fine", "valence", "slightly positive"),
        ("fine", "other", "slightly negative"),
        ("dull", "polarity", "negative word"),
        ("odd", "polarity", "positive word"),
        ("odd", "valence", "clearly negative"),
    ]
    texts = ["a fine film", "dull , dull but fine", "odd", "nothing known"]
    assert vote(KG.from_triples(facts), texts).tolist() == [1, -1, 0, 0]

    folder = ROOT / "benchmarks/tables/sst2-32"
    (split,) = load_table(folder).splits
    with pytest.raises(SystemExit, match="the data have 3"):
        compare(folder, np.ones(3))
    found = compare(folder, np.full(len(split), 0.5))
    assert found["true"] == pytest.approx(69.1, abs=0.05)
    assert found["vote"] == 50
    assert found["difference"][0] == pytest.approx(found["true"] - 50)
    low, high = found["difference"][1:]
    assert low < found["difference"][0] < high
