"""What recipes of labelled texts share: their argument, and ways to run the text encoder."""

from __future__ import annotations

import dataclasses

from keft_jax.config.errors import KeftError
from keft_jax.config.model import EncoderConfig, FusionConfig
from keft_jax.config.train import GroupConfig
from keft_jax.config.whole import Config

MODES = ("", "frozen", "scratch", "text")
_TEXT = ("embed", "encoder")
"""Beginnings of the paths of the text encoder's parameters."""
_GRAPH = ("nodes", "exchanges", "triples", "head/node", "head/context", "head/around")
"""Of those that are there for the graph alone."""


def read_arg(arg: str) -> tuple[int, str]:
    """`300`, `all` or either with a mode, `300,frozen` -> (labels to draw, 0: all; mode)."""
    labels, _, mode = arg.partition(",")
    if not (labels == "all" or (labels.isdecimal() and int(labels) > 0)) or mode not in MODES:
        raise KeftError(
            f"--config ...:{arg}: give a number of labelled texts or `all`, and after it, if you "
            "like, `,frozen`, `,scratch` or `,text`"
        )
    return (0 if labels == "all" else int(labels)), mode


def largest(sizes: tuple[int, ...], labels: int) -> int:
    """The largest selection split with no more labels than there are to train on (0: all), or the
    smallest: choosing a checkpoint takes labels too (Perez et al. 2021)."""
    return max((size for size in sizes if not labels or size <= labels), default=min(sizes))


def with_mode(config: Config, mode: str) -> Config:
    """The recipe run otherwise. frozen: the text encoder stays as pre-trained, so that what is
    learned is what stands on it. scratch: four layers from scratch in its place, with word pieces
    of the pool; they learn at the full rate. text: plain BERT without the graph network, its labels
    read off [CLS]; a student that is exported as such (docs/distillation.md). `""`: as it is."""
    if not mode:
        return config
    if mode == "text":
        groups = [g for g in config.optim.groups if not g.match.startswith(_GRAPH)]
        pools = config.task.kind in ("classification", "relation", "typing")
        return dataclasses.replace(
            config,
            name=f"{config.name}-{mode}",
            task=dataclasses.replace(config.task, pooling="cls" if pools else "auto"),
            fusion=FusionConfig(kind="none"),
            optim=dataclasses.replace(config.optim, groups=tuple(groups)),
        )
    groups = [g for g in config.optim.groups if not g.match.startswith(_TEXT)]
    encoder = config.encoder
    if mode == "frozen":
        groups = [*(GroupConfig(f"{part}/", 0.0) for part in _TEXT), *groups]
    else:
        dropout = max(encoder.dropout, 0.3)  # it learns little else than its few labels
        encoder = EncoderConfig(layers=4, width=128, heads=4, mlp=512, dropout=dropout)
    return dataclasses.replace(
        config,
        name=f"{config.name}-{mode}",
        encoder=encoder,
        optim=dataclasses.replace(config.optim, groups=tuple(groups)),
    )
