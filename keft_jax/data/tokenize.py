"""Text to word pieces, with the way back to characters.

WordPiece as in BERT (Devlin et al. 2019), by the `tokenizers` library. Its trainer numbers the
alphabet in the order of a randomly seeded hash map, and ties between merges follow those numbers;
`train_wordpiece` fixes the numbers, so the same texts give the same vocabulary in every process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from keft_jax.config import KeftError, check
from keft_jax.files import write_atomic

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_FREQUENCY = 2
"""Occurrences that a merged piece needs."""


@dataclass(frozen=True)
class Tokens:
    """Encoded texts, ragged: `[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`."""

    ids: list[np.ndarray]  # int32[length]
    types: list[np.ndarray]  # int32[length]: 0 text, 1 pair
    offsets: list[np.ndarray]  # int32[length, 2]: characters of own text; special tokens (0, 0)
    lengths: np.ndarray  # int32[texts]
    cut: np.ndarray  # bool[texts]: which lost their end to the longest length

    def spans(self, i: int, char_spans: Sequence[tuple[int, int]], part: int = 0) -> np.ndarray:
        """Token spans of character spans of text i (part 0) or of its pair (part 1)."""
        offsets_l2 = np.where((self.types[i] == part)[:, None], self.offsets[i], 0)
        return token_spans(offsets_l2, char_spans)


def token_spans(offsets_l2: np.ndarray, char_spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Half-open token spans that cover half-open character spans.

    Args:
      offsets_l2: int[length, 2], the characters of each token; (0, 0) for special tokens.
      char_spans: (start, end) in characters.

    Returns:
      int32[spans, 2]: first token and one past the last that share a character with the span;
      (0, 0) where none does (an empty span, or one that was cut away).
    """
    spans_s2 = np.asarray(char_spans, np.int64).reshape(-1, 2)
    from_s1, to_s1 = spans_s2[:, :1], spans_s2[:, 1:]
    start_l, end_l = offsets_l2[:, 0], offsets_l2[:, 1]
    overlap_sl = np.minimum(end_l, to_s1) - np.maximum(start_l, from_s1)
    hit_sl = np.greater(overlap_sl, 0)
    first_s = hit_sl.argmax(-1)
    last_s = hit_sl.shape[1] - hit_sl[:, ::-1].argmax(-1)
    return np.where(hit_sl.any(-1)[:, None], np.stack([first_s, last_s], -1), 0).astype(np.int32)


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, *, lowercase: bool = True, names: Iterable[str] = ()
) -> Tokenizer:
    """A WordPiece tokenizer with the vocabulary of the texts.

    The result depends on the texts alone, not on their order, the process or its threads.

    Args:
      texts: training texts, never those of a split that is reported.
      vocab_size: at most so many pieces, specials included ([PAD] = 0, [UNK], [CLS], [SEP],
        [MASK]). Three quarters at most are single characters, the most frequent ones.
      lowercase: fold case, and strip accents with it, as BERT's uncased models do.
      names: entity names of the graph, each counted once, so that they read as words too.

    Raises:
      KeftError: no text with a word in it, or a vocabulary too small to hold one.
    """
    check(vocab_size >= 64, "vocab_size", vocab_size, "use 64 or more")
    tok = _wordpiece({piece: i for i, piece in enumerate(SPECIAL)}, lowercase)
    texts = [*texts, *names]
    counts: Counter[str] = Counter()
    pieces: dict[str, set[str]] = {}
    for text in texts:
        normal = tok.normalizer.normalize_str(text)
        for word, _ in tok.pre_tokenizer.pre_tokenize_str(normal):
            counts.update(word)
            for i, char in enumerate(word):
                pieces.setdefault(char, {char}).add("##" + char if i else char)
    if not counts:
        raise KeftError("no training text has a word in it; a vocabulary needs some")
    alphabet: list[str] = []
    room = (vocab_size - len(SPECIAL)) * 3 // 4
    for char in sorted(counts, key=lambda c: (-counts[c], c)):
        room -= len(pieces[char])
        if room < 0:
            break
        alphabet.append(char)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        # What is called special gets its id first, in this order; the tokenizer made below has
        # the five as special alone.
        special_tokens=[*SPECIAL, *sorted(piece for char in alphabet for piece in pieces[char])],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    return _wordpiece(tok.get_vocab(), lowercase)


def _wordpiece(
    vocab: dict[str, int],
    lowercase: bool,
    strip_accents: bool | None = None,  # None: where case is folded
    chinese: bool = True,  # each character a word of its own
) -> Tokenizer:
    tok = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tok.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
    )
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.add_special_tokens(list(SPECIAL))
    tok.post_processor = processors.BertProcessing(
        ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"])
    )
    return tok


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A `tokenizer.json`, ours or that of a BERT-like model; or a folder with one, or with BERT's
    older `vocab.txt` and `tokenizer_config.json`. Raises KeftError."""
    file = Path(path)
    if file.is_dir() and not (file / "tokenizer.json").is_file() and (file / "vocab.txt").is_file():
        file = file / "vocab.txt"
        tok = _read_vocab_txt(file)
    else:
        file = file / "tokenizer.json" if file.is_dir() else file
        tok = _read_tokenizer_json(file)
    missing = [piece for piece in SPECIAL if tok.token_to_id(piece) is None]
    if missing:
        raise KeftError(f"{file}: has no {' '.join(missing)}; use a tokenizer of the BERT family")
    if tok.token_to_id("[PAD]") != 0:
        raise KeftError(
            f"{file}: [PAD] is piece {tok.token_to_id('[PAD]')}, and padding is 0 here; use a "
            "tokenizer of the BERT family"
        )
    if sorted(tok.get_vocab().values()) != list(range(tok.get_vocab_size())):
        raise KeftError(
            f"{file}: {tok.get_vocab_size()} pieces that are not numbered one after another; "
            "export it anew"
        )
    # Published files cut and pad as their own task wanted it.
    tok.no_truncation()
    tok.no_padding()
    return tok


def _read_tokenizer_json(file: Path) -> Tokenizer:
    if not file.is_file():
        raise KeftError(f"{file}: no such file; give a tokenizer.json of the tokenizers library")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for whatever does not fit
        raise KeftError(f"{file}: not a tokenizer.json ({error}); export it anew") from error


def _read_vocab_txt(file: Path) -> Tokenizer:
    """One piece a line; the settings beside it are those of transformers' BertTokenizer."""
    beside, settings = file.with_name("tokenizer_config.json"), {}
    try:
        pieces = file.read_text("utf-8").removesuffix("\n").split("\n")
        if beside.is_file():
            settings = json.loads(beside.read_text("utf-8"))
    except ValueError as error:
        raise KeftError(f"{file.parent}: its tokenizer cannot be read ({error})") from error
    vocab = {piece: number for number, piece in enumerate(pieces)}
    missing = [piece for piece in SPECIAL if piece not in vocab]
    if missing:
        raise KeftError(f"{file}: has no {' '.join(missing)}; use a tokenizer of the BERT family")
    return _wordpiece(
        vocab,
        settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        chinese=settings.get("tokenize_chinese_chars", True),
    )


def save_tokenizer(tok: Tokenizer, path: str | Path) -> None:
    """Writes a `tokenizer.json` whole or not at all."""
    write_atomic(path, tok.to_str(pretty=True))


def save_for_transformers(tok: Tokenizer, folder: Path, longest: int) -> None:
    """Writes tokenizer.json and what transformers' AutoTokenizer and older programs read beside it.

    Args:
      longest: tokens that the model reads at most.
    """
    save_tokenizer(tok, folder / "tokenizer.json")
    whole = json.loads(tok.to_str())
    names = [f"{piece[1:-1].lower()}_token" for piece in SPECIAL]
    special: dict[str, Any] = dict(zip(names, SPECIAL, strict=True))
    settings = {"model_max_length": longest, **special}
    normal = whole["normalizer"] or {}
    if normal.get("type") == "BertNormalizer" and whole["model"].get("type") == "WordPiece":
        settings |= {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normal["lowercase"],
            "strip_accents": normal["strip_accents"],
            "tokenize_chinese_chars": normal["handle_chinese_chars"],
        }
        vocab = tok.get_vocab()
        write_atomic(folder / "vocab.txt", "\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n")
    else:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    write_atomic(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")


def encode(
    tok: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> Tokens:
    """Texts, each with its pair where that is not "", as ids within `max_length`.

    What is too long loses tokens at the end, of the longer one of text and pair first.
    """
    check(max_length >= 8, "max_length", max_length, "use 8 or more")
    pairs = [""] * len(texts) if pairs is None else pairs
    if len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(pairs)} pairs")
    cls, sep = tok.token_to_id("[CLS]"), tok.token_to_id("[SEP]")
    none = (0, 0)
    with_pair = [i for i, pair in enumerate(pairs) if pair]
    firsts = tok.encode_batch(list(texts), add_special_tokens=False)
    seconds = tok.encode_batch([pairs[i] for i in with_pair], add_special_tokens=False)
    second_of = dict(zip(with_pair, seconds, strict=True))
    ids, types, offsets = [], [], []
    cut = np.zeros(len(texts), bool)
    for i, first in enumerate(firsts):
        second = second_of.get(i)
        a, b = len(first), 0 if second is None else len(second)
        room = max_length - (2 if second is None else 3)
        if a + b > room:
            cut[i] = True
            short = min(a, b, room // 2)
            a, b = (short, room - short) if a < b else (room - short, short)
        row, places = [cls, *first.ids[:a], sep], [none, *first.offsets[:a], none]
        if second is not None:
            row += [*second.ids[:b], sep]
            places += [*second.offsets[:b], none]
        ids.append(np.array(row, np.int32))
        types.append((np.arange(len(row)) >= a + 2).astype(np.int32))
        offsets.append(np.array(places, np.int32))
    lengths = np.array([len(row) for row in ids], np.int32)
    return Tokens(ids, types, offsets, lengths, cut)
