"""The data sets that this project can make from their raw files, in one table."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from keft_jax.config import KeftError

Generator = Callable[[str, Path], None]
"""(folder of raw files, folder for the files that are made). Raises KeftError with what is missing
or wrong, by file and line."""


def _of(module: str) -> Generator:
    """Its `generate`; imported when it runs, since each needs what the others do not."""

    def generate(source: str, folder: Path) -> None:
        import_module(f"keft_jax.data.{module}").generate(source, folder)

    return generate


def _quickstart(source: str, folder: Path) -> None:
    from keft_jax.data import quickstart

    if source:
        raise KeftError(f"data.source = {source!r}: quickstart reads no raw files; leave it out")
    quickstart.generate(folder)


GENERATORS: dict[str, Generator] = {
    "quickstart": _quickstart,
    "sst2": _of("sst2"),
    "fewrel": _of("fewrel"),
    "semeval": _of("semeval"),
    "typing": _of("typing"),
    "commonsense": _of("commonsense"),
    "squad": _of("squad"),
    "wikigold": _of("wikigold"),
    "cola": _of("cola"),
    "wikialigned": _of("wikialigned"),
    "wikitext": _of("wikitext"),
}
"""data.generator -> what makes the files of a data set."""
