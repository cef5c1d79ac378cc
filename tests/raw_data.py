"""Small raw files in the forms of the real ones, for generators of data sets; all sizes are just
above what the generators set aside."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa

from keft_jax.data.tokenize import save_tokenizer, train_wordpiece

WORDS = ("old", "new", "red", "small", "the", "river", "house", "tree", "over", "sees", "made")
NOUNS = ("dog", "hound", "mouse", "animal", "thing", "rock_star")
RELATIONS = [f"P{i}" for i in range(1, 9)]
COUNT = 700  # entities


def write(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), 1))


def sentences(count: int, length: int = 6):
    """Different ones."""
    rng = random.Random(count)
    return [[*rng.choices(WORDS, k=length - 1), f"x{i}"] for i in range(count)]


def graphs(raw: Path) -> None:
    facts = [f"Q{i}\t{RELATIONS[i % 8]}\tQ{(i * 7 + 1) % COUNT}" for i in range(COUNT)]
    facts += [f"Q{i + 10_000}\tP1\tQ{i}" for i in range(10)]  # the two of sentences of FewRel
    freebase = [
        f"/m/{i}\t{r}\t/m/{(i * 5 + 2) % COUNT}"
        for i in range(COUNT)
        for r in ("/people/person/profession", "/film/actor/film./film/performance/film")
    ]
    for name, lines in (("CoDEx-M", facts), ("FB15k-237", freebase)):
        for part, some in (("train", lines[4:]), ("valid", lines[:2]), ("test", lines[2:4])):
            write(raw / f"kg/{name}/{part}.txt.gz", some)
    entries = {
        f"/m/{i}": {
            "wikidata_id": f"Q{i}",
            "label": f"Name {i // 2 * 2}",  # two entities have one label
            "alternatives": [f"Alias {i}", WORDS[i % len(WORDS)]],
            "description": f"thing {i}",
        }
        for i in range(COUNT)
    }
    write(raw / "kg/FB15k-237/entity2wikidata.json.gz", [json.dumps(entries)])
    write(raw / "kg/FB15k-237/relation2text.txt.gz", ["/film/actor/film./film/performance/film\tx"])
    labels = {relation: {"label": f"relation {relation}"} for relation in RELATIONS}
    write(raw / "kg/CoDEx-S/relations_en.json.gz", [json.dumps(labels)])


def fewrel(raw: Path) -> None:
    rows = [
        {
            "tokens": tokens,
            "relation": f"P{i % 8}",
            "name": f"name {i % 8}",
            "h": ["x", f"Q{i}", [[0]]],
            "t": ["y", f"Q{i + 10_000}", [[2, 3]]],
        }
        for i, tokens in enumerate(sentences(8 * 260))
    ]
    write(raw / "relation/fewrel/fewrel.jsonl.gz", map(json.dumps, rows))


def typing(raw: Path) -> None:
    for part, first, count in (("train", 0, 500), ("valid", 500, 60)):
        rows = [
            {
                "tokens": tokens,
                "span": [1, 3],
                "qid": f"Q{first + i}",
                "types": [["human", "lake", "Tamil languages", "no such"][i % 4], "monarch"],
            }
            for i, tokens in enumerate(sentences(count))
        ]
        write(raw / f"typing/fewrel-typing/{part}.jsonl.gz", map(json.dumps, rows))


def semeval(raw: Path) -> None:
    lines = []
    for i, tokens in enumerate(sentences(2100)):
        tokens[1] = f"<e1>{NOUNS[i % 6].replace('_', ' ')}s</e1>"
        tokens[3] = f"<e2>{NOUNS[i // 6 % 6] if i % 5 else 'zzz'}</e2>,"
        label = "Other" if i % 3 == 0 else f"Cause-Effect(e{i % 2 + 1},e{2 - i % 2})"
        lines += [f'{i + 1}\t"{" ".join(tokens)}."\r', f"{label}\r", "Comment:\r", "\r"]
    write(raw / "relation/semeval2010-task8/TRAIN_FILE.TXT.gz", lines)


def wordnet(raw: Path) -> None:
    """animal and thing are above dog; hound is its other lemma, of which it is the second sense."""
    files = {
        "index.noun": "  1 licence\n"
        "animal n 1 1 @ 1 0 00000002  \ndog n 1 1 @ 1 1 00000003  \n"
        "hound n 2 1 @ 2 1 00000004 00000003  \nmouse n 1 1 @ 1 0 00000005  \n"
        "rock_star n 1 1 @ 1 0 00000006  \nthing n 1 0 1 0 00000001  \n",
        "data.noun": "  1 licence\n"
        "00000001 03 n 01 thing 0 000 | what is  \n"
        '00000002 03 n 01 animal 0 001 @ 00000001 n 0000 | lives; "an animal"  \n'
        "00000003 03 n 02 dog 0 Hound 0 001 @ 00000002 n 0000 | barks  \n"
        "00000004 03 n 01 hound 0 002 + 00000002 v 0101 @ 00000003 n 0000 | hunts  \n"
        "00000005 03 n 01 mouse 0 001 @ 00000002 n 0000 | squeaks  \n"
        "00000006 03 n 01 rock_star 0 001 @i 00000001 n 0000 | sings  \n",
        "noun.exc": "mice mouse\n",
    }
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"wordnet/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    file = raw / "knowledge/wordnet3.0/wordnet-3.0-dict.tar.zst"
    file.parent.mkdir(parents=True)
    with pa.output_stream(str(file), compression="zstd") as out:
        out.write(content.getvalue())


def commonsense(raw: Path) -> None:
    for part, count in (("train", 700), ("dev", 50)):
        rows = [
            {
                "answerKey": "ABCDE"[i % 5],
                "question": {
                    "question_concept": f"concept {i % 40}",
                    "stem": f"{part} {' '.join(tokens)}?",
                    "choices": [
                        {"label": letter, "text": f"concept {(i + k) % 40}"}
                        for k, letter in enumerate("ABCDE")
                    ],
                },
            }
            for i, tokens in enumerate(sentences(count))
        ]
        file = raw / f"mcqa/commonsenseqa/{part}_rand_split.jsonl.gz"
        write(file, map(json.dumps, rows))


def conceptnet(raw: Path) -> None:
    facts = [f"HasSubevent\tconcept {i}\tconcept {(i * 3 + 1) % 40}" for i in range(40)]
    facts += [f"IsA\t{word}\tword" for word in WORDS]
    write(raw / "knowledge/conceptnet100k/train.txt.gz", facts)


def squad(raw: Path) -> None:
    articles = []
    for a in range(25):
        context = f"Name {a} saw the river. The house was old."
        questions = [
            {
                "id": f"{a} {i}",
                "question": f"What did {a} see in {i}?",
                "answers": [{"text": "the river", "answer_start": context.index("the r")}]
                * (i % 2),
                "is_impossible": i % 2 == 0,
            }
            for i in range(100)
        ]
        paragraph = {"context": context, "qas": questions}
        articles.append({"title": f"title {a}", "paragraphs": [paragraph]})
    write(raw / "extractive_qa/squad2/dev-v2.0.json.gz", [json.dumps({"data": articles})])


def wikigold(raw: Path) -> None:
    lines = []
    for i, tokens in enumerate(sentences(800)):
        lines += [f"{token} {'I-PER' if k == 1 else 'O'}" for k, token in enumerate(tokens)]
        lines += ["", *(["-DOCSTART- O", ""] if i % 10 == 9 else [])]
    write(raw / "ner/wikigold/wikigold.conll.txt.gz", lines)


def wikialigned(raw: Path) -> None:
    """Words of two pieces, every third one linked; and the vocabulary beside the raw files."""
    tokenizer = train_wordpiece([" ".join(t) for t in sentences(3000)], 300)
    save_tokenizer(tokenizer, raw / "../models/all-MiniLM-L6-v2/tokenizer.json")
    lines: tuple[list, list] = ([], [])
    for article in range(40):
        rows: tuple[list, list] = (["6"], ["6"])
        for i, tokens in enumerate(sentences(6)):
            found = tokenizer.encode(" ".join(tokens), add_special_tokens=False)
            for row in rows:
                row.append(str(len(found.ids)))
            rows[0].extend(map(str, found.ids))
            inner = [found.tokens[k].startswith("##") for k in range(len(found.ids))]
            rows[1].extend(
                "#UNK#" if k % 3 or inner[k] else f"Q{article + i}" for k in range(len(inner))
            )
        for line, row in zip(lines, rows, strict=True):
            line.append("\t".join(row))
    for kind, some in zip(("token", "entity"), lines, strict=True):
        write(raw / f"mlm/ernie-wiki-aligned/wiki_{kind}.gz", some)


def cola(raw: Path) -> None:
    for part, count in (("in_domain_train", 650), ("in_domain_dev", 50), ("out_of_domain_dev", 40)):
        rows = (f"s\t{i % 3 % 2}\t\t{part} {' '.join(t)}" for i, t in enumerate(sentences(count)))
        write(raw / f"glue/cola/{part}.tsv.gz", rows)


def sst2(raw: Path) -> None:
    for part, count in (("train", 4700), ("dev", 50)):
        rows = (f"{part} {' '.join(t)}\t{i % 3 % 2}" for i, t in enumerate(sentences(count)))
        write(raw / f"sentiment/sst2/{part}.tsv.gz", rows)
    (raw / "knowledge/lexicons").mkdir(parents=True, exist_ok=True)
    (raw / "knowledge/lexicons/AFINN-en-165.txt").write_text("old\t-1\nnew\t2\n")


PARTS = (
    *(graphs, fewrel, typing, semeval, wordnet, commonsense, conceptnet),
    *(squad, wikigold, cola, sst2, wikialigned),
)


def write_all(raw: Path) -> Path:
    for part in PARTS:
        part(raw)
    return raw
