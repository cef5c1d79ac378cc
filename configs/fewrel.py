"""Which relation two marked entities have, from few labels, with Wikidata facts about them.

keft gain --config configs/fewrel.py:480 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/fewrel.py:480 --data.source=... --encoder.pretrained=...

After the colon: the number of labelled sentences to train on, drawn anew for each seed in the
shares of the pool, or `all`; then `,frozen` (the encoder stays as it is) or `,scratch`
(four layers from scratch; leave --encoder.pretrained out). Test entities stand in no training
sentence, and no fact between the two entities of any sentence is in the graph. 38 % of the test
sentences have an entity in it.
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


def get_config(arg: str = "480") -> Config:
    labels, mode = read_arg(arg)
    steps = 60 if 0 < labels <= 100 else 200
    data = "data/fewrel"
    config = Config(
        name=f"fewrel-{labels or 'all'}",
        task=TaskConfig(kind="relation"),
        data=DataConfig(
            generator="fewrel",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select_{80 if 0 < labels <= 80 else 240}.jsonl",
            test=(f"{data}/test.jsonl",),
            text="tokens",
            label="label",
            token_spans=("h", "t"),
            slices=("balanced",),
            draw=labels,
            buckets=(32, 48, 72),
        ),
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv",
            descriptions=f"{data}/descriptions.tsv",
            link="given",
            hops=1,
            nodes=64,
            edges=128,
            mentions=2,
            name_pieces=4,
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4, gate=False),
        # Entities of the test are not those of training: what is learned of a name is of no use
        # there. The facts reach the label by the kinds of relations around the two alone.
        fusion=FusionConfig(kind="cross_attention", layers=(-1,), trains="apart"),
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=1e-3,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", 0.2),
                GroupConfig("exchanges/", 0.0),
                GroupConfig("head/node", 0.0),
                GroupConfig("head/around", 0.0),
                GroupConfig("head/context", 8.0),
            ),
        ),
        eval=EvalConfig(every=steps // 2, batch=64),
        gain=GainConfig(
            rows=("none", "dictionary", "untyped", "shuffled", "kindred", "random", "true")
        ),
    )
    return with_mode(config, mode)
