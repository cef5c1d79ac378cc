"""What do the lexicons say of SST-2's sentences by themselves? Each known word votes for what most
of its facts say, positive or negative; the sign of the sum is the answer, and a tie is half right.
No text is learned and no label is read. `true` minus it, in tables of keft gain on SST-2:

python benchmarks/lexicon_vote.py benchmarks/tables/sst2-16 benchmarks/tables/sst2-32 ...

The facts and sentences are those in data/sst2, which such a table writes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from keft_jax.gain.cells import Cell, load_table
from keft_jax.gain.rows import JUDGED
from keft_jax.gain.stats import summarise
from keft_jax.kg import KG
from keft_jax.kg.io import build_kg
from keft_jax.kg.linking import StringLinker

VOTE = "vote"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="+", help="workdirs of keft gain")
    parser.add_argument("--data", type=Path, default=Path("data/sst2"))
    own = parser.parse_args()
    examples = [json.loads(line) for line in (own.data / "test.jsonl").read_text().splitlines()]
    kg, _ = build_kg([own.data / "kg.tsv"])
    votes = vote(kg, [example["sentence"] for example in examples])
    positive = np.array([example["label"] == "positive" for example in examples])
    right = np.where(votes == 0, 0.5, (votes > 0) == positive)
    print(f"{len(right):,} sentences, {np.mean(votes == 0):.1%} tied: {right.mean():.3f}")
    print(json.dumps({str(folder): compare(folder, right) for folder in own.tables}))


def vote(kg: KG, texts: list[str]) -> np.ndarray:
    """int[n]: words of a text that are positive less those that are negative."""
    says = np.array([("positive" in name) - ("negative" in name) for name in kg.names])
    words = np.zeros(kg.n_entities)
    np.add.at(words, kg.heads, says[kg.tails])
    sides = np.sign(words).astype(int)
    return np.array(
        [
            sum(sides[mention.entities[0]] for mention in found)
            for found in StringLinker(kg).link(texts)
        ]
    )


def compare(folder: Path, right: np.ndarray) -> dict[str, object]:
    """`true`, the vote beside it and their difference, over the seeds of a table."""
    table = load_table(folder)
    judged = [cell for cell in table.cells if cell.row == JUDGED]
    (split,) = table.splits
    if len(split) != len(right):
        raise SystemExit(f"{folder}: {len(split)} test examples, the data have {len(right)}")
    votes = [
        Cell(VOTE, cell.seed, {split.name: {"accuracy": right.astype(np.float32)}})
        for cell in judged
    ]
    summary = summarise(
        [*judged, *votes], [split], "accuracy", task=table.manifest["task"], reference_rows=(VOTE,)
    )
    difference, scores = summary["versus"][VOTE], summary["scores"]
    true, beside = (100 * scores[row]["mean"] for row in (JUDGED, VOTE))
    low, high = (100 * x for x in difference["interval"] or (np.nan, np.nan))
    print(
        f"{folder}: {len(judged)} seeds, true {true:.1f}, vote {beside:.1f}, true - vote "
        f"{100 * difference['mean']:+.1f} [{low:.1f}, {high:.1f}]"
    )
    return {"true": true, "vote": beside, "difference": [true - beside, low, high]}


if __name__ == "__main__":
    main()
