"""The commands of `keft` that build graphs and prepare data sets from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from keft_jax.options import parse


@dataclass(frozen=True)
class Build:
    """Builds a graph from files of head, relation, tail: TSV or CSV, .gz too, or Parquet."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files of triples."""
    out: str
    """Folder to write; a graph that stands there is replaced when the new one is complete."""
    aliases: str = ""
    """Two-column TSV: entity, other name."""
    descriptions: str = ""
    """Two-column TSV: entity, description."""
    strict: bool = False
    """Stop at the first malformed line instead of counting it."""


def kg_build(argv: Sequence[str]) -> int:
    from keft_jax.kg import build_kg

    own = parse(Build, argv, prog="keft kg build")
    kg, report = build_kg(
        list(own.sources),
        aliases=own.aliases or None,
        descriptions=own.descriptions or None,
        strict=own.strict,
    )
    kg.save(own.out)
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    console.print(
        f"{own.out}: {kg.n_triples:,} triples, {kg.n_entities:,} entities, {kg.n_relations:,} "
        f"relations ({report.duplicates:,} duplicate and {report.malformed_lines:,} malformed "
        f"lines left out)"
    )
    for file, line, reason in report.malformed:
        console.print(f"  {file}:{line}: {reason}", markup=False)
    if report.malformed_lines > len(report.malformed):
        console.print(f"  ... and {report.malformed_lines - len(report.malformed):,} more")
    return 0


@dataclass(frozen=True)
class Info:
    """Says what a graph holds: counts, degrees, the most frequent relations."""

    kg: Annotated[str, tyro.conf.Positional]
    """A folder from `keft kg build`."""
    json: bool = False
    """One JSON object instead of a table."""
    verify: bool = False
    """Check every file against its checksum first."""


def kg_info(argv: Sequence[str]) -> int:
    from keft_jax.kg import KG, describe

    own = parse(Info, argv, prog="keft kg info")
    facts = describe(KG.load(own.kg, verify=own.verify))
    if own.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, dict):
            text = "  ".join(f"{k}: {v:,}" for k, v in value.items())
        else:
            text = f"{value:,.2f}" if isinstance(value, float) else str(value)
            text = f"{value:,}" if isinstance(value, int) else text
        table.add_row(name.replace("_", " "), text)
    Console(highlight=False, emoji=False).print(table)
    return 0


@dataclass(frozen=True)
class Tfds:
    """Prepares a TFDS data set from files of examples, in array_record: no TensorFlow. The config
    then reads it by --data.train=tfds:NAME:SPLIT. One that keft made before is replaced."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set. keft_GENERATOR (docs/data-sets.md) is made from a folder of raw files;
    keft_quickstart makes its own source."""
    source: tuple[str, ...] = ()
    """Files of examples, one for each split: FILE or SPLIT=FILE. Or their folder, with its graph in
    kg, aliases, descriptions and attributes. For keft_GENERATOR: its folder of raw files."""
    kg: str = ""
    """File of the graph to place beside the splits, as it is."""
    lists: tuple[str, ...] = ()
    """Columns of TSV and CSV whose cells hold several values, with | between them."""
    header: bool = True
    """Whether the first row of TSV and CSV names the columns; if not, they are called 1, 2, ..."""
    data_dir: str = ""
    """Folder of prepared data sets (default: TFDS's own, ~/tensorflow_datasets)."""


def tfds(argv: Sequence[str]) -> int:
    own = parse(Tfds, argv, prog="keft tfds")
    from keft_jax.data.tfds_builders import TableForm, prepare

    table = TableForm(own.lists, own.header)
    folder, reports = prepare(own.name, own.source, kg=own.kg, table=table, folder=own.data_dir)
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    for split, report in reports.items():
        console.print(f"tfds:{own.name}:{split}  {report.examples:,} records", markup=False)
        if report.malformed_lines:
            console.print(f"  {report.summary()}", markup=False)
    print(folder)
    return 0
