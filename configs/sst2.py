"""Sentiment of film reviews from few labels, with what three sentiment lexicons say of words.

keft gain --config configs/sst2.py:300 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/sst2.py:300 --data.source=... --encoder.pretrained=...

The number after the colon is that of labelled sentences to train on, drawn anew for each seed.
"""

from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    FusionConfig,
    GainConfig,
    GraphConfig,
    GroupConfig,
    KnowledgeConfig,
    OptimConfig,
    TaskConfig,
)


def get_config(arg: str = "300") -> Config:
    labels = int(arg)
    # Choosing a checkpoint takes labels too: no more of them than there are to train on.
    select = max(size for size in (16, 32, 100, 300) if size <= max(labels, 16))
    steps = 40 if labels <= 50 else 100 if labels <= 300 else 200
    data = "data/sst2"
    return Config(
        name=f"sst2-{labels}",
        task=TaskConfig(kind="classification", pooling="mean", labels=("negative", "positive")),
        data=DataConfig(
            generator="sst2",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select_{select}.jsonl",
            test=(f"{data}/test.jsonl",),
            text="sentence",
            slices=("part",),
            draw=labels,
            buckets=(24, 40, 72),
        ),
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv", hops=1, nodes=20, edges=48, mentions=8, name_pieces=5
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        fusion=FusionConfig(kind="mention_add", layers=(1,)),
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=3e-4,
            # New parameters at the full rate, trained ones at a tenth; the word table as it is.
            groups=(GroupConfig("embed/", 0.0), GroupConfig("encoder/", 0.1)),
        ),
        eval=EvalConfig(every=steps // 2, batch=64),
        gain=GainConfig(rows=("none", "dictionary", "shuffled", "random", "true"), seeds=5),
    )
