"""`keft compile`: what a training step takes on TPUs that are not there, as text and as one JSON
object."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import rich.console

from keft_jax.aot.chips import GIB, Topology, parse_topology
from keft_jax.aot.compiler import DoesNotFitError, compile_lowered
from keft_jax.aot.memory import local_shape, split_memory
from keft_jax.aot.program import Program, lower
from keft_jax.aot.roofline import FORMULA, Roofline, estimate
from keft_jax.bench import collectives as moved
from keft_jax.bench import flops as useful
from keft_jax.bench.collectives import (
    Collective,
    count_bytes,
    find_as_large,
    find_collectives,
    find_gathered,
)
from keft_jax.bench.hlo import parse
from keft_jax.config import Config

HELD = ("parameters", "optimizer moments", "average of parameters")
"""What a step reads and writes all of."""


def compile_ahead(config: Config, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the config's training step for so many slices of a topology; prints what a person
    reads and gives what a program reads. Raises DoesNotFitError, whose `report` is what is known
    then, and KeftError."""
    of = parse_topology(topology, slices)
    program = lower(config, of)
    begin = time.perf_counter()
    out: dict[str, Any] = {
        "name": config.name,
        "topology": of.name,
        "slices": of.slices,
        "chips": of.chips,
        "mesh": dict(program.mesh.shape),
        "batch": config.optim.batch,
        "length": config.data.buckets[-1],
    }
    try:
        compiled, text, complaints = compile_lowered(program.lowered, of)
    except DoesNotFitError as error:
        error.report = out | {
            "fits": False,
            "needed_bytes": error.needed,
            "hbm_bytes": error.memory,
            "over_bytes": error.needed - error.memory,
        }
        raise
    out["compile_s"] = round(time.perf_counter() - begin, 1)
    out |= analyse(config, of, program, compiled, text) | {
        "rematerialized": len(complaints),
        "complaints": complaints[:4],
    }
    show(out)
    return out


def analyse(
    config: Config, of: Topology, program: Program, compiled: Any, text: str
) -> dict[str, Any]:
    """What the compiled program says of itself."""
    memory = split_memory(program.state, program.frozen, program.batch, compiled.memory_analysis())
    module, cost = parse(text), compiled.cost_analysis() or {}
    found = find_collectives(module)
    flops = program.flops["total"] / program.mesh.size
    hbm = sum(memory.get(name, 0) for name in ("frozen", "batch"))
    hbm += 2 * sum(memory.get(name, 0) for name in (*HELD, "temporaries"))
    dtype = config.encoder.dtype.replace("mixed", "bfloat16")
    again = 4 / 3 if config.encoder.remat == "full" else 1.0
    times = estimate(of, dtype, again * flops, hbm, found)
    # A parameter that is as large by chance may be gathered over fsdp where it is used.
    blocks = _shapes([table.value for table in program.state.tables.values()])
    blocks -= _shapes(program.state.params)
    # Whatever has been made of a table before: found where no parameter is as large.
    sizes = [leaf.size for leaf in jax.tree.leaves(program.state.params)]
    wholes = [t.value.size for t in program.state.tables.values() if t.value.size > max(sizes)]
    large = find_as_large(found, min(wholes)) if wholes else []
    by_kind = count_bytes(found)
    return {
        "fits": True,
        "hbm_bytes": of.chip.memory,
        "used_bytes": sum(memory.values()),
        "memory": memory,
        "useful_flops": flops,
        "compiler_flops": cost.get("flops", 0.0),
        "compiler_bytes": cost.get("bytes accessed", 0.0),
        "collective_bytes": sum(by_kind.values()),
        "collectives": summarise(found),
        "loops_of_unknown_length": module.runs()[1],
        "gathers": find_gathered(module, ("state.tables", "state.opt_state")) + large,
        "moves_a_table": sorted(blocks & {a for one in found for a in one.operands}),
        **_times(times, flops, of.chip.peaks[dtype]),
        "constants": {
            "peak_flops": of.chip.peaks[dtype],
            "hbm_bytes_per_s": of.chip.hbm,
            "ici_bytes_per_s": of.chip.ici,
            "dcn_bytes_per_s": of.chip.dcn,
            "source": of.chip.source,
        },
    }


def _shapes(tree: Any) -> set[str]:
    return {f"f32[{','.join(map(str, local_shape(leaf)))}]" for leaf in jax.tree.leaves(tree)}


def summarise(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """By kind and by what is moved: how many a step, and bytes of a chip."""
    groups: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for one in found:
        groups[one.kind, _purpose(one)].append(one)
    return [
        {
            "kind": kind,
            "of": purpose,
            "count": sum(one.count for one in ones),
            "bytes": sum(one.bytes * one.count for one in ones),
            "largest": max(ones, key=lambda one: one.bytes).operands[:3],
        }
        for (kind, purpose), ones in sorted(groups.items())
    ]


def _purpose(one: Collective) -> str:
    """gradients: made for the backward pass; forward: for the forward one; else step."""
    if "transpose(" in one.source:
        return "gradients"
    return "forward" if "jvp(" in one.source else "step"


def _times(times: Roofline, flops: float, peak: float) -> dict[str, Any]:
    least, most = times.overlapped, times.one_by_one
    return {
        "seconds": {
            "compute": times.compute,
            "hbm": times.hbm,
            "ici": times.ici,
            "dcn": times.dcn,
            "overlapped": least,
            "one_by_one": most,
        },
        "mfu": {"overlapped": flops / peak / least, "one_by_one": flops / peak / most},
    }


def show(out: dict[str, Any]) -> None:
    """The lines before the JSON."""
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)

    def line(name: str, text: str) -> None:
        console.print(f"{name:<16}{text}", markup=False)

    slices = f"{out['slices']} slices of " if out["slices"] > 1 else ""
    mesh = " x ".join(f"{axis} {n}" for axis, n in out["mesh"].items() if n > 1)
    line(
        out["name"],
        f"{slices}{out['topology']}, {out['chips']} chips ({mesh}), {out['batch']} x "
        f"{out['length']} tokens a step; compiled in {out['compile_s']} s",
    )
    line(
        "memory a chip",
        f"fits: {out['used_bytes'] / GIB:.2f} of {out['hbm_bytes'] / GIB:.2f} GiB",
    )
    for name, size in out["memory"].items():
        console.print(f"  {name:<24}{size / 1e6:>12,.1f} MB")
    line(
        "work a chip",
        f"{out['useful_flops'] / 1e9:,.1f} useful GFLOPs; the compiler's count, a loop's body "
        f"once: {out['compiler_flops'] / 1e9:,.1f} GFLOPs, {out['compiler_bytes'] / 1e9:,.1f} GB",
    )
    line("collectives", f"{out['collective_bytes'] / 1e6:,.1f} MB a chip and step")
    for one in out["collectives"]:
        console.print(
            f"  {one['kind'] + ', ' + one['of']:<36}{one['count']:>5} x, "
            f"{one['bytes'] / 1e6:>10,.2f} MB  {' '.join(one['largest'])}",
            markup=False,
        )
    whole = [*out["gathers"], *out["moves_a_table"]]
    line("made whole", f"tables and moments: {', '.join(whole) or 'none'}")
    line("partitioner", f"{out['rematerialized']} involuntary full rematerializations")
    for complaint in out["complaints"]:
        console.print(f"  {complaint[:400]}", markup=False)
    if out["loops_of_unknown_length"]:
        line("loops", f"{out['loops_of_unknown_length']} of unknown length count once")
    s, m, c = out["seconds"], out["mfu"], out["constants"]
    line(
        "estimate",
        f"{1e3 * s['overlapped']:.1f} to {1e3 * s['one_by_one']:.1f} ms a step, MFU "
        f"{m['overlapped']:.0%} to {m['one_by_one']:.0%}: compute {1e3 * s['compute']:.1f}, "
        f"HBM {1e3 * s['hbm']:.1f}, ICI {1e3 * s['ici']:.1f}, DCN {1e3 * s['dcn']:.1f} ms",
    )
    line(
        "constants",
        f"{c['peak_flops'] / 1e12:,.0f} TFLOPs/s, HBM {c['hbm_bytes_per_s'] / 1e9:,.0f} GB/s, "
        f"ICI {c['ici_bytes_per_s'] / 1e9:,.0f} GB/s, DCN {c['dcn_bytes_per_s'] / 1e9:,.3g} GB/s "
        f"({c['source']})",
    )
    console.print("\n".join((FORMULA, moved.FORMULA, useful.FORMULA)), markup=False, style="dim")
