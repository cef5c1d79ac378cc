"""Files of examples made into TFDS data sets, in array_record and without TensorFlow.

Importing this takes the time of importing TFDS: import it where it is used.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from keft_jax.config import KeftError
from keft_jax.data.generators import GENERATORS
from keft_jax.data.records import SourceReport, read_records, require_file
from keft_jax.data.tfds import READABLE, data_dir

VERSION = "1.0.0"
GRAPH = ("kg", "aliases", "descriptions", "attributes")
"""Files of a folder that are the graph's, by their names without a suffix; copied as they are."""
SUFFIXES = (".jsonl", ".ndjson", ".tsv", ".csv", ".parquet")
"""Files of a folder that are splits; text may be .gz."""
OWN = "keft_"
"""A data set called so and after a generator is what that one makes of its raw files."""
METAQA = {"train": "1hop-train.jsonl.gz", "valid": "1hop-valid.jsonl.gz"}
Kinds = Mapping[str, str]
"""Field -> "text", "list" (of texts) or "json" (anything deeper, as text)."""


@dataclass(frozen=True)
class TableForm:
    """How the TSV and CSV among the sources are read."""

    lists: tuple[str, ...] = ()
    """Columns whose cells hold several values, with `|` between them."""
    header: bool = True
    """Whether the first row names the columns; if not, they are called 1, 2, ..."""


class RecordsBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """A data set with the records of files, in their order: a field is a Text, or a sequence of
    Text where it holds lists. A number is its JSON; a field that a record lacks is empty."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = None
    """No checksums: nothing is downloaded. TFDS would look for them by way of importlib_resources,
    which it does not ask to be installed."""

    def __init__(self, name: str, splits: Mapping[str, Path], table: TableForm, root: Path):
        """Reads the files once for the fields they have; `reports` then counts what they hold.

        Args:
          name: of the data set.
          splits: split -> its file.
          table: how TSV and CSV are read.
          root: folder of data sets to write to.

        Raises:
          KeftError: a file that cannot be read or holds no record.
        """
        self.name = name
        self.splits, self.table = splits, table
        self.reports = {split: SourceReport() for split in splits}
        self.kinds = _kinds(
            record
            for split, file in splits.items()
            for record in _records(file, table, self.reports[split])
        )
        super().__init__(data_dir=root, file_format=READABLE)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            name: tfds.features.Sequence(text) if kind == "list" else text
            for name, kind in self.kinds.items()
        }
        return _Info(
            builder=self,
            description=f"Made by keft_jax from {', '.join(f.name for f in self.splits.values())}.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(file) for split, file in self.splits.items()}

    def _generate_examples(self, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(_records(file, self.table, SourceReport())):
            yield number, {name: _cast(record.get(name), k) for name, k in self.kinds.items()}


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Asks nobody: TFDS would look for the set on the net, and leave a temporary folder."""


def prepare(
    name: str,
    sources: Sequence[str],
    *,
    kg: str = "",
    table: TableForm = TableForm(),
    folder: str = "",
) -> tuple[Path, dict[str, SourceReport]]:
    """Prepares a data set whole, or leaves what was there.

    Args:
      name: of the data set. The source of `keft_NAME`, for a generator NAME (data/generators.py),
        is its folder of raw files; `keft_quickstart` needs none. The folder of `keft_metaqa` has
        that data's own names of files.
      sources: files (a split is called after its file, or `SPLIT=FILE`), or one folder of them.
      kg: file of the graph to place beside the splits; a folder's own is found.
      table: how TSV and CSV are read.
      folder: folder of data sets; "": TFDS's own.

    Returns:
      The folder of the data set's version, and what each split came to.

    Raises:
      KeftError: a source that is not there, damaged or empty; a name that TFDS cannot take or that
        belongs to a data set which was not made here.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise KeftError(f"{name}: no name of a data set; use a-z, 0-9 and _, a letter first")
    root = data_dir(folder)
    target = root / name / VERSION
    _recover(target)
    if target.exists() and not _is_ours(target):
        raise KeftError(f"{target}: a data set that keft did not make; use another name")
    try:
        root.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}-"))
    except OSError as error:
        raise KeftError(f"{root}: cannot write there ({error.strerror}); set --data_dir") from error
    try:
        generator = GENERATORS.get(name.removeprefix(OWN)) if name.startswith(OWN) else None
        if generator:
            if len(sources) > 1:
                raise KeftError(f"--source: {len(sources)} given; {name} is made from one folder")
            generator(sources[0] if sources else "", temp / "source")
            sources = [str(temp / "source")]
        splits, graph = _find(name, sources)
        graph += [require_file(Path(kg))] if kg else []
        builder = RecordsBuilder(name, splits, table, temp)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # tells of the temporary folder
            builder.download_and_prepare()
        made = temp / name / VERSION
        for file in graph:
            shutil.copy(file, made / file.name)
        _put(made, target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return target, builder.reports


def _put(made: Path, target: Path) -> None:
    """The old set stands aside until the new one is in its place, and `_recover` finds it there."""
    aside = _aside(target)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(made, target)
    finally:
        _recover(target)


def _recover(target: Path) -> None:
    """After `_put`, finished or killed at any moment: one set is there, nothing beside it."""
    aside = _aside(target)
    if not target.exists() and aside.exists():
        os.rename(aside, target)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _is_ours(target: Path) -> bool:
    try:
        meta = json.loads((target / "dataset_info.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and meta.get("moduleName") == __name__


def _find(name: str, sources: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """(split -> file, files of the graph)."""
    if not sources:
        raise KeftError(f"--source: none for {name}; give files with examples, or their folder")
    first = Path(sources[0])
    if first.is_dir() and len(sources) > 1:
        raise KeftError(f"{first}: a folder among other sources; give it alone, or name its files")
    if first.is_dir():
        files = sorted(file for file in first.iterdir() if file.is_file())
        graph = [file for file in files if _stem(file) in GRAPH]
        if name == "keft_metaqa":
            return {split: require_file(first / file) for split, file in METAQA.items()}, graph
        named = [(_stem(f), f) for f in files if f not in graph and _suffix(f) in SUFFIXES]
    else:
        graph, named = [], []
        for source in sources:
            split, equals, place = source.rpartition("=")
            path = require_file(Path(place))
            named.append((split if equals else _stem(path), path))
    splits: dict[str, Path] = {}
    for split, file in named:
        if not re.fullmatch(r"[\w-]+", split) or split == "all":
            raise KeftError(f"{file}: {split!r} is no name of a split; give SPLIT={file}")
        if split in splits:
            raise KeftError(f"{file}: {splits[split]} is the split {split!r} too; give SPLIT=FILE")
        splits[split] = file
    if not splits:
        raise KeftError(f"{first}: no file of examples; give one of {', '.join(SUFFIXES)}")
    return splits, graph


def _stem(file: Path) -> str:
    return file.name.partition(".")[0]


def _suffix(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _records(file: Path, table: TableForm, report: SourceReport) -> Iterator[dict[str, Any]]:
    """The records that can be written; the others are counted in the report."""
    report.path = str(file)
    for line, record in read_records(
        file, report, text="text" if table.header else "1", lists=table.lists
    ):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            report.add(line, f"cannot be written ({error})")
            continue
        odd = next((name for name in record if not name or "/" in name), None)
        if odd is not None:
            raise KeftError(f"{file}:{line}: field {odd!r}: TFDS takes no such name; rename it")
        report.examples += 1
        yield record
    if not report.examples:
        why = f"line {report.malformed[0][1]}: {report.malformed[0][2]}" if report.malformed else ""
        raise KeftError(f"{file}: holds no record{f' ({why})' if why else ''}; leave it out")


def _kinds(records: Iterator[dict[str, Any]]) -> dict[str, str]:
    out: dict[str, str] = {}
    order = ("text", "list", "json")
    for record in records:
        for name, value in record.items():
            values = value if isinstance(value, list) else [value]
            deep = any(isinstance(item, list | dict) for item in values)
            kind = "json" if deep else "list" if isinstance(value, list) else "text"
            out[name] = max(out.get(name, "text"), kind, key=order.index)
    return out


def _cast(value: Any, kind: str) -> Any:
    if kind == "list":
        values = value if isinstance(value, list) else [value]
        return [_text(item) for item in values if item is not None]
    return _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
