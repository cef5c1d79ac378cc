"""Ids of what a user calls an entity or a relation, and its neighbours in an embedding."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg.columns import to_arrow
from keft_jax.kg.embeddings import Embeddings

BLOCK = 1 << 16  # rows of a table at a time
_SUGGEST_AMONG = 20_000  # names that are compared letter by letter


def find_ids(
    wanted: Sequence[str],
    names: Sequence[str],
    labels: Sequence[str] = (),
    *,
    thing: str = "entity",
    places: Sequence[str] = (),
) -> np.ndarray:
    """i64[w]: the place of each among `names`, else among `labels` where one alone is called so.

    KeftError for the first that is neither, with its place (of `places`) and the nearest names,
    and for one that several are called by.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    asked = to_arrow(wanted)
    ids = np.array(pc.fill_null(pc.index_in(asked, value_set=to_arrow(names)), -1), np.int64)
    missed = np.flatnonzero(ids < 0)
    if not len(missed):
        return ids
    called: dict[str, list[int]] = {}
    if labels:
        some = asked.take(pa.array(missed)).unique()
        for place in np.flatnonzero(np.asarray(pc.is_in(to_arrow(labels), value_set=some))):
            called.setdefault(labels[int(place)], []).append(int(place))
    for query in missed.tolist():
        text, begin = wanted[query], f"{places[query]}: " if places else ""
        found = called.get(text, [])
        if len(found) > 1:
            some_names = ", ".join(repr(names[place]) for place in found[:3])
            raise KeftError(
                f"{begin}{thing} {text!r}: the name of {len(found)} entities ({some_names}"
                f"{', ...' if len(found) > 3 else ''}); give the identifier"
            )
        if not found:
            near = " or ".join(repr(name) for name in suggest(text, names, labels))
            hint = f"did you mean {near}?" if near else f"names like {names[0]!r} are known"
            raise KeftError(f"{begin}{thing} {text!r}: not among the {len(names):,} known; {hint}")
        ids[query] = found[0]
    return ids


def suggest(text: str, names: Sequence[str], labels: Sequence[str] = ()) -> list[str]:
    """At most three: those that are equal but for case, that hold the text, or are spelt alike."""
    import pyarrow.compute as pc

    low = text.lower()
    folded = [pc.utf8_lower(to_arrow(strings)) for strings in (names, labels) if strings]
    tables = [strings for strings in (names, labels) if strings]
    for match in (pc.equal, pc.match_substring) if low else ():
        found = []
        for strings, lower in zip(tables, folded, strict=True):
            found += [strings[int(i)] for i in np.flatnonzero(np.asarray(match(lower, low)))[:3]]
        if found:
            return list(dict.fromkeys(found))[:3]
    candidates: list[str] = []
    for strings, lower in zip(tables, folded, strict=True):
        places: Any = range(len(strings))
        if len(strings) > _SUGGEST_AMONG:
            places = np.flatnonzero(np.asarray(pc.starts_with(lower, low[:2])))[:_SUGGEST_AMONG]
        candidates += [strings[int(place)] for place in places]
    return list(dict.fromkeys(difflib.get_close_matches(text, candidates, 3)))


def find_similar(embeddings: Embeddings, entity: str, top: int = 10) -> dict[str, Any]:
    """The entities whose vectors have the highest cosine with this one's, best first:

    {"entity": identifier, "name": to show, "measure": "cosine",
    "similar": [[identifier, name, cosine], ...]}

    A vector of zeros has the cosine 0 with all. KeftError as `find_ids`.
    """
    names, labels = embeddings.names, embeddings.labels or embeddings.names
    own = int(find_ids([entity], names, labels)[0])
    table = embeddings.vectors
    q = _unit(np.asarray(table[own : own + 1], np.float32))[0]
    blocks = range(0, len(table), BLOCK)  # no second copy of a big table
    cosine = np.concatenate(
        [_unit(np.asarray(table[start : start + BLOCK], np.float32)) @ q for start in blocks]
    )
    cosine[own] = -np.inf
    return {
        "entity": names[own],
        "name": labels[own],
        "measure": "cosine",
        "similar": [
            [names[i], labels[i], round(float(cosine[i]), 6)]
            for i in best_of(cosine, min(top, len(names) - 1))
        ],
    }


def best_of(values: np.ndarray, top: int) -> list[int]:
    """Places of the highest values, best first, equal ones in their order."""
    if not top:
        return []
    edge = np.partition(values, len(values) - top)[len(values) - top]
    places = np.flatnonzero(values >= edge)
    return places[np.argsort(-values[places], kind="stable")][:top].tolist()


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    out: np.ndarray = rows / np.where(norm > 0, norm, 1)
    return out
