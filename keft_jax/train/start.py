"""Parameters taken over from another run (`optim.start`): a pre-trained model under a new task."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from keft_jax.config import KeftError
from keft_jax.models.functional import Tree
from keft_jax.models.heads import GRAPH_OFFSET, GRAPH_SCALE
from keft_jax.models.pretrained import flat, put
from keft_jax.sharding import fetch
from keft_jax.train.given import Given
from keft_jax.train.parts import Parts

logger = logging.getLogger(__name__)

ROWS = "nodes/rows"


def take_over(given: Given, its: Parts, params: Any) -> Given:
    """With the parameters of a run that have the path and the shape of ours; in tables of entities
    and of relations, the rows of those that both graphs have, by name. A head is taken over for the
    same task with the same labels alone. What is left stays fresh, as NaN in the arrays here.

    One line of the log says what was taken. Raises KeftError where the word pieces are others, or
    nothing fits.
    """
    assert isinstance(given.parts, Parts)
    ours, model = given.parts, given.parts.model
    where = f"optim.start = {ours.config.optim.start!r}"
    mine, theirs = ours.knowledge.vocabulary, its.knowledge.vocabulary
    if mine.tokenizer.to_str() != theirs.tokenizer.to_str():
        raise KeftError(
            f"{where}: its tokenizer is another one, so its words mean other things; set "
            "data.vocab to its tokenizer.json"
        )
    same_task = ours.config.task.kind == its.config.task.kind and ours.labels == its.labels
    entities = _matches(mine.entities, theirs.entities)
    relations = _matches(mine.relations, theirs.relations)
    axes, values = model.axes(), flat(jax.device_get(params))
    taken: Counter[str] = Counter()
    total: Counter[str] = Counter()
    tree: Tree = {}
    rows, by_name = None, False
    for path, struct in flat(model.abstract()).items():
        part, value = path.split("/")[0], values.get(path)
        total[part] += 1
        fitted = path in (GRAPH_SCALE, GRAPH_OFFSET)  # to what the run ended with
        if value is None or (part == "head" and not same_task) or fitted:
            continue
        if axes[path][0] == "entity":
            value = _entities(value, struct.shape, entities)
        elif axes[path][0] == "relation":
            value = _relations(value, struct.shape, len(theirs.relations), relations)
        if value.shape != struct.shape:
            continue
        taken[part] += 1
        by_name |= axes[path][0] in ("entity", "relation")
        if path == ROWS:
            rows = value[ours.knowledge.row_numbers]
        else:
            put(tree, path, value)
    if not taken:
        raise KeftError(f"{where}: none of its parameters has the path and shape of one here")
    told = ", ".join(f"{taken[part]} of {total[part]} in {part}" for part in sorted(total))
    if by_name:
        told += "; rows of " + " and ".join(
            f"{int((match >= 0).sum())} of {len(match)} {name}"
            for name, match in (("entities", entities), ("relations", relations))
        )
    logger.warning("%s: took parameters %s; the rest is new", where, told)
    return replace(given, entities=given.entities if rows is None else rows, taken=tree)


def complete(start: Tree, params: Tree) -> Tree:
    """The partial tree with a state's own numbers in the place of NaN."""
    own = flat(params)
    out: Tree = {}
    for path, value in flat(start).items():
        if np.isnan(value).any():
            value = np.where(np.isnan(value), fetch(own[path]), value)
        put(out, path, value)
    return out


def _matches(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """i64[ours]: the place of each among theirs; -1: nowhere."""
    number = {name: i for i, name in enumerate(theirs)}
    return np.array([number.get(name, -1) for name in ours], np.int64)


def _entities(value: np.ndarray, shape: tuple[int, ...], match: np.ndarray) -> np.ndarray:
    """Row 0 is of the unknown, row 1 + i of entity i."""
    out = np.full((shape[0], *value.shape[1:]), np.nan, np.float32)
    there = np.flatnonzero(match >= 0)
    out[0], out[1 + there] = value[0], value[1 + match[there]]
    return out


def _relations(
    value: np.ndarray, shape: tuple[int, ...], count: int, match: np.ndarray
) -> np.ndarray:
    """All relations, and in some tables all inverse ones behind them."""
    if not count or not len(match) or len(value) // count != shape[0] // len(match):
        return value[:0]
    blocks = value.reshape(-1, count, *value.shape[1:])
    out = np.full((len(blocks), len(match), *value.shape[1:]), np.nan, np.float32)
    there = np.flatnonzero(match >= 0)
    out[:, there] = blocks[:, match[there]]
    return out.reshape(-1, *value.shape[1:])
