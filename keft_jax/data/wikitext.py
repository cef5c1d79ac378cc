"""WikiText-2 (Merity et al. 2017), of which the validation part is read: texts without labels.

test.jsonl, select.jsonl, train.jsonl: texts of about `WORDS` words, sentences of a paragraph in a
row, no article in two files. What the raw file writes apart (`1 @,@ 000`) is joined again, and
<unk> is [UNK].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from keft_jax.data.raw import read_gzip, source_folder
from keft_jax.data.wikialigned import write_splits

WORDS = 70
TITLE = re.compile(r" = [^=].* = ")


def generate(source: str, folder: Path) -> None:
    """Raises KeftError naming what is missing in the source."""
    raw = source_folder(source, ("mlm/wikitext-2",))
    articles: list[list[dict[str, str]]] = []
    for line in read_gzip(raw / "mlm/wikitext-2/valid.txt.gz").split("\n"):
        if TITLE.fullmatch(line) or not articles:
            articles.append([])
        if line.strip() and not line.startswith(" = "):
            name = str(len(articles) - 1)
            articles[-1] += [{"text": text, "article": name} for text in cut(plain(line))]
    write_splits(folder, [article for article in articles if article])


def plain(line: str) -> str:
    joined = re.sub(r" @(.)@ ", r"\1", line.strip())
    return joined.replace("<unk>", "[UNK]")


def cut(paragraph: str) -> Iterator[str]:
    """Whole sentences, in texts of at most `WORDS` words where the sentences let it be."""
    text: list[str] = []
    for sentence in re.split(r"(?<= [.?!]) ", paragraph):
        words = sentence.split(" ")
        if text and len(text) + len(words) > WORDS:
            yield " ".join(text)
            text = []
        text += words
    if text:
        yield " ".join(text)
