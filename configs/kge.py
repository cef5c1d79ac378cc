"""Triple embeddings on the benchmarks of link prediction.

    python train.py --config configs/kge.py:complex_fb15k237 [--data.train=FOLDER]

The argument is MODEL_DATASET[_long]. FOLDER has train.txt, valid.txt, test.txt (.gz too) of head,
relation, tail; it is looked for in ../shared/data/kg. The validation split chooses checkpoints.

Test MRR / hits@10: complex_fb15k237 .343 / .527, complex_fb15k237_long .351 / .537, transe_fb15k237
.316 / .493, transr_fb15k237 .317 / .501, rotate_fb15k237 .318 / .496, complex_wn18rr .476 / .559,
distmult_fb15k237 .347 / .533, rotate_wn18rr .421 / .453.
docs/link-prediction.md has the times.
"""

from dataclasses import replace
from typing import Any

from keft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GroupConfig,
    KeftError,
    KgeConfig,
    KnowledgeConfig,
    OptimConfig,
    TaskConfig,
)

FOLDERS = {"fb15k237": "FB15k-237", "wn18rr": "WN18RR"}

# All entities as candidates; queries with several answers share a row of scores.
ALL = KgeConfig(answers=16, regularizer="n3", strength=0.05, dtype="bfloat16")
# Negatives shared by the batch; distances as matmuls.
DRAWN = KgeConfig(distance="l2", negatives=1024, init=0.1, dtype="bfloat16")

TRANSE = "runs/kge_transe_fb15k237"  # --workdir of that recipe

ADAGRAD = OptimConfig(
    kind="adagrad",
    learning_rate=0.1,
    eps=1e-20,
    weight_decay=0,
    clip=0,
    warmup=0,
    batch=1024,
)


def runs(steps: int, evaluations: int = 4, **optim: Any) -> dict:
    """How long, and how often the validation split is scored."""
    every = -(-steps // evaluations)
    return {
        "optim": replace(ADAGRAD, steps=steps, **optim),
        "eval": EvalConfig(every=every, batch=512),
        "checkpoint": CheckpointConfig(every=every),
    }


RECIPES: dict[str, dict] = {
    "complex_fb15k237": {
        "kge": replace(ALL, model="complex", width=200),
        **runs(1300),
    },
    "complex_fb15k237_long": {
        "kge": replace(ALL, model="complex", width=500),
        **runs(1000, 2),
    },
    "complex_wn18rr": {
        "kge": replace(ALL, model="complex", width=500, answers=1, negatives=2048, strength=0.1),
        **runs(9000, 3, batch=256, tables="rows"),
    },
    "distmult_fb15k237": {"kge": replace(ALL, model="distmult", width=1000), **runs(1300, 2)},
    "transe_fb15k237": {"kge": replace(DRAWN, model="transe", width=400), **runs(5000)},
    "rotate_fb15k237": {"kge": replace(DRAWN, model="rotate", scale=6, init=0.02), **runs(8000)},
    # Goes on from the run of transe (train it first, with --workdir runs/kge_transe_fb15k237), as
    # Lin et al. do; its projections start as the identity, and
    # Adagrad's first step is the whole learning rate.
    "transr_fb15k237": {
        "kge": replace(DRAWN, model="transr", width=400, negatives=512, share=64),
        "knowledge": KnowledgeConfig(entities=TRANSE, relations=TRANSE),
        **runs(2000, groups=(GroupConfig("project", 0.01),), learning_rate=0.05),
    },
    "rotate_wn18rr": {
        "kge": replace(
            DRAWN,
            model="rotate",
            width=250,
            loss="self_adversarial",
            margin=6,
            temperature=0.5,
            init=0.02,
            reciprocal=False,
        ),
        **runs(8000, 4, batch=256, tables="rows"),
    },
}


def get_config(arg: str = "complex_fb15k237") -> Config:
    if arg not in RECIPES:
        raise KeftError(f"configs/kge.py:{arg}: no such recipe; there are {', '.join(RECIPES)}")
    folder = FOLDERS[arg.split("_")[1]]
    return Config(
        name=f"kge_{arg}",
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train=f"../shared/data/kg/{folder}"),
        **RECIPES[arg],
    )
