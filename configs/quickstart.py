"""Questions about a world gazetteer, one and two hops, from a graph that needs no download.

keft gain --config configs/quickstart.py
python train.py --config configs/quickstart.py
"""

from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    FusionConfig,
    GainConfig,
    GraphConfig,
    KnowledgeConfig,
    OptimConfig,
    TaskConfig,
)


def get_config(arg: str = "") -> Config:
    del arg
    data = "data/quickstart"
    return Config(
        name="quickstart",
        task=TaskConfig(kind="kgqa"),
        data=DataConfig(
            generator="quickstart",
            train=f"{data}/train.jsonl",
            select=f"{data}/select.jsonl",
            test=(f"{data}/unseen_cities.jsonl", f"{data}/unseen_countries.jsonl"),
            slices=("by_relation",),
            draw=5000,
            buckets=(32,),
            vocab_size=3000,
        ),
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv",
            aliases=f"{data}/aliases.tsv",
            hops=2,
            nodes=48,
            edges=192,
            mentions=2,
            name_pieces=6,
        ),
        encoder=EncoderConfig(layers=2, width=64, heads=4, mlp=128, max_length=32, dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=2, width=48, heads=4),
        fusion=FusionConfig(kind="mention_add", layers=(0,)),
        optim=OptimConfig(steps=350, batch=32, learning_rate=3e-3, warmup=0.1),
        eval=EvalConfig(every=100, batch=100),
        gain=GainConfig(
            rows=("none", "dictionary", "candidates", "untyped", "shuffled", "random", "true"),
            seeds=5,
        ),
    )
