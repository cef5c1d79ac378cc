"""What a student learns of its teacher, against plain NumPy; schedules; a student's folder."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from keft_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EncoderConfig,
    FusionConfig,
    KeftError,
    KnowledgeConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    ScheduleConfig,
    TaskConfig,
)
from keft_jax.data.tokenize import train_wordpiece
from keft_jax.data.vocabulary import Vocabulary
from keft_jax.export import export, load_export
from keft_jax.kg.attributes import read_attributes
from keft_jax.kg.store import KG
from keft_jax.models.pretrained import flat
from keft_jax.sharding import on_mesh
from keft_jax.tasks.anchors import EntityTyping
from keft_jax.train.checkpoint import save_params
from keft_jax.train.distill import diverge, match_attention, match_states
from keft_jax.train.objective import factor_of
from keft_jax.train.parts import assemble, save_parts
from keft_jax.train.run import load_run, load_teacher

RNG = np.random.default_rng(0)
MASK = np.arange(5) < np.array([[5], [2], [3]])
TEXT = FusionConfig(kind="none")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def draw(*shape):
    return RNG.normal(size=shape).astype("f")


def test_divergence_of_any_shape_equals_a_plain_formula():
    taught, own = draw(3, 4, 6), draw(3, 4, 6)
    expected = 4 * kl(softmax(taught / 2), softmax(own / 2))
    np.testing.assert_allclose(diverge(taught, own, 2.0), expected, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(diverge(own, own, 3.0)).max()) < 1e-6


def test_types_diverge_each_on_its_own():
    task, taught, own = EntityTyping(["a", "b", "c"]), draw(5, 3), draw(5, 3)
    (t, weight), (s, _) = (task.distributions(jnp.asarray(x), None) for x in (taught, own))
    p, q = (1 / (1 + np.exp(-x)) for x in (taught, own))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(weight * diverge(t, s, 1.0), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "layers"), [("mse", 2), ("cosine", 4), ("mse", 3), ("mse", 5)])
def test_states_learn_from_the_layer_above_their_share(loss, layers):
    taught = [draw(3, 5, 4) for _ in range(layers + 1)]
    own = [draw(3, 5, 4) for _ in range(4)]
    of = {2: [0, 1, 2, 2], 4: [0, 2, 3, 4], 3: [0, 1, 2, 3], 5: [0, 2, 4, 5]}[layers]
    expected = np.zeros(3)
    for j, x in zip(of, own, strict=True):
        t = taught[j]
        angle = (t * x).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(x, axis=-1)
        each = ((t - x) ** 2).mean(-1) if loss == "mse" else 1 - angle
        expected += (each * MASK).sum(1) / MASK.sum(1) / len(own)
    np.testing.assert_allclose(match_states(taught, own, MASK, loss), expected, rtol=1e-4)


def scores(q, k):
    return np.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(q.shape[-1])


@pytest.mark.parametrize(("heads", "joined"), [((4, 4), 4), ((6, 4), 2), ((3, 4), 1)])
def test_attention_of_other_heads_is_that_of_their_vectors_end_to_end(heads, joined):
    width = 12
    pairs = [[draw(3, 5, h, width // h) for _ in "qk"] for h in heads]
    read = MASK[:, None, None, :]
    got = match_attention(*(np.where(read, scores(*pair), -1e9) for pair in pairs), MASK)
    together = [[x.reshape(3, 5, joined, -1) for x in pair] for pair in pairs]
    bias = np.where(MASK, 0, -np.inf)[:, None, None, :]
    t, s = (softmax(scores(*pair) + bias) for pair in together)
    each = np.where(t > 0, t * (np.log(t + 1e-30) - np.log(s + 1e-30)), 0).sum(-1).mean(1)
    expected = (each * MASK).sum(1) / MASK.sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_schedules_go_from_start_to_end():
    schedules = (ScheduleConfig("mlm", 0.0, 2.0), ScheduleConfig("distill", 1.0, 0.0, "cosine"))
    config = ObjectiveConfig(schedules=schedules)
    up, down = (factor_of(config, name) for name in ("mlm", "distill"))
    done = np.array([0, 0.25, 0.5, 1])
    np.testing.assert_allclose(up({"done": done}), 2 * done)
    wave = (1 + np.cos(np.pi * done)) / 2
    np.testing.assert_allclose(down({"done": done}), wave, atol=1e-6)
    assert factor_of(config, "task") is None
    with pytest.raises(KeftError, match=r"objective\.schedules\.of = \['mlm'\]: one schedule"):
        ObjectiveConfig(schedules=schedules[:1] * 2)
    with pytest.raises(KeftError, match=r"schedules\.end = 0\.0: a temperature needs"):
        ScheduleConfig("temperature")


PARTS = DistillConfig(
    teacher="t", weight=0.7, temperature=2.0, hidden=0.5, width=16, attention=0.25
)


def everything(schedules=(), data=1) -> toy.Training:
    """A student of one layer and a teacher of two, of another width and number of heads."""
    start = toy.config(fusion=TEXT)
    encoder = dataclasses.replace(start.encoder, width=16, heads=4, mlp=32)
    teacher = dataclasses.replace(start, encoder=encoder)
    student = dataclasses.replace(
        start,
        encoder=dataclasses.replace(start.encoder, layers=1),
        objective=ObjectiveConfig(task=0.1, distill=PARTS, schedules=schedules),
        optim=OptimConfig(steps=3, batch=16, learning_rate=1e-3, warmup=0.0),
        mesh=MeshConfig(data=data),
    )
    return toy.Training(student, (toy.model(teacher), toy.trained(teacher)))


@functools.cache
def trained_by_schedules():
    """(fresh parameters, the metrics of three steps on one device)."""
    schedules = (ScheduleConfig("hidden", 0.5, 1.5), ScheduleConfig("temperature", 2.0, 1.0))
    training, told = everything(schedules), []
    state = training.fresh()
    fresh = jax.device_get(state.params)
    for _ in range(3):
        state, metrics = training.step(state, training.frozen, training.put(padded()))
        told.append({k: (float(s), float(w)) for k, (s, w) in metrics.items()})
    assert training.step._cache_size() == 1
    return fresh, told


def padded():
    """The last rows are none: they teach nothing."""
    batch = toy.batch()
    real = batch.example < 13
    answer = batch.targets["answer"].replace(weight=real.astype("f"))
    example = np.where(real, batch.example, -1)
    return dataclasses.replace(batch, example=example, targets={"answer": answer})


def test_all_parts_teach_by_schedules_in_one_program():
    _, told = trained_by_schedules()
    means = [{k: s / w for k, (s, w) in metrics.items()} for metrics in told]
    for step, mean in enumerate(means):
        weights = {"task": 0.1, "distill": 0.7, "hidden": 0.5 * (0.5 + step / 2), "attention": 0.25}
        total = sum(w * mean[f"loss/{name}"] for name, w in weights.items())
        assert mean["loss/total"] == pytest.approx(total, rel=1e-5)
    for name in ("hidden", "attention"):
        assert told[0][f"loss/{name}"][1] == 13
        assert means[2][f"loss/{name}"] < means[0][f"loss/{name}"]


def test_on_all_devices_the_same_is_learnt_and_nothing_by_the_teacher():
    params, told = trained_by_schedules()
    training = everything(data=8)

    def loss(params, teacher, batch):
        frozen = {**training.frozen, "teacher": teacher}
        totals = training.objective.totals(batch)
        return training.objective(params, frozen, batch, totals, None)

    batch, teacher = training.put(padded()), training.frozen["teacher"]
    params = jax.device_put(params, training.shardings.params)
    with on_mesh(training.mesh):
        (own, its), metrics = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
            params, teacher, batch
        )
    for name in ("task", "hidden", "attention"):
        got = [float(x) for x in metrics[f"loss/{name}"]]
        assert got == pytest.approx(told[0][f"loss/{name}"], rel=1e-4)
    assert all(not np.any(x) for x in jax.tree.leaves(its))
    assert all(np.any(x) for path, x in flat(own).items() if "/attention/qkv/bias" not in path)
    assert own["to_teacher"]["kernel"].shape == (32, 16)


def test_a_schedule_of_nothing_is_refused():
    with pytest.raises(KeftError, match=r"schedules\.of = 'mlm'.* it has task, distill, hidden"):
        everything((ScheduleConfig("mlm"),))


# A student's folder.

LABELS = ("born in", "lives in", "none")


def run(folder, kind, *, distill=None, kg=(), task=1.0, known=(), **sections):
    """A run that has not been trained: nothing is zero by design."""
    pooling, known = sections.pop("pooling", "cls"), dict(known)
    config = Config(
        task=TaskConfig(kind=kind, pooling=pooling, labels=LABELS),
        data=DataConfig(buckets=(16,), unlabelled="texts" if distill else ""),
        optim=OptimConfig(unlabelled=8 if distill else 0),
        knowledge=KnowledgeConfig(kg="facts" if kg else "", nodes=4, edges=4, **known),
        encoder=EncoderConfig(layers=2, width=16, heads=2, mlp=32, max_length=16),
        objective=ObjectiveConfig(task=task, distill=distill or DistillConfig()),
        mesh=MeshConfig(data=1),
        **({"fusion": TEXT} | sections),
    )
    graph = KG.from_triples(kg)
    tokenizer = train_wordpiece(["where @ was # he born and lives"], 64)
    vocabulary = Vocabulary(tokenizer, graph.names, graph.relations)
    own = read_attributes(known["attributes"], graph)[0] if "attributes" in known else None
    parts = assemble(config, graph, vocabulary, LABELS, attributes=own)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 1, s.shape), "f"), parts.model.abstract()
    )
    save_parts(parts, folder)
    save_params(folder / "best", 1, params)
    return parts


FACTS = [("a", "near", "b"), ("b", "near", "c")]
GONE = DistillConfig(teacher="gone", weight=1.0, hidden=1.0, width=24)


def logits(parts, params, ids, real):
    zeros = np.zeros_like(ids)
    batch = dataclasses.replace(
        toy.batch(b=len(ids)), tokens=ids, types=zeros, length=real.sum(1).astype(np.int32)
    )
    return np.asarray(jax.jit(parts.model.apply)(params, batch).logits)


@pytest.mark.parametrize("kind", ["relation", "typing"])
def test_a_student_is_a_plain_sequence_classifier(tmp_path, kind):
    trained = run(tmp_path / "run", kind, distill=GONE, kg=FACTS, task=0.0)
    out = tmp_path / "out"
    export(tmp_path / "run", out)
    shutil.rmtree(tmp_path / "run" / "kg")
    written = json.loads((out / "config.json").read_text())
    assert written["architectures"] == ["BertForSequenceClassification"]
    assert written["id2label"] == {str(i): label for i, label in enumerate(LABELS)}
    several = "multi" if kind == "typing" else "single"
    assert written["problem_type"] == f"{several}_label_classification"

    parts, params = load_export(out)
    assert parts.knowledge.kg.n_entities == 0 and parts.labels == LABELS
    best = flat(trained.model.abstract())
    assert set(flat(params)) == {path for path in best if not path.startswith("to_teacher")}
    assert parts.task.term == trained.task.term

    ids = RNG.integers(5, parts.knowledge.vocabulary.tokenizer.get_vocab_size(), (4, 12))
    real = np.arange(12) < np.array([[12], [5], [8], [2]])
    ids = np.where(real, ids, 0).astype(np.int32)
    with jax.default_matmul_precision("highest"):
        ours = logits(parts, params, ids, real)
    assert ours.shape == (4, 3) and np.ptp(ours, axis=0).min() > 0.01

    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(real, dtype=torch.long),
        ).logits
    assert np.abs(ours - theirs.numpy()).max() < 1e-4


def test_a_fused_student_keeps_what_its_nodes_are_given(tmp_path):
    attributes = tmp_path / "attributes.tsv"
    attributes.write_text("a\tsize\t3\nb\tsize\t5\n")
    trained = run(
        tmp_path / "run",
        "relation",
        pooling="marks",
        distill=dataclasses.replace(GONE, weight=0.0),
        kg=FACTS,
        known={"attributes": str(attributes)},
        fusion=FusionConfig(kind="cross_attention"),
    )
    export(tmp_path / "run", tmp_path / "out")
    parts, params = load_export(tmp_path / "out")
    own = trained.knowledge.attributes
    assert own is not None and list(parts.knowledge.attributes.lines()) == list(own.lines())
    best = flat(trained.model.abstract())
    assert set(flat(params)) == {path for path in best if not path.startswith("to_teacher")}
    told = parts.config.objective.distill
    assert (told.weight, told.hidden) == (0.0, GONE.hidden)


def test_a_mean_of_tokens_is_said_to_be_no_such_classifier(tmp_path, caplog):
    run(tmp_path / "run", "classification", pooling="mean")
    export(tmp_path / "run", tmp_path / "out")
    assert "task.pooling = 'mean'" in caplog.text
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["BertModel"] and "id2label" not in written


def test_a_student_shares_with_its_teacher_what_that_reads(tmp_path):
    """Texts alone: another graph, or none, is as good. Marks are no matter of the student."""
    run(tmp_path / "text", "relation", pooling="marks")
    run(
        tmp_path / "fused",
        "relation",
        pooling="marks",
        kg=FACTS,
        fusion=FusionConfig(kind="cross_attention"),
    )

    words = {"text": "verbalise", "text_facts": 2}
    run(tmp_path / "words", "relation", kg=FACTS, known=words)

    def teach(name, kg, known=(), **distill):
        settings = DistillConfig(teacher=str(tmp_path / name), **({"weight": 1.0} | distill))
        student = run(tmp_path / "student", "relation", distill=settings, kg=kg, known=known)
        return load_teacher(student)

    assert teach("words", FACTS, words) is not None
    with pytest.raises(KeftError, match="its list of entities is another"):
        teach("words", FACTS[:1], words)
    for name, value in (("text_facts", 3), ("text_tokens", 9)):
        with pytest.raises(KeftError, match=rf"its knowledge\.{name} is another"):
            teach("words", FACTS, words | {name: value})

    assert teach("text", FACTS) is not None
    assert teach("fused", FACTS) is not None
    with pytest.raises(KeftError, match="its list of entities is another"):
        teach("fused", FACTS[:1])
    with pytest.raises(KeftError, match=r"distill\.width = 24: .* have 16 numbers in the teacher"):
        teach("text", FACTS, hidden=1.0, width=24)
    with pytest.raises(KeftError, match=r"task\.pooling = 'marks': classification has no marks"):
        TaskConfig(kind="classification", pooling="marks")
    with pytest.raises(KeftError, match=r"task\.pooling = 'mean': does nothing in span"):
        TaskConfig(kind="span", pooling="mean")
    _, params = load_run(tmp_path / "text")
    assert flat(params)["head/out/kernel"].shape == (32, 3)  # of two marks
