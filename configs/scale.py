"""BERT-large with a graph network over a trained table of entities that is cut by rows over all
chips; input is made up. For `keft compile`, and for `keft bench` where there is a pod.

keft compile --config configs/scale.py:5m,256 --topology v5e:16x16

The argument is ROWS[,CHIPS[,FSDP]]: 5m or 100m rows of 256 numbers, and 32 texts a chip.
docs/scaling.md says what it takes on which pod.
"""

from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    GraphConfig,
    KeftError,
    KnowledgeConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
)

ROWS = {"5m": 5_000_000, "100m": 100_000_000}
TEXTS = 32  # of a chip
LENGTH = 128


def get_config(arg: str = "5m") -> Config:
    given = arg.split(",")
    rows, chips, fsdp, *more = given + ["5m", "256", "1"][len(given) :]
    if rows not in ROWS or not (chips.isdecimal() and fsdp.isdecimal()) or more:
        raise KeftError(
            f"--config scale.py:{arg}: use ROWS[,CHIPS[,FSDP]], as 5m,256; ROWS is one of "
            f"{', '.join(ROWS)}"
        )
    return Config(
        name=f"scale-{rows}",
        task=TaskConfig(kind="mlm"),
        data=DataConfig(buckets=(LENGTH,), vocab_size=30_522),
        knowledge=KnowledgeConfig(
            kg="synthetic",
            hops=1,
            nodes=64,
            edges=256,
            mentions=8,
            name_pieces=6,
            entity_rows=ROWS[rows],
        ),
        encoder=EncoderConfig(
            layers=24, width=1024, heads=16, mlp=4096, dtype="bfloat16", scan=True
        ),
        graph=GraphConfig(kind="rgat", layers=2, width=256, heads=4),
        fusion=FusionConfig(kind="mention_add", layers=(-1,)),
        optim=OptimConfig(
            steps=100_000, batch=TEXTS * int(chips), learning_rate=1e-4, tables="rows"
        ),
        mesh=MeshConfig(fsdp=int(fsdp)),
    )
