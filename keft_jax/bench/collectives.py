"""What a compiled program moves between devices, read from its HLO."""

from __future__ import annotations

import collections
import math
import re
from dataclasses import dataclass

FORMULA = """\
bytes a device a step = the bytes of the operands of every all-reduce, reduce-scatter, all-gather,
all-to-all and collective-permute in the per-device program, without the padding of layouts; what
stands in the body of a loop counts once"""

KINDS = {
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One collective instruction of the per-device program."""

    kind: str  # of KINDS
    operands: tuple[str, ...]  # such as f32[16,272,200]
    bytes: int  # of all operands


def find_collectives(hlo: str) -> list[Collective]:
    """All in the text of a compiled module, `compiled.as_text()`; an asynchronous one counts where
    it starts."""
    types: dict[str, str] = {}
    calls = []
    for line in hlo.splitlines():
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        name, result, operation, rest = found.groups()
        types[name] = result
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            # Operands end where the attributes begin; the layouts' own parentheses have no comma.
            calls.append((kind, re.findall(r"%([\w.-]+)", rest.split("), ")[0])))
    return [_make(kind, [types[name] for name in names]) for kind, names in calls]


def count_bytes(hlo: str) -> dict[str, int]:
    """Bytes a device a step by kind, as FORMULA says."""
    total: collections.Counter[str] = collections.Counter()
    for one in find_collectives(hlo):
        total[one.kind] += one.bytes
    return dict(total)


def _make(kind: str, types: list[str]) -> Collective:
    arrays = [array for text in types for array in _ARRAY.finditer(text)]
    bits = [
        int(array[2] or 8) * math.prod(int(n) for n in array[3].split(",") if n) for array in arrays
    ]
    return Collective(kind, tuple(array[0] for array in arrays), sum(-(-n // 8) for n in bits))
