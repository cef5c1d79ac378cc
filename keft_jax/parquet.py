"""Rows of a Parquet file, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keft_jax.config import KeftError

BATCH = 1024
"""Rows that are held as Python values at once."""
Rows = Iterator[tuple[int, dict[str, Any]]]


def is_parquet(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".parquet"


@contextmanager
def open_file(path: str | Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; KeftError for a damaged one, whenever that shows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise KeftError(f"{path}: no Parquet, or damaged ({why}); write or copy it anew") from error


@contextmanager
def open_parquet(path: str | Path) -> Iterator[tuple[list[str], Rows]]:
    """(names of the columns, (row number from 1, {column: value})) of a file that is there. A null
    is None, a list column a list. KeftError, at opening or at any row, for a damaged file."""
    with open_file(path) as file:
        yield file.schema_arrow.names, _rows(file, file.schema_arrow.names)


def _rows(file: Any, names: Sequence[str]) -> Rows:
    number = 0
    for batch in file.iter_batches(batch_size=BATCH):
        columns = [column.to_pylist() for column in batch.columns]
        for values in zip(*columns, strict=True):
            number += 1
            yield number, dict(zip(names, values, strict=True))
