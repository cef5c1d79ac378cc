"""Phrases of tokens in a trie of arrays, walked from every position of a text at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np


class PhraseTrie:
    """Different phrases, numbered in the given order; `longest` finds those that are listed.

    Nodes are numbered by depth and edges sorted by (node, token), so the edge found at place i
    leads to node i + 1 and no pointers are stored: some 20 bytes a node.
    """

    def __init__(self, phrases: Sequence[Sequence[str]], listed: Sequence[bool]):
        self._token: dict[str, int] = {}
        known = self._token
        ids = np.array([known.setdefault(t, len(known)) for p in phrases for t in p], np.int64)
        sizes = np.array([len(phrase) for phrase in phrases], np.int64)
        begins = np.cumsum(sizes) - sizes
        width = self._width = max(len(known), 1)
        left = np.flatnonzero(sizes > 0)
        node = np.zeros(len(left), np.int64)
        levels, ends, size, depth = [], [np.full(1, -1, np.int64)], 1, 0
        while len(left):
            key, place = np.unique(node * width + ids[begins[left] + depth], return_inverse=True)
            depth += 1
            node = place + size
            size += len(key)
            levels.append(key)
            end = np.full(len(key), -1, np.int64)
            done = np.flatnonzero(sizes[left] == depth)
            end[place[done]] = left[done]
            ends.append(end)
            left, node = left[sizes[left] > depth], node[sizes[left] > depth]
        self._edges = np.concatenate(levels) if levels else np.empty(0, np.int64)
        self._phrase = np.concatenate(ends)  # int64[nodes]: the phrase that ends there, or -1
        self._listed = np.where(np.append(listed, False)[self._phrase], self._phrase, -1)
        self._first = np.zeros(width + 1, np.int64)  # token -> node of depth 1; 0: none
        n_first = len(levels[0]) if levels else 0
        self._first[self._edges[:n_first]] = np.arange(n_first) + 1
        self._has_next = np.zeros(size, bool)
        self._has_next[self._edges // width] = True

    def find(self, phrase: Sequence[str]) -> int:
        """The number of a phrase, or -1."""
        node = 0
        for token in phrase:
            key = node * self._width + self._token.get(token, -1)
            at = int(np.searchsorted(self._edges, key))
            if token not in self._token or at == len(self._edges) or self._edges[at] != key:
                return -1
            node = at + 1
        return int(self._phrase[node])

    def longest(self, tokens: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """For each token the length in tokens of the longest listed phrase that begins there
        (int64, 0: none), and that phrase's number."""
        size = len(tokens)
        ids = np.fromiter(map(self._token.get, tokens, repeat(-1)), np.int64, size)
        length, phrase = np.zeros(size, np.int64), np.full(size, -1)
        node = self._first[ids]
        at = np.flatnonzero(node)
        node = node[at]
        depth = 1
        while len(at):
            hit = self._listed[node] >= 0
            length[at[hit]] = depth
            phrase[at[hit]] = self._listed[node[hit]]
            more = self._has_next[node] & (at + depth < size)
            at, node = at[more], node[more]
            token = ids[at + depth]
            key = node * self._width + token
            edge = np.searchsorted(self._edges, key)
            edge[edge == len(self._edges)] = 0
            real = (self._edges[edge] == key) & (token >= 0)
            at, node = at[real], edge[real] + 1
            depth += 1
        return length, phrase
