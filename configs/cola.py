"""Which sentences linguists accept (CoLA), with facts that have nothing to say about it.

keft gain --config configs/cola.py --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/cola.py --data.source=... --encoder.pretrained=...

A control: knowledge should not help here, and must not hurt, in the domain that is trained on and
out of it. Sentences of one publication are one cluster; those of out_of_domain are from 6, which
are too few for a verdict (10).

After the colon: the number of labelled sentences to train on, or `all` (the default); then
`,frozen` or `,scratch` as in configs/semeval.py. The metric is Matthews' correlation.
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


def get_config(arg: str = "all") -> Config:
    labels, mode = read_arg(arg)
    steps = 300 if 0 < labels <= 1000 else 1500
    data = "data/cola"
    config = Config(
        name=f"cola-{labels or 'all'}",
        task=TaskConfig(kind="classification", pooling="mean"),
        data=DataConfig(
            generator="cola",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select_{largest((100, 500), labels)}.jsonl",
            test=(f"{data}/in_domain.jsonl", f"{data}/out_of_domain.jsonl"),
            text="sentence",
            cluster="source",
            draw=labels,
            buckets=(16, 32, 56),
        ),
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv", hops=1, nodes=32, edges=64, mentions=6, name_pieces=6
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        # As in configs/sst2.py, but that nothing is expected of the graph: what it says counts as
        # far as the selection split speaks for it.
        fusion=FusionConfig(
            kind="cross_attention", layers=(-1,), trains="apart", centred=True, expected_scale=0.0
        ),
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=5e-4,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", 0.2),
                GroupConfig("exchanges/", 0.0),
                GroupConfig("head/around", 4.0),
            ),
        ),
        eval=EvalConfig(every=steps // 3, batch=64, metric="matthews"),
        gain=GainConfig(rows=("none", "dictionary", "shuffled", "random", "true")),
    )
    return with_mode(config, mode)
