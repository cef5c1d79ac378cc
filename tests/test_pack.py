"""Packed batches: whole texts in rows, every one in its turn, and nothing else changes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from keft_jax.config import (
    CheckpointConfig,
    DataConfig,
    DistillConfig,
    EncoderConfig,
    FusionConfig,
    GraphConfig,
    KeftError,
    MeshConfig,
    MlmConfig,
    ObjectiveConfig,
    TaskConfig,
)
from keft_jax.data.batch import Batch, MaskTarget, TextTarget, take
from keft_jax.data.pack import Layout, PackedPlan, fill_rows
from keft_jax.data.plan import BatchPlan
from keft_jax.data.tokenize import train_wordpiece
from keft_jax.models.packed import Rows, gather_masks
from keft_jax.sharding import batch_sharding, make_mesh, on_mesh, replicated
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.kgqa import KGQA
from keft_jax.tasks.mlm import MaskedLM
from keft_jax.train.loop import Hooks, Trainer, fit
from keft_jax.train.objective import Objective, make_terms
from keft_jax.train.parts import build


def lengths(size, seed=0, most=64):
    """Many short ones, some long."""
    return np.random.default_rng(seed).geometric(1 / 20, size).clip(2, most)


def plan(size=1000, batch=32, seed=3, row=64, **more):
    return PackedPlan(lengths(size), batch, 64, seed, row=row, **more)


@pytest.mark.parametrize("size, batch", [(1000, 32), (257, 16), (64, 64), (95, 48), (7, 1)])
def test_every_unit_comes_once_an_epoch_or_waits_for_the_next(size, batch):
    packed = plan(size, batch)
    steps, seen = size // batch, []
    for epoch in range(6):
        drawn = np.concatenate([packed.batch(epoch * steps + i)[1] for i in range(steps)])
        assert len(np.unique(drawn)) == len(drawn) == steps * batch
        assert packed.epoch(epoch * steps) == packed.epoch((epoch + 1) * steps - 1) == epoch
        seen.append(np.bincount(drawn, minlength=size))
    for one, two in itertools.pairwise(seen):
        assert (one + two).min() >= 1
    rounds = size // np.gcd(size, size % batch)
    if rounds < 100:  # then all have waited equally often
        total = sum(
            np.bincount(packed.batch(step)[1], minlength=size) for step in range(rounds * steps)
        )
        assert total.min() == total.max()


def test_a_step_depends_on_the_seed_and_its_number_alone():
    forward = [plan().batch(step)[1] for step in range(90)]
    jumping = plan()
    for step in np.random.default_rng(0).permutation(90):
        np.testing.assert_array_equal(jumping.batch(int(step))[1], forward[step])
    far = plan().batch(10**9)[1]
    np.testing.assert_array_equal(far, plan().batch(10**9)[1])
    others = (plan(seed=4).batch(0)[1], plan().batch(31)[1], forward[1])
    assert all((forward[0] == other).mean() < 0.2 for other in others)
    cut = plan(devices=4, parts=2)  # the same examples in another order
    assert all(set(cut.batch(i)[1]) == set(forward[i]) for i in range(40))


def test_a_draw_is_that_of_a_plan_by_buckets():
    classes = np.arange(1000) % 5
    bucketed = BatchPlan(lengths(1000), 32, (64,), 3, 100, classes)
    np.testing.assert_array_equal(plan(draw=100, strata=classes).examples, bucketed.examples)


def test_rows_are_full():
    packed = plan(20_000, 256, row=128)
    room, layout = lengths(20_000), packed.layout
    tokens = [room[packed.batch(step)[1]].sum() for step in range(78)]
    assert max(tokens) - min(tokens) < 64
    assert min(tokens) > 0.95 * layout.rows * layout.row


def test_rows_are_filled_where_there_is_room():
    for seed in range(20):
        some = np.sort(lengths(50, seed))[::-1]
        rows, start = fill_rows(some, 64)
        taken = np.zeros(rows * 64, int)
        for first, length in zip(start, some, strict=True):
            assert first // 64 == (first + length - 1) // 64
            taken[first : first + length] += 1
        assert taken.max() == 1 and taken.reshape(rows, 64).any(1).all()
        assert rows <= 11 / 9 * -(-some.sum() // 64) + 1  # as best fit promises


def bare(count):
    rng = np.random.default_rng(1)
    length = rng.integers(1, 17, count).astype(np.int32)
    tokens = rng.integers(1, 99, (count, 16)).astype(np.int32) * (np.arange(16) < length[:, None])
    rest = {name: None for name in ("graph", "mentions", "targets")}
    return Batch(tokens=tokens, types=tokens % 2, length=length, example=np.arange(count), **rest)


@jax.jit
def lay(batch):
    rows = Rows(batch)
    joined = rows.join(batch.tokens)
    return joined, rows.split(joined), rows.position, rows.mask


@pytest.mark.parametrize("devices, parts", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_texts_lie_in_their_device_and_part(devices, parts):
    batch = bare(4 * devices * parts)
    rows, start = fill_rows(np.full(4, 16), 40)
    placed = Layout(16, 40, rows, start, parts).place(batch)
    for device in range(devices):
        for part in range(parts):  # as accumulation cuts it
            own = np.split(np.arange(len(batch.length)), devices)[device][part::parts]
            of = np.split(np.arange(len(placed.packing.slot)), devices)[device][part::parts]
            packing = dataclasses.replace(
                placed.packing, slot=placed.packing.slot[of], start=placed.packing.start[own]
            )
            alone = dataclasses.replace(take(batch, own), packing=packing)
            joined, back, position, text_rs = map(np.asarray, lay(alone))
            assert joined.shape == (rows, 40) and joined.sum() == alone.tokens.sum()
            np.testing.assert_array_equal(back, alone.tokens)
            for text in range(4):
                row, first = divmod(int(start[text]), 40)
                inside = slice(first, first + alone.length[text])
                np.testing.assert_array_equal(joined[row, inside], _text(alone, text))
                np.testing.assert_array_equal(position[row, inside], range(alone.length[text]))
                np.testing.assert_array_equal(text_rs[row] == text + 1, inside_of(inside, 40))
            assert ((text_rs == 0) == (joined == 0)).all()


def inside_of(part, size):
    out = np.zeros(size, bool)
    out[part] = True
    return out


def _text(batch, number):
    return batch.tokens[number, : batch.length[number]]


def test_the_gradient_goes_the_way_back():
    rows, start = fill_rows(np.full(6, 16), 32)
    lie = Rows(Layout(16, 32, rows, start, 1).place(bare(6)))
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 16, 3), (rows, 32, 3)))

    @jax.jit
    def dots(x, y):
        """<join x, y> as it is and by its gradient, and the same of split."""
        out = []
        for move, there, here in ((lie.join, x, y), (lie.split, y, x)):
            value, back = jax.vjp(move, there)
            out += [(value * here).sum(), (there * back(here)[0]).sum()]
        return out

    joined, again, split, back = dots(x, y)
    np.testing.assert_allclose((joined, split), (again, back), rtol=1e-5)


def test_masks_of_many_short_texts_find_room():
    count = np.full(12, 1)
    batch = bare(12)
    batch = dataclasses.replace(batch, length=np.full(12, 3, np.int32))
    rows, start = fill_rows(batch.length, 16)
    weight = (np.arange(3) < count[:, None]).astype("f")
    target = MaskTarget(
        position=np.full((12, 3), 1), label=np.arange(36).reshape(12, 3), weight=weight
    )
    batch = dataclasses.replace(batch, targets={"mlm": target})
    found = gather_masks(Layout(16, 16, rows, start, 1).place(batch)).targets["mlm"]
    assert found.weight.sum() == 12 and found.weight.size < 36
    chosen = found.weight > 0
    np.testing.assert_array_equal(found.label[chosen], 3 * np.arange(12))
    np.testing.assert_array_equal(found.position[chosen], start + 1)


WORDS = train_wordpiece(["alpha beta gamma delta epsilon zeta"] * 3, 200)
MLM = MlmConfig(mask="entity")


def falling(seed=0, b=16):
    """A toy batch, the longest first, as a plan has them."""
    batch = toy.batch(seed, b=b, empty=(3,))
    texts = {"mlm": TextTarget(weight=np.ones(b, np.float32))}
    batch = dataclasses.replace(batch, targets=batch.targets | texts)
    return take(batch, np.argsort(-batch.length, kind="stable"))


def written(batch):
    """With facts behind the texts, as branches."""
    rng = np.random.default_rng(5)
    own = rng.integers(5, batch.length + 1).astype(np.int32)
    at = np.arange(batch.tokens.shape[1])
    branch = np.where(at < own[:, None], 0, rng.integers(1, 5, batch.tokens.shape))
    position = np.minimum(at, 2 + rng.integers(0, 8, batch.tokens.shape))
    arrays = {"own": own, "branch": branch, "position": position}
    return dataclasses.replace(batch, **{k: x.astype(np.int32) for k, x in arrays.items()})


def in_rows(batch, groups=1, parts=1, row=32):
    """The batch packed as it stands."""
    room = batch.length.reshape(-1, groups).max(1)
    rows, start = fill_rows(room, row)
    assert rows * groups < len(batch.length)
    return Layout(batch.tokens.shape[1], row, rows, start, parts).place(batch)


def objective_of(c, teacher=None):
    label = Classification([str(i) for i in range(toy.LABELS)])
    masks = MaskedLM(WORDS, 0.15, settings=c.objective.mlm)
    task = {"kgqa": KGQA(toy.kg(), 0.5), "classification": label, "mlm": masks}[c.task.kind]
    return Objective(toy.model(c), make_terms(c.objective, task, teacher, masks))


SMALL = EncoderConfig(layers=1, width=16, heads=2, mlp=16, max_length=16, dropout=0.0)
TEXTS = DataConfig(buckets=(16,))
GCN = GraphConfig(kind="gcn", layers=1, width=8, heads=2)
CASES = {
    "masked words": {"task": TaskConfig(kind="mlm"), "objective": ObjectiveConfig(mlm=MLM)},
    "answers": {"fusion": FusionConfig(kind="interaction", layers=(0,))},
    "distilled": {
        "task": TaskConfig(kind="classification"),
        "fusion": FusionConfig(kind="none"),
        "objective": ObjectiveConfig(
            distill=DistillConfig(teacher="toy", weight=1.0, hidden=1.0, attention=1.0)
        ),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_packed_is_unpacked_to_rounding(case):
    c = toy.config(**{"encoder": SMALL, "graph": GCN, "data": TEXTS, **CASES[case]})
    teacher = toy.model(c) if c.objective.distill.active else None
    objective = objective_of(c, teacher)
    frozen = jax.tree.map(
        jnp.asarray, {"names": toy.names(), "done": 0.0, "teacher": toy.trained(c, seed=9)}
    )
    batch, params = falling(), toy.trained(c)

    def whole(params, batch):
        return objective(params, frozen, batch, objective.totals(batch), None)

    # That the way back of the gradient is right is tested above: one whole gradient will do.
    run = jax.jit(jax.grad(whole, has_aux=True) if case == "distilled" else whole)
    (plain, metrics), (packed, same) = run(params, batch), run(params, in_rows(batch))
    assert len(metrics) == len(objective.terms) + 1
    for name, pair in metrics.items():
        np.testing.assert_allclose(same[name], pair, rtol=2e-5, err_msg=name)
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=2e-5 * (1e-3 + np.abs(one).max()))


def test_over_devices():
    """And where facts hang in branches: every token reads other ones."""
    c = toy.config(
        encoder=SMALL,
        graph=GCN,
        data=TEXTS,
        task=TaskConfig(kind="classification", pooling="mean"),
        fusion=FusionConfig(kind="cross_attention", layers=(0,)),
    )
    mesh, objective = make_mesh(MeshConfig(data=2, fsdp=2)), objective_of(c)
    batch, params = written(falling(b=32)), toy.trained(c)
    # Round robin over devices, then each device's own together.
    order = np.arange(32).reshape(8, 4).T.ravel()
    rows, start = fill_rows(batch.length[::4], 32)
    assert rows < 8
    placed = Layout(16, 32, rows, start, 1).place(take(batch, order))

    @jax.jit
    def loss(params, batch):
        with on_mesh(mesh if batch.packing is not None else None):
            frozen = {"names": toy.names(), "done": 0.0}
            return objective(params, frozen, batch, objective.totals(batch), None)[0]

    placed = jax.device_put(placed, batch_sharding(mesh))
    whole = jax.device_put(params, replicated(mesh))
    cut = loss.lower(whole, placed).compile()
    np.testing.assert_allclose(cut(whole, placed), loss(params, batch), rtol=1e-5)
    assert "all-gather" not in cut.as_text() and "all-to-all" not in cut.as_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": DataConfig(pack=64), "task": TaskConfig(kind="choice")},
            "task.kind = 'choice': with data.pack = 64: the choices",
        ),
        (
            {"data": DataConfig(pack=64), "encoder": EncoderConfig(attention="cudnn")},
            "encoder.attention = 'cudnn': with data.pack",
        ),
    ],
)
def test_what_cannot_be_packed(sections, message):
    with pytest.raises(KeftError, match=message):
        toy.config(**sections)


def test_a_row_holds_the_longest_text():
    with pytest.raises(KeftError, match="pack = 32: a row must hold"):
        DataConfig(buckets=(64,), pack=32)


def test_a_run_goes_on_from_any_step(tmp_path):
    tiny.write_files(tmp_path)
    task, fusion = TaskConfig(kind="classification"), FusionConfig(kind="none")
    c = tiny.config(tmp_path, task=task, fusion=fusion)
    c = dataclasses.replace(
        c,
        data=dataclasses.replace(c.data, pack=32),
        optim=dataclasses.replace(c.optim, steps=8, accumulate=2),
        checkpoint=CheckpointConfig(every=3),
    )
    parts, splits = build(c)
    train, trainer = parts.given(parts.training(splits)), Trainer(parts)
    kept = []
    save = lambda state, _: kept.append(jax.device_get(state))  # noqa: E731
    whole = fit(trainer, train, None, seed=0, hooks=Hooks(save=save))
    rest = fit(trainer, train, None, seed=0, state=kept[0])
    assert int(kept[0].step) == 3 and int(rest.state.step) == 8
    assert trainer.compilations == 1
    for a, b in zip(*(jax.tree.leaves(f.state.params) for f in (whole, rest)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fewer_texts_than_a_batch():
    with pytest.raises(KeftError, match=r"optim.batch = 32: .* there are 10 texts"):
        plan(size=10)
