"""The real training step of a config over a mesh of chips, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax.sharding import Mesh

from keft_jax.aot.chips import Topology
from keft_jax.aot.compiler import make_devices
from keft_jax.bench.flops import count_step
from keft_jax.bench.run import first_batches, given_of, prepare
from keft_jax.config import Config, MeshConfig
from keft_jax.sharding import batch_sharding, make_mesh
from keft_jax.train.checkpoint import abstract_like
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import Parts


@dataclass(frozen=True)
class Program:
    """What the step is given, as shapes with their places, and the step lowered for them."""

    mesh: Mesh
    state: Any
    frozen: dict[str, Any]
    batch: Any
    lowered: Any
    flops: dict[str, float]  # useful, of a step over all chips, by part


def lower(config: Config, topology: Topology) -> Program:
    """Without a single array on a device. Input is made up as for `keft bench`, or the real one's
    first where the config names a file. Raises KeftError."""
    mesh = make_mesh(config.mesh, make_devices(topology))
    parts, one, times = make_batch(config, mesh)
    given = given_of(dataclasses.replace(parts, config=_alone(parts.config)), abstract=True)
    flops = count_step(parts, one, given, times)
    if given.teacher is not None:  # where it lies on the pod
        teacher, params = given.teacher
        params = abstract_like(params, teacher.model.shardings(mesh))
        given = dataclasses.replace(given, teacher=(teacher, params))
    trainer: Trainer[Any] = Trainer(parts, dataclasses.replace(given, parts=parts), mesh)
    state = abstract_like(jax.eval_shape(trainer.init, jax.random.key(0)), trainer.shardings)
    batch, step = stretch(one, times, mesh), cast(Any, trainer.train_step)
    frozen = trainer.frozen()
    return Program(mesh, state, frozen, batch, step.lower(state, frozen, batch), flops)


def make_batch(config: Config, mesh: Mesh) -> tuple[Parts, Any, int]:
    """(parts, a batch of the smallest size with the same shares, how many times as long the step's
    is). Of packed texts that is what a device holds of an accumulated part: all of these are laid
    out alike."""
    optim = config.optim
    times = math.gcd(optim.batch, optim.unlabelled)
    if config.data.pack:  # what does not divide is refused with the trainer
        groups = mesh.shape["data"] * mesh.shape["fsdp"] * optim.accumulate
        times = math.gcd(optim.batch, groups)
    few = dataclasses.replace(
        optim, batch=optim.batch // times, unlabelled=optim.unlabelled // times, accumulate=1
    )
    parts, examples = prepare(dataclasses.replace(_alone(config), optim=few))
    whole = dataclasses.replace(parts.config, optim=optim, mesh=config.mesh)
    return dataclasses.replace(parts, config=whole), first_batches(parts, examples)[0], times


def stretch(one: Any, times: int, mesh: Mesh) -> Any:
    """Shapes of so many of a batch, cut over the mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (times * x.shape[0], *x.shape[1:]), x.dtype, sharding=batch_sharding(mesh)
        ),
        one,
    )


def _alone(config: Config) -> Config:
    """What the config names beside the data is read on this machine."""
    return dataclasses.replace(config, mesh=MeshConfig(data=1))
