"""Which of 14 types a marked mention has, with facts of Wikidata that do not say its class.

keft gain --config configs/typing.py:300 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/typing.py:300 --data.source=... --encoder.pretrained=...

After the colon: the number of labelled mentions to train on, or `all`; then `,frozen` or `,scratch`
as in configs/semeval.py. Test entities stand in no other file. The types, what was grouped into
them and the relations that are left out of the graph stand in keft_jax/data/typing.py. The names of
Freebase's relations begin with the type of their head: the row `untyped` shows what is left without
any names.
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


def get_config(arg: str = "300") -> Config:
    labels, mode = read_arg(arg)
    steps = 150 if 0 < labels <= 100 else 300
    data = "data/typing"
    config = Config(
        name=f"typing-{labels or 'all'}",
        task=TaskConfig(kind="typing"),
        data=DataConfig(
            generator="typing",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select.jsonl",
            test=(f"{data}/test.jsonl",),
            text="tokens",
            token_spans=("mention",),
            slices=("in_graph",),
            draw=labels,
            buckets=(40, 56, 72),
        ),
        # Descriptions name the class: they are not given.
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv",
            link="given",
            hops=1,
            nodes=48,
            edges=96,
            mentions=1,
            name_pieces=4,
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        # Test entities are others, as in configs/fewrel.py: the facts reach the types by the kinds
        # of relations around the mention alone.
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
        eval=EvalConfig(every=steps // 3, batch=64),
        gain=GainConfig(rows=("none", "dictionary", "untyped", "shuffled", "random", "true")),
    )
    return with_mode(config, mode)
