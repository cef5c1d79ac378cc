"""Several processes are one run: who joins, who has which rows, who stops when; and what keeps a
run from harm."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy_triples

from keft_jax import distributed
from keft_jax.config import CheckpointConfig, KeftError, MeshConfig, OptimConfig, WatchConfig
from keft_jax.sharding import batch_sharding, make_mesh, own_parts, place_parts
from keft_jax.train import feed, guard, watchdog
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.loop import make_plan
from keft_jax.train.manifest import share
from keft_jax.train.optim import schedule
from keft_jax.train.parts import build, build_any
from keft_jax.train.run import train
from keft_jax.train.workdir import claim, refuse_other_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def joined(monkeypatch):
    """What JAX was asked to join."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(
    ("env", "cluster"),
    [
        ({}, ""),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_NTASKS": "4"}, ""),  # a shell of salloc
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),  # a pod by itself
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU"),
    ],
)
def test_what_started_the_processes_is_known_by_its_variables(env, cluster, joined):
    env = env | {"JAX_PLATFORMS": "cpu"}
    distributed.join(env=env)
    assert len(joined) == (1 if cluster else 0)
    assert distributed._find_cluster(env) == cluster
    distributed.join(processes=1, env=env)  # by itself, whatever is around
    assert len(joined) == (1 if cluster else 0)


def test_options_stand_before_variables(joined):
    env = {name: str(i + 2) for i, name in enumerate(distributed.NAMES.values())}
    distributed.join("here:1", 5, env=env)
    ((args, _),) = joined
    assert args == ("here:1", 5, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, r"--coordinator = a:1: given without --processes .* --process "),
        ({"processes": 2, "process": 0}, r"given without --coordinator \(JAX_COORDINATOR_ADDRESS"),
        ({"env": {"JAX_NUM_PROCESSES": "two"}}, r"--processes = two: use a whole number"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, r"--process = 2: count from 0 to 1"),
    ],
)
def test_some_given_and_others_not_is_an_error(given, message, joined):
    with pytest.raises(KeftError, match=message):
        distributed.join(**({"env": {}} | given))
    assert not joined


def test_one_process_asks_nobody():
    assert distributed.exchange("text") == ["text"]
    with pytest.raises(KeftError, match="as it was"):
        distributed.on_first(lambda: (_ for _ in ()).throw(KeftError("as it was")))
    asked = []
    stop = distributed.Stop(lambda: bool(asked), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    assert not stop and stop.sent() == {}
    asked.append(1)
    assert stop


@pytest.fixture
def talk(monkeypatch):
    """Makes this process one of two, of which the other one says what is given, in turn."""

    def begin(number, *others):
        said = [np.frombuffer(other.encode(), np.uint8) for other in others]

        def gather(own):
            if not np.ndim(own):
                return place(own, len(said[0]))
            other = said.pop(0)
            return place(own, np.pad(other, (0, len(own) - len(other))))

        def place(own, other):
            return np.stack([other, own] if number else [own, other])

        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: number)
        monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)

    return begin


@pytest.mark.parametrize("other", ["", "x" * distributed.FRAME, "\u00fc" * distributed.FRAME])
def test_texts_of_any_length_are_exchanged(other, talk):
    talk(1, other, other)
    assert distributed.exchange("own") == [other, "own"]
    assert distributed.exchange("") == [other, ""]


def test_what_the_first_process_is_refused_all_are(talk):
    talk(1, "line 3 of it", "")
    done = []
    with pytest.raises(KeftError, match=r"^line 3 of it$"):
        distributed.on_first(lambda: done.append(1))
    distributed.on_first(lambda: done.append(1))
    assert not done


@pytest.mark.parametrize("number", [0, 1])
def test_other_data_or_options_are_named_by_all(number, talk):
    tables = {"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}
    talk(number, json.dumps(tables[1 - number]))
    with pytest.raises(KeftError, match=r"b: process 1 has '3' and process 0 '2'"):
        distributed.refuse_unlike(tables[number])


class Cut:
    """A sharding as one of several processes knows it: the parts that its devices hold."""

    def __init__(self, *parts):
        self.parts = parts

    def addressable_devices_indices_map(self, shape):
        size = shape[0] // 4
        return {i: (slice(p * size, (p + 1) * size),) for i, p in enumerate(self.parts)}


@pytest.mark.parametrize("parts", [(0, 1), (3, 1), (2, 2), (0, 1, 2, 3)])
def test_a_process_has_the_parts_of_its_devices_in_order(parts):
    assert own_parts(Cut(*parts), 4).tolist() == sorted(set(parts))


def test_parts_end_to_end_lie_as_the_whole_does():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharding, tree = batch_sharding(mesh), {"a": np.arange(24).reshape(8, 3), "b": np.arange(4)}
    own = own_parts(sharding, 4)
    placed = place_parts(tree, sharding, own, 4)
    for name, whole in tree.items():
        np.testing.assert_array_equal(placed[name], whole)
        assert placed[name].sharding == sharding


@pytest.mark.parametrize("pack", [0, 32])
def test_batches_made_by_several_processes_are_that_of_one(pack, tmp_path, monkeypatch):
    tiny.write_files(tmp_path)
    config = tiny.config(tmp_path, mesh=MeshConfig(data=4))
    config = replace(config, data=replace(config.data, pack=pack))
    parts, splits = build(config)
    data, mesh = parts.given(parts.training(splits)), make_mesh(config.mesh)
    length, indices = make_plan(config, data, 0).batch(3)
    whole = data.batch(length, indices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(feed, "place_parts", lambda tree, *_: tree)
    made = {}
    for own in ([0, 2], [1], [3]):
        monkeypatch.setattr(feed, "own_parts", lambda *_, own=own: np.array(own))
        rows = feed.feed(data, length, indices, mesh)
        for i, part in enumerate(own):
            made[part] = jax.tree.map(lambda x: np.split(x, len(own))[i], rows)  # noqa: B023
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(made[part] for part in range(4)))
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_file_is_read_by_one_process(processes):
    names = ["state/_METADATA", "progress/metadata"]
    names += [f"state/ocdbt.process_{i}/d/{n}" for i in range(4) for n in "ab"]
    shares = [share(names, i, processes) for i in range(processes)]
    assert sorted(name for own in shares for name in own) == sorted(names)
    if processes > 1:
        assert all("process_1/" not in name for name in shares[0])


def judged(config, losses):
    """Which of the losses are skipped."""
    state, out = guard.make_guard(), []
    for loss in losses:
        bad, state = guard.judge(config, state, jnp.float32(loss), jnp.float32(1))
        out.append(bool(bad))
    return out, state


def test_a_jump_is_skipped_and_does_not_count_as_usual():
    rng = np.random.default_rng(0)
    losses = list(2 - np.linspace(0, 1, 80) + 0.1 * rng.normal(size=80))
    losses[10], losses[60], losses[70] = 30, 20, np.nan  # too early to tell; a jump; no number
    config = OptimConfig(skip=3, spike=6.0)
    skipped, state = judged(config, losses)
    # The first jump counts as usual, and hides the second.
    assert [i for i, bad in enumerate(skipped) if bad] == [70]
    del losses[10]
    skipped, state = judged(config, losses)
    assert [i for i, bad in enumerate(skipped) if bad] == [59, 69]
    assert int(state["skipped"]) == 2 and int(state["count"]) == 77
    kept = [x for i, x in enumerate(losses) if i not in (59, 69)]
    np.testing.assert_allclose(state["mean"], np.mean(kept), rtol=1e-5)
    np.testing.assert_allclose(state["variance"], np.var(kept), rtol=1e-4)
    assert not any(judged(replace(config, spike=0.0), [1.0] * 60 + [99.0])[0])


def test_a_skipped_step_changes_nothing_but_its_number():
    config = toy_triples.config(MeshConfig(data=1), "rows", "adagrad")
    optim = replace(config.optim, skip=2, ema=0.5)  # a Config would refuse an average here
    config = SimpleNamespace(**(vars(config) | {"optim": optim}))
    training = toy_triples.Training(config)
    state, _ = training.run(1)
    before = jax.device_get(state)
    batch = toy_triples.batch(1)
    batch.targets["link"].weight[3] = np.nan
    state, metrics = training.step(state, training.frozen, training.put(batch))
    assert float(metrics["skipped"][0]) == 1
    for name in ("params", "tables", "opt_state", "ema", "key"):
        was, now = (jax.tree.leaves(getattr(s, name)) for s in (before, state))
        assert all(np.array_equal(a, b) for a, b in zip(was, now, strict=True))
    assert int(state.step) == 2 and int(state.guard["count"]) == 1
    copy = jax.tree.map(jnp.copy, state)
    state, rows = training.run(1, state)
    assert rows[0]["skipped"] == 1 and np.isfinite(rows[0]["loss/total"])
    # The rate rests, for tables as for the other parameters: one is skipped, or none was.
    other, _ = training.run(1, copy.replace(guard={**copy.guard, "skipped": jnp.int32(0)}))
    rising = schedule(config.optim)
    for path, table in before.tables.items():
        one, two = (s.tables[path].value - table.value for s in (state, other))
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one / rising(1), two / rising(2), atol=1e-6)
    assert np.abs(one - two).max() > 1e-4


def dump(folder, seconds, **limits):
    """What the watchdog wrote while nothing was done for so long."""
    told = []
    with watchdog.watch(WatchConfig(**limits), folder, told.append):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not told:
            time.sleep(0.01)
    files = list(folder.glob("stall-*.txt"))
    return told, files[0].read_text() if files else ""


def test_the_watchdog_says_where_a_run_hangs(tmp_path):
    before = threading.active_count()
    (message,), text = dump(tmp_path, 10, stall=0.05)
    assert "nothing was done for 0 seconds" in message and str(tmp_path / "stall-0.txt") in message
    assert "in dump" in text and "test_hosts.py" in text
    assert threading.active_count() == before
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "stall-0.txt").unlink()
    assert dump(tmp_path, 0.1, stall=30.0) == ([], "")
    assert dump(tmp_path, 0.1, stall=0.0) == ([], "")


def test_the_watchdog_does_not_wait_for_a_disk_that_hangs(tmp_path, monkeypatch):
    answers = threading.Event()

    def hang(*_):
        answers.wait(20)
        raise OSError("gone")

    monkeypatch.setattr(watchdog, "WRITING", 0.05)
    monkeypatch.setattr(Path, "open", hang)
    (message,), _ = dump(tmp_path, 10, stall=0.05)
    assert "could not be written" in message and "its disk does not answer" in message
    answers.set()
    monkeypatch.undo()
    (message,), _ = dump(tmp_path / "none", 10, stall=0.05)
    assert "could not be written" in message and "No such file" in message


def test_the_watchdog_ends_a_run_where_it_is_asked_to(tmp_path, monkeypatch):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    with watchdog.watch(WatchConfig(stall=0.02, abort=0.05), tmp_path, lambda message: None):
        until = time.monotonic() + 10
        while time.monotonic() < until and not codes:
            time.sleep(0.01)
    assert set(codes) == {watchdog.TRY_AGAIN}
    assert "watch.abort" in (tmp_path / "stall-0.txt").read_text()


def read(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


def test_a_run_that_was_killed_while_it_was_made_begins_anew(tmp_path, monkeypatch):
    config = read("launch", monkeypatch).triples_config(tmp_path / "data")
    folder = tmp_path / "run"
    build_any(config)[0].save(folder)
    (folder / "config.json").unlink()  # it comes last
    (folder / ".triples.new-12").mkdir()
    refuse_other_run(config, folder)
    with claim(folder):
        assert sorted(p.name for p in folder.iterdir()) == [".lock", "triples"]


def test_more_steps_than_may_be_skipped_end_the_run(tmp_path, monkeypatch, caplog):
    config = read("launch", monkeypatch).triples_config(tmp_path / "data")
    optim = replace(config.optim, learning_rate=1e38, warmup=0.0, skip=2)
    config = replace(config, optim=optim, mesh=MeshConfig(data=1))
    with pytest.raises(NotFiniteError, match=r"optim\.skip = 2 are skipped already; lower"):
        train(config, tmp_path / "run", quiet=True)
    told = [r.getMessage() for r in caplog.records if "skipped, the" in r.getMessage()]
    assert len(told) == 2 and "on the examples" in told[0]


def test_two_processes_stop_at_the_same_step_and_one_goes_on(tmp_path, monkeypatch):
    hosts = read("hosts", monkeypatch)
    command = [sys.executable, "-W", "error", "benchmarks/hosts.py", "--out", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--only=stopped-2"], cwd=ROOT, env=env, check=True)
    stopped, config = tmp_path / "stopped-2", hosts.triples_config(tmp_path / "data")
    seen = json.loads((tmp_path / "hosts.json").read_text())["stopped-2"]
    assert seen["exit codes"] == [0, 0]
    step = seen["last checkpoint"]
    assert hosts.STOP_AFTER <= step < 24 and seen["stopped at"] == [step, step]
    assert not (stopped / "summary.json").exists()
    assert len(list(stopped.glob("events.out.*"))) == 1  # one writer
    # On one process: each step once, with the losses of a run that never stopped.
    config = replace(config, mesh=MeshConfig(data=1), checkpoint=CheckpointConfig(every=100))
    begun = hosts.losses(stopped)
    assert list(begun) == list(range(1, step + 1))
    train(config, stopped, quiet=True)
    train(config, tmp_path / "whole", quiet=True)
    whole, resumed = hosts.losses(tmp_path / "whole"), hosts.losses(stopped)
    assert hosts.apart(whole, resumed) < 1e-5
    assert {k: resumed[k] for k in begun} == begun
    assert hosts.scores(stopped) == pytest.approx(hosts.scores(tmp_path / "whole"), abs=1e-5)
