"""Numbers and dates of entities: how they are read, which row has whose, and where they go."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import GainConfig, KeftError
from keft_jax.data.features import with_row
from keft_jax.data.lexicon import Lexicon, make_attributes
from keft_jax.gain.variants import VARIANTS, Variants, vary, with_all_ways
from keft_jax.kg.attributes import MOST, parse_value, read_attributes
from keft_jax.kg.store import KG
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import build, load_parts, make_tokenizer, save_parts
from keft_jax.train.workdir import refuse_other_run

CITIES = KG.from_triples([(f"c{i}", "in", "land") for i in range(9)])


def write(path, lines):
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-1e3", -1000),
        ("2001", 2001),
        ("2001-07", 2001.5),
        ("2001-01-01T10:00:00Z", 2001),
        ("-0044-01", -44),
        *((text, None) for text in ("2001-13-01", "1_000", "nan", "inf", "red", "12-05", "")),
    ],
)
def test_numbers_and_dates(text, value):
    assert parse_value(text) == value


def test_standardised_by_median_and_quartiles(tmp_path):
    rows = [(f"c{i}", "size", 100 + 10 * i) for i in range(8)] + [("c8", "size", 1e9)]
    rows += [("c1", "flat", 3), ("c2", "flat", 3), ("elsewhere", "size", -5e9), ("c0", "size", 90)]
    attributes, report = read_attributes(write(tmp_path / "a.tsv", rows), CITIES)
    assert (attributes.names, attributes.width) == (("flat", "size"), 4)
    assert (report.read, report.malformed_lines, attributes.unknown) == (len(rows), 0, 1)
    table = attributes.of(CITIES)
    assert table.dtype == np.float16 and table.shape == (10, 4)
    size, there = table[:, 1], table[:, 3]
    ids = [CITIES.id(f"c{i}") for i in range(9)]
    assert size[ids[4]] == 0 and there[ids].all()  # the median; the last value of two counts
    spread = attributes.spread[1]
    np.testing.assert_allclose(size[ids[0]], (90 - 140) / spread, rtol=1e-3)
    assert size[ids[8]] == MOST  # one odd value moves no other
    land = CITIES.id("land")
    assert not table[land].any() and not table[:, 0].any()
    assert table[:, 2].sum() == 2
    # What is written is read as the same.
    (tmp_path / "b.tsv").write_text("".join(attributes.lines()))
    again, _ = read_attributes(tmp_path / "b.tsv", CITIES)
    np.testing.assert_array_equal(again.of(CITIES), table)
    # Another graph finds its entities by name.
    other = KG.from_triples([("b", "in", "elsewhere"), ("c4", "in", "b")])
    moved = attributes.of(other)
    assert moved[other.id("elsewhere"), 3] == 1 and moved[other.id("c4"), 1] == 0


def test_values_that_are_no_numbers(tmp_path):
    rows = [(f"c{i}", "size", i) for i in range(5)] + [("c5", "size", "big"), ("c6", "size")]
    _, report = read_attributes(write(tmp_path / "a.tsv", rows), CITIES)
    assert report.malformed_lines == 2
    reasons = {line: reason for _, line, reason in report.malformed}
    assert "'big' is no number" in reasons[6] and "2 fields" in reasons[7]
    colours = [*rows, *((f"c{i}", "colour", "red") for i in range(3))]
    with pytest.raises(KeftError, match=r"b\.tsv:8: attribute 'colour' .*'red'.* into the graph"):
        read_attributes(write(tmp_path / "b.tsv", colours), CITIES)
    with pytest.raises(KeftError, match="none of its 1 rows"):
        read_attributes(write(tmp_path / "c.tsv", [("x", "size", 1)]), CITIES)


def test_polarity_of_lexicons():
    one = Lexicon("A", {"good": 0.5, "bad": -1.0})
    two = Lexicon("B", {"good": 1.0}, graded=False)
    assert make_attributes([one, two]) == [
        *(("bad", "polarity", -1.0), ("bad", "A valence", -1.0)),
        *(("good", "polarity", 0.75), ("good", "A valence", 0.5)),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    write(folder / "a.tsv", [(f"town{i}", "size", i) for i in range(9)])
    config = tiny.config(folder)
    known = dataclasses.replace(config.knowledge, attributes=f"{folder}/a.tsv")
    parts, splits = build(dataclasses.replace(config, knowledge=known))
    return parts, parts.dataset(splits.train)


def test_each_row_has_its_own(made):
    parts, data = made
    has = {}
    for row in ("none", "dictionary", "candidates", "shuffled", "random", "true"):
        batch = with_row(data, parts.knowledge, row, 1).batch(16, np.arange(40))
        has[row] = batch.graph.nodes["attribute"]
        assert has[row].shape == (*batch.graph.nodes["entity"].shape, 2)
        assert not has[row][batch.graph.nodes["entity"] < 0].any()
    assert not has["none"].any() and not has["dictionary"].any()
    own = parts.knowledge.attributes.of(parts.knowledge.kg)
    entity = with_row(data, parts.knowledge, "true", 1).table.graph.nodes["entity"]
    np.testing.assert_array_equal(has["true"][entity >= 0], own[entity[entity >= 0]])
    np.testing.assert_array_equal(has["candidates"], has["true"])
    # In the shuffled graph whoever stands in a town's place has what the town has.
    assert has["shuffled"].any() and (has["shuffled"] != has["true"]).any()
    moved = with_row(data, parts.knowledge, "shuffled", 1).table.graph
    values = parts.knowledge.describe(np.arange(30)[None], "shuffled", 1)["attribute"][0]
    kg = parts.knowledge.graph_of("shuffled", 1)
    live = kg.relation_id("lives_in")
    homes = np.unique(kg.tails[kg.rels == live])
    assert values[homes, 1].sum() >= 9 and values[:, 1].sum() == 9 and moved.n_node.any()


def test_they_are_part_of_the_model_and_the_run(made, tmp_path):
    parts, data = made
    batch = with_row(data, parts.knowledge, "true", 1).batch(16, np.arange(4))
    abstract = parts.model.abstract()
    assert abstract["nodes"]["attribute"]["kernel"].shape == (2, 8)
    out = jax.eval_shape(parts.model.apply, abstract, batch, parts.knowledge.names)
    assert out.logits.shape[0] == 4
    save_parts(parts, tmp_path / "run")
    (tmp_path / "run/config.json").rename(tmp_path / "config.json")
    refuse_other_run(parts.config, tmp_path / "run")  # one that was killed before config.json came
    (tmp_path / "config.json").rename(tmp_path / "run/config.json")
    again = load_parts(tmp_path / "run")
    kg = parts.knowledge.kg
    np.testing.assert_array_equal(
        again.knowledge.attributes.of(kg), parts.knowledge.attributes.of(kg)
    )
    assert again.inputs() == parts.inputs() and "knowledge.attributes" in parts.inputs()
    more = parts.with_kg(kg.add([("aunt", "lives_in", "town3")]))
    table = more.knowledge.attributes.of(more.knowledge.kg)
    assert table[more.knowledge.kg.id("town8"), 1] == 1


def test_the_ways_of_using_a_graph_in_one_table(made, tmp_path):
    """What each variant trains and reads; shapes alone, nothing is compiled."""
    parts, data = made
    base = dataclasses.replace(parts.config, gain=GainConfig(rows=("none", "true")))
    every = with_all_ways(base)
    assert every.gain.attributes == base.knowledge.attributes and not every.knowledge.attributes
    assert len(every.gain.variants) == 10
    with pytest.raises(KeftError, match=r"gain\.attributes = ''"):
        vary(tiny.config(tmp_path), VARIANTS["attributes"], str)
    plain, _ = build(every)
    # Rows that write facts into the text have words for them, and all rows the same words.
    lake = KG.from_triples([("zug lake", "in", "zug"), ("zug", "in", "land")])
    pieces = [make_tokenizer(c, data.examples, lake).get_vocab() for c in (base, every)]
    assert ["zug" in known for known in pieces] == [False, True]
    data = plain.dataset(data.examples)
    variants = Variants(Trainer(plain), tmp_path, print)
    hashes = {}
    for name in every.gain.variants:
        reads, knowledge = variants.reads(name)
        assert reads == ("shuffled" if name.endswith("-shuffled") else "true")
        trainer = variants.trainer(name, 1)
        assert trainer.given.as_row is None
        config, model = trainer.parts.config, trainer.parts.model
        made_ = with_row(data, knowledge, reads, 1).batch(16, np.arange(4))
        hashes[name] = (config.knowledge.text, config.graph.kind, config.fusion.kind)
        if reads == "true":
            out = jax.eval_shape(model.apply, model.abstract(), made_, plain.knowledge.names)
            assert out.logits.shape[0] == 4
        assert (made_.own is None) == (config.knowledge.text == "none")
    assert hashes["text"] == ("verbalise", "gcn", "none")
    assert hashes["text-visible-shuffled"] == ("visible", "gcn", "none")
    assert hashes["triple-sum"] == ("none", "triple_sum", "mention_add")
    assert variants.reads("none") == ("none", plain.knowledge)
    assert variants.trainer("text", 1) is variants.trainer("text-shuffled", 1)
