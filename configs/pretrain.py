"""Pre-training on Wikipedia: masked language modelling of whole words and linked mentions, with and
without Wikidata facts about what is mentioned.

python train.py --config configs/pretrain.py:knowledge --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2 --workdir runs/knowledge
python train.py --config configs/fewrel.py:480 --optim.start=runs/knowledge ...

After the colon, and before a comma and a number of steps: `knowledge` (the default) reads the graph
about mentions that are not masked, predicts the entities of those that are, and reasons over the
facts with the same rows of entities; `plain` has the same texts, masks and optimizer and no
knowledge; `wikitext` is plain, on WikiText-2. benchmarks/pretrain.py compares the first two.
"""

import dataclasses

from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    EntitiesConfig,
    EvalConfig,
    FusionConfig,
    GraphConfig,
    GroupConfig,
    KeftError,
    KgeConfig,
    KnowledgeConfig,
    MlmConfig,
    ObjectiveConfig,
    OptimConfig,
    TaskConfig,
    TriplesConfig,
)

MODES = ("knowledge", "plain", "wikitext")


def get_config(arg: str = "knowledge") -> Config:
    mode, _, number = arg.partition(",")
    if mode not in MODES or not (number or "1").isdecimal():
        raise KeftError(
            f"--config ...:{arg}: give {', '.join(MODES)}, and after a comma, if you like, a "
            "number of steps"
        )
    steps = int(number or 400)
    data = "data/wikitext" if mode == "wikitext" else "data/wikialigned"
    config = Config(
        name=f"pretrain-{mode}",
        task=TaskConfig(kind="mlm"),
        data=DataConfig(
            generator="wikitext" if mode == "wikitext" else "wikialigned",
            source="data/raw",
            train=f"{data}/train.jsonl",
            select=f"{data}/select.jsonl",
            test=(f"{data}/test.jsonl",),
            text="text",
            spans="" if mode == "wikitext" else "spans",
            pattern="",
            cluster="article",
            buckets=(48, 96),
        ),
        # The plain model knows the graph only to mask the same mentions.
        knowledge=KnowledgeConfig(
            kg=f"{data}/kg.tsv",
            descriptions=f"{data}/descriptions.tsv",
            row="true" if mode == "knowledge" else "none",
            link="given",
            hops=1,
            nodes=64,
            edges=128,
            mentions=8,
            name_pieces=4,
        ),
        encoder=EncoderConfig(pretrained="models/all-MiniLM-L6-v2", dropout=0.1),
        graph=GraphConfig(kind="rgat", layers=1, width=64, heads=4),
        fusion=FusionConfig(kind="cross_attention", layers=(-1,)),
        kge=KgeConfig(model="distmult", width=64, init=0.1),
        objective=ObjectiveConfig(
            mlm=MlmConfig(mask="entity", entity_share=0.5),
            entities=EntitiesConfig(weight=0.3, candidates=1024),
            triples=TriplesConfig(weight=0.3, batch=256),
        ),
        # The head is new: it learns alone what the encoder says already, before that changes.
        optim=OptimConfig(
            steps=steps,
            batch=16,
            learning_rate=1e-3,
            groups=(
                GroupConfig("embed/", 0.0),
                GroupConfig("encoder/", 0.2, from_step=steps // 8),
            ),
        ),
        eval=EvalConfig(every=max(steps // 2, 1), batch=64),
    )
    if mode == "knowledge":
        # A row of an entity is met a few dozen times: at the common rate it hardly moves, and the
        # loss of the facts stays at chance.
        groups = (*config.optim.groups, GroupConfig("nodes/rows", 100.0))
        return dataclasses.replace(config, optim=dataclasses.replace(config.optim, groups=groups))
    mask = MlmConfig(mask="word") if mode == "wikitext" else config.objective.mlm
    return dataclasses.replace(
        config,
        knowledge=KnowledgeConfig() if mode == "wikitext" else config.knowledge,
        fusion=FusionConfig(kind="none"),
        objective=ObjectiveConfig(mlm=mask),
    )
