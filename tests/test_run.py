import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from keft_jax.config import (
    CheckpointConfig,
    DistillConfig,
    EvalConfig,
    FusionConfig,
    KeftError,
    ObjectiveConfig,
    OptimConfig,
)
from keft_jax.options import override
from keft_jax.train.checkpoint import Checkpoints, abstract_like, save_params
from keft_jax.train.dry_run import dry_run
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.loop import Trainer, fit
from keft_jax.train.parts import load_parts
from keft_jax.train.run import identify, load_run, train
from keft_jax.train.workdir import claim

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def finished(files):
    """(config, directory, summary) of an undisturbed run."""
    config = tiny.config(files)
    folder = files / "finished"
    return config, folder, train(config, folder, quiet=True)


def student_of(config, teacher):
    """Without a graph, in four steps: one compiled program for all tests."""
    distill = DistillConfig(teacher=str(teacher), weight=1.0)
    return replace(
        config,
        fusion=FusionConfig(kind="none"),
        objective=ObjectiveConfig(task=0.0, distill=distill),
        optim=replace(config.optim, steps=4),
    )


def last_state(folder):
    """The state of the last checkpoint."""
    trainer = Trainer(load_parts(folder))
    shape = jax.eval_shape(trainer.init, jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.restore(abstract_like(shape, trainer.shardings))
    checkpoints.close()
    assert found is not None
    return jax.device_get(found[0]), found[1]


def assert_same_run(a, b):
    """Bit for bit: the last state, the progress, and the best parameters."""
    (state_a, progress_a), (state_b, progress_b) = last_state(a), last_state(b)
    for x, y in zip(jax.tree.leaves(state_a), jax.tree.leaves(state_b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert progress_a == progress_b
    for x, y in zip(*(jax.tree.leaves(load_run(f)[1]) for f in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def metric_steps(folder):
    """Steps in metrics.jsonl; of a run in progress, those of its whole lines."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def start(config_file, workdir, *options):
    command = [sys.executable, "-W", "error", "train.py", "--config", str(config_file)]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_run_learns_and_its_directory_says_how(finished):
    config, folder, summary = finished
    assert summary["scores"]["test"]["hits@1"] == 1.0
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 24 and summary["best_step"] in (8, 16, 24)
    assert summary["coverage"]["test"]["linked"] == 1.0
    assert summary["coverage"]["test"]["answers_near"] == 1.0
    assert metric_steps(folder) == list(range(1, 25))
    assert list(folder.glob("events.out.tfevents.*"))
    parts, params = load_run(folder)
    assert parts.config == config
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(parts.model.abstract()))


def test_the_same_command_on_a_finished_run_prints_its_results(finished, capsys, monkeypatch):
    config, folder, summary = finished
    monkeypatch.setattr("keft_jax.train.run.build_any", None)  # nothing is built
    assert train(config, folder) == summary
    captured = capsys.readouterr()
    assert "1.0000" in captured.out and "finished already" in captured.err


def test_killed_at_random_moments_and_started_again_ends_bit_identical(files, capsys):
    config = tiny.config(
        files, checkpoint=CheckpointConfig(every=2), eval=EvalConfig(every=3, batch=8)
    )
    whole, killed = files / "whole", files / "killed"
    train(config, whole, quiet=True)
    file = tiny.write_config(files / "killed.py", config)
    draw = random.Random()
    for _ in range(2):
        seen = len(metric_steps(killed))
        wanted = min(seen + draw.randrange(2, 9), 16)
        process = start(file, killed)
        wait_for(lambda: len(metric_steps(killed)) >= wanted, process)  # noqa: B023
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.communicate()
        assert not (killed / "summary.json").exists()
    train(config, killed)
    assert "resumed from step" in capsys.readouterr().err
    assert metric_steps(killed) == list(range(1, 25))
    assert_same_run(whole, killed)


def test_sigterm_saves_and_the_same_command_goes_on(files):
    # Evaluating at every step gives the signal time to come in between.
    config = tiny.config(
        files, checkpoint=CheckpointConfig(every=300), eval=EvalConfig(every=1, batch=8)
    )
    whole, stopped = files / "unstopped", files / "stopped"
    train(config, whole, quiet=True)
    process = start(tiny.write_config(files / "stopped.py", config), stopped)
    wait_for(lambda: metric_steps(stopped), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (line,) = [line for line in err.splitlines() if line.startswith("stopped at step")]
    assert "the same command" in line and str(stopped) in line
    step = int(last_state(stopped)[0].step)
    assert f"stopped at step {step} of 24" in line and 0 < step < 24
    assert train(config, stopped, quiet=True)["steps"] == 24
    assert metric_steps(stopped) == list(range(1, 25))
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_checkpoint_is_named_and_training_goes_on_from_the_one_before(
    finished, files, damage, capsys
):
    config, folder, summary = finished
    copy = files / f"damaged-{damage}"
    shutil.copytree(folder, copy)
    (copy / "summary.json").unlink()
    step = copy / "checkpoints" / "24"
    target = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 16
    target.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    again = train(config, copy)
    err = capsys.readouterr().err
    assert str(target) in err and "resumed from step 18" in err
    assert again["scores"] == summary["scores"]
    assert metric_steps(copy) == list(range(1, 25))
    assert_same_run(folder, copy)


def test_early_stopping_stays_stopped(files):
    config = tiny.config(files, eval=EvalConfig(every=2, batch=8, patience=1))
    folder = files / "early"
    summary = train(config, folder, quiet=True)
    assert summary["steps"] < 24
    state, _ = last_state(folder)
    (folder / "summary.json").unlink()
    assert train(config, folder, quiet=True)["steps"] == summary["steps"]
    np.testing.assert_array_equal(last_state(folder)[0].step, state.step)


def test_not_a_number_stops_with_the_step_and_the_examples(files):
    config = tiny.config(
        files,
        optim=OptimConfig(steps=24, batch=8, learning_rate=1e30, warmup=0.0, clip=0.0),
        checkpoint=CheckpointConfig(every=1),
    )
    folder = files / "nan"
    with pytest.raises(NotFiniteError, match=r"step \d+") as caught:
        train(config, folder, quiet=True)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    ids, places = re.search(r"on the examples ([\d, ]+) \((.*), \.\.\.\); lower", message).groups()
    ids = [int(i) for i in ids.split(", ")]
    assert len(ids) == 8 and "learning_rate" in message and "\n" not in message
    assert places.split(", ") == [f"{files}/train.jsonl:{i + 1}" for i in ids[:4]]
    assert not (folder / "summary.json").exists()
    state, _ = last_state(folder)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_no_selection_split_takes_the_last_parameters(files):
    config = tiny.config(files)
    config = replace(config, data=replace(config.data, select=""))
    folder = files / "unselected"
    assert train(config, folder, quiet=True)["best_step"] == 24
    _, params = load_run(folder)
    last = last_state(folder)[0].params
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(x, y)


def test_another_config_in_the_same_directory_is_refused(finished):
    config, folder, _ = finished
    other = override(config, ["--optim.learning_rate=0.5", "--encoder.width=32"])
    with pytest.raises(
        KeftError, match=r"encoder.width = 16 \(now 32\), optim.learning_rate = 0.01 \(now 0.5\)"
    ):
        train(other, folder, quiet=True)


def test_what_changes_no_result_may_change_on_resuming(finished):
    config, folder, summary = finished
    other = override(config, ["--checkpoint.every=5", "--gain.seeds=2"])
    assert train(other, folder, quiet=True) == summary


def test_other_data_in_the_same_directory_is_refused(files, tmp_path):
    tiny.write_files(tmp_path)
    config = tiny.config(tmp_path)
    train(config, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    with (tmp_path / "train.jsonl").open("a") as out:
        out.write('{"question": "where is person1 ?", "answers": ["town1"]}\n')
    with pytest.raises(KeftError, match=r"data\.train: not what it was"):
        train(config, tmp_path / "run", quiet=True)


def test_a_teacher_trained_again_is_other_data(finished, files, tmp_path):
    config, folder, _ = finished
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(folder, teacher)
    student = student_of(config, teacher)
    train(student, run, quiet=True)
    (run / "summary.json").unlink()
    inputs = json.loads((run / "inputs.json").read_text())
    assert inputs["objective.distill.teacher"] == identify(*load_run(teacher))
    _, params = load_run(teacher)
    save_params(teacher / "best", 24, jax.tree.map(lambda x: x + 1e-3, params))
    with pytest.raises(KeftError, match=r"objective\.distill\.teacher: not what it was when"):
        train(student, run, quiet=True)


def test_a_teacher_that_reads_names_of_another_length_is_refused(finished, tmp_path):
    config, folder, _ = finished
    distill = DistillConfig(teacher=str(folder), weight=1.0)
    student = replace(
        config,
        objective=ObjectiveConfig(distill=distill),
        knowledge=replace(config.knowledge, name_pieces=3),
    )
    with pytest.raises(KeftError, match=r"its knowledge\.name_pieces is another"):
        train(student, tmp_path / "run", quiet=True)


def test_scores_on_the_selection_split_that_are_no_numbers_name_the_step(finished):
    trainer = Trainer(load_parts(finished[1]))
    parts = trainer.parts
    data = parts.ready(parts.read(parts.config.data.select))

    def evaluate(params, dataset):
        return Trainer.evaluate(trainer, jax.tree.map(lambda x: x * np.nan, params), dataset)

    trainer.evaluate = evaluate
    with pytest.raises(NotFiniteError, match=r"^step 8: the scores of 10 of 10 examples are not"):
        fit(trainer, parts.ready(parts.read(parts.config.data.train)), data, seed=0)


def test_two_processes_do_not_share_a_directory(finished, files):
    folder = files / "claimed"
    with (
        claim(folder),
        pytest.raises(KeftError, match="another process trains there"),
        claim(folder),
    ):
        pass


def test_a_directory_of_other_things_is_left_alone(files, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(KeftError, match=r"holds other things than a run \(thesis.tex\)"):
        train(tiny.config(files), tmp_path, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_student_without_a_graph_learns_from_a_run(finished, files, tmp_path):
    config, folder, _ = finished
    student = student_of(config, folder)
    train(student, tmp_path / "student", quiet=True)
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    assert "loss/distill" in json.loads(lines[0])

    tiny.write_files(tmp_path / "other")
    with (tmp_path / "other" / "kg.tsv").open("a") as out:
        out.write("person1\tnear\tnowhere\n")
    knowledge = replace(student.knowledge, kg=str(tmp_path / "other" / "kg.tsv"))
    with pytest.raises(KeftError, match=r"objective\.distill\.teacher = .*its list of entities"):
        train(replace(student, knowledge=knowledge), tmp_path / "unlike", quiet=True)
    assert not (tmp_path / "unlike").exists()


def test_a_run_without_an_evaluation_has_no_parameters_yet(finished, tmp_path):
    _, folder, _ = finished
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("best"))
    with pytest.raises(KeftError, match="no parameters yet"):
        load_run(tmp_path / "run")
    with pytest.raises(KeftError, match=r"no config\.json"):
        load_run(tmp_path)


def test_dry_run_shows_costs_and_examples_and_writes_nothing(files, capsys):
    before = sorted(files.iterdir())
    costs = dry_run(tiny.config(files))
    out = capsys.readouterr().out
    assert '"learning_rate": 0.01' in out
    assert "-[lives_in]->" in out and "' is person" in out
    assert costs["parameters (MB)"] == pytest.approx(costs["parameters (millions)"] * 4)
    assert costs["GFLOPs a step and device"] > 0
    assert sorted(files.iterdir()) == before
