"""Entities' vectors: what the text model makes of names and descriptions, and who may read them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import small_bert
import tiny
from flax import nnx

from keft_jax.config import KeftError
from keft_jax.data.features import with_row
from keft_jax.kg.controls import permute_entities
from keft_jax.models.encoder import Encoder
from keft_jax.models.functional import Model
from keft_jax.models.pretrained import load_weights
from keft_jax.train import vectors
from keft_jax.train.parts import build, load_parts, save_parts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    tiny.write_files(folder)
    small_bert.write(folder / "bert")
    rows = [f"{town}\tthe town where {chr(97 + i)} is" for i, town in enumerate(tiny.TOWNS)]
    (folder / "about.tsv").write_text("\n".join(rows) + "\n")
    base = tiny.config(folder)
    config = dataclasses.replace(
        base,
        knowledge=dataclasses.replace(
            base.knowledge, vectors="description", descriptions=f"{folder}/about.tsv"
        ),
        encoder=dataclasses.replace(base.encoder, pretrained=str(folder / "bert")),
    )
    return build(config)


def test_a_vector_is_the_mean_of_the_encoder(made):
    parts, _ = made
    config, kg = parts.config, parts.knowledge.kg
    tokenizer = parts.knowledge.vocabulary.tokenizer
    model = Model(Encoder(config.encoder, 128))
    folder = vectors.locate(config.encoder.pretrained)
    params = load_weights(folder, {"encoder": model.abstract()})["encoder"]

    def states(ids):
        module = Encoder(config.encoder, 128)
        graphdef, _ = nnx.split(module)
        encoder = nnx.merge(graphdef, params)
        x = encoder.embed(ids, jnp.zeros_like(ids), None)
        return encoder.run(x, jnp.ones(ids.shape, bool), None, 0, config.encoder.layers)

    for name, text in (("town3", "the town where d is"), ("person5", "person5")):
        ids = jnp.array([tokenizer.encode(text).ids])
        expected = np.asarray(states(ids).mean(1))[0]
        got = parts.knowledge.vectors[kg.id(name)].astype(np.float32)
        np.testing.assert_allclose(got, expected / np.linalg.norm(expected), atol=2e-3)


def test_a_text_may_fill_the_position_table(made):
    parts, _ = made
    assert parts.config.encoder.max_length == 24  # between two of the lengths that are compiled
    tokenizer, texts = parts.knowledge.vocabulary.tokenizer, ["person3 " * n for n in (22, 30)]
    whole, cut = vectors._encode(parts.config, texts, tokenizer, 128)
    np.testing.assert_array_equal(whole, cut)


def test_only_known_texts_are_encoded_again(made, monkeypatch):
    parts, _ = made
    asked = []
    whole = vectors._encode
    monkeypatch.setattr(
        vectors, "_encode", lambda c, texts, *rest: asked.extend(texts) or whole(c, texts, *rest)
    )
    more = parts.with_kg(parts.knowledge.kg.add([("person1", "lives_in", "newtown")]))
    assert asked == ["newtown"]
    one, two = parts.knowledge, more.knowledge
    np.testing.assert_array_equal(one.vectors[one.kg.id("town3")], two.vectors[two.kg.id("town3")])


def test_they_come_back_with_the_run(made, tmp_path):
    parts, _ = made
    save_parts(parts, tmp_path / "run")
    again = load_parts(tmp_path / "run")
    np.testing.assert_array_equal(again.knowledge.vectors, parts.knowledge.vectors)


def test_descriptions_are_knowledge(made):
    parts, splits = made
    data = parts.dataset(splits.select)

    def told(row, kind="description"):
        knowledge = parts.knowledge
        config = dataclasses.replace(knowledge.config, vectors=kind)
        other = type(knowledge)(knowledge.kg, knowledge.vocabulary, config, knowledge.vectors)
        return with_row(data, other, row, 1).batch(16, np.arange(len(data))).graph

    true = told("true")
    real = true.nodes["entity"] >= 0
    mine = parts.knowledge.vectors[true.nodes["entity"]]
    np.testing.assert_array_equal(true.nodes["vector"][real], mine[real])
    assert (true.nodes["vector"][~real] == 0).all()
    assert (told("dictionary").nodes["vector"] == 0).all()
    # In the shuffled graph they go with the facts: each comes from an entity that had these.
    kg, entity = parts.knowledge.kg, told("shuffled").nodes["entity"]
    moved = permute_entities(kg, 1, np.ones(kg.n_entities, bool))
    real, came = entity >= 0, np.argsort(moved)[entity]
    expected = parts.knowledge.vectors[came]
    np.testing.assert_array_equal(told("shuffled").nodes["vector"][real], expected[real])
    mine = parts.knowledge.vectors[entity]
    assert (mine[real] != expected[real]).any()
    # A name is what an entity is called, in every row.
    named = told("dictionary", "name")
    real = named.nodes["entity"] >= 0
    mine = parts.knowledge.vectors[named.nodes["entity"]]
    np.testing.assert_array_equal(named.nodes["vector"][real], mine[real])


def test_they_need_a_text_model(tmp_path):
    tiny.write_files(tmp_path)
    base = tiny.config(tmp_path)
    with pytest.raises(KeftError, match=r"knowledge\.vectors.*encoder\.pretrained"):
        dataclasses.replace(base, knowledge=dataclasses.replace(base.knowledge, vectors="name"))
