import dataclasses
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keft_jax.config import KeftError
from keft_jax.train.checkpoint import (
    BestParams,
    Checkpoints,
    abstract_like,
    load_params,
    save_params,
)
from keft_jax.train.loop import Progress
from keft_jax.train.state import State


def make_mesh(count):
    return Mesh(np.array(jax.devices()[:count]), ("fsdp",))


def shardings(tree, mesh):
    """Matrices cut along their rows, the rest whole."""
    return jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec(*(["fsdp"] if x.ndim == 2 else []))), tree
    )


def make_state(step, mesh=None, dtype=np.float32, rows=8):
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": rng.normal(size=(rows, 6)).astype(dtype)},
        "head": {"bias": rng.normal(size=3).astype(np.float32)},
    }
    state = State(
        step=np.int32(step),
        params=params,
        opt_state=({"mu": jax.tree.map(np.zeros_like, params)}, ()),
        key=np.array([1, 2**32 - 1], np.uint32),
    )
    state = jax.tree.map(jnp.asarray, state)
    return jax.device_put(state, shardings(state, mesh or make_mesh(1)))


def abstract(state, mesh=None):
    return abstract_like(state, shardings(state, mesh or make_mesh(1)))


def save(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, make_state(step), Progress(best=0.1 * step, best_step=step))
    checkpoints.close()


def restore(folder, like=None):
    """(state, progress) or None, and the messages."""
    messages = []
    checkpoints = Checkpoints(folder, 2, messages.append)
    try:
        return checkpoints.restore(like or abstract(make_state(0))), messages
    finally:
        checkpoints.close()


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_restores_all_of_the_newest_step_and_keeps_as_many_as_asked(tmp_path):
    save(tmp_path, 1, 2, 3)
    (state, progress), messages = restore(tmp_path)
    assert_equal(state, make_state(3))
    assert progress == Progress(best=pytest.approx(0.3), best_step=3)
    assert messages == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "2.json", "3", "3.json"]


def test_restores_onto_another_mesh(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, make_state(5, make_mesh(4)), Progress())
    checkpoints.close()
    for count in (1, 2, 8):
        mesh = make_mesh(count)
        (state, _), _ = restore(tmp_path, abstract(make_state(0), mesh))
        assert_equal(state, make_state(5))
        assert state.params["encoder"]["kernel"].sharding.spec == PartitionSpec("fsdp")
        assert len(state.params["encoder"]["kernel"].sharding.device_set) == count


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0)
    state, checkpoints = make_state(7, rows=40_000), Checkpoints(tmp_path)
    expected = jax.device_get(state)
    checkpoints.save(7, state, Progress())
    for _ in range(20):
        state = step(state)
        checkpoints.poll()
    checkpoints.close()
    (found, _), _ = restore(tmp_path, abstract(state))
    assert_equal(found, expected)


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "none") == (None, [])


def flip_bit(folder):
    file = largest(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file.name


def truncate(folder):
    file = largest(folder)
    file.write_bytes(file.read_bytes()[:-1])
    return file.name


def remove_file(folder):
    file = largest(folder)
    file.unlink()
    return file.name


def add_file(folder):
    (folder / "state" / "more").write_text("")
    return "more"


def remove_manifest(folder):
    folder.with_name(f"{folder.name}.json").unlink()
    return "manifest"


def damage_manifest(folder):
    file = folder.with_name(f"{folder.name}.json")
    file.write_text(file.read_text().replace("float32", "float16", 1))
    return f"{folder.name}.json"


@pytest.mark.parametrize(
    "damage", [flip_bit, truncate, remove_file, add_file, remove_manifest, damage_manifest]
)
def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path, damage):
    save(tmp_path, 1, 2)
    name = damage(tmp_path / "2")
    (state, _), (message,) = restore(tmp_path)
    assert_equal(state, make_state(1))
    assert str(tmp_path / "2") in message and name in message and "\n" not in message
    # The damaged one is out of the way, so that the step can be saved again.
    assert not (tmp_path / "2").exists()
    save(tmp_path, 2)
    (state, _), messages = restore(tmp_path)
    assert_equal(state, make_state(2))
    assert messages == []


def test_each_bit_counts(tmp_path):
    """Any one bit of any file, data or metadata."""
    save(tmp_path / "good", 1, 2)
    rng = np.random.default_rng(0)
    files = sorted(p for p in (tmp_path / "good" / "2").rglob("*") if p.is_file())
    for file in files:
        if not file.stat().st_size:
            continue
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        target = tmp_path / "bad" / file.relative_to(tmp_path / "good")
        data = bytearray(target.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        target.write_bytes(data)
        (state, _), (message,) = restore(tmp_path / "bad")
        assert_equal(state, make_state(1))
        assert target.name in message
        shutil.rmtree(tmp_path / "bad")


def test_nothing_is_deleted_when_no_step_verifies(tmp_path):
    save(tmp_path, 1, 2)
    flip_bit(tmp_path / "1")
    flip_bit(tmp_path / "2")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeftError, match="no other step verifies"):
        restore(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_cut_off_in_the_first_save_starts_from_scratch_and_says_so(tmp_path):
    save(tmp_path, 1)
    remove_manifest(tmp_path / "1")
    (tmp_path / "2.orbax-checkpoint-tmp-0").mkdir()
    result, messages = restore(tmp_path)
    assert result is None
    assert "no manifest" in messages[0] and "from scratch" in messages[1]
    assert list(tmp_path.iterdir()) == []


def test_another_dtype_or_shape_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    for like, found in (
        (make_state(0, dtype=np.float16), r"float16\[8, 6\]"),
        (make_state(0, rows=16), r"float32\[16, 6\]"),
    ):
        with pytest.raises(KeftError, match=r"params/encoder/kernel is float32\[8, 6\].*" + found):
            restore(tmp_path, abstract(like))
    fewer = make_state(0)
    fewer = dataclasses.replace(fewer, params={"head": fewer.params["head"]})
    with pytest.raises(KeftError, match=r"params/encoder/kernel is .* and absent in the config"):
        restore(tmp_path, abstract(fewer))
    assert (tmp_path / "1.json").exists()


def test_a_manifest_comes_though_nobody_asks(tmp_path):
    """Training may hang in a step that another process never makes."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), Progress())
    until = time.monotonic() + 20
    while not (tmp_path / "1.json").exists() and time.monotonic() < until:
        time.sleep(0.005)
    assert (tmp_path / "1.json").exists()
    checkpoints.close()


def test_poll_raises_what_went_wrong_beside_training(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("keft_jax.train.checkpoint.checksums", fail)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), Progress())
    until = time.monotonic() + 20
    with pytest.raises(OSError, match="disk full"):
        while time.monotonic() < until:
            checkpoints.poll()
            time.sleep(0.005)
    checkpoints.close()


def test_files_that_another_process_did_not_see_are_in_the_manifest(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr("keft_jax.train.checkpoint.share", lambda names, *_: sorted(names)[::2])
    checkpoints.save(1, make_state(1), Progress())
    checkpoints.close()
    monkeypatch.undo()
    (state, _), messages = restore(tmp_path)
    assert_equal(state, make_state(1))
    assert messages == []


def test_best_params_replace_each_other(tmp_path):
    like = abstract(make_state(0).params)
    for step in (10, 20, 20):  # a resumed run saves a step again
        save_params(tmp_path, step, make_state(step).params)
    step, params = load_params(tmp_path, like)
    assert step == 20
    assert_equal(params, make_state(20).params)
    assert len(list(tmp_path.iterdir())) == 2  # one folder, one manifest


def test_the_old_best_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    save_params(tmp_path, 10, make_state(10).params)
    best = BestParams(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("keft_jax.train.checkpoint.checksums", fail)
    best.save(20, make_state(20).params)
    with pytest.raises(OSError, match="disk full"):
        best.close()
    monkeypatch.undo()
    step, params = load_params(tmp_path, abstract(make_state(0).params))
    assert step == 10
    assert_equal(params, make_state(10).params)


def test_best_params_that_a_checkpoint_knows_of_and_are_gone_are_missed_at_once(tmp_path):
    best = BestParams(tmp_path / "best")
    best.tidy(needed=False)
    with pytest.raises(KeftError, match="the best parameters are gone"):
        best.tidy(needed=True)
    best.close()


def test_what_was_left_half_written_is_removed(tmp_path):
    save_params(tmp_path, 10, make_state(10).params)
    for name in ("2.orbax-checkpoint-tmp", "2"):  # cut off while written, and while hashed
        (tmp_path / name).mkdir()
    for name in (".2.json.7-ab.part", ".2.1.part"):
        (tmp_path / name).write_text("{")
    messages = []
    best = BestParams(tmp_path, messages.append)
    best.tidy(needed=True)
    best.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "1.json"]
    assert len(messages) == 1 and "cut off" in messages[0]


def test_no_params_yet(tmp_path):
    with pytest.raises(KeftError, match="no parameters yet"):
        load_params(tmp_path / "best", abstract(make_state(0).params))


def test_manifest_is_plain_json(tmp_path):
    save(tmp_path, 1)
    content = json.loads((tmp_path / "1.json").read_text())["content"]
    assert content["number"] == 1
    assert content["arrays"]["state/key"] == ["uint32", [2]]
