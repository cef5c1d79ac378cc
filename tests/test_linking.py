"""Mentions against a slow reference, spans that index the original text, and what wins."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest

from keft_jax.config import KeftError
from keft_jax.kg import KG, build_kg
from keft_jax.kg.linking import StringLinker, parse_brackets
from keft_jax.kg.linking.normal import normalise
from keft_jax.kg.linking.string import _tokenise

ODD = ["İ", "ﬁ", "ß", "Ｔｏｍ", "é", "e\u0301", "½", "㍻", "ﾊﾟ", "각", "각", "ΐ", "Σ", "ς", "🇫🇷"]


def linker(*names, aliases=None, **options):
    facts = [(name, "is", "thing") for name in names]
    return StringLinker(KG.from_triples(facts, aliases=aliases or {}), **options)


def found(link, text):
    """(surface, names of the candidates) of each mention."""
    return [(text[m.start : m.end], m.entities) for m in link.link([text])[0]]


def surfaces(link, text):
    return [surface for surface, _ in found(link, text)]


@pytest.mark.parametrize("fold", [True, False])
def test_normal_form_keeps_every_place(fold):
    rng = random.Random(0)
    letters = [*ODD, "a", "B", " ", "中", "，", "\u0327", "\u0345", "\ud800", "\0"]
    for _ in range(500):
        text = "".join(rng.choices(letters, k=rng.randint(0, 12)))
        normal = normalise(text, fold=fold)
        if not fold and "\ud800" not in text:
            assert normal.text == unicodedata.normalize("NFKC", text)
        if normal.starts is None:
            assert len(normal.text) == len(text)
            continue
        assert len(normal.starts) == len(normal.ends) == len(normal.text)
        assert (np.diff(normal.starts) >= 0).all() and (normal.starts < normal.ends).all()
        for start, end in zip(normal.starts, normal.ends, strict=True):
            part = normalise(text[start:end], fold=fold).text
            assert part and part in normal.text


def test_spans_index_the_original_text():
    rng = random.Random(1)
    link = linker("istanbul", "ﬁnance office", "Tom Hanks", "Straße", "café", "北京")
    forms = [
        "İSTANBUL".replace("İ", "I"),
        "finance  OFFICE",
        "ＴＯＭ Hanks",
        "STRASSE",
        "cafe\u0301",
    ]
    forms += ["北京", "ﬁnance office"]
    for _ in range(200):
        parts, spans, size = [], [], 0
        for form in rng.sample(forms, 3):
            filler = " " + "".join(rng.choices(["İ", "ﬁ", "½", "，", "é", "㍻"], k=4)) + " . "
            parts += [filler, form]
            spans.append((size + len(filler), size + len(filler) + len(form)))
            size += len(filler) + len(form)
        text = "".join(parts)
        (mentions,) = link.link([text])
        assert [(m.start, m.end) for m in mentions] == spans
        assert all(m.entities for m in mentions)


def test_a_match_never_splits_a_character():
    assert surfaces(linker("成", "office", "2", min_chars=1), "㍻ oﬃce ½ 平成") == ["oﬃce", "成"]


def reference(names, text):
    """Longest match over all token spans, by trying them all."""
    keys = {" ".join(_tokenise(normalise(name, fold=True).text)[0]) for name in names}
    tokens, starts, ends = _tokenise(normalise(text, fold=True).text)
    spans, i = [], 0
    while i < len(tokens):
        for j in range(len(tokens), i, -1):
            key = " ".join(tokens[i:j])
            if key in keys and len(key.replace(" ", "")) >= 2:
                spans.append((starts[i], ends[j - 1]))
                i = j - 1
                break
        i += 1
    return spans


def test_equals_the_reference_and_texts_do_not_touch():
    rng = random.Random(2)
    words = ["New", "York", "City", "new", "of", "Bank", "-", "America", "中", "国", "人", "St."]
    for _ in range(40):
        names = {" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(15)}
        link = linker(*names)
        names.add("thing")
        texts = [" ".join(rng.choices(words, k=rng.randint(0, 14))) for _ in range(20)]
        for text, mentions in zip(texts, link.link(texts), strict=True):
            assert [(m.start, m.end) for m in mentions] == reference(names, text)


def test_longest_match_on_token_boundaries():
    link = linker("New York", "New York City", "York", "Art", "Spider-Man", "C++")
    assert surfaces(link, "new york city, New York; Yorkshire art") == [
        *("new york city", "New York", "art"),
    ]
    assert surfaces(link, "starting New  York") == ["New  York"]
    assert surfaces(link, "Spider-Man (C++)") == ["Spider-Man", "C++"]
    assert link.link([]) == [] and link.link(["", " "]) == [[], []]


def test_text_without_spaces():
    link = linker("北京", "北京大学", "東京タワー", "iPhone 15", "กรุงเทพ")
    assert surfaces(link, "我在北京大学读书，他住北京。") == ["北京大学", "北京"]
    assert surfaces(link, "東京タワーでＩＰＨＯＮＥ１５を買う") == ["東京タワー"]
    assert surfaces(link, "買iPhone 15了") == ["iPhone 15"]
    assert surfaces(link, "อยู่กรุงเทพนะ") == ["กรุงเทพ"]


def test_exact_case_comes_before_folded():
    kg = KG.from_triples([("Heat", "is", "film"), ("heat", "is", "tag"), ("HEAT", "is", "tag")])
    link = StringLinker(kg)
    ids = {name: kg.id(name) for name in ("Heat", "heat", "HEAT")}
    (mentions,) = link.link(["Heat heat HEAT hEAT"])
    assert [m.entities for m in mentions[:3]] == [(ids[n],) for n in ("Heat", "heat", "HEAT")]
    assert set(mentions[3].entities) == set(ids.values())
    assert mentions[0].score == 1 and mentions[3].score == pytest.approx(0.3)
    assert surfaces(StringLinker(kg, fold_case=False), "hEAT Heat") == ["Heat"]


def test_candidates_of_an_ambiguous_name_are_all_kept_in_order():
    facts = [("Paris", "in", "Texas"), ("z", "r", "y")]
    facts += [("Big", "r", f"x{i}") for i in range(5)] + [("Small", "r", "x0"), ("Also", "r", "x1")]
    aliases = {"Big": ["Paris"], "Small": ["Paris", "Paris "], "Also": ["Paris"]}
    kg = KG.from_triples(facts, aliases=aliases)
    (mention,) = StringLinker(kg).link(["Paris"])[0]
    assert [kg.names[i] for i in mention.entities] == ["Paris", "Big", "Also", "Small"]
    assert mention.score == 0.25


def test_given_mentions():
    link = linker("Tom Hanks", "$", "It")
    text, spans = parse_brackets("who likes [tom  hanks] or [$] or [Nobody]")
    mentions = link.link_given(text, spans)
    assert [text[m.start : m.end] for m in mentions] == ["tom  hanks", "$", "Nobody"]
    assert [bool(m.entities) for m in mentions] == [True, True, False] and mentions[2].score == 0
    assert link.link_given("He acts", [(0, 2, "Tom Hanks")])[0].entities
    with pytest.raises(KeftError, match=r"span \(0, 9\)"):
        link.link_given("He acts", [(0, 9)])


@pytest.mark.parametrize(
    ("text", "clean", "names"),
    [
        ("who is [A] and [B C]?", "who is A and B C?", ["A", "B C"]),
        ("who made [[Rec]]", "who made [Rec]", ["[Rec]"]),
        ("[Rec", "[Rec", []),
        ("a] [b] c[", "a] b c[", ["b"]),
        ("[a [b]", "[a b", ["b"]),
        ("[] x", "[] x", []),
        ("", "", []),
    ],
)
def test_brackets(text, clean, names):
    got, spans = parse_brackets(text)
    assert got == clean and [got[a:b] for a, b in spans] == names


def test_short_names_are_only_linked_when_given():
    link = linker("A", "AB", "A B C", min_chars=2)
    assert surfaces(link, "a ab") == ["ab"]
    assert surfaces(linker("ab cd", "abc de", min_chars=5), "ab cd abc de") == ["abc de"]
    assert link.link_given("A", [(0, 1)])[0].entities


def test_barriers_in_names_or_text_do_no_harm():
    link = linker("a\0b", "cd ef", "cd")
    assert surfaces(link, "a\0b cd\0ef") == ["cd"]
    assert [len(m) for m in link.link(["x cd", "ef", "cd ef"])] == [1, 0, 1]


def test_on_real_names(shared):
    path = shared / "data/kgqa/metaqa/kg.tsv.gz"
    if not path.exists():
        pytest.skip("no MetaQA graph in shared/")
    kg, _ = build_kg(path)
    link = StringLinker(kg)
    for i in range(0, kg.n_entities, 500):
        text = f"what about [{kg.names[i]}], then?"
        clean, spans = parse_brackets(text)
        assert link.link_given(clean, spans)[0].entities[0] == i
