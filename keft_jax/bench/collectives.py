"""What a compiled program moves between devices, read from its HLO."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from keft_jax.bench.flow import Flow
from keft_jax.bench.hlo import Instruction, Module, parse

FORMULA = """\
bytes a device a step = the bytes of the operands of every all-reduce, reduce-scatter, all-gather,
all-to-all and collective-permute in the per-device program, and of every transfer between slices,
without the padding of layouts; what stands in the body of a loop counts once a turn"""

KINDS = {
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
}
DCN = "dcn-"
"""Begins the kinds of what goes over the network between slices."""
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
GATHERS = ("all-gather", "all-gather-start")


@dataclass(frozen=True)
class Collective:
    """One collective instruction of the per-device program."""

    kind: str  # of KINDS, or such a one between slices
    operands: tuple[str, ...]  # such as f32[16,272,200]
    bytes: int  # of all operands
    count: int = 1  # times a step
    group: int = 0  # devices that take part together; 0: the text does not tell
    source: str = ""  # the op of the traced program


def find_collectives(hlo: str | Module) -> list[Collective]:
    """All in the text of a compiled module, `compiled.as_text()`; an asynchronous one counts where
    it starts."""
    module = parse(hlo) if isinstance(hlo, str) else hlo
    types, (runs, _) = module.types, module.runs()
    out = []
    for computation in module.computations.values():
        lines = computation.instructions.values()
        starts = any('custom_call_target="AsyncCollectiveStart"' in one.text for one in lines)
        for one in lines:
            # One that runs beside several fusions stands in each of them.
            beside = "async_collective_fusion_config" in one.text
            kind = _kind(one)
            if kind and (starts or not beside) and runs.get(computation.name, 0):
                of = [types[name] for name in one.operands if name in types]
                out.append(
                    _make(kind, of if kind[:4] != DCN else of[:1], one, runs[computation.name])
                )
    return out


def count_bytes(found: str | Iterable[Collective]) -> dict[str, int]:
    """Bytes a device a step by kind, as FORMULA says."""
    total: collections.Counter[str] = collections.Counter()
    for one in find_collectives(found) if isinstance(found, str) else found:
        total[one.kind] += one.bytes * one.count
    return dict(total)


def find_gathered(module: Module, prefixes: tuple[str, ...]) -> list[str]:
    """Paths of the program's parameters, of those that begin so, that an all-gather makes whole,
    in a loop or beside a fusion too; and "(output)" for each part of what the program gives back
    that an all-gather has made."""
    flow, (runs, _), entry = Flow(module), module.runs(), module.entry
    out: dict[str, None] = {}
    for computation in module.computations.values():
        for one in computation.instructions.values():
            if one.operation in GATHERS and runs.get(computation.name, 0):
                for operand in one.operands:
                    found = flow.origins(computation, operand)
                    out |= dict.fromkeys(o.source for o in found if o.source.startswith(prefixes))
    root = entry.instructions.get(entry.root)
    given = range(len(root.operands)) if root else ()
    ends = [flow.origins(entry, entry.root, (i,), GATHERS) for i in given]
    return [*out] + ["(output)" for end in ends if any(one.operation in GATHERS for one in end)]


def find_as_large(found: Iterable[Collective], elements: int) -> list[str]:
    """Operands of the all-gathers whose results have so many elements or more."""
    out = []
    for one in found:
        counts = [math.prod(_sides(array)) for array in map(_ARRAY.match, one.operands) if array]
        if one.kind == "all-gather" and max(one.group, 1) * max(counts, default=0) >= elements:
            out += [f"as large as a table: {' '.join(one.operands)}"]
    return out


def _kind(one: Instruction) -> str:
    if one.operation == "send":
        found = _BETWEEN_SLICES.search(one.text)
        return DCN + found[1].lower().replace("_", "-") if found else ""
    kind = one.operation.removesuffix("-start")
    return kind if kind in KINDS else ""


def _make(kind: str, types: list[str], one: Instruction, count: int) -> Collective:
    arrays = [array for text in types for array in _ARRAY.finditer(text)]
    bits = [int(array[2] or 8) * math.prod(_sides(array)) for array in arrays]
    size = sum(-(-n // 8) for n in bits)
    operands = tuple(array[0] for array in arrays)
    return Collective(kind, operands, size, count, _group(one.text), one.source)


def _sides(array: re.Match[str]) -> list[int]:
    return [int(n) for n in array[3].split(",") if n]


def _group(text: str) -> int:
    """Devices of a group, of the three ways in which they are written."""
    if found := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", text):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", found[1]))
        whole = [axis for axis in re.findall(r"'[^']*'(?:\:\(\d+\)\d+)?", found[2])]
        return math.prod(int(sizes.get(a, a.rpartition(")")[2] or 1)) for a in whole)
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    return found[1].count(",") + 1 if found and found[1] else 0
