"""Sentiment of film reviews from few labels, with what three sentiment lexicons say of words.

keft gain --config configs/sst2.py:300 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/sst2.py:300 --data.source=... --encoder.pretrained=...

After the colon: the number of labelled sentences to train on, drawn anew for each seed, or `all`;
then `,frozen` (the encoder stays as it is) or `,scratch` (four layers from scratch; leave
--encoder.pretrained out). The checkpoint is chosen on as many labelled sentences again, at most
300; all rows get the same. Scored on 4,872 sentences: the dev part and 4,000 training sentences
that are never drawn.
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
    largest,
    read_arg,
    with_mode,
)


def get_config(arg: str = "300") -> Config:
    labels, mode = read_arg(arg)
    select = largest((16, 32, 100, 300), labels)
    steps = 60 if 0 < labels <= 50 else 120 if 0 < labels <= 300 else 200 if labels else 600
    scratch, rate = mode == "scratch", 5e-4
    if scratch and labels > 300:  # `all` was not tried
        steps, rate = 300, 1e-3
    data = "data/sst2"
    config = Config(
        name=f"sst2-{labels or 'all'}",
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
        fusion=FusionConfig(
            kind="cross_attention", layers=(-1,), trains="apart", calibrated=scratch
        ),
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=rate,
            # The trained encoder moves slowly, what starts at zero fast. Word table and entity rows
            # stay as they are: most of their rows are never met in so few sentences, and what is
            # met would be memorised. So would be what tokens read of nodes: the lexicons reach the
            # label by the head alone.
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", 0.08),
                GroupConfig("exchanges/", 0.0),
                GroupConfig("head/around", 2.0 if scratch else 4.0),
                *((GroupConfig("head/out", 8.0),) if mode == "frozen" else ()),
                # What is read of names that mean nothing yet would be memorised: the head reads a
                # random map of what is around.
                *((GroupConfig("nodes/", 0.0),) if scratch else ()),
            ),
        ),
        eval=EvalConfig(every=steps // 2, batch=64),
        gain=GainConfig(
            rows=("none", "dictionary", "untyped", "shuffled", "random", "true"), seeds=5
        ),
    )
    return with_mode(config, mode)
