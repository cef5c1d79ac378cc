"""What a step takes at the least, from what it computes and moves and what the chips can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from keft_jax.aot.chips import Topology
from keft_jax.bench.collectives import DCN, Collective

FORMULA = """\
seconds a step, at the least, of
  compute  useful FLOPs of a chip (4/3 of them with encoder.remat=full) / peak FLOPs/s
  hbm      (what a chip holds between steps but tables, read and written; temporaries, written and
           read) / HBM bytes/s
  ici      bytes through a chip's links to the other n - 1 chips of a group / ICI bytes/s:
           all-reduce 2 (n-1)/n of its operands, reduce-scatter (n-1)/n, all-gather n-1,
           collective-permute 1, all-to-all (n-1)/n times the mean number of links on the way
  dcn      bytes of the operands between slices / DCN bytes/s
a step takes between the largest, where all overlap, and their sum, where nothing does; MFU = useful
FLOPs / (peak FLOPs/s x seconds)"""


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one chip."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def one_by_one(self) -> float:
        return self.compute + self.hbm + self.ici + self.dcn


def estimate(
    topology: Topology,
    dtype: str,
    flops: float,
    hbm: float,
    collectives: Iterable[Collective],
) -> Roofline:
    """flops, hbm: of a chip; dtype: of the matmuls, as the chip's peaks are named."""
    chip, ici, dcn = topology.chip, 0.0, 0.0
    for one in collectives:
        if one.kind.startswith(DCN):
            dcn += one.bytes * one.count
        else:
            ici += one.bytes * one.count * links(one, topology)
    return Roofline(flops / chip.peaks[dtype], hbm / chip.hbm, ici / chip.ici, dcn / chip.dcn)


def links(one: Collective, topology: Topology) -> float:
    """Bytes over a chip's links for a byte of a collective's operands."""
    n = one.group or topology.chips
    match one.kind.removeprefix("ragged-"):
        case "all-reduce":
            return 2 * (n - 1) / n
        case "all-gather":
            return n - 1
        case "reduce-scatter":
            return (n - 1) / n
        case "all-to-all":
            # A ring of k is k / 4 links across on average, a line of k a third of k.
            ring = 4 if len(topology.sides) == 3 else 16  # sides of such a multiple are closed
            hops = sum(k / (3 if k % ring else 4) for k in topology.sides if k > 1)
            return (n - 1) / n * max(hops, 1)
    return 1.0
