"""Triple embeddings on the benchmarks of link prediction.

    python train.py --config configs/kge.py:complex_fb15k237 [--data.train=FOLDER]

The argument is MODEL_DATASET[_long]. FOLDER has train.txt, valid.txt and test.txt (.gz too) of head,
relation, tail; it is looked for in ../shared/data/kg. Chosen on the validation split.
"""

from dataclasses import replace

from keft_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    KeftError,
    KgeConfig,
    OptimConfig,
    TaskConfig,
)

FOLDERS = {"fb15k237": "FB15k-237", "wn18rr": "WN18RR"}

# All entities as candidates; queries with several answers share a row of scores.
ALL = KgeConfig(answers=16, regularizer="n3", dtype="bfloat16")
# Negatives shared by the batch; distances as matmuls.
DRAWN = KgeConfig(distance="l2", negatives=1024, init=0.1, dtype="bfloat16")

ADAGRAD = OptimConfig(
    kind="adagrad",
    learning_rate=0.1,
    eps=1e-20,
    weight_decay=0,
    clip=0,
    warmup=0,
    batch=1024,
)


def runs(steps: int, evaluations: int = 4) -> dict:
    """How long, and how often the validation split is scored."""
    return {"optim": replace(ADAGRAD, steps=steps), "eval": _eval(steps, evaluations)}


def _eval(steps: int, evaluations: int) -> EvalConfig:
    return EvalConfig(every=-(-steps // evaluations), batch=512)


RECIPES: dict[str, dict] = {
    "complex_fb15k237": {
        "kge": replace(ALL, model="complex", width=200, strength=0.05),
        **runs(1300),
    },
    "transe_fb15k237": {"kge": replace(DRAWN, model="transe", width=400), **runs(5000)},
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
