"""Steps to time, of made-up input; no data files. SIZE_WHAT, as in

keft bench --config configs/bench.py:minilm_mlm
"""

from keft_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EncoderConfig,
    FusionConfig,
    GraphConfig,
    KeftError,
    KgeConfig,
    KnowledgeConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    TaskConfig,
    TriplesConfig,
)

SIZES = {
    "tiny": EncoderConfig(layers=2, width=128, heads=2, mlp=512),
    "minilm": EncoderConfig(layers=6, width=384, heads=12, mlp=1536),
    "base": EncoderConfig(layers=12, width=768, heads=12, mlp=3072),
    "large": EncoderConfig(layers=24, width=1024, heads=16, mlp=4096),
}
TEACHER = ObjectiveConfig(distill=DistillConfig(teacher="synthetic", weight=1.0))
ALL = ObjectiveConfig(distill=TEACHER.distill, triples=TriplesConfig(weight=0.1, batch=256))
# name -> batch, length, with a graph network, objective
WHAT = {
    "mlm": (8, 128, False, ObjectiveConfig()),
    "gnn": (8, 128, True, ObjectiveConfig()),
    "gnn_short": (64, 24, True, ObjectiveConfig()),
    "teacher": (8, 128, False, TEACHER),
    "all": (8, 128, True, ALL),
}


def get_config(arg: str = "minilm_mlm") -> Config:
    size, _, what = arg.partition("_")
    if size not in SIZES or what not in WHAT:
        raise KeftError(
            f"--config bench.py:{arg}: no such bench; SIZE_WHAT of {', '.join(SIZES)} and "
            f"{', '.join(WHAT)}, as minilm_mlm"
        )
    batch, length, graph, objective = WHAT[what]
    middle = min(2, SIZES[size].layers - 1)
    return Config(
        name=arg,
        task=TaskConfig(kind="mlm"),
        data=DataConfig(buckets=(length,), vocab_size=30_522),
        knowledge=KnowledgeConfig(
            kg="synthetic" if graph else "", hops=1, nodes=32, edges=64, mentions=4, name_pieces=6
        ),
        encoder=SIZES[size],
        graph=GraphConfig(kind="rgat", layers=2, width=128, heads=4),
        fusion=FusionConfig(kind="mention_add" if graph else "none", layers=(middle,)),
        kge=KgeConfig(width=64, negatives=256, share=0),
        objective=objective,
        optim=OptimConfig(steps=1000, batch=batch, learning_rate=1e-4),
        mesh=MeshConfig(data=1),
    )
