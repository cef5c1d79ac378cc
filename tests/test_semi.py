"""Texts without labels: what a batch holds of them, what the step makes of them, what stays out."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import (
    ConsistencyConfig,
    EvalConfig,
    FusionConfig,
    KeftError,
    MeshConfig,
    MlmConfig,
    ObjectiveConfig,
    OptimConfig,
    TaskConfig,
)
from keft_jax.data.plan import BatchPlan, MixedPlan
from keft_jax.data.source import Example
from keft_jax.data.unlabelled import without_label
from keft_jax.kg.linking.string import StringLinker
from keft_jax.kg.store import KG
from keft_jax.kg.swap import Swap, group_by_facts
from keft_jax.train.checkpoint import Checkpoints, abstract_like
from keft_jax.train.consistency import aim
from keft_jax.train.coverage import count_shared
from keft_jax.train.loop import Hooks, Progress, Trainer, fit, make_plan
from keft_jax.train.optim import average
from keft_jax.train.parts import build
from keft_jax.train.run import train

TERM = ConsistencyConfig(weight=0.5, threshold=0.5, mask=0.3, swap=0.7)


def config(folder, term=TERM, mesh=None, data=None, mlm=0.0, **optim):
    """8 labelled questions of 40, the rest without labels; no dropout."""
    optim = {"steps": 6, "batch": 8, "unlabelled": 24, "learning_rate": 1e-2, "ema": 0.9} | optim
    made = tiny.classification(
        folder,
        mesh=mesh or MeshConfig(data=1),
        eval=EvalConfig(every=3, batch=8),
    )
    return dataclasses.replace(
        made,
        data=dataclasses.replace(made.data, draw=8, **(data or {"unlabelled": "rest"})),
        encoder=dataclasses.replace(made.encoder, dropout=0.0),
        optim=OptimConfig(**optim),
        objective=ObjectiveConfig(consistency=term, mlm=MlmConfig(weight=mlm)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("semi")
    tiny.write_files(out)
    return out


@pytest.fixture(scope="module")
def world(folder):
    """(trainer, what it trains on) of the config as it is."""
    parts, splits = build(config(folder))
    return Trainer(parts), parts.given(parts.training(splits))


@pytest.mark.parametrize("relations", [True, False])
def test_entities_of_a_group_have_the_same_facts(relations):
    rng = np.random.default_rng(0)
    kg = KG.from_triples(
        [(f"e{h:02}", f"r{r}", f"t{t}") for h, r, t in rng.integers(0, (40, 2, 3), (70, 3))]
    )
    group = group_by_facts(kg, relations)
    facts = [
        frozenset(
            (int(r) if relations else 0, int(t))
            for h, r, t in zip(kg.heads, kg.rels, kg.tails, strict=True)
            if h == entity
        )
        for entity in range(kg.n_entities)
    ]
    for a in range(kg.n_entities):
        for b in range(a):
            assert (group[a] == group[b]) == (facts[a] == facts[b] != frozenset())


def test_a_swap_keeps_what_the_graph_says():
    """Every name in a mention's place is of the entity itself or of one with its facts, and spans
    that the data gave stand where they stood in meaning."""
    sign = {f"word{i}": f"sign{i % 3}" for i in range(12)}
    triples = [(word, "polarity", value) for word, value in sign.items()]
    kg = KG.from_triples(triples, aliases={"word1": ["alias one"], "word2": ["alias two"]})
    counts = np.ones(kg.n_entities, int)
    swap, linker = Swap(kg, group_by_facts(kg), counts), StringLinker(kg)
    rng, changed = np.random.default_rng(0), 0
    for _ in range(50):
        words = rng.choice([*sign, "plain", "sign0"], 6)
        text = " ".join(words)
        (mentions,) = linker.link([text])
        new, _ = swap.text(text, mentions, (), 0.5, rng.random(2 * len(mentions)))
        (again,) = linker.link([new])
        assert swap.same(mentions, again)
        said = [[sign.get(kg.names[m.entities[0]]) for m in some] for some in (mentions, again)]
        assert said[0] == said[1]
        assert [w for w in words if w == "plain"] == [w for w in new.split() if w == "plain"]
        changed += new != text
        spans = [(m.start, m.end, kg.names[m.entities[0]]) for m in mentions]
        moved_text, moved = swap.text(text, mentions, spans, 0.5, np.full(2 * len(mentions), 0.3))
        assert swap.same(mentions, linker.link_given(moved_text, moved))
        for start, end, name in moved:
            assert moved_text[start:end] in (name, *kg.aliases(kg.id(name)))
    assert changed > 40
    # An alias of its own goes before another entity; words that no text has never come.
    assert swap.name(kg.id("word1"), "word1", 0.9) == (kg.id("word1"), "alias one")
    alone = Swap(kg, group_by_facts(kg), np.zeros(kg.n_entities, int))
    assert alone.name(kg.id("word0"), "word0", 0.5) is None


def test_batches_of_two_streams():
    lengths = np.random.default_rng(0).integers(1, 65, 300)
    labelled = BatchPlan(lengths, 8, (16, 32, 64), seed=3, draw=40)
    rest = np.setdiff1d(np.arange(300), labelled.examples)
    second = BatchPlan(lengths[rest], 24, (16, 32, 64), seed=3, stream=(3,))
    plan = MixedPlan(labelled, second, 300 + rest)
    seen = []
    for step in range(40):
        length, indices = plan.batch(step)
        first, second_length = labelled.batch(step)[0], second.batch(step)[0]
        assert length == max(first, second_length) and indices.shape == (32,)
        np.testing.assert_array_equal(indices[:8], labelled.batch(step)[1])
        seen.append(indices[8:] - 300)
    assert set(np.concatenate(seen).tolist()) == set(rest.tolist())  # all, and no labelled one
    later = MixedPlan(labelled, second, 300 + rest).batch(17)
    np.testing.assert_array_equal(later[1], plan.batch(17)[1])
    other = BatchPlan(lengths[rest], 24, (16, 32, 64), seed=3)
    assert not np.array_equal(other.batch(0)[1], second.batch(0)[1])


def test_what_a_batch_holds(world):
    trainer, train = world
    plan = make_plan(trainer.parts.config, train, 0)
    for step in range(6):
        length, indices = plan.batch(step)
        batch = train.batch(length, indices)
        label, target = batch.targets["label"], batch.targets["consistency"]
        assert batch.tokens.shape == (32, 16)
        np.testing.assert_array_equal(batch.example, indices)  # so that each has a key of its own
        np.testing.assert_array_equal(label.weight, [1] * 8 + [0] * 24)
        np.testing.assert_array_equal(target.weight, 1 - label.weight)
        assert not label.label[8:].any()
        gold = [trainer.parts.labels.index(train.source(i).label) for i in indices[:8]]
        np.testing.assert_array_equal(label.label[:8], gold)
        drawn = {train.source(i).text for i in indices[:8]}
        assert drawn.isdisjoint(train.rest.source(i - 40).text for i in indices[8:])
        other = target.other
        np.testing.assert_array_equal(other.tokens[:8], batch.tokens[:8])
        changed = (other.tokens != batch.tokens).any(1)
        assert 8 <= changed[8:].sum() < 24
        # The graph says of the other wording what it said: the home of who is asked about.
        entity, new = (b.graph.nodes["entity"][8:] for b in (batch, other))
        home = {p: f"town{i % 10}" for i, p in enumerate(tiny.PEOPLE)}
        names = trainer.parts.knowledge.kg.names
        for row, swapped in zip(entity[:, 0], new[:, 0], strict=True):
            assert home[names[row]] == home[names[swapped]]
    again = train.batch(length, indices)
    jax.tree.map(np.testing.assert_array_equal, again, batch)


def test_a_row_without_knowledge_has_no_other_names(world):
    trainer, train = world
    parts = trainer.parts
    none = dataclasses.replace(parts.config.knowledge, row="none")
    parts = dataclasses.replace(parts, config=dataclasses.replace(parts.config, knowledge=none))
    bare = parts.given(train)
    length, indices = make_plan(parts.config, train, 0).batch(0)
    batch = bare.batch(length, indices)
    other = batch.targets["consistency"].other
    np.testing.assert_array_equal(other.tokens, batch.tokens)
    assert not batch.graph.n_node[:, 0].any()
    full = train.batch(length, indices)
    assert jax.tree.structure(full) == jax.tree.structure(batch)  # one compiled step for both
    np.testing.assert_array_equal(full.tokens, batch.tokens)


def test_other_names_are_those_of_the_run_and_fit(world):
    """Of a unit always the same, whatever it comes with; of another seed others; none that cuts
    something off or is longer than the batch."""
    train = world[1]
    units = len(train.owner) + np.arange(40)

    def other(train, indices, length=16):
        batch = train.batch(length, indices)
        return batch, batch.targets["consistency"].other

    shown, all_of = other(train, units)
    mixed = dataclasses.replace(train, seed=0)  # nothing is kept
    for some in (units[[3, 7, 3]], units[::-1]):
        for a, b in zip(*map(jax.tree.leaves, (other(mixed, some)[1], all_of)), strict=True):
            np.testing.assert_array_equal(a, b[some - len(train.owner)])
    seeds = [other(dataclasses.replace(train, seed=s), units)[1].tokens for s in (0, 1)]
    np.testing.assert_array_equal(seeds[0], all_of.tokens)
    assert (seeds[0] != seeds[1]).any()
    # A name of so many pieces that nothing is left of the question.
    long = "person of a very long name that takes all of the pieces " * 3
    swap = dataclasses.replace(train._swap)
    object.__setattr__(swap, "text", lambda text, *more: (long + text, ()))
    full = dataclasses.replace(train, seed=0)
    full.__dict__["_swap"] = swap
    np.testing.assert_array_equal(other(full, units)[1].tokens, shown.tokens)
    # A batch that is shorter than a text under another name has it as it is.
    lengths = train._other[2]
    short = dataclasses.replace(train, seed=0)
    short.__dict__["_other"] = (*train._other[:2], np.where(np.arange(40) % 2, 17, lengths))
    expected = np.where((np.arange(40) % 2)[:, None], shown.tokens, all_of.tokens)
    np.testing.assert_array_equal(other(short, units)[1].tokens, expected)


def test_answers_are_as_wide_as_those_of_the_labelled(folder):
    """Those of a question without any are the narrowest."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["answers"] = tiny.TOWNS
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tiny.config(folder)
    files = {"train": f"{folder}/many.jsonl", "draw": 8, "unlabelled": "rest"}
    made = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, **files),
        optim=dataclasses.replace(base.optim, unlabelled=8),
        objective=ObjectiveConfig(mlm=MlmConfig(weight=0.1)),
    )
    parts, splits = build(made)
    train = parts.given(parts.training(splits))
    answers = train.batch(*make_plan(made, train, 0).batch(0)).targets["answer"].answers
    assert answers.shape == (16, 16) and (answers[8:] == -1).all()
    assert ((answers[:8] >= 0).sum(1) == 10).all()


def test_labels_of_the_rest_reach_no_loss(folder, world):
    """With garbage for labels the arrays are the same but for the one that a metric reads."""
    trainer, train = world
    parts, splits = build(config(folder))
    drawn = set(make_plan(parts.config, train, 0).examples.tolist())
    garbage = [
        e
        if i in drawn
        else dataclasses.replace(e, label=("even", "odd")[i % 3 > 0], answers=("?",))
        for i, e in enumerate(splits.train)
    ]
    other = parts.given(parts.training(dataclasses.replace(splits, train=garbage)))
    numbers = make_plan(parts.config, train, 0).batch(2)
    one, two = train.batch(*numbers), other.batch(*numbers)
    a, b = (x.targets.pop("consistency") for x in (one, two))
    assert (a.label != b.label).any()
    jax.tree.map(np.testing.assert_array_equal, one, two)
    jax.tree.map(np.testing.assert_array_equal, a.other, b.other)
    # And the step is the same to the bit, whatever that array says.
    outs = []
    for target in (a, b, dataclasses.replace(a, label=np.full(32, 10**6, np.int32))):
        batch = dataclasses.replace(one, targets={**one.targets, "consistency": target})
        state = trainer.fresh(0, train)
        state, metrics = trainer.train_step(state, trainer.frozen(None, train), trainer.put(batch))
        outs.append((jax.device_get(state), float(metrics["loss/total"][0])))
    for state, loss in outs[1:]:
        jax.tree.map(np.testing.assert_array_equal, state, outs[0][0])
        assert loss == outs[0][1]
    bare = without_label(splits.train[0])
    assert bare.label is None and bare.answers == () and bare.text == splits.train[0].text


def test_a_file_of_texts_for_masked_language_modelling(folder):
    """Its labels may be anything or absent; its texts are predicted as the others are."""
    rows = [{"question": f"where does {p} live ?", "label": "?"} for p in tiny.PEOPLE]
    rows += [{"question": "a text of another kind"}]
    file = folder / "more.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = config(folder, ConsistencyConfig(), data={"unlabelled": str(file)}, mlm=0.1, ema=0.0)
    parts, splits = build(made)
    train = parts.given(parts.training(splits))
    plan = make_plan(made, train, 0)
    batch = train.batch(*plan.batch(0))
    assert "consistency" not in batch.targets and len(splits.unlabelled) == len(rows)
    np.testing.assert_array_equal(batch.targets["label"].weight, [1] * 8 + [0] * 24)
    np.testing.assert_array_equal(batch.targets["mlm"].weight, np.ones(32))
    _, count_b = parts.beside._choose_from(batch)
    assert float(parts.beside.total(batch)) == float(count_b.sum()) > 32
    known = config(folder, data={"unlabelled": str(file)})
    other = build(known)[0].training(splits)
    assert (other.truth == -1).all() and len(other.truth) == len(rows)


def test_texts_that_something_is_measured_on(folder, caplog):
    texts = [Example(i, f"text {i}", label="?") for i in range(9)]
    same = [Example(0, f"text {i}", label="a") for i in (3, 4)]
    assert count_shared("file", [], "films", same) == 0
    assert count_shared("file", texts[5:], "films", same) == 0 and not caplog.text
    assert count_shared("file", texts[4:], "films", same) == 1
    assert "data.unlabelled = 'file': holds 1 of the 2 texts of films" in caplog.text
    with pytest.raises(KeftError, match="holds all texts of films; learn from texts that nothing"):
        count_shared("file", texts, "films", same)
    with pytest.raises(KeftError, match=r"holds all texts of data\.select"):
        train(config(folder, data={"unlabelled": f"{folder}/select.jsonl"}), folder / "run")
    assert not (folder / "run").exists()


def numpy_softmax(logits, heat=1.0):
    z = np.asarray(logits, np.float64) / heat
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_terms_against_numpy(world):
    """Label loss over labelled texts alone; the other over all texts without labels."""
    trainer, train = world
    view = trainer.parts.consistency
    state, frozen = trainer.fresh(0, train), trainer.frozen(None, train)
    ema = jax.tree.map(lambda x: np.asarray(x) * 1.5 + 0.01, state.ema)  # not the model itself
    state = state.replace(ema=jax.device_put(ema, trainer.shardings.ema))
    batch = train.batch(*make_plan(trainer.parts.config, train, 0).batch(1))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    from zlib import crc32

    shown = view.prepare(batch, jax.random.fold_in(key, crc32(b"prepare")), {})
    apply = jax.jit(trainer.parts.model.apply)

    def ask(params, batch):
        batch = dataclasses.replace(batch, targets={})
        return numpy_softmax(apply(params, batch, frozen["names"]).logits)

    weak, strong = ask(state.ema, batch), np.log(ask(state.params, shown))
    target = batch.targets["consistency"]
    kept = target.weight * (weak.max(1) >= TERM.threshold)
    choice = weak.argmax(1)
    consistency = -(kept * strong[np.arange(32), choice]).sum() / 24
    gold = batch.targets["label"]
    task = -(gold.weight * strong[np.arange(32), gold.label]).sum() / 8

    _, metrics = trainer.train_step(state, frozen, trainer.put(batch))
    got = {name: float(s / w) for name, (s, w) in metrics.items()}
    np.testing.assert_allclose(got["loss/consistency"], consistency, rtol=1e-5)
    np.testing.assert_allclose(got["loss/task"], task, rtol=1e-5)
    np.testing.assert_allclose(got["loss/total"], task + 0.5 * consistency, rtol=1e-5)
    assert got["consistency/kept"] == kept.sum() / 24 > 0
    assert got["consistency/right"] == (kept * (choice == target.label)).sum() / 24

    # What is shown: labelled texts as they are, of the others a share masked, [CLS] never.
    tokenizer = trainer.parts.knowledge.vocabulary.tokenizer
    masked = np.asarray(shown.tokens) == tokenizer.token_to_id("[MASK]")
    assert not masked[:8].any() and not masked[:, 0].any() and masked[8:].any()
    base = np.where(masked, target.other.tokens, shown.tokens)
    np.testing.assert_array_equal(base, target.other.tokens)


def test_what_is_aimed_at():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype("f")
    hard, soft = aim(TERM, logits), aim(dataclasses.replace(TERM, labels="soft"), logits)
    np.testing.assert_array_equal(hard, np.eye(3)[logits.argmax(1)])
    np.testing.assert_allclose(soft, numpy_softmax(logits, TERM.temperature), rtol=1e-5)


def steps(trainer, train, start=None):
    """(state, metrics) after each of three steps. start: the state of another mesh."""
    state, frozen = start or trainer.fresh(0, train), trainer.frozen(None, train)
    state = jax.device_put(state, trainer.shardings)
    plan, out = make_plan(trainer.parts.config, train, 0), []
    for step in range(3):
        batch = trainer.put(train.batch(*plan.batch(step)))
        state, metrics = trainer.train_step(state, frozen, batch)
        out.append(jax.device_get((state, {k: s / w for k, (s, w) in metrics.items()})))
    return out


def test_devices_and_parts_change_nothing(folder, world):
    parts, _ = build(config(folder, mesh=MeshConfig(data=4, fsdp=2), accumulate=2))
    start = jax.device_get(world[0].fresh(0, world[1]))
    many, one = steps(Trainer(parts), world[1], start), steps(*world)
    for (state, metrics), (state1, metrics1) in zip(many, one, strict=True):
        for name, value in metrics1.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
        close = functools.partial(np.testing.assert_allclose, atol=2e-5)
        jax.tree.map(close, (state.params, state.ema), (state1.params, state1.ema))


def test_the_moving_average(world):
    trainer, train = world
    before = jax.device_get(trainer.fresh(0, train))
    jax.tree.map(np.testing.assert_array_equal, before.params, before.ema)
    expected = before.ema
    for t, (state, _) in enumerate(steps(trainer, train)):
        decay = min(0.9, (1 + t) / (10 + t))
        mix = lambda e, p, d=decay: d * e + (1 - d) * p  # noqa: E731
        expected = jax.tree.map(mix, expected, state.params)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, state.ema, expected)
    still = average(trainer.parts.config.optim, np.int32(3), expected, expected)
    jax.tree.map(np.testing.assert_array_equal, still, expected)
    assert trainer.compilations == 1


def test_a_resumed_run_is_the_same(folder, world, tmp_path):
    trainer, train = world
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def save(state, progress):
        checkpoints.save(int(state.step), state, progress)

    def run(state=None, hooks=None):
        return fit(trainer, train, None, seed=0, state=state, hooks=hooks)

    whole = run(hooks=Hooks(save=save, stopping=lambda: False))
    stop = Hooks(save=save, stopping=iter([False, False, True]).__next__)
    other = Checkpoints(tmp_path / "stopped")
    stop.save = lambda state, progress: other.save(int(state.step), state, progress)
    assert run(hooks=stop).interrupted
    other.wait()
    abstract = abstract_like(jax.eval_shape(trainer.init, jax.random.key(0)), trainer.shardings)
    state, progress = other.restore(abstract)
    assert int(state.step) == 3 and progress == Progress()
    resumed = run(state=state).state
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((resumed, whole.state)))
    for some in (checkpoints, other):
        some.close()


def test_what_does_not_go_together(folder):
    for change, match in (
        ({"unlabelled": 0}, "optim.unlabelled = 0"),
        ({"term": ConsistencyConfig()}, "no loss reads a text without a label"),
        ({"tables": "rows"}, "optim.tables = 'rows'"),
        ({"term": ConsistencyConfig(), "mlm": 0.1}, "nothing reads the average"),
        ({"data": {"unlabelled": ""}}, "give both or neither"),
        ({"accumulate": 3}, "accumulate"),
    ):
        with pytest.raises(KeftError, match=match):
            config(folder, **change)
    made = config(folder)
    with pytest.raises(KeftError, match="what a draw leaves over"):
        dataclasses.replace(made.data, draw=0)
    with pytest.raises(KeftError, match="one label for each text, not for kgqa"):
        dataclasses.replace(made, task=TaskConfig(kind="kgqa"))
    with pytest.raises(KeftError, match="there is no moving average"):
        tiny.config(folder, eval=EvalConfig(ema=True))
    with pytest.raises(KeftError, match=r"swap = 0\.7: other names come from a graph"):
        none = dataclasses.replace(made.knowledge, kg="")
        dataclasses.replace(made, knowledge=none, fusion=FusionConfig(kind="none"))
