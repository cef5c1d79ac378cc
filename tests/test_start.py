"""What a run takes over from another one."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from keft_jax.config import GraphConfig, KeftError, OptimConfig, TaskConfig
from keft_jax.models.pretrained import flat
from keft_jax.train.given import Given
from keft_jax.train.parts import build
from keft_jax.train.start import complete, take_over

GRAPH = GraphConfig(kind="rgat", layers=1, width=8, heads=2)


@pytest.fixture
def both(tmp_path):
    """(parts of masked language modelling over one graph, parts of questions over another)."""
    tiny.write_files(tmp_path)
    before = tiny.config(tmp_path, task=TaskConfig(kind="mlm"), graph=GRAPH)
    its = build(before)[0]
    its.save(tmp_path / "run")
    facts = (tmp_path / "kg.tsv").read_text().splitlines()
    more = ["person3\tknows\tperson4", "aaron\tnear\ttown2"]
    (tmp_path / "kg.tsv").write_text("\n".join(more + facts[5:]) + "\n")
    data = dataclasses.replace(before.data, vocab=str(tmp_path / "run/tokenizer.json"))
    after = tiny.config(
        tmp_path,
        data=data,
        graph=GRAPH,
        optim=OptimConfig(steps=24, batch=8, learning_rate=1e-2, start="elsewhere"),
    )
    return its, build(after)[0]


def drawn(parts, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, parts.model.abstract())


def test_all_that_fits_is_taken_and_the_rest_is_new(both, caplog):
    its, ours = both
    params, fresh = drawn(its), drawn(ours, seed=1)
    with caplog.at_level(logging.WARNING):
        given = take_over(Given(ours), its, params)
    (line,) = caplog.messages
    known = set(its.knowledge.vocabulary.entities) & set(ours.knowledge.vocabulary.entities)
    entities = len(ours.knowledge.vocabulary.entities)
    assert len(known) == entities - 1  # but aaron
    assert f"{len(known)} of {entities} entities and 2 of 3 relations" in line
    assert re.search(r"\b0 of \d+ in head", line)

    start = flat(complete(given.start("true", 0), fresh))
    was, own = flat(params), flat(fresh)
    assert all(not np.isnan(value).any() for value in start.values())
    for path in (p for p in was if p.startswith("encoder/")):
        np.testing.assert_array_equal(start[path], was[path])
    assert not [path for path in start if path.startswith("head/")]

    def rows(parts, table):
        names = parts.knowledge.kg.names
        return dict(zip(names, table[parts.knowledge.row_numbers], strict=True))

    got, theirs = rows(ours, start["nodes/rows"]), rows(its, np.asarray(was["nodes/rows"]))
    for name in known:
        np.testing.assert_array_equal(got[name], theirs[name])
    np.testing.assert_array_equal(got["aaron"], rows(ours, np.asarray(own["nodes/rows"]))["aaron"])
    path = next(p for p in was if p.endswith("relation_value"))
    a, b = its.knowledge.vocabulary.relations, ours.knowledge.vocabulary.relations
    for inverse in (0, 1):
        for i, name in enumerate(b):
            j = inverse * len(b) + i
            if name in a:
                expected = was[path][inverse * len(a) + a.index(name)]
            else:
                expected = own[path][j]
            np.testing.assert_array_equal(start[path][j], expected)

    # Rows are made from facts: who may not read these is not given them.
    assert not given.start("none", 0)["nodes"]["rows"].any()
    assert given.inputs()["optim.start"] and not Given(ours).inputs()["optim.start"]


def test_refused(both):
    its, ours = both
    other = build(its.config)[0]
    other.knowledge.vocabulary.tokenizer.add_tokens(["zzz"])
    with pytest.raises(KeftError, match=r"optim\.start = 'elsewhere': its tokenizer"):
        take_over(Given(ours), other, drawn(its))
    with pytest.raises(KeftError, match="none of its parameters"):
        take_over(Given(ours), its, {})
