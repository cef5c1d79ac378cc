"""ComplEx on UMLS (135 entities, 5,216 triples): link prediction from start to end in a minute.

    python train.py --config configs/kge_umls.py --data.train=FOLDER

FOLDER has train.txt, valid.txt and test.txt (.gz too) of head, relation, tail.
"""

from keft_jax.config import Config, DataConfig, EvalConfig, KgeConfig, OptimConfig, TaskConfig


def get_config(arg: str = "") -> Config:
    del arg
    return Config(
        name="kge_umls",
        task=TaskConfig(kind="link_prediction"),
        data=DataConfig(train="../shared/data/kg/UMLS"),
        kge=KgeConfig(width=100, answers=8, regularizer="n3", strength=0.01),
        optim=OptimConfig(
            kind="adagrad",
            learning_rate=0.1,
            eps=1e-20,
            weight_decay=0,
            clip=0,
            warmup=0,
            batch=256,
            steps=400,
        ),
        eval=EvalConfig(every=100, batch=256),
    )
