"""Where a value of a compiled program comes from: through fusions, calls, loops and tuples."""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterator

from keft_jax.bench.hlo import Computation, Instruction, Module, callees

# What moves or lays out an array and does not change what it is of.
SAME = {
    *("bitcast", "convert", "copy", "copy-start", "copy-done", "reshape", "transpose", "slice"),
    *("slice-start", "slice-done", "opt-barrier", "async-update", "async-done"),
    *("all-gather", "all-gather-start", "all-gather-done"),
}
Place = tuple[Computation, str, tuple[int, ...]]  # of a tuple, which of it


class Flow:
    """Of one module."""

    def __init__(self, module: Module):
        self._module = module
        self._calls: dict[str, list[tuple[Computation, Instruction]]] = collections.defaultdict(
            list
        )
        for computation in module.computations.values():
            for one in computation.instructions.values():
                for callee in callees(one):
                    self._calls[callee].append((computation, one))

    def origins(
        self,
        where: Computation,
        name: str,
        of: tuple[int, ...] = (),
        stop: Collection[str] = (),
    ) -> list[Instruction]:
        """The program's parameters, and the nearest instructions of operations `stop`, whose values
        one of `where` may be, moved and laid out otherwise. of: of a tuple, which of it."""
        out: list[Instruction] = []
        seen: set[tuple[str, str, tuple[int, ...]]] = set()
        left: list[Place] = [(where, name, of)]
        while left:
            here, name, of = left.pop()
            one = here.instructions.get(name)
            if one is None or (here.name, name, of) in seen:
                continue
            seen.add((here.name, name, of))
            whole = one.operation == "parameter" and here is self._module.entry
            if whole or one.operation in stop:
                out.append(one)
            else:
                left += self._before(here, one, of)
        return out

    def _before(self, here: Computation, one: Instruction, of: tuple[int, ...]) -> Iterator[Place]:
        operation, operands = one.operation, one.operands
        if operation == "parameter":
            yield from self._given(here, int(one.text.partition(")")[0]), of)
        elif operation == "get-tuple-element":
            found = re.search(r"\bindex=(\d+)", one.text)
            yield from ((here, operand, (int(found[1]), *of)) for operand in operands if found)
        elif operation == "tuple" and of:
            yield here, operands[of[0]], of[1:]
        elif operation in SAME:
            yield from ((here, operand, of) for operand in operands[:1])
        elif operation in ("fusion", "call", "async-start", "conditional", "while"):
            if operation == "while":
                yield here, operands[0], of
            for name in callees(one):
                if callee := self._module.computations.get(name):
                    yield callee, callee.root, of

    def _given(self, here: Computation, number: int, of: tuple[int, ...]) -> Iterator[Place]:
        """What those who call a computation give it as a parameter."""
        for where, call in self._calls[here.name]:
            if call.operation == "while":  # also what the turn before gives back
                yield from self._before(where, call, of)
            elif call.operation == "conditional":
                branch = [name for name in callees(call)].index(here.name)
                yield where, call.operands[1 + branch], of
            elif number < len(call.operands):
                yield where, call.operands[number], of
