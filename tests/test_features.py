"""What each row of the gain table is given, and that nothing else differs."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import ROWS as ROW_NAMES
from keft_jax.config import KeftError
from keft_jax.data.features import ROWS, with_row
from keft_jax.data.rows import RowSpec
from keft_jax.data.source import examples_from
from keft_jax.gain.splits import hops_to_answer
from keft_jax.kg.store import KG
from keft_jax.train.parts import build


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    config = tiny.config(folder)
    config = dataclasses.replace(config, knowledge=dataclasses.replace(config.knowledge, hops=2))
    parts, splits = build(config)
    examples = splits.train
    return parts, parts.dataset(examples)


def facts(graph, row):
    """{(sender, relation, receiver)} of one example, by entity."""
    entity = graph.nodes["entity"][row]
    n = graph.n_edge[row, 0]
    ends = zip(
        entity[graph.senders[row, :n]],
        graph.edges["relation"][row, :n],
        entity[graph.receivers[row, :n]],
        strict=True,
    )
    return set(ends)


def test_every_row_has_a_spec():
    assert tuple(ROWS)[: len(ROW_NAMES)] == ROW_NAMES  # then those of wrong and missing facts


def test_rows_share_text_targets_and_shapes(made):
    parts, data = made
    tables = {row: with_row(data, parts.knowledge, row, 1).table for row in ROW_NAMES}
    for table in tables.values():
        one, two = (
            dataclasses.replace(t, graph=None, mentions=dataclasses.replace(t.mentions, node=None))
            for t in (table, tables["true"])
        )
        jax.tree.map(np.testing.assert_array_equal, one, two)
        shapes = [
            jax.tree.map(lambda x: (x.shape, x.dtype), t.graph) for t in (table, tables["true"])
        ]
        assert shapes[0] == shapes[1]


def test_what_each_row_is_given(made):
    parts, data = made
    graph = {row: with_row(data, parts.knowledge, row, 1).table.graph for row in ROW_NAMES}
    node = {row: with_row(data, parts.knowledge, row, 1).table.mentions.node for row in ROW_NAMES}
    kg, known = parts.knowledge.kg, parts.knowledge.kg.n_relations
    truth = set(zip(kg.heads.tolist(), kg.rels.tolist(), kg.tails.tolist(), strict=True))

    assert (graph["none"].n_node[:, 0] == 0).all() and (node["none"] == -1).all()
    assert (graph["none"].nodes["mention"] == 0).all()
    assert (graph["none"].nodes["entity"] == -1).all() and (graph["none"].nodes["row"] == 0).all()

    # The dictionary knows the mentioned entity and nothing beside it.
    assert (graph["dictionary"].n_node[:, 0] == (data.seeds >= 0).sum(1)).all()
    np.testing.assert_array_equal(node["dictionary"], node["true"])
    for row in ("none", "dictionary", "candidates"):
        assert (graph[row].n_edge[:, 0] == 0).all()
        pad = graph[row].n_node[:, :1]
        assert (graph[row].senders == pad).all() and (graph[row].receivers == pad).all()
    for name in graph["true"].nodes:
        for row in ("candidates", "untyped"):
            np.testing.assert_array_equal(graph[row].nodes[name], graph["true"].nodes[name])
    for name in ("senders", "receivers", "n_edge"):
        one, two = getattr(graph["untyped"], name), getattr(graph["true"], name)
        np.testing.assert_array_equal(one, two)
    assert set(np.unique(graph["untyped"].edges["relation"])) <= {0, known}
    assert len(np.unique(graph["true"].edges["relation"])) == 2 * known

    wrong = {"shuffled": 0, "random": 0}
    for i in range(len(data)):
        for head, relation, tail in facts(graph["true"], i):
            back = (tail, relation - known, head)
            assert (head, relation, tail) in truth if relation < known else back in truth
        for row in wrong:
            found = {f for f in facts(graph[row], i) if f[1] < known}
            wrong[row] += len(found - truth)
    assert min(wrong.values()) > len(data) / 2


def test_seeded_rows_change_with_the_seed_and_others_do_not(made):
    parts, data = made
    for row in ROW_NAMES:
        one, two = (with_row(data, parts.knowledge, row, seed).table.graph for seed in (1, 2))
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
        )
        assert same != ROWS[row].seeded


def test_the_graph_alone_decides_the_batch(made):
    """An answer is never in the batch but as a target: the same question with other answers."""
    parts, data = made
    other = [dataclasses.replace(e, answers=("town9",)) for e in data.examples]
    again = parts.dataset(other)
    for row in ROW_NAMES:
        one, two = (with_row(d, parts.knowledge, row, 1).table for d in (data, again))
        one, two = (dataclasses.replace(t, targets={}) for t in (one, two))
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_hops_to_answer(made):
    parts, data = made
    sub = parts.knowledge.subgraphs(data.seeds, "true", 0)
    kg = parts.knowledge.kg
    person, town = kg.id("person3"), kg.id("town3")
    i = next(i for i, e in enumerate(data.examples) if "person3 " in e.text)
    answers = [{-5}] * len(data)
    for ids, expected in (({person}, 0), ({town}, 1), ({kg.id("town9")}, -1)):
        answers[i] = ids
        far = hops_to_answer(sub, answers)
        assert far[i] == expected and (np.delete(far, i) == -1).all()


def test_a_row_draws_its_graph_once_for_all_splits(made, monkeypatch):
    parts, data = made
    drawn = []

    def count(kg, seed):
        drawn.append(seed)
        return kg

    monkeypatch.setitem(ROWS, "random", RowSpec(kg=count))
    for seed in (11, 11, 12, 12, 12):
        with_row(data, parts.knowledge, "true", seed)
        with_row(data, parts.knowledge, "random", seed)
    assert drawn == [11, 12]


def test_given_spans_become_mentions(made):
    parts, _ = made
    text = "where does the old man live ?"
    config = dataclasses.replace(parts.config.data, spans="at")
    records = [
        {"question": text, "at": [[11, 22, "person3"]]},
        {"question": text, "at": [[11, 22, "nobody"]]},
    ]
    data = parts.dataset(examples_from(records, config))
    kg = parts.knowledge.kg
    assert data.seeds[:, 0].tolist() == [kg.id("person3"), -1]
    assert [(m.start, m.end) for m in data.mentions[0]] == [(11, 22)]
    encoded = parts.knowledge.vocabulary.tokenizer.encode(text)
    inside = [t for t, (a, b) in enumerate(encoded.offsets) if 11 <= a < b <= 22]
    mentions = data.table.mentions
    assert (mentions.start[0, 0], mentions.end[0, 0]) == (inside[0], inside[-1] + 1)


def test_another_graph_keeps_the_rows_of_known_entities(made):
    parts, _ = made
    kg = parts.knowledge.kg
    newer = kg.add([("aunt", "lives_in", "town3")])  # sorts first: every id shifts
    other = parts.with_kg(newer)
    data = other.dataset(examples_from(["where does person3 live ?", "where does aunt live ?"]))
    graph = with_row(data, other.knowledge, "true", 0).table.graph
    rows = [
        {newer.names[e]: r for e, r in zip(entity, row, strict=True) if e >= 0}
        for entity, row in zip(graph.nodes["entity"], graph.nodes["row"], strict=True)
    ]
    assert rows[0]["person3"] == 1 + kg.id("person3") and rows[1]["aunt"] == 0
    assert rows[1]["town3"] == 1 + kg.id("town3")
    with pytest.raises(KeftError, match="'works_in'"):
        parts.with_kg(KG.from_triples([("a", "works_in", "b")]))


def test_a_label_that_training_never_saw(tmp_path):
    tiny.write_files(tmp_path)
    parts, _ = build(tiny.classification(tmp_path))
    with pytest.raises(KeftError, match=r"input:1: label 'prime' never occurs"):
        parts.dataset(examples_from([{"question": "a ?", "label": "prime"}]))


def test_mentions_of_a_text_with_a_pair(made):
    """The second text's offsets start again, and are not the mention's."""
    parts, _ = made
    config = dataclasses.replace(
        parts.config, data=dataclasses.replace(parts.config.data, pair="more")
    )
    records = [{"question": "person1 is here .", "more": "where does the other one live ?"}]
    alone = parts.dataset(examples_from(["person1 is here ."]))
    paired = parts.dataset(examples_from(records, config.data))
    assert paired.lengths[0] > alone.lengths[0]
    for name in ("start", "end"):
        one, two = (getattr(d.table.mentions, name) for d in (alone, paired))
        np.testing.assert_array_equal(one, two)


def test_malformed_facts_are_reported(tmp_path, caplog):
    tiny.write_files(tmp_path)
    with open(tmp_path / "kg.tsv", "a") as out:
        out.write("only\ttwo\n")
    build(tiny.config(tmp_path))
    assert "1 malformed lines left out" in caplog.text and "kg.tsv:30" in caplog.text


def test_a_text_model_needs_no_graph(tmp_path):
    tiny.write_files(tmp_path)
    config = tiny.config(
        tmp_path,
        task=tiny.TaskConfig(kind="classification"),
        knowledge=tiny.KnowledgeConfig(),
        fusion=tiny.FusionConfig(kind="none"),
    )
    parts, splits = build(config)
    graph = parts.dataset(splits.train).batch(16, np.arange(4)).graph
    assert (graph.n_node[:, 0] == 0).all() and (graph.n_edge[:, 0] == 0).all()
