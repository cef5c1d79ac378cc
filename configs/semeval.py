"""Which relation two marked nouns have (SemEval-2010 task 8), with what WordNet has above them.

keft gain --config configs/semeval.py:500 --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/semeval.py:500 --data.source=... --encoder.pretrained=...

After the colon: the number of labelled sentences to train on, drawn anew for each seed, or `all`;
then `,frozen` (the encoder stays as it is) or `,scratch` (four layers from scratch; leave
--encoder.pretrained out). 1,500 sentences are held out. The metric is `f1_named`: macro F1 over the
18 directed relations, without Other.
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

LABELS = (
    "Other",
    *(
        f"{relation}({order})"
        for relation in (
            "Cause-Effect",
            "Component-Whole",
            "Content-Container",
            "Entity-Destination",
            "Entity-Origin",
            "Instrument-Agency",
            "Member-Collection",
            "Message-Topic",
            "Product-Producer",
        )
        for order in ("e1,e2", "e2,e1")
    ),
)
"""All of the task: one has a single sentence in all of its training data."""


def get_config(arg: str = "500") -> Config:
    labels, mode = read_arg(arg)
    steps = 300 if 0 < labels <= 500 else 600 if 0 < labels <= 1000 else 1500
    data = "data/semeval"
    config = Config(
        name=f"semeval-{labels or 'all'}",
        task=TaskConfig(kind="relation", labels=LABELS),
        data=DataConfig(
            generator="semeval",
            source="data/raw",
            train=f"{data}/pool.jsonl",
            select=f"{data}/select_{largest((200, 500), labels)}.jsonl",
            test=(f"{data}/test.jsonl",),
            text="sentence",
            spans="spans",
            draw=labels,
            buckets=(32, 48, 128),
        ),
        # One hop from a word are its synset and all that is above it.
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv",
            descriptions=f"{data}/descriptions.tsv",
            link="given",
            hops=1,
            nodes=64,
            edges=192,
            mentions=2,
            name_pieces=8,
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        fusion=FusionConfig(kind="cross_attention", layers=(-1,), trains="apart"),
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=1e-3,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", 0.2),
                # WordNet tells by what is above a noun, not by kinds of relations: the head reads
                # the sum of those nodes' states.
                GroupConfig("exchanges/", 0.0),
                GroupConfig("head/node", 0.0),
                GroupConfig("head/context", 0.0),
                GroupConfig("head/around", 4.0),
            ),
        ),
        eval=EvalConfig(every=steps // 3, batch=64, metric="f1_named"),
        gain=GainConfig(rows=("none", "dictionary", "untyped", "shuffled", "random", "true")),
    )
    return with_mode(config, mode)
