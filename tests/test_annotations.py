"""Tags, places of answers and choices: what is read, and what is refused with its place."""

import json

import pytest

from keft_jax.config import DataConfig, KeftError
from keft_jax.data.source import examples_from, read_examples

TAGS = DataConfig(text="tokens", tags="tags")
SPANS = DataConfig(text="context", pair="question", answer_spans="answers")
CHOICES = DataConfig(choices="choices")


def one(record, data):
    (example,) = examples_from([record], data)
    return example


def words(example):
    return [(example.text[start:end], tag) for start, end, tag in example.tags]


def test_tags_of_tokens_of_words_and_of_entities():
    tokens = ["Jo", "van", "Ek", "is", "in", "U.S."]
    tags = ["B-PER", "I-PER", "I-PER", "O", "O", "B-LOC"]
    expected = list(zip(tokens, tags, strict=True))
    text = " ".join(tokens)
    entities = [[16, 20, "LOC"], [0, 9, "PER"]]
    for record in (
        {"tokens": tokens, "tags": tags},
        {"tokens": text, "tags": tags},
        {"tokens": text, "tags": " ".join(tags)},
        {"tokens": text, "tags": json.dumps(tags)},
        {"tokens": tokens, "tags": entities},
    ):
        assert words(one(record, TAGS)) == expected
    by_word = one({"tokens": "Jo van Ek's is in U.S.", "tags": [[0, 9, "PER"]]}, TAGS)
    assert words(by_word)[:4] == [*expected[:3], ("'", "O")]  # cut where the entity ends
    unknown = one({"tokens": tokens}, TAGS)
    assert words(unknown) == [(token, "") for token in tokens]
    assert words(one({"tokens": "well-known, Ek."}, TAGS)) == [
        ("well-known", ""), (",", ""), ("Ek", ""), (".", "")
    ]  # fmt: skip
    assert words(one({"tokens": "no one", "tags": []}, TAGS)) == [("no", "O"), ("one", "O")]


def test_places_of_answers():
    context = "Ada met Ada."
    for value in (
        {"text": ["Ada"], "answer_start": [8]},
        [{"text": "Ada", "answer_start": 8}],
        [[8, "Ada"]],
        json.dumps([[8, "Ada"]]),
    ):
        found = one({"context": context, "question": "who?", "answers": value}, SPANS)
        assert found.answer_spans == ((8, 11),) and found.answers == ("Ada",)
    for value in ([], {"text": [], "answer_start": []}, "[]"):
        none = one({"context": context, "question": "who?", "answers": value}, SPANS)
        assert none.answer_spans == () and none.answers == ()
    assert one({"context": context, "question": "who?"}, SPANS).answer_spans is None


@pytest.mark.parametrize(
    ("choices", "label", "letter"),
    [
        (["red", "blue"], "blue", "B"),
        (["red", "blue"], "B", "B"),
        (["red", "blue"], 1, "B"),
        (["red", "blue"], "1", "B"),
        (["3", "1"], 1, "B"),
        (["1", "0"], 0, "A"),  # a number counts
        ({"text": ["red", "blue"], "label": ["2", "1"]}, "1", "B"),
        ({"text": ["red", "blue"], "label": [2, 1]}, 1, "B"),
    ],
)
def test_the_right_choice(choices, label, letter):
    found = one({"question": "?", "choices": choices, "label": label}, CHOICES)
    assert found.label == letter and len(found.choices) == 2
    assert one({"question": "?", "choices": choices}, CHOICES).label is None


CONTEXT = {"context": "Ada met Bob.", "question": "who?"}
BAD = [
    (TAGS, {"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 tokens"),
    (TAGS, {"tokens": ["a"], "tags": [3]}, "3 where a tag such as 'B-PER' or 'O' is expected"),
    (TAGS, {"tokens": ["a"], "tags": [" "]}, "' ' where a tag"),
    (TAGS, {"tokens": "a b", "tags": [[0, 9, "X"]]}, r"\[0, 9\] where 0 <= start < end <= 3"),
    (TAGS, {"tokens": "a b", "tags": [[0, 1, ""]]}, r"where \[start, end, type\] is expected"),
    (TAGS, {"tokens": "ab", "tags": [[0, 2, "X"], [1, 2, "Y"]]}, "overlap"),
    (TAGS, {"tokens": "a b", "tags": [[1, 2, "X"]]}, "has no whole word in it"),
    (TAGS, {"tokens": ["ab"], "tags": [[0, 1, "X"]]}, "has no whole word in it"),
    (TAGS, {"tokens": "a", "tags": {"a": 1}}, "a dict where a list of tags is expected"),
    (SPANS, CONTEXT | {"answers": [[4, "Bob"]]}, "'Bob' at 4, where the text has 'met'"),
    (SPANS, CONTEXT | {"answers": [[9, "Bob.."]]}, r"'Bob\.\.'.*\[9, 14\] where 0 <= start"),
    (SPANS, CONTEXT | {"answers": [[-4, "Bob"]]}, "where 0 <= start"),
    (SPANS, CONTEXT | {"answers": [[3, " "]]}, "where a start and a text are expected"),
    (SPANS, CONTEXT | {"answers": ["Bob"]}, "'Bob' where a start and a text are expected"),
    (SPANS, CONTEXT | {"answers": 3}, "3 where .* is expected"),
    (SPANS, CONTEXT | {"answers": {"text": ["Bob"], "answer_start": []}}, "1 texts but 0 starts"),
    (SPANS, {"context": "Ada", "answers": []}, "data.pair = 'question': no such field"),
    (CHOICES, {"question": "?", "choices": ["a", " "], "label": "A"}, "choice B is empty"),
    (CHOICES, {"question": "?", "choices": ["a"], "label": "A"}, "1 choices; give 2 to 26"),
    (CHOICES, {"question": "?", "choices": ["a", "b"], "label": "C"}, "'C' is none of the choices"),
    (CHOICES, {"question": "?", "choices": ["a", "b"], "label": 2}, "2 is none of the choices"),
    (CHOICES, {"question": "?", "choices": ["1", "0"], "label": "0"}, "could be several"),
    (CHOICES, {"question": "?", "choices": ["a", "a"], "label": "a"}, "could be several"),
    (CHOICES, {"question": "?", "choices": ["a", 2], "label": "a"}, "a list of texts is expected"),
    (CHOICES, {"question": "?", "label": "a"}, "data.choices = 'choices': no such field"),
]  # fmt: skip
NEEDS = {TAGS: ("tags",), SPANS: ("pair", "answer_spans"), CHOICES: ("choices", "label")}


@pytest.mark.parametrize(("data", "record", "why"), BAD)
def test_bad_records_have_their_place(data, record, why, tmp_path, caplog):
    with pytest.raises(KeftError, match=f"^input:1: .*{why}") as caught:
        examples_from([record], data)
    assert "\n" not in str(caught.value)
    file = tmp_path / "data.jsonl"
    good = {
        TAGS: {"tokens": ["a"], "tags": ["O"]},
        SPANS: {"context": "Ada", "question": "?", "answers": [[0, "Ada"]]},
        CHOICES: {"question": "?", "choices": ["a", "b"], "label": "A"},
    }[data]
    file.write_text(json.dumps(good) + "\n" + json.dumps(record) + "\n")
    assert len(read_examples(file, data, need=NEEDS[data])) == 1  # the bad one is counted
    assert "1 malformed line left out: line 2" in caplog.text


def test_what_a_task_needs_must_be_there(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"tokens": ["a"], "context": "a", "question": "q"}\n')
    for data, need in ((TAGS, "tags"), (SPANS, "answer_spans")):
        with pytest.raises(KeftError, match=r"data\.jsonl:1: data\.\w+ = '\w+': no such field"):
            read_examples(file, data, need=(need,))
    file.write_text('{"tokens": ["a"], "tags": null}\n')
    assert read_examples(file, TAGS)[0].tags == ((0, 1, ""),)
    with pytest.raises(KeftError, match=r"data\.jsonl:1: data\.tags = 'tags': empty"):
        read_examples(file, TAGS, need=("tags",))
    with pytest.raises(KeftError, match=r"data\.tags = '': needed here"):
        read_examples(file, SPANS, need=("tags",))
    with pytest.raises(KeftError, match="moves the places"):
        DataConfig(brackets=True, tags="tags")
