"""Names of persons, places, organisations and others (Wikigold), with facts about those known.

keft gain --config configs/wikigold.py --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/wikigold.py --data.source=... --encoder.pretrained=...

After the colon: the number of labelled sentences to train on, or `all` (the default); then
`,frozen` or `,scratch` as in configs/semeval.py. No article is in two files. A graph finds names in
the text, so that to be in it says much of a word already: the row `dictionary` has that.
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


def get_config(arg: str = "all") -> Config:
    labels, mode = read_arg(arg)
    steps = 150 if 0 < labels <= 100 else 300
    data = "data/wikigold"
    config = Config(
        name=f"wikigold-{labels or 'all'}",
        task=TaskConfig(kind="tagging"),
        data=DataConfig(
            generator="wikigold",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select.jsonl",
            test=(f"{data}/test.jsonl",),
            text="tokens",
            tags="tags",
            draw=labels,
            buckets=(32, 64, 192),
        ),
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv",
            aliases=f"{data}/aliases.tsv",
            descriptions=f"{data}/descriptions.tsv",
            hops=1,
            nodes=48,
            edges=96,
            mentions=8,
            name_pieces=6,
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        fusion=FusionConfig(kind="mention_add", layers=(-1,)),
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=1e-3,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", 0.2),
            ),
        ),
        eval=EvalConfig(every=steps // 3, batch=64, metric="f1"),
        gain=GainConfig(rows=("none", "dictionary", "untyped", "shuffled", "random", "true")),
    )
    return with_mode(config, mode)
