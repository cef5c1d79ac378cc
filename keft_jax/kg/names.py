"""Many strings in two arrays, so that millions of names are memory-mapped and never parsed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np

from keft_jax.config import KeftError


class Names(Sequence[str]):
    """An immutable sequence of strings: UTF-8 bytes behind each other, and where each one ends.

    Where the strings are sorted, `find` is a binary search on the bytes: the order of UTF-8 is
    that of code points, which is Python's.
    """

    __slots__ = ("_view", "data", "offsets")

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        """data uint8[bytes], offsets int64[n + 1]."""
        self.data = data
        self.offsets = offsets
        self._view: Any = memoryview(data)  # type: ignore[arg-type]

    @classmethod
    def of(cls, strings: Iterable[str], thing: str = "name") -> Names:
        """Packs strings in the given order. KeftError where one is not valid Unicode."""
        encoded = []
        for string in strings:
            try:
                encoded.append(string.encode())
            except UnicodeEncodeError as error:
                raise KeftError(
                    f"{thing} {string!r}: half a surrogate pair at character {error.start}; "
                    "write it as valid Unicode"
                ) from error
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets[1:])
        offsets.flags.writeable = False
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"name {index} of {size}")
        return self._bytes(int(index) % size).decode()

    def __iter__(self) -> Iterator[str]:
        blob, ends = bytes(self._view), self.offsets.tolist()
        for start, end in pairwise(ends):
            yield blob[start:end].decode()

    def _bytes(self, index: int) -> bytes:
        return bytes(self._view[int(self.offsets[index]) : int(self.offsets[index + 1])])

    def rank(self, string: str) -> int:
        """How many strings are smaller, of sorted ones."""
        key = string.encode(errors="surrogatepass")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._bytes(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low

    def find(self, string: str) -> int | None:
        """Where `string` stands among sorted strings, or None."""
        place = self.rank(string)
        return place if place < len(self) and self[place] == string else None
