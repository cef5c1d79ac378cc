"""Finds names and aliases in text: the longest match, left to right, on token boundaries."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from keft_jax.config import KeftError
from keft_jax.kg.linking.normal import Normal, normalise
from keft_jax.kg.linking.trie import PhraseTrie
from keft_jax.kg.store import KG

_BARRIER = "\0"  # between texts; a token of its own that no listed name holds
_CHUNK = 1 << 18  # characters looked at together: their arrays stay in the cache
_REMEMBERED = 1 << 18  # surfaces whose candidates are kept at hand within a call
_SPACE, _WORD, _SINGLE = 0, 1, 2
# Scripts written without spaces match at any character: Thai to Myanmar, Khmer, kana, ideographs.
_UNSPACED = ((0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
             (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mention:
    """text[start:end] names these entities, the likeliest first; none: NIL.

    score: 1 for a name in its own case, .9 in another, shared by the candidates; 0 for NIL.
    """

    start: int
    end: int
    entities: tuple[int, ...]
    score: float


class StringLinker:
    """Names and aliases of a graph, found by a trie of their tokens.

    Text and names are compared in NFKC and, with `fold_case`, case-folded; spaces between tokens
    do not matter. A surface in its exact case wins over others that fold alike. Candidates of an
    ambiguous surface: those it is the name of before those it is an alias of, then by degree, then
    by id. Surfaces shorter than `min_chars` are left to `link_given`.
    """

    def __init__(self, kg: KG, *, fold_case: bool = True, min_chars: int = 2):
        self._fold = fold_case
        aliases, alias_entity = kg.alias_table()
        surfaces = [*kg.names, *aliases]
        entities = np.concatenate([np.arange(kg.n_entities), alias_entity]).astype(np.int64)
        is_alias = np.arange(len(surfaces)) >= kg.n_entities
        best_first = np.lexsort((entities, -kg.degrees[entities], is_alias)).tolist()
        phrases = list(self._tokens(surfaces))
        exact: dict[str, list[int]] = {}
        folded: dict[tuple[str, ...], list[int]] = {}
        ids = entities.tolist()
        for i in best_first:
            exact.setdefault(_exact_key(surfaces[i]), []).append(ids[i])
            folded.setdefault(tuple(phrases[i]), []).append(ids[i])
        self._exact = {key: tuple(dict.fromkeys(some)) for key, some in exact.items()}
        self._folded = [tuple(dict.fromkeys(some)) for some in folded.values()]
        listed = [len("".join(key)) >= min_chars for key in folded]
        self._trie = PhraseTrie(list(folded), listed)

    def link(self, texts: Sequence[str]) -> list[list[Mention]]:
        """The mentions of each text, in order, without overlap."""
        found: list[list[Mention]] = [[] for _ in texts]
        resolved: dict[str, tuple[tuple[int, ...], float]] = {}  # names come again and again
        for first, last in _chunks(texts):
            normal, begins = _join(texts[first:last], fold=self._fold)
            starts, ends, phrases = self._match(normal.text)
            starts, ends, whole = normal.spans(starts, ends)
            owners = np.searchsorted(begins, starts, side="right") - 1
            starts, ends = starts - begins[owners], ends - begins[owners]
            rows = (x[whole].tolist() for x in (first + owners, starts, ends, phrases))
            for i, start, end, phrase in zip(*rows, strict=True):
                surface = texts[i][start:end]
                known = resolved.get(surface)
                if known is None:
                    known = resolved[surface] = self._resolve(surface, phrase)
                found[i].append(Mention(start, end, known[0], known[1]))
            if len(resolved) > _REMEMBERED:
                resolved.clear()
        return found

    def link_given(
        self, text: str, spans: Sequence[tuple[int, int] | tuple[int, int, str]]
    ) -> list[Mention]:
        """Resolves mentions marked in the data: (start, end) of the text, or with the name."""
        found = []
        for start, end, *name in spans:
            if not 0 <= start < end <= len(text):
                raise KeftError(
                    f"span ({start}, {end}) of {text[:40]!r}: use 0 <= start < end <= {len(text)}"
                )
            surface = name[0] if name else text[start:end]
            (tokens,) = self._tokens([surface])
            found.append(Mention(start, end, *self._resolve(surface, self._trie.find(tokens))))
        return found

    def _resolve(self, surface: str, phrase: int) -> tuple[tuple[int, ...], float]:
        """Candidates and score, for a surface and the phrase that its tokens make (-1: none)."""
        exact = self._exact
        entities, score = exact.get(surface) or exact.get(_exact_key(surface), ()), 1.0
        if not entities:
            entities, score = self._folded[phrase] if phrase >= 0 else (), 0.9
        return entities, score / len(entities) if entities else 0.0

    def _tokens(self, surfaces: Sequence[str]) -> Iterator[list[str]]:
        """The tokens of each surface."""
        for first, last in _chunks(surfaces):
            some = [surface.replace(_BARRIER, "\1") for surface in surfaces[first:last]]
            tokens, _, _ = _tokenise(_join(some, fold=self._fold)[0].text)
            begin = 0
            for _ in some:
                end = tokens.index(_BARRIER, begin)
                yield tokens[begin:end]
                begin = end + 1

    def _match(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts, ends and phrases, int64[k], of the longest matches, left to right."""
        tokens, starts, ends = _tokenise(text)
        length, phrase = self._trie.longest(tokens)
        at = np.flatnonzero(length)
        chosen, free = [], 0
        for i, stop in zip(at.tolist(), (at + length[at]).tolist(), strict=True):
            if i >= free:
                chosen.append(i)
                free = stop
        first = np.array(chosen, np.int64)
        return starts[first], ends[first + length[first] - 1], phrase[first]


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of texts that are looked at together."""
    first, size = 0, 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= _CHUNK:
            yield first, i + 1
            first, size = i + 1, 0
    if first < len(texts):
        yield first, len(texts)


def _join(texts: Sequence[str], *, fold: bool) -> tuple[Normal, np.ndarray]:
    """The normal form of the texts with a barrier after each, so that no match reaches over the
    end of one; and int64[texts], where each began before."""
    sizes = np.array([len(text) + 1 for text in texts], np.int64)
    joined = normalise("".join(text + _BARRIER for text in texts), fold=fold)
    return joined, np.cumsum(sizes) - sizes


def _exact_key(surface: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", surface).split())


def _tokenise(text: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Tokens with their starts and ends: words, and single characters of everything else."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = _kinds()[np.minimum(codes, 0x3FFFF)]
    is_word = kind == _WORD
    begins = kind == _SINGLE
    stops = begins.copy()
    begins[:1] |= is_word[:1]
    begins[1:] |= is_word[1:] & ~is_word[:-1]
    stops[-1:] |= is_word[-1:]
    stops[:-1] |= is_word[:-1] & ~is_word[1:]
    starts, ends = np.flatnonzero(begins), np.flatnonzero(stops) + 1
    pieces = zip(starts.tolist(), ends.tolist(), strict=True)
    return [text[a:b] for a, b in pieces], starts, ends


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """uint8[0x40000]: what each character is to the tokeniser. Marks belong to their word."""
    kinds = np.full(0x40000, _SINGLE, np.uint8)
    for code in range(0x40000):
        character = chr(code)
        if character.isalnum() or unicodedata.category(character)[0] == "M" or character == "_":
            kinds[code] = _WORD
        elif character.isspace():
            kinds[code] = _SPACE
    for first, last in _UNSPACED:
        kinds[first : last + 1] = _SINGLE
    return kinds


def parse_brackets(text: str) -> tuple[str, list[tuple[int, int]]]:
    """`what did [Tom Hanks] act in` -> the text without its outer brackets, and their spans.

    Inner brackets belong to the name, and a bracket without its partner to the text.
    """
    partner: dict[int, int] = {}
    waiting: list[int] = []
    for i, character in enumerate(text):
        if character == "[":
            waiting.append(i)
        elif character == "]" and waiting:
            partner[waiting.pop()] = i
    spans, parts, size, at = [], [], 0, 0
    for i in sorted(partner):
        if i < at or partner[i] == i + 1:
            continue
        parts += [text[at:i], text[i + 1 : partner[i]]]
        size += i - at
        spans.append((size, size + len(parts[-1])))
        size += len(parts[-1])
        at = partner[i] + 1
    return "".join(parts) + text[at:], spans
