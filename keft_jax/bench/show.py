"""What a person reads of a measured step: lines, and a picture."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import rich.console

from keft_jax.bench.flops import FORMULA
from keft_jax.files import write_atomic


def show(out: dict[str, Any]) -> None:
    """The lines before the JSON."""
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)

    def line(name: str, text: str) -> None:
        console.print(f"{name:<16}{text}", markup=False)

    if "shapes" in out:
        s, d = out["shapes"], out["device"]
        texts = [s["batch"], s["length"]]
        packed = "" if s["rows"] == texts else f" in {s['rows'][0]} rows of {s['rows'][1]}"
        line(
            out["name"],
            f"{out['input']} input, {s['task']}, {s['batch']} x {s['length']} tokens{packed}, "
            f"{s['layers']} layers of width {s['width']}, {s['parameters'] / 1e6:.1f}M parameters, "
            f"{s['dtype']}, {d['count']} x {d['kind']}, attention by {s['attention']}",
        )
        line("CPU s a step", f"{out['cpu_s_min']:.4f} at least, {out['cpu_s_median']:.4f} median")
        line("s a step", f"{out['step_s_median']:.4f} median, {out['step_s_p95']:.4f} 95 %")
        if len(out["repeats"]) > 1:
            line("repeats", f"{len(out['repeats'])}; medians differ by {out['spread']:.1%} at most")
        line(
            "throughput",
            f"{out['tokens_per_s']:,.0f} real tokens/s, {out['examples_per_s']:,.1f} examples/s; "
            f"{s['real_tokens'] / math.prod(s['rows']):.0%} of the slots hold a real token",
        )
        line(
            "MFU",
            f"{out['mfu']:.1%}: {out['flops_per_step'] / 1e9:.2f} useful GFLOPs a step, "
            f"{out['peak_flops'] / 1e9:,.0f} GFLOPs/s at most ({out['peak_known_by']})",
        )
        if out["bytes_per_step"]:
            line(
                "bytes",
                f"{out['bytes_per_s'] / 1e9:,.1f} GB/s a device: {out['bytes_per_step'] / 1e9:.2f} "
                "GB a step by the compiler's cost analysis",
            )
        line("memory", f"{out['peak_rss_mib']:,.0f} MiB peak RSS; device {rounded(out)}")
        line("compiling", f"{out['compile_s']:.1f} s, {out['compile_cpu_s']:.1f} CPU s")
    for name, part in out.get("parts", {}).items():
        line(
            f"  {name}",
            f"{part['cpu_s']:.4f} CPU s, {part['wall_s']:.4f} s"
            + (
                f"; x {part['ratio_cpu']:.3f} CPU, x {part['ratio_wall']:.3f} wall, of the step "
                "without it"
                if "ratio_cpu" in part
                else " (the rest)"
            ),
        )
    if "graph_ratio_cpu" in out:
        line(
            "graph + fusion",
            f"x {out['graph_ratio_cpu']:.3f} CPU, x {out['graph_ratio_wall']:.3f} wall, of the "
            "same step without both (medians of alternating pairs)",
        )
    if "host_input" in out:
        h = out["host_input"]
        line(
            "host input",
            f"{h['examples_per_cpu_s']:,.0f} examples a CPU second (text {h['text_us']:.0f} us, "
            f"subgraphs {h['subgraphs_us']:.0f} us, batches {h['batches_us']:.0f} us an example)",
        )
        if "headroom" in h:
            line(
                "",
                f"{h['headroom']:,.1f} times what the step takes, on one core; the batches alone "
                f"{h['headroom_batches']:,.1f} times",
            )
    if "shapes" in out:
        console.print(FORMULA, markup=False, style="dim")


def rounded(out: dict[str, Any]) -> str:
    memory = out["device_memory_mib"]
    return ", ".join(f"{name} {value:,.0f} MiB" for name, value in memory.items()) or "unknown"


def plot(out: dict[str, Any], file: str | Path) -> None:
    """What the parts take, and every timed step of the whole: a picture in the format of the
    file's name. Seconds are CPU seconds on a CPU, else wall seconds."""
    import matplotlib.figure

    clock = "cpu" if out["device"]["platform"] == "cpu" else "wall"
    unit = {"cpu": "CPU ms", "wall": "ms"}[clock]
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(reversed(out["parts"]))  # the text first
    took = np.array([1e3 * out["parts"][name][f"{clock}_s"] for name in names])
    begin = np.concatenate([[0], np.cumsum(took)[:-1]])
    bars = left.barh(range(len(names)), took, left=begin, color="#4477aa")
    left.bar_label(bars, [f"{value:.1f}" for value in took], padding=3, fontsize=9)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.margins(x=0.12)
    left.set_xlim(left=0)
    left.set_xlabel(f"{unit} a step")
    left.set_title("What each part adds", fontsize=10)
    steps = 1e3 * np.array(out["times"][clock])
    right.plot(np.arange(1, len(steps) + 1), steps, "o", ms=4, color="#4477aa")
    for value, style, name in (
        (np.median(steps), "-", "median"),
        (np.quantile(steps, 0.95), "--", "95 %"),
    ):
        right.axhline(value, ls=style, lw=1, color="#333333", label=f"{name} {value:.1f}")
    right.set_ylim(bottom=0, top=1.25 * steps.max())
    right.set_xlabel("timed step")
    right.set_ylabel(unit)
    right.set_title("Steps of the whole", fontsize=10)
    right.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    s, d = out["shapes"], out["device"]
    figure.suptitle(
        f"{out['name']}: {s['batch']} x {s['length']} tokens, {s['parameters'] / 1e6:.0f}M "
        f"parameters, {s['dtype']}, {d['count']} x {d['kind']}, MFU {out['mfu']:.0%}",
        fontsize=11,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(file).suffix.lstrip(".") or "png", dpi=150)
    write_atomic(file, picture.getvalue())
