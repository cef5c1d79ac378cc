"""Where arrays live: the mesh, the names of their axes, and one table from names to mesh axes.

Every parameter names its axes where it is made; an unknown name, a collision or a length that does
not divide is an error that says what to do, never silent replication.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from keft_jax.config import KeftError, MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Parameters are cut along `fsdp` on their model width (tables of entities: on their rows) and along
# `tensor` on heads, mlp and vocab. Tables looked up by rows alone are cut over all devices.
# Graph networks are small and lie whole on every device.
PARAMETERS: dict[str, str | tuple[str, ...] | None] = {
    "embed": "fsdp",
    "graph": None,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "entity": "fsdp",
    "row": MESH_AXES,
    "kv": None,
    "qkv": None,
    "length": None,
    "relation": None,
    "label": None,
    "layer": None,
    "one": None,
}

# Activations are cut along the batch, over data and fsdp alike, and along `tensor` inside a block.
ACTIVATIONS: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "embed": None,
    "graph": None,
    "kv": None,
    "length": None,
    "node": None,
    "edge": None,
    "label": None,
    "row": MESH_AXES,
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over the devices (None: those of all processes). Raises KeftError
    if the sizes do not fit."""
    everywhere, devices = devices is None, list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    given = math.prod(s for s in sizes if s)
    if 0 in sizes:
        if len(devices) % given:
            raise KeftError(
                f"mesh = {tuple(sizes)}: {given} does not divide the {len(devices)} devices; "
                "set sizes whose product does"
            )
        sizes[sizes.index(0)] = len(devices) // given
    if math.prod(sizes) > len(devices):
        raise KeftError(
            f"mesh = {tuple(sizes)}: needs {math.prod(sizes)} devices, there are {len(devices)}; "
            "lower mesh.data, mesh.fsdp or mesh.tensor"
        )
    grid = np.asarray(devices[: math.prod(sizes)]).reshape(sizes)
    idle = jax.process_count() - len({device.process_index for device in grid.flat})
    if everywhere and idle:
        raise KeftError(
            f"mesh = {tuple(sizes)}: takes {grid.size} of {len(devices)} devices and leaves {idle} "
            "of the processes none; set sizes that take all, or start fewer processes"
        )
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def own_device() -> Mesh:
    """A mesh of one device of this process, for what each process reads for itself."""
    return make_mesh(MeshConfig(data=1), jax.local_devices())


def spec(names: Sequence[str | None], rules: dict, where: str = "array") -> PartitionSpec:
    """Axis names -> PartitionSpec. Raises KeftError on an unknown name or two on one mesh axis."""
    taken: set[str] = set()
    out = []
    for name in names:
        if name is not None and name not in rules:
            raise KeftError(f"{where}: axis {name!r} has no sharding rule; add it to sharding.py")
        axis = rules[name] if name is not None else None
        for one in (axis,) if isinstance(axis, str) else axis or ():
            if one in taken:
                raise KeftError(f"{where}: axes {tuple(names)} use the mesh axis {one!r} twice")
            taken.add(one)
        out.append(axis)
    return PartitionSpec(*out)


def parameter_sharding(
    mesh: Mesh, names: Sequence[str | None], shape: Sequence[int], where: str
) -> NamedSharding:
    """The sharding of one parameter. Raises KeftError if a length does not divide over its axis."""
    parts = spec(names, PARAMETERS, where)
    for name, length, axis in zip(names, shape, parts, strict=True):
        axes = (axis,) if isinstance(axis, str) else axis or ()
        ways = math.prod(mesh.shape[one] for one in axes)
        if length % ways:
            raise KeftError(
                f"{where}: its {name} axis has {length} entries, which mesh.{' x mesh.'.join(axes)}"
                f" = {ways} does not divide; change either"
            )
    return NamedSharding(mesh, parts)


def row_sharding(mesh: Mesh, shape: Sequence[int], where: str) -> NamedSharding:
    """A table cut by rows over all devices."""
    return parameter_sharding(mesh, ("row", *(None for _ in shape[1:])), shape, where)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["batch"]))


def place(tree: Any, sharding: jax.sharding.Sharding, *, may_alias: bool | None = None) -> Any:
    """Host arrays, whole and the same in every process, on the devices. Each process puts there
    what lies on its own, without asking the others. For devices that are not there (`keft
    compile`): their abstract twins."""
    if sharding.device_set.isdisjoint(jax.devices()):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), np.result_type(x), sharding=sharding), tree
        )
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding, may_alias=may_alias)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: np.array(x[index]))

    return jax.tree.map(put, tree)


def fetch(x: Any) -> np.ndarray:
    """A whole array on the host of every process, which all have to ask for."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(jax.device_get(x))
    return multihost_utils.process_allgather(x, tiled=True)


def own_parts(sharding: NamedSharding, ways: int) -> np.ndarray:
    """int64[n], rising: which of the parts that a sharding cuts a first axis into lie on devices of
    this process, one after another or not; several processes may have the same ones."""
    spans = sharding.addressable_devices_indices_map((ways,)).values()
    return np.unique(np.concatenate([np.arange(ways)[span] for span in spans if span]))


def place_parts(tree: Any, sharding: NamedSharding, own: np.ndarray, ways: int) -> Any:
    """As `place`, of arrays that are cut along their first axis, of which each process has its
    `own_parts` alone, end to end."""

    def put(x: np.ndarray) -> jax.Array:
        size = len(x) // len(own)

        def part(index: Any) -> np.ndarray:
            at = int(np.searchsorted(own, (index[0].start or 0) // size))
            return x[at * size : (at + 1) * size]

        return jax.make_array_from_callback((size * ways, *x.shape[1:]), sharding, part)

    return jax.tree.map(put, tree)


_active: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("keft_mesh", default=None)


_platform: contextvars.ContextVar[str] = contextvars.ContextVar("keft_platform", default="")


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """While a step is traced: `shard` constrains to this mesh, and `platform` is that of its
    devices. None: no constraints, on the platform that it was."""
    token = _active.set(mesh)
    of = _platform.get() if mesh is None else mesh.devices.flat[0].platform
    platform_token = _platform.set(of)
    try:
        yield
    finally:
        _platform.reset(platform_token)
        _active.reset(token)


def platform() -> str:
    """cpu, gpu or tpu: what is being traced is for it, which need not be where it is traced."""
    return _platform.get() or jax.default_backend()


def batch_ways() -> int:
    """Devices that the batch of what is being traced is cut over."""
    mesh = _active.get()
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def on_devices(
    f: Callable[..., jax.Array], given: Sequence[Sequence[str | None]], made: Sequence[str | None]
) -> Callable[..., jax.Array]:
    """`f` called on every device with what lies there of activations whose axes have these names:
    for kernels that the partitioner cannot cut."""
    mesh = _active.get()
    if mesh is None or mesh.size == 1:
        return f
    parts = tuple(spec(names, ACTIVATIONS, "activation") for names in given)
    whole = spec(made, ACTIVATIONS, "activation")
    return jax.shard_map(f, mesh=mesh, in_specs=parts, out_specs=whole, check_vma=False)


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains an activation whose axes have these names; the identity on one device."""
    mesh = _active.get()
    if mesh is None or mesh.size == 1:
        return x
    parts = spec(names, ACTIVATIONS, "activation")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, parts))


def gather(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """A parameter where it is used: whole along fsdp, still cut along tensor. Without this the
    partitioner may cut the activations of small layers along fsdp instead, and at last replicate.
    Tables of entities stay cut by rows: only rows of them are used."""
    mesh = _active.get()
    if mesh is None or mesh.size == 1 or "entity" in names or "row" in names:
        return x
    parts = spec(names, PARAMETERS, "parameter")
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in parts))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, whole))
