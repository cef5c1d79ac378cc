"""Facts written into texts: K-BERT's tree by hand, and what the model makes of branches."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

import keft_jax
from keft_jax.config import (
    Config,
    EncoderConfig,
    FusionConfig,
    KeftError,
    KnowledgeConfig,
    TaskConfig,
)
from keft_jax.data.batch import own_mask, sight
from keft_jax.data.features import with_row
from keft_jax.data.rows import ROWS as SPECS
from keft_jax.kg.store import KG
from keft_jax.kg.verbalise import Writer, inject_knowledge, phrase
from keft_jax.models.encoder import Encoder
from keft_jax.train.parts import assemble, build, load_parts, save_parts

PAPER = KG.from_triples(
    [("Tim Cook", "CEO", "Apple"), ("Beijing", "capital", "China"), ("Beijing", "is_a", "City")]
)
ROWS = ("none", "dictionary", "candidates", "untyped", "shuffled", "random", "true")
SENTENCE = "Tim Cook is currently visiting Beijing now"


def words(text):
    return np.array([(0, 0), *(m.span() for m in re.finditer(r"\w+", text))])


def test_the_tree_of_the_paper():
    """Figure 2 of Liu et al. 2020, `is_a` being two words here."""
    tree = inject_knowledge(SENTENCE, PAPER, form="visible")
    assert tree.text == (
        "Tim Cook CEO Apple is currently visiting Beijing capital China is a City now"
    )
    assert [tree.text[s:e] for s, e, _ in tree.mentions] == ["Tim Cook", "Beijing"]
    assert [tree.text[p.start : p.end] for p in tree.pieces] == [
        *("CEO Apple", "capital China", "is a City")
    ]
    position, branch, sees = tree.arrange(words(tree.text))
    assert position.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 7, 8, 9, 7]
    assert branch.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 2, 2, 3, 3, 3, 0]
    trunk = {0, 1, 2, 5, 6, 7, 8, 14}
    ceo, capital, city = {3, 4}, {9, 10}, {11, 12, 13}
    expected = dict.fromkeys(trunk, trunk)
    expected |= dict.fromkeys((1, 2), trunk | ceo) | {8: trunk | capital | city}
    expected |= dict.fromkeys(ceo, ceo | {1, 2})
    expected |= dict.fromkeys(capital, capital | {8}) | dict.fromkeys(city, city | {8})
    assert {q: set(np.flatnonzero(sees[q])) for q in range(15)} == expected


def test_verbalised_facts_stand_behind_the_text():
    out = inject_knowledge(SENTENCE, PAPER, facts=1)
    assert out.text == f"{SENTENCE} [SEP] Tim Cook CEO Apple; Beijing capital China"
    assert [out.text[p.start : p.end] for p in out.pieces] == [
        *("Tim Cook CEO Apple", "Beijing capital China")
    ]
    assert [p.triple for p in out.pieces][1] == ("Beijing", "capital", "China")
    # From the other end, a branch is the fact without its mention.
    back = inject_knowledge("in China.", PAPER, form="visible")
    assert back.text == "in China Beijing capital ." and back.mentions == ((3, 8, "China"),)
    nothing = inject_knowledge("no name here", PAPER)
    assert (nothing.text, nothing.pieces) == ("no name here", ())
    given = inject_knowledge("the city", PAPER, spans=[(4, 8, "Beijing")], facts=1)
    assert given.text.endswith("Beijing capital China")
    assert keft_jax.inject_knowledge is inject_knowledge


def test_given_mentions_may_overlap():
    tree = inject_knowledge(
        "Cook of Beijing", PAPER, form="visible", spans=[(0, 15, "Tim Cook"), (8, 15, "Beijing")]
    )
    position, branch, sees = tree.arrange(words(tree.text))
    own = np.flatnonzero(branch == 0)
    assert position[own].tolist() == [0, 1, 2, 3]
    for number in set(branch) - {0}:
        at = np.flatnonzero(branch == number)
        assert position[at].tolist() == list(range(4, 4 + len(at))) and sees[at].sum(1).max() <= 6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("birthPlace", "birth place"),
        ("/people/person/place_of_birth", "place of birth"),
        ("/a/b/nominations./c/d/award", "nominations award"),
        ("http://x.org/o#birthPlace", "birth place"),
        ("_hypernym", "hypernym"),
        ("CEO", "CEO"),
        ("/", "/"),
    ],
)
def test_relations_as_words(name, words):
    assert phrase(name) == words


def test_facts_are_chosen_by_rarity_and_none_twice():
    kg = KG.from_triples(
        [(f"x{i}", "likes", "a") for i in range(9)] + [("a", "wrote", "b"), ("a", "likes", "x5")]
    )
    writer = Writer(kg, 2)
    a, b, x7 = (kg.id(n) for n in ("a", "b", "x7"))
    facts = [writer.triple(n) for _, n in writer.choose([a])]
    assert facts == [("a", "wrote", "b"), ("x0", "likes", "a")]
    # What joins two mentions comes first, and is the first one's.
    chosen = writer.choose([a, -1, x7, a, b])
    assert [(m, writer.triple(n)) for m, n in chosen] == [
        *((0, ("a", "wrote", "b")), (0, ("x7", "likes", "a")))
    ]
    assert Writer(kg, 1, relations=False).whole(chosen[0][1]) == "a related to b"


@pytest.mark.parametrize(
    ("field", "message"), [({"form": "loud"}, "form = 'loud'"), ({"facts": 0}, "facts = 0")]
)
def test_what_cannot_be_injected(field, message):
    with pytest.raises(KeftError, match=message):
        inject_knowledge("x", PAPER, **field)


def test_configs_that_cannot_write_facts():
    bare = {"fusion": FusionConfig(kind="none"), "task": TaskConfig(kind="classification")}
    for field, message in (
        ({"knowledge": KnowledgeConfig(text="visible")}, r"knowledge\.text = 'visible'"),
        ({"knowledge": KnowledgeConfig(kg="x", attributes="a")}, r"knowledge\.attributes"),
        (
            {
                "knowledge": KnowledgeConfig(kg="x", text="visible"),
                "encoder": EncoderConfig(attention="cudnn"),
            },
            r"encoder\.attention = 'cudnn'",
        ),
    ):
        with pytest.raises(KeftError, match=message):
            Config(**bare, **field)
    with pytest.raises(KeftError, match="text_facts = 0"):
        KnowledgeConfig(text_facts=0)


# --- in a data set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("files")
    tiny.write_files(out)
    return out


@pytest.fixture(scope="module")
def plain(folder):
    encoder = dataclasses.replace(tiny.config(folder).encoder, max_length=40, layers=2)
    config = tiny.config(folder, fusion=FusionConfig(kind="none"), encoder=encoder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, buckets=(12, 40)))
    written = dataclasses.replace(config.knowledge, text="verbalise")  # its names are words
    made, splits = build(dataclasses.replace(config, knowledge=written))
    ours = made.knowledge
    parts = assemble(config, ours.kg, ours.vocabulary, made.labels)
    return parts, parts.dataset(splits.train)


def with_text(plain, text, **fields):
    """(parts, data set) of the same texts with facts in them."""
    parts, data = plain
    knowledge = dataclasses.replace(parts.config.knowledge, text=text, **fields)
    ours, config = parts.knowledge, dataclasses.replace(parts.config, knowledge=knowledge)
    other = assemble(config, ours.kg, ours.vocabulary, parts.labels)
    return other, with_row(data, other.knowledge, "true", 1)


def read(parts, table, row):
    """The tokens of a text and of what is written behind it, as text."""
    own, length = table.own[row], table.length[row]
    decode = parts.knowledge.vocabulary.tokenizer.decode
    return decode(list(table.tokens[row, :own])), decode(list(table.tokens[row, own:length]))


@pytest.mark.parametrize("text", ["verbalise", "visible"])
def test_rows_read_their_own_facts_behind_the_same_text(plain, text):
    parts, data = with_text(plain, text, text_facts=2, text_tokens=24)
    base, knowledge = plain[1], parts.knowledge
    rows = {row: with_row(data, knowledge, row, 1) for row in ROWS}
    for row, made in rows.items():
        t, own_bl = made.table, np.arange(40) < base.table.length[:, None]
        np.testing.assert_array_equal(t.own, base.table.length)
        for name in ("tokens", "types"):
            np.testing.assert_array_equal(
                *(np.where(own_bl, getattr(x, name), 0) for x in (t, base.table))
            )
            assert not getattr(t, name)[np.arange(40) >= t.length[:, None]].any()
        jax.tree.map(np.testing.assert_array_equal, t.targets, base.table.targets)
        np.testing.assert_array_equal(made.lengths, data.lengths)
        assert (t.length - t.own <= 24).all() and (t.length <= made.lengths).all()
        assert SPECS[row].facts == (t.length > t.own).any()
    for row in ("none", "dictionary", "candidates"):
        np.testing.assert_array_equal(rows[row].table.tokens, base.table.tokens)
    wrong = 0
    for i, example in enumerate(data.examples):
        said, facts = read(parts, rows["true"].table, i)
        person, home = re.search(r"person\d+", example.text)[0], example.answers[0]
        assert person in said
        if text == "verbalise":
            assert facts == f"{person} lives in {home}"
        else:
            assert facts == f"lives in {home}"
        wrong += read(parts, rows["shuffled"].table, i)[1] != facts
    assert wrong > 0.8 * len(data)  # some change places with one who lives there too
    one = data.batch(40, np.array([0]))
    facts = knowledge.written(one, data.seeds[:1], "true", 0)
    assert [f[1] for f in facts] == ["lives_in"]
    bare = knowledge.write(one, data.seeds[:1], "true", 0, without=facts)
    assert bare.length == bare.own == one.own and (bare.tokens[0, bare.own[0] :] == 0).all()
    said = read(parts, rows["untyped"].table, 0)[1]
    assert said.endswith("to town0") and "lives in" not in said
    again = with_row(with_row(data, knowledge, "shuffled", 3), knowledge, "true", 0)
    np.testing.assert_array_equal(again.table.tokens, rows["true"].table.tokens)
    back = with_row(again, plain[0].knowledge, "true", 0)
    first = with_row(base, plain[0].knowledge, "true", 0)
    jax.tree.map(np.testing.assert_array_equal, back.table, first.table)
    np.testing.assert_array_equal(back.lengths, base.lengths)


def test_the_text_goes_before_its_facts(plain):
    parts, data = with_text(plain, "verbalise", text_tokens=8)
    full = np.flatnonzero(data.table.own + 8 > 0)
    assert (data.table.length[full] - data.table.own[full] <= 8).all()
    short = dataclasses.replace(
        data.table, tokens=data.table.tokens[:, :12], types=data.table.types[:, :12]
    )
    cut = parts.knowledge.write(short, data.seeds, "true", 0)
    assert (cut.length <= 12).all() and (cut.own == data.table.own).all()


def test_a_run_writes_the_facts_of_the_graph_at_hand(plain, tmp_path):
    parts, data = with_text(plain, "visible", text_facts=1)
    save_parts(parts, tmp_path / "run")
    again = load_parts(tmp_path / "run")
    loaded = with_row(again.dataset(data.examples), again.knowledge, "true", 0)
    for name in ("tokens", "length", "own", "position", "branch"):
        one, two = (getattr(d.table, name) for d in (loaded, data))
        np.testing.assert_array_equal(one, two)
    kg = parts.knowledge.kg
    moved = kg.remove([("person0", "lives_in", "town0")]).add([("person0", "lives_in", "town9")])
    other = again.with_kg(moved)
    live = with_row(other.dataset(data.examples[:1]), other.knowledge, "true", 0)
    assert read(other, live.table, 0)[1] == "lives in town9"


# --- in the model


@pytest.fixture(scope="module")
def tree(plain):
    """(parts, a batch of texts with branches, parameters as after training)."""
    parts, data = with_text(plain, "visible", text_facts=2)
    # A town has several facts: let texts mention towns too.
    examples = [dataclasses.replace(e, text=f"{e.text} near town3") for e in data.examples[:4]]
    data = with_row(parts.dataset(examples), parts.knowledge, "true", 1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype("f"), parts.model.abstract())
    return parts, data.batch(40, np.arange(4)), params


def states(parts, params, batch, layers):
    encoder = nnx.merge(*_split(parts), params["encoder"])
    x = encoder.embed(batch.tokens, batch.types, None, batch.position)
    return np.asarray(encoder.run(x, sight(batch), None, 0, layers))


def _split(parts):
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Encoder(parts.config.encoder, 1)))
    return (graphdef,)


def test_sight_on_the_device_is_the_papers(tree):
    """Against `Injected.arrange`, over the same tree written the other way."""
    parts, batch, _ = tree
    see = np.asarray(sight(batch))
    tok = parts.knowledge.vocabulary.tokenizer
    for i in range(4):
        text = tok.decode(list(batch.tokens[i, : batch.own[i]]))
        injected = inject_knowledge(text, parts.knowledge.kg, form="visible", facts=2)
        encoded = tok.encode(injected.text)
        position, branch, sees = injected.arrange(encoded.offsets)
        order = np.argsort(branch > 0, kind="stable")  # ours: the sentence, then its branches
        n = len(order)
        assert n == batch.length[i]
        np.testing.assert_array_equal(batch.tokens[i, :n], np.array(encoded.ids)[order])
        np.testing.assert_array_equal(batch.position[i, :n], position[order])
        np.testing.assert_array_equal(see[i, :n, :n], sees[np.ix_(order, order)])
        assert not see[i, :, n:].any()


def test_branches_disturb_their_mentions_alone(tree):
    parts, batch, params = tree
    own = np.asarray(own_mask(batch))
    bare = parts.knowledge.write(batch, np.full((4, 2), -1), "none", 0)
    assert (bare.length < batch.length).all()
    start, end, at = batch.mentions.start, batch.mentions.end, np.arange(40)
    anchor = ((at >= start[..., None]) & (at < end[..., None])).any(1)
    with_, without = (states(parts, params, b, 1) for b in (batch, bare))
    np.testing.assert_allclose(with_[own & ~anchor], without[own & ~anchor], atol=1e-5)
    assert np.abs(with_[own & anchor] - without[own & anchor]).max(1).min() > 1e-3
    # The layer after, everyone has read the mentions.
    with_, without = (states(parts, params, b, 2) for b in (batch, bare))
    assert np.abs(with_[own] - without[own]).max(1).min() > 1e-4


def test_the_order_of_branches_means_nothing(tree):
    parts, batch, params = tree
    other, moved = jax.tree.map(np.copy, batch), 0
    for i in range(4):
        own, n = batch.own[i], batch.length[i]
        order = np.lexsort((np.arange(own, n), -batch.branch[i, own:n]))
        moved += (order != np.arange(n - own)).any()
        for name in ("tokens", "position", "branch"):
            getattr(other, name)[i, own:n] = getattr(batch, name)[i, own:n][order]
    assert moved
    own = np.asarray(own_mask(batch))
    one, two = (states(parts, params, b, 2) for b in (batch, other))
    np.testing.assert_allclose(one[own], two[own], atol=2e-5)


def test_padding_is_never_read(tree):
    parts, batch, params = tree
    real = np.arange(40) < batch.length[:, None]
    other = dataclasses.replace(batch, tokens=np.where(real, batch.tokens, 7))
    one, two = (states(parts, params, b, 2) for b in (batch, other))
    np.testing.assert_array_equal(one[real], two[real])


def test_without_facts_it_is_plain_bert(plain):
    """Bit for bit, with the parameters and the step's random numbers of the plain model."""
    parts, data = plain
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype("f"), parts.model.abstract())

    def read_(of, batch):
        return jax.jit(of.model.apply)(params, batch, names, jax.random.key(1)).logits

    names, every = parts.knowledge.names, np.arange(4)
    bare = read_(parts, with_row(data, parts.knowledge, "none", 0).batch(40, every))
    for text in ("verbalise", "visible"):
        other, facts = with_text(plain, text)
        none = with_row(facts, other.knowledge, "none", 0).batch(40, every)
        true = with_row(facts, other.knowledge, "true", 0).batch(40, every)
        none, true = (read_(other, batch) for batch in (none, true))
        np.testing.assert_array_equal(none, bare)
        assert np.abs(true - bare).max() > 1e-4 and np.isfinite(true).all()
