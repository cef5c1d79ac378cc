"""A graph of 30 entities and 60 questions about it, and a model that learns it in seconds."""

import itertools
import json
from pathlib import Path

from keft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    FusionConfig,
    GraphConfig,
    KnowledgeConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
    to_json,
)

PEOPLE = [f"person{i}" for i in range(20)]
TOWNS = [f"town{i}" for i in range(10)]


def write_files(folder: Path) -> None:
    """kg.tsv, train, select and test: who lives where, and a label for each text."""
    folder.mkdir(parents=True, exist_ok=True)
    home = {person: TOWNS[i % 10] for i, person in enumerate(PEOPLE)}
    facts = [f"{p}\tlives_in\t{t}" for p, t in home.items()]
    facts += [f"{a}\tnear\t{b}" for a, b in itertools.pairwise(TOWNS)]
    (folder / "kg.tsv").write_text("\n".join(facts) + "\n")
    texts = ("where does {} live ?", "what is the home of {} ?", "in which town is {} ?")
    rows = [
        {
            "question": text.format(p),
            "answers": [home[p]],
            "label": str(n),
            "cluster": p,
            "pattern": "home",
        }
        for n, text in enumerate(texts)
        for p in PEOPLE
    ]
    splits = {"train": rows[:40], "select": rows[40:50], "test": rows[50:]}
    for name, part in splits.items():
        for number, row in enumerate(part):  # each label in each split
            row["label"] = "even" if number % 2 == 0 else "odd"
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text)


def add_strangers(folder: Path) -> None:
    """Ten texts without an entity, to each split."""
    for name in ("train", "select", "test"):
        with (folder / f"{name}.jsonl").open("a") as file:
            for i in range(10):
                text = f"where does number {i} live ?"
                label = "odd" if i % 3 else "even"
                row = {"question": text, "label": label, "cluster": text, "pattern": "home"}
                file.write(json.dumps(row) + "\n")


def config(folder: Path, **sections) -> Config:
    """Each keyword replaces a section. Another number of steps is another compiled program."""
    base = {
        "name": "tiny",
        "task": TaskConfig(kind="kgqa"),
        "data": DataConfig(
            train=f"{folder}/train.jsonl",
            select=f"{folder}/select.jsonl",
            test=(f"{folder}/test.jsonl",),
            buckets=(16,),
            vocab_size=256,
        ),
        "knowledge": KnowledgeConfig(
            kg=f"{folder}/kg.tsv", hops=1, nodes=8, edges=16, mentions=2, name_pieces=4
        ),
        "encoder": EncoderConfig(layers=1, width=16, heads=2, mlp=32, max_length=16),
        "graph": GraphConfig(kind="gcn", layers=1, width=8, heads=2),
        "fusion": FusionConfig(layers=(0,)),
        "optim": OptimConfig(steps=24, batch=8, learning_rate=1e-2),
        "mesh": MeshConfig(data=1),
        "eval": EvalConfig(every=8, batch=8),
        "checkpoint": CheckpointConfig(every=6),
    }
    return Config(**(base | sections))


def classification(folder: Path, **sections) -> Config:
    return config(
        folder,
        task=TaskConfig(kind="classification"),
        fusion=FusionConfig(kind="cross_attention", layers=(0,)),
        **sections,
    )


def write_config(path: Path, made: Config) -> Path:
    """A config file for the command line."""
    path.write_text(
        "from keft_jax.config import from_json\n\n"
        f"def get_config(arg=''):\n    return from_json({to_json(made)!r})\n"
    )
    return path
