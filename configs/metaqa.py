"""MetaQA (Zhang et al. 2018), one hop: questions about films whose topics were never seen.

keft gain --config configs/metaqa.py:../shared/data/kgqa/metaqa
python train.py --config configs/metaqa.py:../shared/data/kgqa/metaqa

hits@1 of three seeds: 94.1 of a ceiling of 94.5, without the graph 4.7 (docs/results.md).
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


def get_config(arg: str = "data/metaqa") -> Config:
    """arg: the folder with kg.tsv.gz, 1hop-train.jsonl.gz and 1hop-valid.jsonl.gz."""
    return Config(
        name="metaqa",
        task=TaskConfig(kind="kgqa"),
        data=DataConfig(
            train=f"{arg}/1hop-train.jsonl.gz",
            # What is chosen is chosen on topics of the training file; `valid` is reported alone.
            select_share=0.1,
            test=(f"{arg}/1hop-valid.jsonl.gz",),
            brackets=True,
            cluster="topic",
            pattern="",  # `qtype` would be the answer's relation
            buckets=(32,),
            vocab_size=4000,
        ),
        knowledge=KnowledgeConfig(
            kg=f"{arg}/kg.tsv.gz",
            link="given",
            hops=1,
            nodes=64,
            edges=128,
            mentions=1,
            name_pieces=8,
        ),
        encoder=EncoderConfig(layers=2, width=96, heads=4, mlp=192, max_length=32, dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        fusion=FusionConfig(kind="mention_add", layers=(0,)),
        # A step costs little more for many questions than for few: most of it is the 42,778 names.
        optim=OptimConfig(steps=300, batch=128, learning_rate=3e-3, warmup=0.1),
        eval=EvalConfig(every=100, batch=128),
        gain=GainConfig(
            rows=("none", "dictionary", "candidates", "untyped", "shuffled", "kindred", "true"),
            seeds=3,
        ),
    )
