"""The `keft` command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from keft_jax.cli_data import kg_build, kg_info, tfds
from keft_jax.cli_run import evaluate, export, predict, similar
from keft_jax.config import Config, KeftError, check
from keft_jax.options import (
    ConfigOptions,
    config_stem,
    parse,
    run_main,
    take_config,
    with_examples,
)


@dataclass(frozen=True)
class Gain:
    """Measures what the knowledge of --config FILE[:ARG] is worth: the same model with none,
    dictionary-only, shuffled, random and true knowledge, over several seeds. The same command again
    resumes."""

    config: ConfigOptions
    workdir: str = ""
    """The table's directory (default: runs/CONFIG-gain-HASH)."""
    vary: Literal["", "kge", "knowledge"] = ""
    """Beside the other rows, kge: each model of triple embeddings as what entities start from.
    knowledge: other ways of using the graph, in the text, by triples and by attributes."""
    examples: str = ""
    """Numbers of training examples, as 32,100,all: a table for each and one report of them all."""
    corrupt: str = ""
    """Shares of wrong facts, as 0,.1,.3: the row `true` at each, and `none`."""
    drop: str = ""
    """Shares of missing facts, likewise."""

    def table(self) -> Config:
        """The config with what the options above say."""
        from keft_jax.gain.variants import with_all_models, with_all_ways

        added = {"kge": with_all_models, "knowledge": with_all_ways}
        config = added[self.vary](self.config) if self.vary else self.config
        if not (self.corrupt or self.drop):
            return config
        gain = dataclasses.replace(
            config.gain,
            rows=("none", "true"),
            corrupt=read_shares("corrupt", self.corrupt),
            drop=read_shares("drop", self.drop),
        )
        return dataclasses.replace(config, gain=gain)


def read_shares(name: str, text: str) -> tuple[float, ...]:
    """`0,.1,.3` -> numbers. Raises KeftError."""
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError as error:
        raise KeftError(f"--{name} {text}: {error}; give shares, as 0,.1,.3") from error


def gain(argv: Sequence[str]) -> int:
    spec, config_of_file, rest = take_config(argv)
    own = parse(Gain, rest, prog="keft gain", default=Gain(config_of_file))
    from keft_jax.gain.cells import table_hash

    config = own.table()
    short = table_hash(dataclasses.asdict(config))[:8]
    kind = "examples" if own.examples else "gain"
    folder = Path(own.workdir or f"runs/{config_stem(spec)}-{kind}-{short}")
    if not own.examples:
        from keft_jax.gain.run import run_gain

        run_gain(config, folder)
        return 0
    from keft_jax.gain.curve import run_examples

    configs = {}
    for number in own.examples.split(","):
        with_number = Gain(with_examples(spec, config_of_file, number))
        configs[number] = parse(Gain, rest, prog="keft gain", default=with_number).table()
    run_examples(configs, folder)
    return 0


@dataclass(frozen=True)
class Merge:
    """Joins the cells of several gain tables (other seeds or rows, all else equal)."""

    tables: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories of gain tables."""
    out: str
    """Directory for the joint summary.json, report.html and gain.png."""


def gain_merge(argv: Sequence[str]) -> int:
    own = parse(Merge, argv, prog="keft gain-merge")
    from keft_jax.gain.finish import merge_tables

    merge_tables([Path(t) for t in own.tables], Path(own.out))
    return 0


@dataclass(frozen=True)
class Bench:
    """Times the training step of a config: JSON, the last line of stdout. Without data files the
    input is made up. For figures to compare, pin one thread:
    OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 keft bench ..."""

    config: ConfigOptions
    steps: int = 10
    """Steps timed."""
    warmup: int = 2
    """Steps before them."""
    repeats: int = 1
    """Times that so many steps are timed; how far their medians differ is told."""
    parts: bool = True
    """Time the step without each of its parts too: --no-parts leaves that out."""
    json: str = ""
    """File to write the JSON to as well."""
    plot: str = ""
    """Picture to draw, .png, .svg or .pdf: what the parts take, and every step."""
    input: bool = False
    """Time the host's side alone, the making of batches from the data files."""


def bench(argv: Sequence[str]) -> int:
    _, config, rest = take_config(argv)
    own = parse(Bench, rest, prog="keft bench", default=Bench(config))
    check(own.steps >= 1, "steps", own.steps, "use 1 or more")
    check(own.warmup >= 0, "warmup", own.warmup, "use 0 or more")
    check(own.repeats >= 1, "repeats", own.repeats, "use 1 or more")
    drawn = own.parts and not own.input
    check(drawn or not own.plot, "plot", own.plot, "draws the parts of a step; leave it out")
    from keft_jax.bench import run, show
    from keft_jax.files import write_atomic

    if own.input:
        out = run.bench_host(own.config)
    else:
        out = run.bench(own.config, own.steps, own.warmup, own.repeats, own.parts)
    if own.json:
        write_atomic(own.json, json.dumps(out, indent=2) + "\n")
    if own.plot:
        show.plot(out, own.plot)
    print(json.dumps(out))
    return 0


@dataclass(frozen=True)
class Compile:
    """Compiles the training step of --config FILE[:ARG] for TPUs that are not there, by libtpu:
    whether it fits, memory, FLOPs, collectives, an estimate of MFU. JSON, the last line of stdout;
    leaves with 1 where it does not fit."""

    config: ConfigOptions
    topology: str
    """KIND:SIZE of a slice, as v5e:16x16; KIND is v4, v5e, v5p or v6e."""
    slices: int = 1
    """Slices of that size. mesh.data goes over them, by the network between."""


def compile_step(argv: Sequence[str]) -> int:
    _, config, rest = take_config(argv)
    own = parse(Compile, rest, prog="keft compile", default=Compile(config, topology=""))
    from keft_jax.aot.run import DoesNotFitError, compile_ahead

    try:
        print(json.dumps(compile_ahead(own.config, own.topology, own.slices)))
    except DoesNotFitError as error:
        print(json.dumps(error.report))
        raise
    return 0


@dataclass(frozen=True)
class Init:
    """Writes a config for a graph and a text file of one's own, and says what it assumed and why.
    The options from --text-column on name columns that were guessed wrong."""

    kg: str
    """The graph: a file that `keft kg build` reads, or a folder that it made."""
    text: str
    """The examples: JSONL, TSV, CSV or Parquet (.gz too), or tfds:NAME:SPLIT."""
    out: str = "configs/own.py"
    """Config file to write."""
    aliases: str = ""
    """Two-column TSV: entity, other name."""
    pretrained: str = ""
    """Folder of a pre-trained encoder to start from."""
    tfds_dir: str = ""
    """Folder of prepared TFDS data sets. Empty: TFDS's own."""
    text_column: str = ""
    label: str = ""
    """Column with the class of each text."""
    answers: str = ""
    """Column with the right answers, as names of the graph."""
    entity: str = ""
    """Column with the entity that a text mentions."""
    cluster: str = ""
    """Column whose values group dependent examples."""
    force: bool = False
    """Overwrite a config that is there."""


def init(argv: Sequence[str]) -> int:
    own = parse(Init, argv, prog="keft init")
    from keft_jax import init as made_by
    from keft_jax.options import load_config

    roles = ("label", "answers", "entity", "cluster")
    told = {"text": own.text_column} | {role: getattr(own, role) for role in roles}
    made = made_by.init(
        own.kg,
        own.text,
        own.out,
        aliases=own.aliases,
        pretrained=own.pretrained,
        tfds_dir=own.tfds_dir,
        told={role: column for role, column in told.items() if column},
        force=own.force,
    )
    load_config(str(made.out))
    made_by.show(made, Console(highlight=False, emoji=False))
    return 0


@dataclass(frozen=True)
class Doctor:
    """Looks at the graph and the text of --config FILE[:ARG] before any training: coverage,
    ambiguity, hubs, leaks, what linear probes gain from the graph, what a run costs, a verdict."""

    config: ConfigOptions
    json: bool = False
    """One JSON object instead of a page."""
    seeds: int = 5
    """Resamples of the training examples for the probes; an interval over them needs 5."""
    no_cost: bool = False
    """Do not compile and time a step."""


def doctor(argv: Sequence[str]) -> int:
    _, config, rest = take_config(argv)
    own = parse(Doctor, rest, prog="keft doctor", default=Doctor(config))
    check(own.seeds >= 1, "seeds", own.seeds, "use 1 or more")
    from keft_jax.doctor import examine
    from keft_jax.doctor.show import show

    told = Console(stderr=True, highlight=False, emoji=False)
    report = examine(
        own.config,
        seeds=own.seeds,
        cost=not own.no_cost,
        say=lambda text: told.print(f"{text} ...", style="dim"),
    )
    if own.json:
        print(json.dumps(report, default=float))
    else:
        show(report, Console(highlight=False, emoji=False))
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "kg build": (kg_build, "build a graph from files of triples"),
    "kg info": (kg_info, "what a graph holds"),
    "tfds": (tfds, "prepare a TFDS data set from files, without TensorFlow"),
    "init": (init, "a config for a graph and a text file of one's own"),
    "doctor": (doctor, "what a graph covers, what to expect of it, what a run costs"),
    "gain": (gain, "what the knowledge was worth: controls, seeds, one table"),
    "gain-merge": (gain_merge, "one table from several"),
    "bench": (bench, "what a training step takes, and what its knowledge costs"),
    "compile": (compile_step, "what a training step takes on TPUs that are not there"),
    "evaluate": (evaluate, "a run's metrics on a labelled file, as JSON"),
    "predict": (predict, "a run's answers, as JSON lines"),
    "similar": (similar, "the nearest entities in a run's vectors, or in embeddings"),
    "export": (export, "a run as a folder that transformers loads, or as embeddings"),
}


def run(argv: Sequence[str]) -> int:
    for length in (2, 1):
        name = " ".join(argv[:length])
        if name in COMMANDS:
            return COMMANDS[name][0](argv[length:])
    if not argv or argv[0] in ("--help", "-h"):
        print("usage: keft COMMAND [OPTIONS]; keft COMMAND --help says more\n")
        for name, (_, what) in COMMANDS.items():
            print(f"  keft {name:<12} {what}")
        return 0 if argv else 2
    import difflib

    near = difflib.get_close_matches(" ".join(argv[:2]), COMMANDS, 1, 0.4)
    hint = f"did you mean keft {near[0]}?" if near else "see keft --help"
    raise KeftError(f"keft {argv[0]}: no such command; {hint}")


def main() -> None:
    sys.exit(run_main(lambda: run(sys.argv[1:])))
