"""What layers that stay as they are say of each text, made once and not in every step."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from keft_jax.config import Config
from keft_jax.data.batch import Batch
from keft_jax.data.features import Dataset
from keft_jax.data.plan import eval_batches
from keft_jax.models.functional import Model
from keft_jax.sharding import on_mesh
from keft_jax.train.feed import feed
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts

logger = logging.getLogger(__name__)

MOST = 1 << 31
"""Bytes of states that a data set may take."""


def can_remember(config: Config, model: Model) -> bool:
    """Whether every step reads the texts as they are, by the same first layers, for the task
    alone."""
    same = bool(config.encoder.pretrained)  # else each seed has an encoder of its own
    return model.module.still > 0 and same and reads_for_the_task_alone(config)


def reads_for_the_task_alone(config: Config) -> bool:
    """Whether the texts are read as they are, once in a step, by one process."""
    objective, knowledge = config.objective, config.knowledge
    others = (
        objective.mlm.weight,
        objective.entities.weight,
        objective.consistency.weight,
        objective.distill.active,
        objective.kg_teacher.weight,
        objective.triples.weight,
    )
    return (
        not any(others)
        and not config.gain.variants  # of other models, and other texts
        and knowledge.text == "none"
        and not config.data.pack
        and not config.data.unlabelled
        and jax.process_count() == 1
    )


Reader = Callable[[Any, Batch], jax.Array]


def make_reader(trainer: Trainer[Parts]) -> Reader:
    """`read(params, batch)`: the states [b, l, d] after the layers that stay; compiled once for
    each text length, whatever the data set."""
    model, mesh = trainer.parts.model, trainer.mesh

    def read(params: Any, batch: Batch) -> jax.Array:
        with on_mesh(mesh):
            return model.apply(params, batch, method="read")

    return jax.jit(read)


def remember(trainer: Trainer[Parts], read: Reader, params: Any, dataset: Dataset) -> Dataset:
    """The data set with the states of its texts, where they are not too many; host memory, of the
    encoder's dtype. params: any that the trainer starts from, where `can_remember`."""
    data, out = trainer.parts.config.data, None
    for length, units in eval_batches(dataset.lengths, trainer.eval_batch, data.buckets):
        states = np.asarray(read(params, feed(dataset, length, units, trainer.mesh)))
        if out is None:
            shape = (len(dataset.texts), data.buckets[-1], states.shape[-1])
            size = math.prod(shape) * states.itemsize
            if size > MOST:
                logger.info(
                    "%d texts: their states would take %d MiB; the encoder runs in each step",
                    *(len(dataset.texts), size >> 20),
                )
                return dataset
            out = np.zeros(shape, states.dtype)
        at = (units[:, None] * dataset.each + np.arange(dataset.each)).ravel()
        real = np.repeat(units >= 0, dataset.each)
        out[at[real], :length] = states[real]
    return dataclasses.replace(dataset, table=dataclasses.replace(dataset.table, states=out))
