"""Makes seqeval.json: random tag sequences with what seqeval 1.2.2 finds in them, and its scores.

pip install seqeval && python tests/goldens/make_seqeval.py
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

SCHEMES = ("IO", "BIO", "BIESO")
rng = random.Random(0)


def draw(scheme: str, length: int) -> list[str]:
    prefixes = rng.choices(scheme, k=length)
    return [p if p == "O" else f"{p}-{rng.choice(['PER', 'LOC', 'a-b'])}" for p in prefixes]


def main() -> None:
    warnings.simplefilter("ignore")  # of types without a gold entity
    cases = []
    for k in range(60):
        scheme = SCHEMES[k % 3]
        gold = [draw(scheme, rng.randrange(1, 14)) for _ in range(rng.randrange(1, 6))]
        said = [[t if rng.random() < 0.7 else draw(scheme, 1)[0] for t in s] for s in gold]
        if k % 11 == 0:
            said = [["O"] * len(s) for s in said]
        if k % 13 == 0:
            gold = [["O"] * len(s) for s in gold]
        cases.append(
            {
                "gold": [" ".join(s) for s in gold],
                "said": [" ".join(s) for s in said],
                "entities": [[[a, b + 1, t] for t, a, b in get_entities(s)] for s in said],
                "precision": precision_score(gold, said, zero_division=0),
                "recall": recall_score(gold, said, zero_division=0),
                "f1": f1_score(gold, said, zero_division=0),
                "accuracy": accuracy_score(gold, said),
            }
        )
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_name("seqeval.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
