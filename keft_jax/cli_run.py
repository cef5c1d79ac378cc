"""The commands of `keft` that take a trained run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from keft_jax.config import KeftError, check
from keft_jax.options import parse


def _load(run: str, options: dict[str, tuple[Any, str]]) -> tuple[Any, bool]:
    """(the trained run, whether it is of link prediction). options: those that were given, and
    the kind of run that each is for."""
    import keft_jax

    model = keft_jax.load(run)
    links = isinstance(model, keft_jax.LinkPredictor)
    kind = "link prediction" if links else "text"
    for name, (given, wanted) in options.items():
        if given and wanted != kind:
            raise KeftError(f"--{name}: is for runs on {wanted}, {run} is one on {kind}; drop it")
    return model, links


@dataclass(frozen=True)
class Evaluate:
    """Scores a trained run: JSON, the last line of stdout."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory."""
    data: str = ""
    """A file with the fields of the run's data config; - for standard input. For link prediction:
    head, relation, tail by identifiers (default: the run's own test split)."""
    kg: str = ""
    """Another graph, or another version of the run's own: a folder from `keft kg build`."""
    by_relation: bool = False
    """Link prediction: a record for each relation too."""


def evaluate(argv: Sequence[str]) -> int:
    own = parse(Evaluate, argv, prog="keft evaluate")
    options = {"kg": (own.kg, "text"), "by-relation": (own.by_relation, "link prediction")}
    model, links = _load(own.run, options)
    if links:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("ranking", total=None)
            scores = model.evaluate(
                own.data or None,
                by_relation=own.by_relation,
                advance=lambda done, total: bar.update(task, advance=done, total=total),
            )
    else:
        check(bool(own.data), "data", own.data, "name a file to score")
        scores = model.evaluate(own.data, _load_kg(own.kg))
    print(json.dumps(scores, ensure_ascii=False))
    return 0


def _load_kg(folder: str) -> Any:
    from keft_jax.kg import KG

    return KG.load(folder) if folder else None


@dataclass(frozen=True)
class Predict:
    """Asks a trained run: a JSON line for each text or query."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory."""
    data: str
    """A file with the fields of the run's data config; - for standard input. For link prediction:
    lines of head, relation, ? or ?, relation, tail between tabs, or JSON lines with two of them."""
    kg: str = ""
    """Another graph, or another version of the run's own: a folder from `keft kg build`."""
    top: int | None = None
    """Answers to list (default: 5 of a text, 10 in link prediction)."""
    known: bool = False
    """Link prediction: list answers that the training triples give too."""


def predict(argv: Sequence[str]) -> int:
    own = parse(Predict, argv, prog="keft predict")
    options = {"kg": (own.kg, "text"), "known": (own.known, "link prediction")}
    model, links = _load(own.run, options)
    top = {} if own.top is None else {"top": own.top}
    if links:
        from keft_jax.link import read_queries

        records = model.predict(read_queries(own.data), known=own.known, **top)
    else:
        records = model.predict(model.read(own.data), _load_kg(own.kg), **top)
    for record in records:
        print(json.dumps(record, ensure_ascii=False))
    return 0


@dataclass(frozen=True)
class Similar:
    """Lists the entities whose vectors are nearest to an entity's, by their cosine."""

    run: Annotated[str, tyro.conf.Positional]
    """Directory of a run of link prediction, or embeddings: a folder from `keft export
    --embeddings`, or files of DGL-KE, OpenKE, word2vec, NumPy."""
    entity: Annotated[str, tyro.conf.Positional]
    """Its identifier, or its name."""
    top: int = 10
    """Entities to list."""
    json: bool = False
    """One JSON object instead of a table, as also where the output is no terminal."""


def similar(argv: Sequence[str]) -> int:
    own = parse(Similar, argv, prog="keft similar")
    check(own.top >= 1, "top", own.top, "use 1 or more")
    from keft_jax.kg.embeddings import read_embeddings
    from keft_jax.kg.find import find_similar

    if (Path(own.run) / "inputs.json").is_file():
        from keft_jax.link import load_links

        found = load_links(own.run).similar(own.entity, own.top)
    else:
        found = find_similar(read_embeddings(own.run), own.entity, own.top)
    console = Console(highlight=False, emoji=False)
    if own.json or not console.is_terminal:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    table = Table(box=None, title=f"nearest to {found['name']}, by the cosine of vectors")
    for name in ("cosine", "entity", "name"):
        table.add_column(name, justify="left")
    for entity, name, cosine in found["similar"]:
        table.add_row(f"{cosine:.4f}", Text(entity), Text(name))
    console.print(table)
    return 0


@dataclass(frozen=True)
class Export:
    """Writes a trained run as a folder that transformers loads: the text encoder and its tokenizer.
    What else the run has learned is in OUT/knowledge; keft_jax.load(OUT) gives all of it back. A
    run of link prediction is written as embeddings."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory."""
    out: str
    """Folder to write; must not be there, or be empty."""
    embeddings: bool = False
    """Write the vectors of a run of link prediction: safetensors, NumPy, TSV of identifiers."""


def export(argv: Sequence[str]) -> int:
    own = parse(Export, argv, prog="keft export")
    from keft_jax.export import export as write
    from keft_jax.export import export_embeddings

    (export_embeddings if own.embeddings else write)(own.run, own.out)
    Console(stderr=True, highlight=False, emoji=False).print(f"exported to {own.out}", markup=False)
    return 0
