"""What a fused model takes from triple embeddings: first rows, a teacher, and a term of its own."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_bert
import tiny

from keft_jax.config import (
    FusionConfig,
    GainConfig,
    GroupConfig,
    KeftError,
    KgeConfig,
    KgTeacherConfig,
    ObjectiveConfig,
    OptimConfig,
    TriplesConfig,
)
from keft_jax.config.train import Variant
from keft_jax.data.features import ROWS, with_row
from keft_jax.gain.variants import (
    PRESETS,
    VARIANTS,
    _program,
    preset,
    train_triples,
    vary,
    with_all_models,
)
from keft_jax.kg.controls import permute_entities
from keft_jax.kg.embeddings import Embeddings, read_embeddings, write_embeddings
from keft_jax.kg.store import KG
from keft_jax.models.functional import Model
from keft_jax.models.kge import TripleScorer, entity_width
from keft_jax.models.mentions import MentionTeacher, candidates, divergence
from keft_jax.models.pretrained import flat
from keft_jax.train.given import Guide, make_given
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import build, load_kg, load_parts, save_parts
from keft_jax.train.run import load_given, load_vectors

WIDTH = 8  # of entities: graph.width, and complex of 4
KGE = KgeConfig(model="complex", width=WIDTH // 2, negatives=6, init=0.1)
BOTH = ObjectiveConfig(triples=TriplesConfig(weight=0.5, batch=12), kg_teacher=KgTeacherConfig(0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terms")
    tiny.write_files(folder)
    rng = np.random.default_rng(0)
    names = [*tiny.TOWNS, *tiny.PEOPLE[:-1], "nobody"]  # one is missing, one too many
    vectors = Embeddings(
        names,
        rng.normal(size=(len(names), WIDTH)).astype("f"),
        ("near", "lives_in"),
        rng.normal(size=(2, 5)).astype("f"),
    )
    write_embeddings(folder / "vectors", vectors)
    return folder


def knowledge(folder, **fields):
    return dataclasses.replace(tiny.config(folder).knowledge, **fields)


def made(folder, **sections):
    sections.setdefault("knowledge", knowledge(folder, hops=2))  # more nodes than one beside v
    parts, splits = build(tiny.config(folder, **sections))
    return parts, load_given(parts), splits


def step(parts, given, examples, steps=1, row="true"):
    """(first state, last state, metrics of each step) on one batch."""
    trainer = Trainer(parts, given)
    data = with_row(parts.dataset(examples), parts.knowledge, row, 0)
    frozen, batch = trainer.frozen(data=data), trainer.put(data.batch(16, np.arange(8)))
    state = trainer.fresh(0, data)
    first, metrics = jax.device_get(state), []
    for _ in range(steps):
        state, now = trainer.train_step(state, frozen, batch)
        metrics.append(jax.device_get(now))
    return first, jax.device_get(state), metrics


def test_a_term_of_weight_0_is_not_built(folder):
    """The compiled step is the same text, so that it computes the same bits."""
    off = ObjectiveConfig(triples=TriplesConfig(0, 64), kg_teacher=KgTeacherConfig(0, "x", 2.0))
    texts = []
    for objective in (ObjectiveConfig(), off):
        parts, given, splits = made(folder, objective=objective)
        trainer, data = Trainer(parts, given), parts.ready(splits.train)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        batch = data.batch(16, np.arange(8))
        texts.append(trainer.train_step.lower(state, trainer.frozen(), batch).as_text())
    assert texts[0] == texts[1]


def test_rows_start_as_a_row_of_the_table_may_know(folder, caplog):
    path = str(folder / "vectors")
    parts, given, _ = made(folder, knowledge=knowledge(folder, entities=path))
    kg, theirs = parts.knowledge.kg, read_embeddings(path)
    assert "no vector for 1 of 30" in caplog.text and "person19" in caplog.text
    rows = {
        row: given.start(row, 3)["nodes"]["rows"] for row in ROWS if not row.startswith("true-")
    }
    number = parts.knowledge.row_numbers
    own = dict(zip(theirs.names, theirs.vectors, strict=True))
    scale = np.sqrt(np.mean([own[n] ** 2 for n in kg.names if n in own]))
    expected = np.stack([own.get(name, np.zeros(WIDTH)) for name in kg.names]) / scale
    np.testing.assert_allclose(rows["true"][number], expected, rtol=1e-5)
    assert not rows["true"][[0, *range(31, 128)]].any()
    for row in ("none", "dictionary", "candidates", "untyped"):
        assert not rows[row].any()
    # Vectors move with the facts that made them: shuffled, the graph's own run would be this.
    moved = permute_entities(kg, 3, np.ones(kg.n_entities, bool))
    np.testing.assert_array_equal(rows["shuffled"][number[moved]], rows["true"][number])
    assert not np.array_equal(rows["random"], rows["true"])
    norms = (np.sort(np.linalg.norm(rows[r], axis=1)) for r in ("random", "true"))
    np.testing.assert_allclose(*norms)


def test_names_tell_nothing_of_a_graph_and_reach_entities_met_later(folder):
    small_bert.write(folder / "bert")
    settings = knowledge(folder, entities="name", relations="name", text_model=f"{folder}/bert")
    parts, given, _ = made(folder, knowledge=settings)
    width = parts.config.knowledge.entity_width
    assert parts.model.abstract()["nodes"]["rows"].shape == (128, width)
    rows = given.start("true", 0)["nodes"]["rows"]
    np.testing.assert_array_equal(rows, given.start("dictionary", 0)["nodes"]["rows"])
    np.testing.assert_allclose(np.mean(rows[1:31] ** 2), 1, rtol=1e-2)
    save_parts(parts, folder / "saved")
    bigger = KG.from_triples([("town3", "near", "newtown")])
    served = load_parts(folder / "saved").with_kg(bigger)
    node = {name: bigger.id(name) for name in ("town3", "newtown")}
    start = served.knowledge.describe(np.array([[*node.values(), -1]]), "true", 0)["start"][0]
    assert not start[0].any() and not start[2].any()  # has a row; is padding
    assert served.knowledge.row_numbers[node["newtown"]] == 0
    again, _ = build(tiny.config(folder, knowledge=settings))
    other = load_given(dataclasses.replace(again, knowledge=served.knowledge)).entities
    np.testing.assert_allclose(start[1], other[node["newtown"]], rtol=1e-5)


def test_relations_start_alike_where_their_vectors_are(folder):
    parts, _, _ = made(folder, knowledge=knowledge(folder, relations=str(folder / "vectors")))
    alike = np.array([[1.0, 0, 0], [0.99, 0.1, 0]])
    given = dataclasses.replace(load_given(parts), relations=alike.astype("f"))
    start = flat(given.start("true", 0))
    assert start and all(path.endswith(("/relation", "/relation_value")) for path in start)
    shapes = {path: struct.shape for path, struct in flat(parts.model.abstract()).items()}
    for path, value in start.items():
        assert value.shape == shapes[path]
        np.testing.assert_allclose(np.sqrt(np.mean(value**2)), 0.02, rtol=1e-4)
    made_of = load_given(parts).relations
    theirs = read_embeddings(folder / "vectors")
    number = {name: i for i, name in enumerate(theirs.relations)}
    for name, vector in zip(parts.knowledge.vocabulary.relations, made_of, strict=True):
        np.testing.assert_array_equal(vector, theirs.relation_vectors[number[name]])


def reasoning(folder, tables):
    optim = OptimConfig(
        kind="adagrad", steps=24, batch=8, learning_rate=1e-2, clip=0, weight_decay=0, tables=tables
    )
    return made(folder, objective=BOTH, kge=KGE, optim=optim)


@functools.cache
def trained(folder, tables):
    parts, given, splits = reasoning(folder, tables)
    return step(parts, given, splits.train, steps=3)


def test_both_losses_train_the_same_rows(folder):
    first, last, metrics = trained(folder, "dense")
    assert {"loss/task", "loss/triples", "loss/kg_teacher"} <= metrics[0].keys()
    before, after = (s.model_params["nodes"]["rows"] for s in (first, last))
    changed = np.flatnonzero((before != after).any(1))
    assert set(changed) - {0} and max(changed) <= 30  # spare rows rest
    _, scorer = (s.model_params["triples"]["relation"] for s in (first, last))
    assert np.abs(scorer).max() > 0.1


def test_rows_alone_are_as_dense_ones(folder):
    _, dense, of_dense = trained(folder, "dense")
    _, rows, of_rows = trained(folder, "rows")
    assert set(rows.tables) == {"nodes/rows"}
    for a, b in zip(of_dense, of_rows, strict=True):
        np.testing.assert_allclose(a["loss/total"][0], b["loss/total"][0], rtol=1e-5)
    for (path, a), b in zip(
        flat(dense.model_params).items(), flat(rows.model_params).values(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=path)


def test_a_row_without_facts_weighs_nothing(folder):
    """In the step that is compiled for all rows."""
    parts, given, splits = reasoning(folder, "dense")
    trainer, compiled = Trainer(parts, given), 0
    for row in ("true", "shuffled", "dictionary"):
        data = with_row(parts.dataset(splits.train), parts.knowledge, row, 0)
        state, frozen = trainer.fresh(0, data), trainer.frozen(data=data)
        batch = trainer.put(data.batch(16, np.arange(8)))
        _, metrics = trainer.train_step(state, frozen, batch)
        compiled = trainer.compilations
        sums = {name: float(metrics[f"loss/{name}"][0]) for name in ("triples", "kg_teacher")}
        assert all(value > 0 for value in sums.values()) == (row != "dictionary"), (row, sums)
        assert row != "dictionary" or not any(sums.values())
    assert compiled == 1


def test_the_teacher_is_the_formula(folder):
    parts, _, splits = made(folder)
    batch = parts.ready(splits.train).batch(16, np.arange(3))
    rng = np.random.default_rng(0)
    n, known, heat = batch.graph.nodes["entity"].shape[1], 2, 2.0
    teacher = Model(MentionTeacher(KGE, known))
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype("f"), teacher.abstract())
    vectors = rng.normal(size=(3, n, WIDTH)).astype("f")
    there = np.asarray(batch.graph.nodes["entity"]) % 7 != 0
    got = teacher.apply(params, vectors, jnp.asarray(batch.mentions.node), heat)
    related = rng.normal(size=got.shape).astype("f")
    mask = candidates(batch, jnp.asarray(there))
    each = np.asarray(divergence(got, related, mask))
    score = Model(TripleScorer(KGE, known))

    def scores(v, r, inverse):
        one = (jnp.full((1, 1), r), jnp.full((1, 1), inverse))
        q = score.apply(params["scorer"], jnp.asarray(v)[None, None], *one, method="query")
        return np.asarray(q)[0, 0]

    checked = 0
    for b, m in np.ndindex(*batch.mentions.node.shape):
        v = batch.mentions.node[b, m]
        nodes = [c for c in range(batch.graph.n_node[b, 0]) if c != v and there[b, c]]
        if v < 0 or not there[b, v] or not nodes:
            assert each[b, m] == 0
            continue
        both = [(r, inverse) for r in range(known) for inverse in (False, True)]
        s = np.array([[scores(vectors[b, v], *q) @ vectors[b, c] for q in both] for c in nodes])
        p = np.exp(np.log(np.exp(s.astype(np.float64)).sum(1)) / heat)
        p /= p.sum()
        q = np.exp(related[b, m, nodes].astype(np.float64))
        q /= q.sum()
        np.testing.assert_allclose(each[b, m], (p * np.log(p / q)).sum(), rtol=1e-4)
        checked += 1
    assert checked >= 2


def test_a_finished_run_teaches_and_rows_can_stay_as_they_start(folder):
    taught = ObjectiveConfig(task=0, kg_teacher=KgTeacherConfig(1.0, embeddings="a run"))
    near = knowledge(folder, hops=2, entities=str(folder / "vectors"))
    optim = OptimConfig(
        steps=24, batch=8, learning_rate=1e-2, groups=(GroupConfig("nodes/rows", 0),)
    )
    config = tiny.config(folder, objective=taught, knowledge=near, optim=optim)
    parts, splits = build(config)
    kg, rng = parts.knowledge.kg, np.random.default_rng(0)
    entity = rng.normal(size=(kg.n_entities, WIDTH)).astype("f")
    scorer = {"relation": rng.normal(size=(4, WIDTH)).astype("f")}
    run = KGE, scorer, Embeddings(kg.names, entity, kg.relations, scorer["relation"][:2])
    given = make_given(parts, None, read_embeddings, lambda path: run)
    assert isinstance(given.guide, Guide)
    frozen = {row: given.frozen(row, 2)["guide"] for row in ROWS if not row.startswith("true-")}
    moved = permute_entities(kg, 2, np.ones(kg.n_entities, bool))
    np.testing.assert_array_equal(frozen["shuffled"]["entity"][moved], entity)
    for row, guide in frozen.items():
        shown = row in ("true", "shuffled", "kindred", "random")
        assert guide["there"][:-1].all() == shown
        assert not guide["there"][-1]
    first, last, metrics = step(parts, given, splits.train, steps=8)
    losses = [float(np.divide(*m["loss/kg_teacher"])) for m in metrics]
    assert losses[-1] < 0.9 * losses[0]
    assert "triples" not in first.params and last.params["mentions"]
    assert given.inputs()["knowledge.relations"] == ""
    before, after = (s.params["nodes"]["rows"] for s in (first, last))
    assert before.any()
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": BOTH, "kge": KgeConfig(width=3), "graph_rows": 8}, "kge.width = 3"),
        ({"objective": BOTH, "kge": KgeConfig(model="transr", share=4)}, "kge.model = 'transr'"),
        ({"objective": BOTH, "kge": KgeConfig(share=5)}, "kge.share = 5"),
        ({"objective": BOTH, "optim": OptimConfig(batch=8, accumulate=2)}, "optim.accumulate = 2"),
        ({"objective": BOTH, "optim": OptimConfig(batch=8, tables="rows")}, "optim.tables"),
        ({"objective": ObjectiveConfig(kg_teacher=KgTeacherConfig(1.0))}, "kg_teacher.embeddings"),
        ({"objective": BOTH, "fusion": FusionConfig(kind="none")}, "objective.triples.weight"),
        ({"entities": "description"}, "knowledge.text_model"),
        ({"entities": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(folder, sections, message):
    fields = {}
    if "graph_rows" in sections:
        fields["entity_width"] = sections["graph_rows"]
    if "entities" in sections:
        fields["entities"] = sections["entities"]
    rest = {k: v for k, v in sections.items() if k not in ("graph_rows", "entities")}
    with pytest.raises(KeftError, match=message) as caught:
        build(tiny.config(folder, knowledge=knowledge(folder, **fields), **rest))
    assert "\n" not in str(caught.value)


def test_variants_that_differ_in_their_start_share_a_program(folder):
    assert set(VARIANTS) == set(typing.get_args(Variant))
    base = tiny.config(folder, gain=GainConfig(("none", "true"), ("kge-init",), attributes="file"))
    every = with_all_models(base)
    assert every.gain.variants[0] == "kge-init" and len(every.gain.variants) == 6

    def program(name):
        config = vary(base, VARIANTS[name], lambda model: str(folder / model))
        if name == "description-init":
            settings = dataclasses.replace(config.knowledge, entity_width=16)  # as resolved
            config = dataclasses.replace(config, knowledge=settings)
        return _program(config)

    settings = dataclasses.replace(base.knowledge, text_model="a model")
    base = dataclasses.replace(base, knowledge=settings)
    same = {name for name in VARIANTS if program(name) == _program(base)}
    assert same == {n for n in VARIANTS if n.endswith(("init", "init-shuffled"))} - {
        "description-init"
    }
    assert program("kg-teacher") == program("kg-teacher-shuffled") != program("multi-task")
    for model in PRESETS:
        assert entity_width(preset(model, WIDTH)) == WIDTH
    with pytest.raises(KeftError, match=r"knowledge\.text_model"):
        vary(every, VARIANTS["description-init"], str)


def test_embeddings_of_a_table_are_trained_once(folder):
    said = []
    gain = GainConfig(rows=("none", "true"), kge_steps=2)
    config = tiny.config(folder, gain=gain)
    kg = load_kg(config)
    first = train_triples(config, kg, "distmult", folder, said.append)
    assert len(said) == 2
    assert train_triples(config, kg, "distmult", folder, said.append) == first
    assert len(said) == 2
    vectors = load_vectors(first)
    assert set(vectors.names) == set(kg.names) and vectors.vectors.shape == (30, WIDTH)
    settings = knowledge(folder, entities=str(first))
    parts, given, _ = made(folder, knowledge=settings, gain=gain)
    shuffled = dataclasses.replace(given, as_row=("shuffled", 4))
    table = shuffled.start("true", 0)["nodes"]["rows"]
    np.testing.assert_array_equal(table, given.start("shuffled", 4)["nodes"]["rows"])
    assert not np.array_equal(table, given.start("true", 0)["nodes"]["rows"])
    assert parts.config.knowledge.entity_width == WIDTH
