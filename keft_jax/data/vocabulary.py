"""What numbers of a model mean, and the names of a graph's entities in its word pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from keft_jax.config import KeftError
from keft_jax.data.batch import Names
from keft_jax.kg.store import KG


@dataclass(frozen=True)
class Vocabulary:
    """What a model's parameters refer to by number: word pieces, entity rows, relations."""

    tokenizer: tokenizers.Tokenizer
    entities: Sequence[str]  # row 1 + i belongs to entities[i]; row 0 is for entities met later
    relations: tuple[str, ...]

    def rows_of(self, kg: KG) -> np.ndarray:
        """i32[entities of kg]: the row of each."""
        if list(kg.names) == list(self.entities):
            return np.arange(1, kg.n_entities + 1, dtype=np.int32)
        number = {name: i + 1 for i, name in enumerate(self.entities)}
        return np.array([number.get(name, 0) for name in kg.names], np.int32)

    def relations_of(self, kg: KG) -> np.ndarray:
        """i32[relations of kg]: the model's number of each. Raises KeftError for an unknown one."""
        number = {name: i for i, name in enumerate(self.relations)}
        unknown = [name for name in kg.relations if name not in number]
        if unknown:
            raise KeftError(
                f"relation {unknown[0]!r} ({len(unknown)} such): the model was trained without it "
                f"(it knows {', '.join(self.relations[:6])}, ...); rename it, or train again"
            )
        return np.array([number[name] for name in kg.relations], np.int32)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def make_names(
    kg: KG, tokenizer: tokenizers.Tokenizer, limit: int, rows: np.ndarray
) -> tuple[Names, np.ndarray]:
    """(the names of all entities end to end, their pieces as i32[entities + 1, limit]; the last
    row is for padding nodes). rows: i32[entities], of each in tables of entities."""
    encoded = [e.ids for e in tokenizer.encode_batch(list(kg.names), add_special_tokens=False)]
    unknown = tokenizer.token_to_id("[UNK]")
    ids = [e[:limit] or [unknown or 0] for e in encoded]
    table = np.zeros((kg.n_entities + 1, limit), np.int32)
    count = np.zeros(round_up(kg.n_entities, 128), np.int32)
    count[: kg.n_entities] = [len(e) for e in ids]
    total = int(count.sum())
    pieces = np.zeros(round_up(total, 1024), np.int32)
    owner = np.full(len(pieces), len(count) - 1, np.int32)
    pieces[:total] = np.concatenate(ids) if ids else []
    owner[:total] = np.repeat(np.arange(len(count)), count)
    column = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
    table[owner[:total], column] = pieces[:total]
    row = np.zeros(len(count), np.int32)
    row[: kg.n_entities] = rows
    return Names(pieces=pieces, owner=owner, count=count, row=row), table
