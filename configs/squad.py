"""Where a paragraph answers a question, if it does (SQuAD 2.0), with facts about what it names.

keft gain --config configs/squad.py --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python train.py --config configs/squad.py --data.source=... --encoder.pretrained=...

After the colon: the number of questions to train on, or `all` (the default); then `,frozen` or
`,scratch` as in configs/semeval.py. `answered` in place of the number: the questions that have an
answer alone, as in SQuAD 1.1, at three times the rate. The questions are half of SQuAD's dev part,
on 16 articles; no article is in two files. Those of one article are one cluster, and 5 articles of
the test part are too few for a verdict (10).
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
    answered = arg.partition(",")[0] == "answered"
    labels, mode = read_arg(arg.replace("answered", "all", 1) if answered else arg)
    steps, every, rate = (300, 100, 0.2) if 0 < labels <= 1000 else (900, 300, 0.2)
    begin = "data/squad/"
    if answered:
        steps, every, rate = 800, 200, 0.6
        begin = "data/squad/answered-"
    config = Config(
        name=f"squad-{'answered' if answered else labels or 'all'}",
        task=TaskConfig(kind="span", no_answer_threshold=1e9 if answered else 0.0),
        data=DataConfig(
            generator="squad",
            source="data/raw",
            train=f"{begin}pool.jsonl",
            select=f"{begin}select.jsonl",
            test=(f"{begin}test.jsonl",),
            text="context",
            pair="question",
            answer_spans="answers",
            slices=() if answered else ("answerable",),
            draw=labels,
            buckets=(192, 320),
        ),
        knowledge=KnowledgeConfig(
            kg="data/squad/kg.tsv",
            aliases="data/squad/aliases.tsv",
            descriptions="data/squad/descriptions.tsv",
            hops=1,
            nodes=48,
            edges=128,
            mentions=16,
            name_pieces=6,
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        fusion=FusionConfig(kind="mention_add", layers=(-2,)),
        optim=OptimConfig(
            steps=steps,
            batch=8,
            learning_rate=5e-4,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("nodes/rows", 0.0),
                GroupConfig("encoder/", rate),
            ),
        ),
        eval=EvalConfig(every=every, batch=16),
        gain=GainConfig(rows=("none", "dictionary", "untyped", "shuffled", "random", "true")),
    )
    return with_mode(config, mode)
