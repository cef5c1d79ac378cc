"""Bytes of a chip by what they are of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental.layout import Format

from keft_jax.train.state import State


def local_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Of a chip's part of an array."""
    place: Any = leaf.sharding
    own: Any = place.sharding if isinstance(place, Format) else place
    return own.shard_shape(leaf.shape)


def count_local(tree: Any) -> int:
    """Bytes of a chip's part of arrays given by their abstract twins."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(local_shape(leaf)) * leaf.dtype.itemsize for leaf in leaves)


def split_memory(
    state: State, frozen: Mapping[str, Any], batch: Any, analysis: Any
) -> dict[str, int]:
    """Bytes of a chip: the arguments by part, then what the compiler adds. The state is donated, so
    what comes out lies where it lay. padding: tiles of 8 x 128 that arguments do not fill (less
    arguments that the step does not read, which are not passed)."""
    values = {path: table.value for path, table in state.tables.items()}
    moments = {path: table.moments for path, table in state.tables.items()}
    parts = {
        "parameters": count_local(state.params),
        "optimizer moments": count_local(state.opt_state),
        "average of parameters": count_local(state.ema),
        "tables": count_local(values),
        "moments of tables": count_local(moments),
        "frozen": count_local(frozen),
        "batch": count_local(batch),
    }
    rest = count_local((state.step, state.key))
    own = analysis.argument_size_in_bytes - sum(parts.values()) - rest
    parts |= {
        "padding": own + rest,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    return {name: size for name, size in parts.items() if size}
