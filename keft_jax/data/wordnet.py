"""The nouns of WordNet 3.0 (Fellbaum 1998), from its dictionary files in a tar.zst."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keft_jax.config import KeftError

ARCHIVE = "knowledge/wordnet3.0/wordnet-3.0-dict.tar.zst"
PLURALS = (("s$", ""), ("es$", ""), ("ies$", "y"))


@dataclass(frozen=True)
class Nouns:
    senses: Mapping[str, Sequence[str]]
    """Lemma, in lower case with _ for spaces -> the numbers of its synsets, most frequent first."""
    hypernyms: Mapping[str, Sequence[str]]
    """Synset -> synsets of what it is a kind or an instance of."""
    irregular: Mapping[str, str]
    """Plural -> lemma."""
    names: Mapping[str, str]
    """Synset -> its first lemma, with its number among that one's senses: dog.n.01."""
    glosses: Mapping[str, str]
    """Synset -> all its lemmas and what it says of them, without the examples."""

    def lemma(self, phrase: str) -> str | None:
        """That of a nominal, else of its last word."""
        whole = "_".join(phrase.lower().split())
        for word in (whole, re.split("[_-]", whole)[-1]):
            plain = (re.sub(end, start, word) for end, start in PLURALS)
            for form in (word, self.irregular.get(word, word), *plain):
                if form in self.senses:
                    return form
        return None

    def triples(self, lemmas: Iterable[str]) -> Iterator[tuple[str, str, str]]:
        """What is above the first senses of these words: from a word to its synset (`sense`) and
        to each one above it (`kind of`), so that a subgraph of one hop around a word has them all
        and nothing below it; and from a synset to the next one above it (`hypernym`)."""
        done: set[str] = set()
        for lemma in lemmas:
            word, first = spoken(lemma), self.senses[lemma][0]
            above = self._above(first)
            yield word, "sense", self.names[first]
            yield from ((word, "kind of", self.names[synset]) for synset in above)
            for synset in {first, *above} - done:
                pairs = ((self.names[synset], self.names[h]) for h in self.hypernyms[synset])
                yield from ((low, "hypernym", high) for low, high in pairs)
            done |= {first, *above}

    def descriptions(self, lemmas: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Of these words and of all that `triples` says of them."""
        for lemma in lemmas:
            first = self.senses[lemma][0]
            yield spoken(lemma), self.glosses[first]
            for synset in (first, *self._above(first)):
                yield self.names[synset], self.glosses[synset]

    def _above(self, synset: str) -> list[str]:
        """Nearest first, each once."""
        out: dict[str, None] = {}
        layer = list(self.hypernyms[synset])
        while layer:
            out.update(dict.fromkeys(layer))
            layer = [h for s in layer for h in self.hypernyms[s] if h not in out]
        return list(out)


def spoken(lemma: str) -> str:
    return lemma.replace("_", " ")


def read_nouns(raw: Path) -> Nouns:
    """Raises KeftError for an archive that is missing or damaged, and with the line of a file in it
    that is not WordNet's."""
    files = _unpack(raw / ARCHIVE, ("index.noun", "data.noun", "noun.exc"))
    senses = {}
    for where, line in files["index.noun"]:
        fields = line.split()
        # lemma pos synsets pointers [symbol ...] senses tagged offset ...
        if len(fields) < 7 or not fields[2].isdigit() or not 0 < int(fields[2]) <= len(fields) - 6:
            raise _strange(where, line)
        senses[fields[0]] = fields[-int(fields[2]) :]
    number = {(lemma, s): i for lemma, of in senses.items() for i, s in enumerate(of, 1)}
    hypernyms, names, glosses = {}, {}, {}
    for where, line in files["data.noun"]:
        # offset file pos words(hex) [word id ...] pointers [symbol offset pos source/target ...]
        head, bar, gloss = line.partition(" | ")
        fields = head.split()
        try:
            at = 5 + 2 * int(fields[3], 16)
            words = fields[4 : at - 1 : 2]
            ends = at + 4 * int(fields[at - 1])
            pointers = list(zip(fields[at:ends:4], fields[at + 1 : ends : 4], strict=True))
            first = words[0].lower()
            name = f"{spoken(first)}.n.{number[first, fields[0]]:02}"
        except (IndexError, ValueError, KeyError):
            raise _strange(where, line) from None
        if not bar:
            raise _strange(where, line)
        hypernyms[fields[0]] = [s for symbol, s in pointers if symbol in ("@", "@i")]
        names[fields[0]] = name
        said = re.split(r'; "', gloss.strip())[0]
        glosses[fields[0]] = f"{', '.join(spoken(w) for w in words)}: {said}"
    for synset in {s for of in (*senses.values(), *hypernyms.values()) for s in of}:
        if synset not in names:
            raise KeftError(f"{raw / ARCHIVE}: data.noun has no synset {synset}; copy it again")
    irregular = {}
    for where, line in files["noun.exc"]:
        plural, _, lemma = line.partition(" ")
        if not lemma:
            raise _strange(where, line)
        irregular[plural] = lemma.split()[0]
    return Nouns(senses, hypernyms, irregular, names, glosses)


def _strange(where: str, line: str) -> KeftError:
    return KeftError(f"{where}: {line[:60]!r} is not WordNet 3.0's form; copy the archive again")


def _unpack(archive: Path, names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """name -> (place, line) of the files wordnet/*, without the licence that stands indented."""
    import pyarrow as pa

    if not archive.is_file():
        raise KeftError(f"{archive}: no such file; copy it there")
    if not pa.Codec.is_available("zstd"):
        raise KeftError(f"{archive}: this pyarrow cannot read zstd; install that of the wheels")
    try:
        with pa.input_stream(str(archive), compression="zstd") as stream:
            content = stream.read()
        out = {}
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for name in names:
                member = tar.extractfile(f"wordnet/{name}")
                if member is None:
                    raise KeyError(name)
                lines = member.read().decode("latin-1").split("\n")
                out[name] = [
                    (f"{archive}:{name}:{number}", line)
                    for number, line in enumerate(lines, 1)
                    if line and line[0] != " "
                ]
    except (OSError, tarfile.TarError, KeyError) as error:
        raise KeftError(f"{archive}: cannot be read ({error}); copy it again") from error
    return out
