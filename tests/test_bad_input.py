"""What users get wrong: one line that names the thing, the place and the remedy; an exit code that
is not 0; nothing half-written."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from keft_jax.config import KeftError
from keft_jax.gain.run import GainRun
from keft_jax.kg.store import KG
from keft_jax.options import override, run_main
from keft_jax.train.checkpoint import Checkpoints
from keft_jax.train.loop import Progress, Trainer
from keft_jax.train.parts import build, save_parts
from keft_jax.train.run import train

ROOT = Path(__file__).resolve().parents[1]
ROW = json.dumps({"question": "where does person1 live ?", "answers": ["town1"], "label": "even"})


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("train_command", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where tyro looks for the command's types
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def files(tmp_path):
    tiny.write_files(tmp_path / "files")
    return tmp_path / "files"


@pytest.fixture
def fails(command, files, tmp_path, capsys):
    """Runs train.py in this process; gives its error, after the checks that every error must
    pass."""

    def run(*options, config=None, workdir=None):
        file = tiny.write_config(tmp_path / "tiny.py", config or tiny.config(files))
        folder = workdir or tmp_path / "run"
        there = sorted(folder.rglob("*")) if folder.exists() else None
        argv = ["--config", str(file), "--workdir", str(folder), *options]
        code = run_main(lambda: command(argv))
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()[-1:]
        assert code == 2 and line.startswith("error: ")
        assert len(captured.err.splitlines()) == 1 and captured.out == ""
        after = sorted(folder.rglob("*")) if folder.exists() else None
        assert after == there
        return line.removeprefix("error: ")

    return run


TRAIN = {
    "empty": (b"", "holds no example", "one record a line"),
    "blank": (b"\n\n", "holds no example", "one record a line"),
    "binary": (bytes(range(256)) * 64, "a binary file", "UTF-8 text is expected"),
    "not JSON": (b"where does person1 live ?\n", "not JSON", "one whole object a line"),
    "invalid UTF-8": (b'{"question": "\xff\xfe ?"}\n', "invalid UTF-8 at byte", "save it as UTF-8"),
    "10 MB line": (b'{"question": "' + b"a" * 10_000_000 + b'"}\n', "10,0", "limit is 1,048,576"),
    "other field": (b'{"questions": "a ?"}\n', "no such field", "did you mean 'questions'"),
    "no answers": (b'{"question": "a ?"}\n', "data.answers = 'answers'", "no such field"),
}


@pytest.mark.parametrize("split", ["train", "select", "test"])
@pytest.mark.parametrize("case", TRAIN)
def test_examples(fails, files, case, split):
    content, what, remedy = TRAIN[case]
    (files / f"{split}.jsonl").write_bytes(content)
    line = fails()
    assert line.startswith(f"{files / split}.jsonl") and what in line and remedy in line


KG_FILES = {
    "empty": (b"", "empty", "on each line"),
    "binary": (bytes(range(256)) * 64, "binary", "UTF-8 text"),
    "two columns": (b"person1\ttown1\n" * 5, "2 fields, not 3", "write 3 fields"),
    "commas": (b"a,b,c\n", "1 field, not 3", "is it .csv?"),
    "invalid UTF-8": (b"a\tb\t\xff\xff\n", "not UTF-8", "write 3 fields"),
    "10 MB line": (b"a\tb\t" + b"c" * 10_000_000 + b"\n", "longer than 1 MiB", "write 3 fields"),
}


@pytest.mark.parametrize("case", KG_FILES)
def test_graph(fails, files, case):
    content, what, remedy = KG_FILES[case]
    (files / "kg.tsv").write_bytes(content)
    line = fails()
    assert line.startswith(f"{files / 'kg.tsv'}") and what in line and remedy in line


@pytest.mark.parametrize("field", ["data.train", "data.select", "data.test", "knowledge.kg"])
def test_missing_path(fails, tmp_path, field):
    missing = tmp_path / "files" / "nowhere.jsonl"
    assert fails(f"--{field}={missing}").startswith(f"{missing}: no such file")


def test_missing_vocabulary(fails, tmp_path):
    assert "no such file" in fails(f"--data.vocab={tmp_path}/tokenizer.json")


def test_missing_teacher(fails, tmp_path):
    line = fails(f"--objective.distill.teacher={tmp_path}/none", "--objective.distill.weight=1")
    assert line.startswith(f"{tmp_path}/none") and "give what train.py made" in line


def test_a_label_that_training_never_saw(fails, files):
    config = tiny.classification(files)
    with (files / "test.jsonl").open("a") as out:
        out.write(ROW.replace("even", "evn") + "\n")
    line = fails(config=config)
    assert line.startswith(f"{files / 'test.jsonl'}:11: label 'evn' never occurs in training")
    assert "even, odd" in line and "task.labels" in line


def test_an_unknown_relation(files):
    parts, _ = build(tiny.config(files))
    other = KG.from_triples([("person1", "lives_in", "town1"), ("person1", "fears", "person2")])
    with pytest.raises(KeftError, match=r"relation 'fears'.*trained without it.*train again"):
        parts.with_kg(other)


def test_two_test_splits_of_one_name(fails, files, tmp_path):
    twin = tmp_path / "twin" / "test.jsonl"
    twin.parent.mkdir()
    twin.write_text(ROW + "\n")
    line = fails("--data.test", str(files / "test.jsonl"), str(twin))
    assert str(twin) in line and "rename one" in line


def test_selection_on_a_test_split(fails, files, tmp_path):
    line = fails(f"--data.select={files}/../files/test.jsonl")
    assert line.startswith("data.select = ") and "is one of data.test; choose on" in line
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((files / "test.jsonl").read_bytes())
    line = fails(f"--data.select={copy}")
    assert line.startswith(f"data.select = '{copy}': holds the same examples as test of data.test")
    with pytest.raises(KeftError, match="holds the same examples"):
        data = replace(tiny.config(files).data, select=str(copy))
        GainRun(tiny.config(files, data=data), tmp_path / "gain", print)


def test_more_examples_drawn_than_there_are(fails):
    line = fails("--data.draw=41")
    assert "draw" in line and "41" in line and "40 training examples" in line


def test_a_batch_that_the_mesh_does_not_divide(fails):
    line = fails("--mesh.data=8", "--optim.batch=12")
    assert "optim.batch" in line and "12" in line and "8" in line


def test_an_unknown_metric(fails):
    line = fails("--eval.metric=hit@1")
    assert "eval.metric = 'hit@1'" in line and "hits@1" in line


def test_a_checkpoint_of_another_config(fails, files, tmp_path):
    config = tiny.config(files)
    parts, _ = build(config)
    folder = tmp_path / "run"
    save_parts(parts, folder)
    wider = replace(config, encoder=replace(config.encoder, mlp=64))
    state = Trainer(build(wider)[0]).fresh(0)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, state, Progress())
    checkpoints.close()
    with pytest.raises(KeftError) as caught:
        train(config, folder, quiet=True)
    line = str(caught.value)
    assert "\n" not in line and str(folder / "checkpoints" / "3") in line
    assert "params/" in line and "64" in line and "32" in line and "--workdir" in line
    assert (folder / "checkpoints" / "3.json").exists()


def test_a_run_directory_of_another_config(fails, files, tmp_path):
    parts, _ = build(tiny.config(files))
    save_parts(parts, tmp_path / "other")
    line = fails("--optim.learning_rate=0.5", workdir=tmp_path / "other")
    assert "optim.learning_rate = 0.01 (now 0.5)" in line and "name another --workdir" in line


def test_a_damaged_config_of_a_run(fails, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"name": ')
    line = fails(workdir=tmp_path / "other")
    assert line.startswith(f"{tmp_path / 'other' / 'config.json'}: not JSON")


def test_a_workdir_that_is_a_file(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert fails(workdir=tmp_path / "file") == f"--workdir {tmp_path}/file: a file; name a folder"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--optim.stepz=3", "--optim.stepz=3; did you mean --optim.steps?"),
        ("--learning_rate=3", "did you mean --optim.learning_rate"),
        ("--optim", "did you mean --optim.kind?"),
        ("--optim.steps=many", "--optim.steps: 'many' is no whole number"),
        ("--optim.steps=1.5", "--optim.steps: '1.5' is no whole number"),
        ("--optim.steps=0", "optim.steps = 0: use 1 or more"),
        ("--optim.steps", "Missing value for argument '--optim.steps'"),
        ("--optim.b1=1.5", "optim.b1 = 1.5: use [0, 1)"),
        (
            "--graph.gate=perhaps",
            "'perhaps' for argument '--graph.gate'. Expected one of ('True', 'False')",
        ),
        (
            "--graph.kind=gatt",
            "'gatt' for argument '--graph.kind'. Expected one of (",
        ),
        ("--fusion.layers=5", "fusion.layers = (5,): the encoder has layers 0 to 0"),
        ("--optim.groups=x", "Unrecognized options: --optim.groups=x"),
        ("extra", "Unrecognized options: extra"),
    ],
)
def test_options(fails, option, words):
    assert words in fails(option)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no get_config(arg)"),
        ("def get_config(arg=''):\n    return 3\n", "get_config gave a int"),
        ("def get_config(arg=''):\n    return 1 / 0\n", "2: ZeroDivisionError"),
        ("def get_config(:\n", "1: SyntaxError"),
        (
            "from keft_jax.config import *\n\n\ndef get_config(arg=''):\n"
            "    return Config(optim=OptimConfig(stepz=1))\n",
            "5: TypeError: OptimConfig.__init__() got an unexpected keyword argument 'stepz'",
        ),
        (
            "from keft_jax.config import *\n\n\ndef get_config(arg=''):\n"
            "    return Config(optim=OptimConfig(steps=0))\n",
            "optim.steps = 0: use 1 or more",
        ),
    ],
)
def test_config_files(command, tmp_path, capsys, content, words):
    file = tmp_path / "broken.py"
    file.write_text(content)
    assert run_main(lambda: command(["--config", str(file)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and (str(file) in line or "optim.steps" in line)
    assert words in line


@pytest.mark.parametrize("output", ["print('x' * 100)", "print('x' * 100_000)", "sys.exit()"])
def test_a_reader_that_leaves_is_no_error(output):
    """By the first write or at the end, after --help too (which leaves by SystemExit)."""
    script = (
        "import sys; from keft_jax.options import run_main\n"
        f"def main():\n    print('a')\n    {output}\n    return 0\n"
        "sys.exit(run_main(main))"
    )
    end, start = os.pipe()
    os.close(end)
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=ROOT, stdout=start, stderr=subprocess.PIPE)
    os.close(start)
    assert (done.returncode, done.stderr) == (141, b"")


def test_no_config_and_help(command, capsys, files, tmp_path):
    assert run_main(lambda: command([])) == 2
    assert "--config: missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        command(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "--workdir" in out and "--dry_run" in out
    for words in (
        "--optim.learning_rate FLOAT",
        "--graph.kind {gcn,gat,rgcn,rgat,triple_concat,triple_sum}",
        "Peak.",
    ):
        assert words in out


def test_options_are_taken_in_every_form(files):
    config = tiny.config(files)
    for args in (["--optim.learning-rate=0.5"], ["--optim.learning_rate", "5e-1"]):
        assert override(config, args).optim.learning_rate == 0.5
    changed = override(
        config, ["--fusion.layers", "-1", "0", "--graph.gate=False", "--data.test", "--seed=3"]
    )
    assert changed.fusion.layers == (-1, 0) and changed.data.test == ()
    assert changed.graph.gate is False and changed.seed == 3
    assert override(config, []) == config
