"""The schema of every run: frozen dataclasses, checked when they are made.

A config file defines `get_config(arg="") -> Config`. Every field can be set on the command line by
its dotted path (`--optim.learning_rate=1e-4`); `--help` lists them with their texts.
"""

from keft_jax.config.data import REST, ROWS, DataConfig, KnowledgeConfig, Row, TaskConfig
from keft_jax.config.errors import KeftError, check
from keft_jax.config.kge import KgeConfig
from keft_jax.config.model import EncoderConfig, FusionConfig, GraphConfig
from keft_jax.config.objective import (
    ConsistencyConfig,
    DistillConfig,
    EntitiesConfig,
    KgTeacherConfig,
    MlmConfig,
    ObjectiveConfig,
    ScheduleConfig,
    TriplesConfig,
)
from keft_jax.config.recipe import largest, read_arg, with_mode
from keft_jax.config.serial import config_hash, from_json, to_json
from keft_jax.config.train import (
    CheckpointConfig,
    EvalConfig,
    GainConfig,
    GroupConfig,
    MeshConfig,
    OptimConfig,
    WatchConfig,
)
from keft_jax.config.whole import Config

__all__ = [
    "REST",
    "ROWS",
    "CheckpointConfig",
    "Config",
    "ConsistencyConfig",
    "DataConfig",
    "DistillConfig",
    "EncoderConfig",
    "EntitiesConfig",
    "EvalConfig",
    "FusionConfig",
    "GainConfig",
    "GraphConfig",
    "GroupConfig",
    "KeftError",
    "KgTeacherConfig",
    "KgeConfig",
    "KnowledgeConfig",
    "MeshConfig",
    "MlmConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Row",
    "ScheduleConfig",
    "TaskConfig",
    "TriplesConfig",
    "WatchConfig",
    "check",
    "config_hash",
    "from_json",
    "largest",
    "read_arg",
    "to_json",
    "with_mode",
]
