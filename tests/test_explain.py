"""The fact behind an answer is found by leaving facts out."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import EvalConfig, OptimConfig
from keft_jax.data.batch import edge_mask
from keft_jax.data.features import with_row
from keft_jax.explain import make_explainer, remove_edges
from keft_jax.sharding import make_mesh
from keft_jax.train.loop import Trainer
from keft_jax.train.run import load_run, train


def write_files(folder):
    """Who lives where, and which towns are near. The people and towns of the test are new, so that
    their answers come from the graph alone, where a home has neighbours that could be one."""
    folder.mkdir(parents=True, exist_ok=True)
    homes = [f"town{i}" for i in np.random.default_rng(0).permutation(80)]
    facts, rows = [f"town{i}\tnear\ttown{i + 1}" for i in range(79)], []
    for i, home in enumerate(homes):
        facts.append(f"person{i}\tlives_in\t{home}")
        question = f"where does person{i} live ?"
        rows.append(json.dumps({"question": question, "answers": [home], "cluster": f"person{i}"}))
    (folder / "kg.tsv").write_text("\n".join(facts))
    for name, part in {"train": rows[:64], "select": rows[64:70], "test": rows[70:]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    config = tiny.config(
        folder,
        knowledge=dataclasses.replace(tiny.config(folder).knowledge, hops=2),
        optim=OptimConfig(steps=200, batch=16, learning_rate=1e-2),
        eval=EvalConfig(every=50, batch=8),
    )
    train(config, folder / "run", quiet=True)
    parts, params = load_run(folder / "run", make_mesh(config.mesh))
    text = parts.dataset(parts.read(f"{folder}/test.jsonl"))
    return Trainer(parts), params, text, with_row(text, parts.knowledge, "true", 0)


def one_of(dataset, number):
    return dataset.batch(16, np.array([number]))


def test_the_fact_behind_the_answer_weighs_most(trained):
    trainer, params, _, dataset = trained
    explain = make_explainer(trainer)
    for number, example in enumerate(dataset.examples):
        found = explain(params, dataset, number)
        (right,) = example.answers
        assert found.answer == right and 0 < found.probability <= 1
        assert [n for n, m in zip(found.nodes, found.mentioned, strict=True) if m] == [
            example.cluster
        ]
        first, *others = found.facts
        fact = (found.nodes[first.head], first.relation, found.nodes[first.tail])
        assert fact == (example.cluster, "lives_in", right)
        # Without it, each of the towns near each other is as likely.
        assert first.importance > 0.4
        assert others and all(0 <= o.importance < 0.05 for o in others)


def test_removed_edges_leave_order_and_padding(trained):
    dataset = trained[3]
    rng = np.random.default_rng(0)
    for number in range(len(dataset)):
        one = one_of(dataset, number)
        graph, count = one.graph, int(one.graph.n_edge[0, 0])
        edges = rng.choice(count, rng.integers(count + 1), replace=False).tolist()
        before = [x.copy() for x in jax.tree.leaves(graph)]
        left = remove_edges(one, edges).graph
        keep = [i for i in range(count) if i not in edges]
        for was, now in (
            (graph.senders, left.senders),
            (graph.receivers, left.receivers),
            (graph.edges["relation"], left.edges["relation"]),
        ):
            assert now.shape == was.shape and now.dtype == was.dtype
            np.testing.assert_array_equal(now[0, : len(keep)], was[0, keep])
        # Padding edges join the first padding node to itself; edges stay sorted by receiver.
        pad = int(graph.n_node[0, 0])
        assert (left.senders[0, len(keep) :] == pad).all()
        assert (left.receivers[0, len(keep) :] == pad).all()
        assert (np.diff(left.receivers[0]) >= 0).all()
        assert left.n_edge.sum() == graph.n_edge.sum() and edge_mask(left).sum() == len(keep)
        assert left.nodes is graph.nodes
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(graph))


def test_without_any_fact_it_is_the_row_candidates(trained):
    trainer, params, text, dataset = trained
    nodes = with_row(text, trainer.parts.knowledge, "candidates", 0)
    for number in (0, 7):
        one = one_of(dataset, number)
        bare = remove_edges(one, list(range(int(one.graph.n_edge[0, 0]))))
        expected = one_of(nodes, number)
        jax.tree.map(np.testing.assert_array_equal, bare, expected)
        names = trainer.frozen()["names"]
        a, b = (trainer.parts.model.apply(params, x, names).logits for x in (bare, expected))
        np.testing.assert_array_equal(a, b)
