"""Records of data sets that TFDS has prepared on this machine, read without TensorFlow.

Without TensorFlow there is one format: array_record. Nothing is downloaded here.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.data.records import decode, require_fields

PREFIX = "tfds:"
FORM = "tfds:NAME[/CONFIG][:VERSION]:SPLIT"
READABLE = "array_record"
OWN = "tensorflow_datasets.core.features."
"""Where the classes of TFDS's own features are."""
BLOCK = 1024
"""Records that are read from a shard at once."""
_NAME = re.compile(r"tfds:(\w+(?:/[\w.+-]+)?)(?::(\d+\.\d+\.\d+))?:([\w-]+)")


def data_dir(folder: str) -> Path:
    """The folder of prepared data sets: `folder`, or TFDS's own where that is empty."""
    own = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(folder or own).expanduser()


def read_tfds(
    path: str,
    folder: str,
    columns: Collection[str] = (),
    also: Collection[str] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, record) for every record of `tfds:NAME[/CONFIG][:VERSION]:SPLIT`, in the
    order of the shards; without a version, the newest that is prepared.

    Text is decoded, a class is its name (None where it has none), a sequence a list. The features
    in a feature stand under dotted names: `answers.text`.

    Args:
      path: the data set's split.
      folder: folder of prepared data sets; "": TFDS's own.
      columns: features that must be there.
      also: features to read beside these where they are there; None: all. Others of the record
        (images, say) are not decoded.

    Raises:
      KeftError: a data set, version, split or feature that is not there, with those that are; one
        in a format that needs TensorFlow; a damaged file.
    """
    found = _find(path, data_dir(folder))
    leaves = {".".join(leaf.path): leaf for leaf in _leaves(found.features)}
    require_fields(columns, leaves, path, "feature")
    features = found.features
    if also is not None:
        leaves = {name: leaf for name, leaf in leaves.items() if name in {*columns, *also}}
        features = _only(features, {leaf.path[0] for leaf in leaves.values()})
    number = 0
    for shard in found.shards:
        for record in _read_shard(shard.filename, shard.examples_in_shard, path):
            number += 1
            example = _parse(features, record, path)
            yield number, {name: leaf.take(example) for name, leaf in leaves.items()}


@dataclass(frozen=True)
class _Found:
    features: Any
    """The tfds.features.FeaturesDict."""
    shards: list[Any]
    """File instructions: name and number of records."""


@dataclass(frozen=True)
class _Leaf:
    path: tuple[str, ...]
    classes: tuple[str, ...]
    """Names of a ClassLabel."""

    def take(self, example: Any) -> Any:
        for name in self.path:
            example = example[name]
        return _plain(example, self.classes)


def prepared(root: Path) -> dict[str, list[Path]]:
    """NAME or NAME/CONFIG -> folders of its versions, oldest first."""
    out: dict[str, list[Path]] = {}
    for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for file in root.glob(pattern):
            version = file.parent
            hidden = file.relative_to(root).as_posix().startswith(".")  # one in the making
            if re.fullmatch(r"\d+\.\d+\.\d+", version.name) and not hidden:
                out.setdefault(version.parent.relative_to(root).as_posix(), []).append(version)
    order = {
        name: sorted(v, key=lambda f: [*map(int, f.name.split("."))]) for name, v in out.items()
    }
    return dict(sorted(order.items()))


def _find(path: str, root: Path) -> _Found:
    match = _NAME.fullmatch(path)
    if not match:
        raise KeftError(f"{path}: not of the form {FORM}; give a whole split of one data set")
    name, version, split = match.groups()
    there = prepared(root)
    if name not in there:
        raise KeftError(f"{path}: {_why_not_prepared(name, root, list(there))}")
    versions = {folder.name: folder for folder in there[name]}
    if version and version not in versions:
        raise KeftError(
            f"{path}: no version {version} in {root / name}; there is {', '.join(versions)}"
        )
    folder = versions[version] if version else there[name][-1]
    try:
        meta = json.loads((folder / "dataset_info.json").read_bytes())
        formats = [meta.get("fileFormat", "tfrecord"), *meta.get("alternativeFileFormats", ())]
        splits = [str(entry["name"]) for entry in meta.get("splits", ())]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(folder, error) from error
    if split not in splits:
        near = difflib.get_close_matches(split, splits, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise KeftError(
            f"{path}: no split {split!r} in {folder}{hint} (there are: "
            f"{', '.join(splits) or 'none'})"
        )
    if READABLE not in formats:
        raise KeftError(
            f"{path}: {folder} is in the format {' and '.join(formats)}, which needs TensorFlow; "
            f"prepare it in {READABLE}: tfds build {name} --file_format={READABLE} --overwrite"
        )
    import tensorflow_datasets as tfds

    try:
        # TFDS imports the module of a feature that it does not know: none but its own.
        strange = [kind for kind in _kinds(folder) if not kind.startswith(OWN)]
        if strange:
            raise KeftError(
                f"{path}: {folder}: a feature of the kind {strange[0]!r}, which is not TFDS's own; "
                "prepare it with TFDS's features, by a TFDS of today"
            )
        info = tfds.builder_from_directory(folder, file_format=READABLE).info
        return _Found(info.features, info.splits[split].file_instructions)
    except KeftError:
        raise
    except Exception as error:  # TFDS and protobuf raise anything at a damaged description
        raise _damaged(folder, error) from error


def _kinds(folder: Path) -> Iterator[str]:
    """The classes of all features, in both files where TFDS looks for them, read as it reads them:
    protobuf's JSON has more than one spelling of a name."""
    from google.protobuf import json_format
    from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2

    features, info = feature_pb2.Feature(), dataset_info_pb2.DatasetInfo()
    json_format.Parse((folder / "features.json").read_bytes(), features)
    json_format.Parse((folder / "dataset_info.json").read_bytes(), info)
    waiting = [features, *([info.features] if info.HasField("features") else [])]
    while waiting:
        feature = waiting.pop()
        yield feature.python_class_name
        if feature.HasField("json_feature"):
            yield "jsonFeature"  # may hold features of an old form; none of TFDS's own is one now
        waiting += feature.features_dict.features.values()
        if feature.HasField("sequence"):
            waiting.append(feature.sequence.feature)


def _damaged(folder: Path, error: Exception) -> KeftError:
    why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return KeftError(f"{folder}: damaged ({why}); prepare it anew")


def _why_not_prepared(name: str, root: Path, there: list[str]) -> str:
    what = f"{root} has no data set {name!r} that is prepared"
    configs = [other for other in there if other.startswith(f"{name}/")]
    if configs:
        return f"{what}, only its configs; name one: {', '.join(configs[:12])}"
    near = difflib.get_close_matches(name, there, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
    own = "" if "/" in name else f"keft tfds {name} --source FILE, or "
    return (
        f"{what}{hint} (there are: {shown or 'none'}); prepare it ({own}tfds build {name} "
        f"--file_format={READABLE}) or set data.tfds_dir to its folder"
    )


def _read_shard(file: str, count: int, path: str) -> Iterator[bytes]:
    """The records as they are stored; each of them is checked against its hash."""
    from array_record.python.array_record_module import ArrayRecordReader

    remedy = "prepare the data set anew"
    try:
        reader = ArrayRecordReader(file)
        if not reader.ok() or reader.num_records() != count:
            raise KeftError(
                f"{path}: {file}: damaged ({reader.num_records()} records where there were "
                f"{count}); {remedy}"
            )
        for start in range(0, count, BLOCK):
            yield from reader.read(start, min(start + BLOCK, count))
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise KeftError(f"{path}: {file}: damaged ({why}); {remedy}") from error


def _parse(features: Any, record: bytes, path: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return features.deserialize_example_np(record)
    except (ImportError, DecodeError, ValueError, KeyError) as error:
        raise KeftError(
            f"{path}: a record cannot be decoded ({' '.join(str(error).split())}); prepare the "
            "data set anew, without lists of lists of any length: those need TensorFlow"
        ) from error


def _leaves(feature: Any, path: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    """The features that hold values, by name; a sequence of dicts is stored as a dict of lists."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in sorted(feature.items()):
            yield from _leaves(inner, (*path, name))
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path)
    else:
        named = isinstance(feature, tfds.features.ClassLabel) and feature.names
        yield _Leaf(path, tuple(feature.names) if named else ())


def _only(features: Any, names: Collection[str]) -> Any:
    """The features of these names at the top."""
    import tensorflow_datasets as tfds

    if type(features) is not tfds.features.FeaturesDict:
        return features
    return tfds.features.FeaturesDict({n: f for n, f in features.items() if n in names})


def _plain(value: Any, classes: Sequence[str]) -> Any:
    """A decoded value as JSON would have it; a class below 0 is none."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item, classes) for item in value]
    if classes:
        return classes[value] if value >= 0 else None
    return decode(value)
