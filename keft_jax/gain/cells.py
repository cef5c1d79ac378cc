"""What a gain run leaves on disk: one cell for each row and seed, the splits, and a manifest.

Layout of a table's directory (every file is written whole or not at all):

    manifest.json               task, metric, config, hashes of data and graph
    splits.npz                  clusters, patterns and slices of each split
    cells/<row>-<seed>.npz      values for each example, answers, curve, info

Strings are stored as JSON in a uint8 array, so no file needs pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import Config, KeftError
from keft_jax.files import write_atomic

# What may differ between runs that are read as one table: which cells they made, and their looks.
FREE = (
    *("name", "seed", "knowledge.row"),
    *("gain.rows", "gain.variants", "gain.corrupt", "gain.drop"),
    *("gain.seeds", "gain.bootstrap", "gain.explain"),
)
# And where files lie that the manifest has hashes of: a table may go on on another machine.
PLACES = ("data.source", "encoder.pretrained")


@dataclass(frozen=True)
class Cell:
    """One row of the table, trained and tested with one seed."""

    row: str
    seed: int
    metrics: dict[str, dict[str, np.ndarray]]
    """split -> metric -> float32[n], one value for each example, in the order of the split; of a
    metric of the whole split float32[n, k], what its score takes sums of."""
    choice: dict[str, list[str]] = field(default_factory=dict)
    """split -> what was answered (n names or labels; empty where nothing was)."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """[{"step":, "select":}] in the order of training."""
    info: dict[str, Any] = field(default_factory=dict)
    """steps, seconds, best_step, learning_rate, diverged (learning rates), ..."""

    def each(self, split: str, metric: str) -> np.ndarray:
        """float32[n]: the metric of each example; where it has none, the first one that has."""
        values = self.metrics[split]
        return next(v for v in (values[metric], *values.values()) if v.ndim == 1)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes <folder>/<row>-<seed>.npz in one move and gives its path. KeftError for a row
        that is no plain name."""
        _check_name(self.row, self.seed, Path(folder))
        path = Path(folder) / f"{self.row}-{self.seed}.npz"
        arrays = {
            json.dumps([split, metric]): np.asarray(values, np.float32)
            for split, metrics in self.metrics.items()
            for metric, values in metrics.items()
        }
        head = {"row": self.row, "seed": self.seed, "curve": self.curve, "info": self.info}
        _write_npz(path, arrays | {"": _pack(head | {"choice": self.choice})})
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Cell:
        """Reads what `save` wrote. KeftError for a file that is damaged or something else."""
        arrays = _read_npz(Path(path))
        head = _unpack(arrays.pop("", _pack({})))
        lacking = {"row", "seed", "choice", "curve", "info"} - head.keys()
        if lacking:
            raise KeftError(f"{path}: no cell ({min(lacking)!r} is not in it); make the cell anew")
        _check_name(head["row"], head["seed"], Path(path))
        metrics: dict[str, dict[str, np.ndarray]] = {}
        for key, values in arrays.items():
            split, metric = json.loads(key)
            metrics.setdefault(split, {})[metric] = values
        return Cell(head["row"], head["seed"], metrics, head["choice"], head["curve"], head["info"])


@dataclass(frozen=True)
class Split:
    """What is known of a reported split before any model runs."""

    name: str
    cluster: np.ndarray
    """str[n]: examples of one cluster depend on each other; intervals are drawn over clusters."""
    pattern: np.ndarray
    """str[n]: the kind of question, empty where there is none."""
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    """name -> bool[n]: parts reported on their own."""

    def __post_init__(self) -> None:
        n = len(self.cluster)
        sizes = {"pattern": len(self.pattern)} | {k: len(v) for k, v in self.slices.items()}
        for name, size in sizes.items():
            if size != n:
                raise KeftError(
                    f"split {self.name}: {name} has {size} values for {n} examples; give one each"
                )

    def __len__(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Table:
    """All cells of a table with what they were measured on."""

    cells: list[Cell]
    splits: list[Split]
    manifest: dict[str, Any]
    """{"task", "metric", "score" (of tasks/corpus.py, where the metric is no mean), "config": dict,
    "data_hash": {split: hash}, "kg_hash", "rows": gain.rows.DEFINITION}"""

    def save(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        for cell in self.cells:
            cell.save(folder / "cells")
        save_splits(folder, self.splits)
        save_manifest(folder, self.manifest)


def _check_name(row: object, seed: object, where: Path) -> None:
    """Row and seed become a file's name, so that they must not lead out of its folder."""
    if not (isinstance(row, str) and re.fullmatch(r"[\w-]+", row)):
        raise KeftError(f"{where}: row {row!r}; a row's name has letters, digits, - and _ alone")
    if not isinstance(seed, int):
        raise KeftError(f"{where}: seed {seed!r} is no whole number; make the cell anew")


def save_splits(folder: str | os.PathLike[str], splits: Sequence[Split]) -> None:
    arrays: dict[str, np.ndarray] = {}
    heads = []
    for i, split in enumerate(splits):
        strings = {
            "cluster": list(map(str, split.cluster)),
            "pattern": list(map(str, split.pattern)),
        }
        heads.append({"name": split.name, "slices": list(split.slices), **strings})
        for j, mask in enumerate(split.slices.values()):
            arrays[f"{i} {j}"] = np.asarray(mask, bool)
    _write_npz(Path(folder) / "splits.npz", arrays | {"": _pack(heads)})


def load_splits(folder: str | os.PathLike[str]) -> list[Split]:
    arrays = _read_npz(Path(folder) / "splits.npz")
    return [
        Split(
            head["name"],
            np.array(head["cluster"], dtype=str),
            np.array(head["pattern"], dtype=str),
            {name: arrays[f"{i} {j}"] for j, name in enumerate(head["slices"])},
        )
        for i, head in enumerate(_unpack(arrays[""]))
    ]


def save_manifest(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True)
    write_atomic(Path(folder) / "manifest.json", text.encode())


def load_table(folder: str | os.PathLike[str]) -> Table:
    """Reads a table's directory. KeftError where a file is missing or damaged."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise KeftError(
            f"{folder / 'manifest.json'}: {error}; give the directory of a gain run"
        ) from error
    cells = [Cell.load(path) for path in sorted((folder / "cells").glob("*.npz"))]
    if not cells:
        raise KeftError(f"{folder / 'cells'}: no cells; run `keft gain` to make some")
    return Table(cells, load_splits(folder), manifest)


def table_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config as {dotted path: value}, without what may differ inside one table."""
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else key)
        else:
            flat[path] = list(value) if isinstance(value, tuple) else value

    walk(config, "")
    return {path: value for path, value in flat.items() if path not in FREE}


def table_hash(config: dict[str, Any]) -> str:
    """Equal for runs whose cells may stand in one table."""
    text = json.dumps(table_config(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def merge(folders: Iterable[str | os.PathLike[str]]) -> Table:
    """Reads several runs as one table: other seeds or rows, all else equal.

    Raises KeftError naming the first difference in config, data, graph or splits, and a cell that
    two runs hold with different results.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise KeftError("merge: no directories; give those of finished gain runs")
    tables = [load_table(path) for path in paths]
    first = tables[0]
    cells: dict[tuple[str, int], Cell] = {}
    origin: dict[tuple[str, int], Path] = {}
    for folder, table in zip(paths, tables, strict=True):
        _refuse_difference(paths[0], first, folder, table)
        for cell in table.cells:
            key = (cell.row, cell.seed)
            if key in cells and not _same_results(cells[key], cell):
                raise KeftError(
                    f"row {cell.row}, seed {cell.seed}: {origin[key]} and {folder} disagree; "
                    "leave one of them out"
                )
            cells.setdefault(key, cell)
            origin.setdefault(key, folder)
    return Table(list(cells.values()), first.splits, first.manifest)


def find_difference(
    one: dict[str, Any], two: dict[str, Any], free: Iterable[str] = ()
) -> tuple[str, Any, Any] | None:
    """(what, its value in one manifest, in the other), where their cells may not stand in one
    table. A field of the config that a manifest is older than has its default there. free: what
    may differ as well."""
    left, right = _comparable(one), _comparable(two)
    # Hashes first: a changed graph matters more than the path it was read from.
    for key in sorted(left.keys() | right.keys(), key=lambda k: ("hash" not in k, k)):
        if key not in free and left.get(key) != right.get(key):
            return key, left.get(key), right.get(key)
    return None


def _comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    rest = {"rows": 1, **manifest, "config": {}}  # 1: of before it was written down
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    defaults = {k: dataclasses.asdict(make()) for k, make in sections.items() if callable(make)}
    flat = table_config(rest) | table_config(defaults) | table_config(manifest["config"])
    return {path: value for path, value in flat.items() if path not in PLACES}


def _refuse_difference(a: Path, one: Table, b: Path, two: Table) -> None:
    if found := find_difference(one.manifest, two.manifest):
        key, left, right = found
        raise KeftError(
            f"{key}: {left!r} in {a}, {right!r} in {b}; "
            "one table needs the same everywhere: merge only runs that share it"
        )
    names = [[split.name for split in table.splits] for table in (one, two)]
    if names[0] != names[1]:
        raise KeftError(f"splits: {names[0]} in {a}, {names[1]} in {b}; merge only equal ones")
    for x, y in zip(one.splits, two.splits, strict=True):
        if not np.array_equal(x.cluster, y.cluster):
            raise KeftError(f"split {x.name}: other clusters in {a} than in {b}; merge neither")


def _same_results(a: Cell, b: Cell) -> bool:
    return a.metrics.keys() == b.metrics.keys() and all(
        np.array_equal(a.metrics[split][metric], values)
        for split, metrics in b.metrics.items()
        for metric, values in metrics.items()
        if metric in a.metrics[split]
    )


def _pack(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)


def _unpack(array: np.ndarray) -> Any:
    return json.loads(array.tobytes().decode())


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    # Names of splits are the user's own, so members are numbered and named in an index.
    names = list(arrays)
    numbered = {f"a{i}": arrays[name] for i, name in enumerate(names)}
    np.savez_compressed(buffer, allow_pickle=False, names=_pack(names), **numbered)
    write_atomic(path, buffer.getvalue())


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[f"a{i}"] for i, name in enumerate(_unpack(file["names"]))}
    except Exception as error:  # zipfile, zlib, numpy and json each fail in their own way
        raise KeftError(f"{path}: cannot be read ({error}); make the cell anew") from error
