"""`keft init`: a config for a graph and a text file of one's own, with every guess said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from keft_jax.config import DataConfig, KeftError
from keft_jax.data.source import read_examples
from keft_jax.files import write_atomic
from keft_jax.init.budgets import measure_sizes
from keft_jax.init.columns import Columns, Guess, exists, guess_columns
from keft_jax.init.template import render
from keft_jax.kg.disk import is_graph
from keft_jax.kg.io import Report, build_kg
from keft_jax.kg.store import KG

_SHOWN = 3  # malformed lines of the graph


@dataclass(frozen=True)
class Made:
    """What `keft init` came to."""

    out: Path
    columns: Columns
    guesses: list[Guess]


def init(
    kg: str,
    text: str,
    out: str,
    *,
    aliases: str = "",
    pretrained: str = "",
    tfds_dir: str = "",
    told: dict[str, str] | None = None,
    force: bool = False,
) -> Made:
    """Writes a config to `out`. `told`: columns that the user names (text, label, answers, entity,
    cluster); `tfds_dir`: folder of prepared TFDS data sets. Raises KeftError where a file is not
    there, or nothing can be asked of the text."""
    target = Path(out)
    if target.suffix != ".py":
        raise KeftError(f"--out {out}: a config is a Python file; end its name in .py")
    if target.exists() and not force:
        raise KeftError(f"--out {out}: exists; name another file, or overwrite it with --force")
    if not exists(text):
        raise KeftError(f"--text {text}: no such file")
    graph, report = read_graph(kg, aliases)
    others = {*graph.alias_table()[0]}
    columns = guess_columns(
        text, lambda name: graph.find(name) is not None or name in others, told or {}, tfds_dir
    )
    kgqa = columns.task == "kgqa"
    if kgqa:
        from keft_jax.tasks.kinds import MAX_ENTITIES

        if graph.n_entities > MAX_ENTITIES:
            raise KeftError(
                f"--kg {kg}: {graph.n_entities:,} entities, and questions score at most "
                f"{MAX_ENTITIES:,}; give a smaller graph, or ask for a label with --label"
            )
    examples = read_examples(
        text,
        DataConfig(**columns.fields),
        need=("answers",) if kgqa else ("label",),
    )
    if len(examples) < 20:
        raise KeftError(
            f"{text}: {len(examples)} examples; to train, choose and report takes 20 or more"
        )
    sizes, said = measure_sizes(
        examples, graph, kgqa=kgqa, given=columns.given, pretrained=bool(pretrained)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    page = render(target, kg, text, aliases, pretrained, columns, sizes, len(examples))
    write_atomic(target, page.encode())
    size = f"{graph.n_entities:,} entities, {graph.n_relations:,} relations, "
    first = [Guess("graph", kg, size + f"{graph.n_triples:,} facts")]
    if report.malformed_lines:
        first.append(Guess("malformed", f"{report.malformed_lines:,} lines", _list(report)))
    whole = "" if columns.whole else f"; columns are told from the first {columns.records:,}"
    first += [Guess("examples", f"{len(examples):,}", f"in {text}{whole}")]
    return Made(target, columns, first + columns.guesses + said)


def read_graph(kg: str, aliases: str = "") -> tuple[KG, Report]:
    """A folder of ours, or a file of triples and what was left out of it."""
    if Path(kg).is_dir():
        if not is_graph(Path(kg)):
            raise KeftError(f"--kg {kg}: a folder, but no graph; give a file of triples in it")
        if aliases:
            raise KeftError(f"--aliases {aliases}: the folder {kg} has its own; leave it out")
        return KG.load(kg), Report()
    return build_kg([kg], aliases=aliases or None)


def _list(report: Report) -> str:
    shown = [f"{file}:{line}: {why}" for file, line, why in report.malformed[:_SHOWN]]
    more = ", ..." if report.malformed_lines > len(shown) else ""
    return f"left out: {', '.join(shown)}{more}"


def show(made: Made, console: Console) -> None:
    """What was assumed, why, and what else it could have been; then what to do next."""
    for guess in made.guesses:
        others = f"; others that could be: {', '.join(guess.others)}" if guess.others else ""
        line = Text.assemble((f"{guess.what:18}", "dim"), guess.value, f"  ({guess.why}{others})")
        console.print(line, soft_wrap=True)
    console.print(
        f"\nwrote {made.out}; read it, then:\n"
        f"  keft doctor --config {made.out}\n"
        f"  python train.py --config {made.out}\n"
        f"  keft gain --config {made.out}",
        markup=False,
        soft_wrap=True,
    )
