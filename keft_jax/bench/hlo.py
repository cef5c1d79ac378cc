"""The text of a compiled module, `compiled.as_text()`, as instructions; and how often each runs."""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass, field

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:branch|true|false|called)_computations?)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)
_STATED = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Instruction:
    name: str
    type: str  # such as f32[16,272,200]{2,1,0}, or several between parentheses
    operation: str
    operands: tuple[str, ...]  # names
    text: str  # what stands behind the operation's name

    @property
    def source(self) -> str:
        """The op of the traced program that it was made for; of a parameter its path."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.text)
        return found[1].replace("\\'", "'") if found else ""


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""


@dataclass
class Module:
    computations: dict[str, Computation]  # callees before their callers
    entry: Computation

    @property
    def types(self) -> dict[str, str]:
        """Of every instruction, by name: no two of a module share one."""
        return {i.name: i.type for c in self.computations.values() for i in c.instructions.values()}

    def runs(self) -> tuple[dict[str, int], int]:
        """(how often each computation runs in a step, loops whose number of turns the text does not
        tell: these count one)."""
        times: collections.Counter[str] = collections.Counter({self.entry.name: 1})
        unknown = 0
        for computation in reversed(self.computations.values()):
            for one in computation.instructions.values():
                if one.operation in ("async-done", "async-update"):
                    continue  # they name what async-start has called
                turns = 1
                if one.operation == "while":
                    told = self._turns(one)
                    turns, unknown = told or 1, unknown + (told is None)
                for callee in callees(one):
                    times[callee] += turns * times[computation.name]
        return dict(times), unknown

    def _turns(self, loop: Instruction) -> int | None:
        """As the text states it, or as a loop that counts from 0 has it in its condition."""
        if stated := _STATED.search(loop.text):
            return int(stated[1])
        name = re.search(r"condition=%?([\w.-]+)", loop.text)
        condition = self.computations.get(name[1]) if name else None
        last = condition and condition.instructions.get(condition.root)
        if not condition or not last or "direction=LT" not in last.text:
            return None
        limit = condition.instructions.get(last.operands[-1])
        if limit is None or limit.operation != "constant":
            return None
        number = re.match(r"(\d+)\)", limit.text)
        return int(number[1]) if number else None


def callees(one: Instruction) -> list[str]:
    """Names of the computations that an instruction calls."""
    groups = _CALLED.findall(one.text)
    return [name for group in groups for name in re.findall(r"[\w.-]+", group)]


def parse(hlo: str) -> Module:
    computations: dict[str, Computation] = {}
    entry = current = Computation("")  # text that is a part of a module has no header
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            current = Computation(header[2])
            computations[current.name] = current
            entry = current if header[1] or not entry.name else entry
        elif found := _INSTRUCTION.match(line):
            root, name, kind, operation, rest = found.groups()
            # Operands end where the attributes begin; the layouts' own parentheses have no comma.
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split("), ")[0]))
            current.instructions[name] = Instruction(name, kind, operation, operands, rest)
            computations.setdefault(current.name, current)
            if root:
                current.root = name
    return Module(computations, entry)
