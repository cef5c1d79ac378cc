"""Facts behind a text, in its own sequence, where there is room for them.

The tokens of the facts follow those of the text in both forms, so that whatever points into the
text (mentions, marks, answers) points at the same tokens in every row of the gain table, and what
is too long loses facts first. With knowledge.text = "visible" their soft positions and branches say
where they belong: attention knows no other order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import tokenizers

from keft_jax.config import KnowledgeConfig
from keft_jax.data.batch import Batch
from keft_jax.kg.store import Triple
from keft_jax.kg.verbalise import Writer

Chosen = list[list[tuple[int, int]]]
"""For each text its facts, the most relevant first: (mention, number of the triple)."""


def write_facts(
    table: Batch,
    seeds_bm: np.ndarray,
    writer: Writer | None,
    tokenizer: tokenizers.Tokenizer,
    config: KnowledgeConfig,
    without: Collection[Triple] = (),
) -> Batch:
    """The texts, facts of another row taken away, with those of the writer (None: none).

    Args:
      table: any texts; those of the graph's arrays stay.
      seeds_bm: the entity of each mention, -1: none.
      without: facts that are left out; none comes in their place.
    """
    out = _without_facts(table)
    if config.text == "none":
        return out
    longest, visible = table.tokens.shape[1], config.text == "visible"
    own: np.ndarray = out.length
    out = dataclasses.replace(out, own=own, length=own.copy())
    out = dataclasses.replace(out, tokens=out.tokens.copy(), types=out.types.copy())
    if visible:
        every = np.broadcast_to(np.arange(longest, dtype=np.int32), out.tokens.shape)
        out = dataclasses.replace(out, position=every.copy(), branch=np.zeros_like(out.tokens))
    if writer is None:
        return out
    chosen = choose_facts(table, seeds_bm, writer)
    end: Any = tokenizer.token_to_id("[SEP]")
    pieces = _encode(chosen, seeds_bm, writer, tokenizer, visible, without)
    for row, some in enumerate(chosen):
        room = min(config.text_tokens, longest - int(own[row]))
        fitting = []
        for place, (mention, fact) in enumerate(some):
            ids = pieces.get((fact, int(seeds_bm[row, mention]) if visible else -1))
            if ids is not None and len(ids) <= room:
                fitting.append((mention, place, ids))
                room -= len(ids)
        fitting.sort(key=lambda item: item[:2])  # in the order of the text
        if fitting:
            _write_tree(out, row, fitting) if visible else _write_words(out, row, fitting, end)
    return out


def choose_facts(table: Batch, seeds_bm: np.ndarray, writer: Writer) -> Chosen:
    """Of each text the facts of its mentions, but for those that were cut away with its end."""
    there_bm = (seeds_bm >= 0) & (table.mentions.end > table.mentions.start)
    of_bm = np.where(there_bm, seeds_bm, -1).tolist()
    some_b = there_bm.any(1).tolist()
    return [writer.choose(of) if some else [] for of, some in zip(of_bm, some_b, strict=True)]


def cover_facts(table: Batch, seeds_bm: np.ndarray, config: KnowledgeConfig) -> np.ndarray:
    """i32[b]: what each text may take with facts of whatever row of the gain table."""
    own = table.length if table.own is None else table.own
    if config.text == "none":
        return own
    most = np.where((seeds_bm >= 0).any(1), config.text_tokens, 0)
    return np.minimum(own + most, table.tokens.shape[1]).astype(np.int32)


def _without_facts(table: Batch) -> Batch:
    if table.own is None:
        return table
    own_bl = np.arange(table.tokens.shape[1]) < table.own[:, None]
    return dataclasses.replace(
        table,
        tokens=np.where(own_bl, table.tokens, 0),
        types=np.where(own_bl, table.types, 0),
        length=table.own,
        own=None,
        position=None,
        branch=None,
    )


def _encode(
    chosen: Chosen,
    seeds_bm: np.ndarray,
    writer: Writer,
    tokenizer: tokenizers.Tokenizer,
    visible: bool,
    without: Collection[Triple],
) -> dict[tuple[int, int], list[int]]:
    """{(triple, entity that a branch hangs at, else -1): ids}; verbalised ones end with `;`."""
    keys = {
        (fact, int(seeds_bm[row, mention]) if visible else -1)
        for row, some in enumerate(chosen)
        for mention, fact in some
    }
    ordered = [key for key in sorted(keys) if not without or writer.triple(key[0]) not in without]
    texts = [writer.branch(*key) if visible else f"{writer.whole(key[0])} ;" for key in ordered]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return {key: e.ids for key, e in zip(ordered, encoded, strict=True)}


Fitting = list[tuple[int, int, list[int]]]
"""(mention, place among the chosen, ids)."""


def _write_words(out: Batch, row: int, fitting: Fitting, end: int) -> None:
    """`fact; fact [SEP]`, as a second text. end: the number of [SEP]."""
    assert out.own is not None
    ids = [i for _, _, some in fitting for i in some]
    ids[-1] = end  # in the place of the last `;`
    start, stop = int(out.own[row]), int(out.own[row]) + len(ids)
    out.tokens[row, start:stop] = ids
    out.types[row, start:stop] = 1
    out.length[row] = stop


def _write_tree(out: Batch, row: int, fitting: Fitting) -> None:
    """Branches, each on from the last token of its mention."""
    assert out.own is not None and out.position is not None and out.branch is not None
    at, slots = int(out.own[row]), out.mentions.start.shape[1]
    hung = [0] * slots
    for mention, _, ids in fitting:
        part = slice(at, at + len(ids))
        out.tokens[row, part] = ids
        out.position[row, part] = int(out.mentions.end[row, mention]) + np.arange(len(ids))
        out.branch[row, part] = 1 + mention + slots * hung[mention]
        hung[mention] += 1
        at += len(ids)
    out.length[row] = at
