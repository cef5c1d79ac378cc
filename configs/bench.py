"""Steps to time, of made-up input; no data files.

keft bench --config configs/bench.py:minilm_mlm
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

MINILM = EncoderConfig(layers=6, width=384, heads=12, mlp=1536)
BASE = EncoderConfig(layers=12, width=768, heads=12, mlp=3072)
# name -> encoder, batch, length, with a graph network
SIZES = {
    "minilm_mlm": (MINILM, 8, 128, False),
    "minilm_gnn": (MINILM, 8, 128, True),
    "minilm_gnn_short": (MINILM, 64, 24, True),
    "base_mlm": (BASE, 8, 128, False),
}


def get_config(arg: str = "minilm_mlm") -> Config:
    if arg not in SIZES:
        raise KeftError(f"--config bench.py:{arg}: no such bench; one of {', '.join(SIZES)}")
    encoder, batch, length, graph = SIZES[arg]
    return Config(
        name=arg,
        task=TaskConfig(kind="mlm"),
        data=DataConfig(buckets=(length,), vocab_size=30_522),
        knowledge=KnowledgeConfig(
            kg="synthetic" if graph else "", hops=1, nodes=32, edges=64, mentions=4, name_pieces=6
        ),
        encoder=encoder,
        graph=GraphConfig(kind="rgat", layers=2, width=128, heads=4),
        fusion=FusionConfig(kind="mention_add" if graph else "none", layers=(2,)),
        optim=OptimConfig(steps=1000, batch=batch, learning_rate=1e-4),
        mesh=MeshConfig(data=1),
    )
