"""A config as JSON and back, and its hash."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from typing import Any, Literal

from keft_jax.config.errors import KeftError
from keft_jax.config.whole import Config


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False)


def config_hash(config: Config) -> str:
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def from_json(text: str, where: str = "config") -> Config:
    """The config that `to_json` wrote. Raises KeftError naming the field that does not fit."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise KeftError(f"{where}: not JSON ({error}); write it anew by training again") from error
    return _build(Config, value, where)


def _build(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise KeftError(f"{path} = {value!r}: expected the fields of {kind.__name__}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(key, hints, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise KeftError(f"{path}.{key}: no such field{hint}")
        return kind(**{k: _build(hints[k], v, f"{path}.{k}") for k, v in value.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise KeftError(f"{path} = {value!r}: expected a list")
        return tuple(_build(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise KeftError(f"{path} = {value!r}: one of {', '.join(map(str, args))}{hint}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise KeftError(f"{path} = {value!r}: expected {kind.__name__}")
    return value
