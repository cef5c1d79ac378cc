"""Questions with five answers to choose from (CommonsenseQA), with facts of ConceptNet.

keft gain --config configs/commonsense.py:1000 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/commonsense.py:1000 --data.source=... --encoder.pretrained=...

After the colon: the number of questions to train on, or `all`; then `,frozen` or `,scratch` as in
configs/semeval.py. Scored on the dev part, since the test part has no answers; the checkpoint is
chosen on questions of the training part. The questions were made from ConceptNet: see
keft_jax/data/commonsense.py on what its facts can tell.
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
    read_arg,
    with_mode,
)


def get_config(arg: str = "1000") -> Config:
    labels, mode = read_arg(arg)
    steps = 300 if 0 < labels <= 1000 else 1200
    data = "data/commonsense"
    config = Config(
        name=f"commonsense-{labels or 'all'}",
        task=TaskConfig(kind="choice", pooling="mean"),
        data=DataConfig(
            generator="commonsense",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select.jsonl",
            test=(f"{data}/test.jsonl",),
            text="question",
            choices="choices",
            cluster="concept",
            draw=labels,
            buckets=(32, 64),
        ),
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv", hops=1, nodes=32, edges=96, mentions=8, name_pieces=6
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=2, width=64, heads=4),
        fusion=FusionConfig(kind="interaction", layers=(-2, -1)),
        optim=OptimConfig(
            steps=steps,
            batch=8,
            learning_rate=5e-4,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", 0.2),
            ),
        ),
        eval=EvalConfig(every=steps // 3, batch=32),
        gain=GainConfig(rows=("none", "dictionary", "untyped", "shuffled", "random", "true")),
    )
    return with_mode(config, mode)
