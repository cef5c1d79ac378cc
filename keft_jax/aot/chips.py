"""What the accelerators are, and the names of slices of them."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from keft_jax.bench.flops import PEAKS
from keft_jax.config import KeftError, check

GIB, GIGA = 2**30, 1e9
DOCS = "https://docs.cloud.google.com/tpu/docs/"
# Sizes of slices that Cloud TPU offers, of the smallest to the largest.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES: tuple[str, ...] = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_CUBES += ("8x8x16", "8x16x16", "16x16x16")


@dataclass(frozen=True)
class Chip:
    """One chip; a device of jax is a chip (v4 and v5p: both of its cores)."""

    kind: str  # as jax calls it
    memory: float  # bytes of HBM that a program may take, as the compiler says
    hbm: float  # bytes/s
    ici: float  # bytes/s to all neighbours in its slice, one way
    dcn: float  # bytes/s between slices, one way
    sizes: tuple[str, ...]
    source: str
    settings: tuple[tuple[str, str], ...] = ()  # for the compiler's description

    @property
    def peaks(self) -> dict[str, float]:
        """FLOPs/s by dtype."""
        return PEAKS[self.kind]


CHIPS = {
    "v4": Chip(
        kind="TPU v4",
        memory=30.75 * GIB,
        hbm=1200 * GIGA,
        ici=300 * GIGA,
        dcn=6.25 * GIGA,
        sizes=_CUBES,
        source=f"{DOCS}v4; ICI: 6 links of 50 GB/s (Jouppi et al. 2023); DCN: not stated, v5p's",
        settings=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        kind="TPU v5 lite",
        memory=15.75 * GIB,
        hbm=819 * GIGA,
        ici=200 * GIGA,
        dcn=3.125 * GIGA,
        sizes=_FLAT,
        source=f"{DOCS}v5e: ICI 400 GB/s both ways, DCN 6.4 Tb/s a pod of 256",
    ),
    "v5p": Chip(
        kind="TPU v5",
        memory=95.73 * GIB,
        hbm=2765 * GIGA,
        ici=600 * GIGA,
        dcn=6.25 * GIGA,
        sizes=(*_CUBES, "16x16x24"),
        source=f"{DOCS}v5p: ICI 1200 GB/s both ways, DCN 50 Gb/s",
    ),
    "v6e": Chip(
        kind="TPU v6 lite",
        memory=31.24 * GIB,
        hbm=1638 * GIGA,
        ici=400 * GIGA,
        dcn=12.5 * GIGA,
        sizes=_FLAT,
        source=f"{DOCS}v6e: ICI 800 GB/s both ways, DCN 25.6 Tb/s a pod of 256",
    ),
}


@dataclass(frozen=True)
class Topology:
    """Slices of one size."""

    chip: Chip
    name: str  # such as v5e:16x16
    slices: int = 1

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(map(int, self.name.partition(":")[2].split("x")))

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.sides)


def parse_topology(name: str, slices: int = 1) -> Topology:
    """`KIND:SIZE`, as v5e:16x16. Raises KeftError."""
    check(name != "", "--topology", name, "give one, as v5e:16x16")
    check(slices >= 1, "--slices", slices, "use 1 or more")
    kind, _, size = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or size not in chip.sizes:
        known = CHIPS if chip is None else {kind: chip}
        offered = "; ".join(f"{k}: {', '.join(c.sizes)}" for k, c in known.items())
        every = [f"{k}:{s}" for k, c in known.items() for s in c.sizes]
        near = difflib.get_close_matches(re.sub(r"[-_ ]", ":", name), every, 1, 0.7)
        hint = f"did you mean {near[0]}? " if near else ""
        raise KeftError(f"--topology {name}: not known; {hint}there are {offered}")
    return Topology(chip, name, slices)
