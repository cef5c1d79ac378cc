"""TFDS data sets, prepared and read back without TensorFlow; what is not there is told."""

import contextlib
import dataclasses
import gzip
import json
import os
import random
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import raw_data
import tensorflow_datasets as tfds
import tiny

from keft_jax import cli
from keft_jax.config import DataConfig, EvalConfig, FusionConfig, KeftError, OptimConfig
from keft_jax.data import quickstart, tfds_builders
from keft_jax.data.generators import GENERATORS
from keft_jax.data.source import read_examples
from keft_jax.data.tfds import prepared, read_tfds
from keft_jax.data.tfds_builders import TableForm, prepare
from keft_jax.options import load_config_file
from keft_jax.train.run import train

LABELS = ("negative", "positive")


class Reviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set as others write them."""

    VERSION = tfds.core.Version("1.10.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]  # noqa: RUF012
    url_infos = None

    def _info(self):
        f = tfds.features
        features = {
            "sentence": f.Text(),
            "label": f.ClassLabel(names=LABELS),
            "idx": f.Scalar(np.int32),
            "seen": f.Scalar(np.bool_),
            "tags": f.Sequence(f.ClassLabel(names=LABELS)),
            "author": {"name": f.Text(), "home": {"town": f.Text()}},
            "answers": f.Sequence({"text": f.Text(), "start": np.int64}),
            "raw": f.Tensor(shape=(2,), dtype=np.int64),
            "blob": f.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(6), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "sentence": f"café {i}",
                    "label": -1 if i == 4 else i % 2,
                    "idx": i,
                    "seen": i > 2,
                    "tags": [1, 0][: i % 3],
                    "author": {"name": f"n{i}", "home": {"town": "Bern"}},
                    "answers": [{"text": f"a{j}", "start": j} for j in range(i % 3)],
                    "raw": [i, i],
                    "blob": b"\xff" if i == 5 else b"ok",
                },
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two data sets: `reviews/plain` of others, and the tiny questions under `tiny`."""
    root = tmp_path_factory.mktemp("tfds")
    builder = Reviews(data_dir=root, config="plain", file_format="array_record")
    builder.download_and_prepare()
    tiny.write_files(root / "files")
    prepare("tiny", [str(root / "files")], folder=str(root))
    return root


def refuse(path, root, columns=()):
    with pytest.raises(KeftError) as caught:
        list(read_tfds(path, str(root), columns))
    assert "\n" not in str(caught.value) and str(root) in str(caught.value) + str(root)
    return str(caught.value)


def same(a, b):
    return [dataclasses.replace(e, where="") for e in a] == [
        dataclasses.replace(e, where="") for e in b
    ]


def test_a_round_trip_is_the_files(root):
    data = DataConfig(tfds_dir=str(root))
    for split in ("train", "select", "test"):
        found = read_examples(f"tfds:tiny:{split}", data, need=("answers", "label"))
        assert same(found, read_examples(root / f"files/{split}.jsonl", data))
        assert [e.where for e in found[:2]] == [f"tfds:tiny:{split}:1", f"tfds:tiny:{split}:2"]
    made = root / "tiny/1.0.0"
    assert (made / "kg.tsv").read_bytes() == (root / "files/kg.tsv").read_bytes()
    assert sorted(prepared(root)) == ["reviews/plain", "tiny"]
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_every_value_survives(tmp_path):
    rows = [
        {"question": "a", "answers": ["x", "y"], "label": 1, "at": [[0, 1, "x"]], "t": ["a", "b"]},
        {"question": "b|c", "answers": "x", "label": 0.1, "at": [], "cluster": None},
        {"question": "é\n", "answers": [3, None, True], "label": True, "at": [], "cluster": 7},
        {"question": "d", "answers": [], "label": None, "at": [], "deep": {"er": [1]}},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half": "\\ud800"}\n[]\n')
    _, reports = prepare("mine", [f"all-of-it={file}"], folder=str(tmp_path))
    assert sorted(line for _, line, _ in reports["all-of-it"].malformed) == [5, 6]
    data = DataConfig(spans="at", tfds_dir=str(tmp_path))
    assert same(read_examples("tfds:mine:all-of-it", data), read_examples(file, data))
    _, record = next(read_tfds("tfds:mine:all-of-it", str(tmp_path)))
    assert record["t"] == ["a", "b"] and record["deep"] == "" and record["cluster"] == ""


def test_tables(tmp_path):
    (tmp_path / "a.tsv").write_text("question\tanswers\nwho?\tAnn|Bob\n")
    prepare("a", [str(tmp_path / "a.tsv")], table=TableForm(("answers",)), folder=str(tmp_path))
    (example,) = read_examples("tfds:a:a", DataConfig(tfds_dir=str(tmp_path)))
    assert example.answers == ("Ann", "Bob")
    (tmp_path / "b.csv").write_text("good,1\nbad,0\n")
    prepare("b", [str(tmp_path / "b.csv")], table=TableForm(header=False), folder=str(tmp_path))
    data = DataConfig(text="1", label="2", tfds_dir=str(tmp_path))
    assert [e.label for e in read_examples("tfds:b:b", data)] == ["1", "0"]


def test_data_sets_of_others(root):
    data = DataConfig(text="sentence", label="label", cluster="author.home.town", pattern="idx")
    data = dataclasses.replace(data, tfds_dir=str(root), answers="answers.text", slices=("seen",))
    found = {e.pattern: e for e in read_examples("tfds:reviews/plain:1.10.0:train", data)}
    assert len(found) == 6
    for i, example in ((int(name), e) for name, e in found.items()):
        assert example.text == f"café {i}" and example.cluster == "Bern"
        assert example.label == (None if i == 4 else LABELS[i % 2])
        assert example.answers == tuple(f"a{j}" for j in range(i % 3))
        assert example.slices == (json.dumps(i > 2),)
    records = {r["idx"]: r for _, r in read_tfds("tfds:reviews/plain:train", str(root))}
    assert records[2]["tags"] == ["positive", "negative"] and records[2]["raw"] == [2, 2]
    assert records[5]["blob"] == b"\xff" and records[4]["blob"] == "ok"
    assert records[2]["answers.start"] == [0, 1] and records[3]["answers.start"] == []


def test_two_training_steps_without_tensorflow(root, tmp_path):
    data = dataclasses.replace(
        tiny.config(root / "files").data,
        train="tfds:tiny:train",
        select="tfds:tiny:select",
        test=("tfds:tiny:test",),
        tfds_dir=str(root),
    )
    config = tiny.config(
        root / "tiny/1.0.0",
        data=data,
        fusion=FusionConfig(kind="none"),
        optim=OptimConfig(steps=2, batch=8, learning_rate=1e-2),
        eval=EvalConfig(every=2, batch=8),
    )
    assert "test" in train(config, tmp_path / "run", quiet=True)["scores"]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (
            "tfds:tyny:train",
            ("no data set 'tyny'", "mean tiny?", "reviews/plain, tiny", "keft tfds"),
        ),
        ("tfds:reviews:train", ("only its configs", "reviews/plain")),
        ("tfds:tiny:trian", ("no split 'trian'", "mean train?", "select, test, train")),
        ("tfds:tiny:2.0.0:train", ("no version 2.0.0", "there is 1.0.0")),
        ("tfds:tiny:train[:9]", ("not of the form tfds:NAME[/CONFIG][:VERSION]:SPLIT", "whole")),
        ("tfds:tiny", ("not of the form",)),
        ("tfds:../files:train", ("not of the form",)),
    ],
)
def test_what_is_not_there_is_told(root, path, parts):
    message = refuse(path, root)
    assert message.startswith(path) and all(part in message for part in parts)


def test_a_feature_that_is_not_there_is_told(root, tmp_path):
    data = DataConfig(text="qestion", tfds_dir=str(root))
    with pytest.raises(KeftError, match=r"tfds:tiny:train: feature 'qestion': .*mean 'question'\?"):
        read_examples("tfds:tiny:train", data)
    message = refuse("tfds:reviews/plain:train", root, ["author.nam"])
    assert "mean 'author.name'?" in message and "answers.start, answers.text" in message
    assert "(there are: none)" in refuse("tfds:tiny:train", tmp_path / "nowhere")


@pytest.fixture
def copy(root, tmp_path):
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny/1.0.0"


def test_the_newest_version_is_read(copy):
    for version in ("1.10.0", "1.9.0"):
        shutil.copytree(copy, copy.parent / version)
    (copy.parent / "1.9.0/dataset_info.json").write_text("{}")
    root = copy.parents[1]
    assert [f.name for f in prepared(root)["tiny"]] == ["1.0.0", "1.9.0", "1.10.0"]
    assert len(list(read_tfds("tfds:tiny:train", str(root)))) == 40
    assert "no split" in refuse("tfds:tiny:1.9.0:train", root)


def test_tfrecord_needs_tensorflow(copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    for formats in ({"fileFormat": "tfrecord"}, {}):
        rest = {k: v for k, v in info.items() if k != "fileFormat"}
        (copy / "dataset_info.json").write_text(json.dumps(rest | formats))
        message = refuse("tfds:tiny:train", copy.parents[1])
        assert "format tfrecord, which needs TensorFlow" in message
        assert "tfds build tiny --file_format=array_record" in message


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"splits": 3}', b"\xff"])
def test_a_damaged_description_is_told(copy, name, content):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    assert refuse("tfds:tiny:train", copy.parents[1])


def test_features_that_cannot_be_read_are_told(copy):
    file = copy / "features.json"
    features = json.loads(file.read_text())
    inner = features["featuresDict"]["features"]
    inner["answers"]["sequence"]["feature"] = json.loads(json.dumps(inner["answers"]))
    file.write_text(json.dumps(features))
    assert "lists of lists" in refuse("tfds:tiny:train", copy.parents[1])


BASE = "tensorflow_datasets.core.features."
OWN, FOREIGN = f"{BASE}text_feature.Text", "antigravity.Feature"
OLD = {"type": FOREIGN, "content": {}}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("features.json", lambda s: s.replace(OWN, FOREIGN)),
        (
            "features.json",
            lambda s: s.replace(OWN, FOREIGN).replace("pythonClassName", "python_class_name"),
        ),
        (
            "features.json",
            lambda s: s.replace("pythonClass", "python\\u0043lass").replace(OWN, FOREIGN),
        ),
        ("features.json", lambda s: s.replace(OWN, "tensorflow_datasets_more.core.Text")),
        ("features.json", lambda s: json.dumps(OLD)),
        (
            "features.json",
            lambda s: json.dumps(
                {
                    "pythonClassName": f"{BASE}features_dict.FeaturesDict",
                    "jsonFeature": {"json": json.dumps({"question": OLD})},
                }
            ),
        ),
        (
            "dataset_info.json",
            lambda s: json.dumps(
                json.loads(s) | {"features": {"python_class_name": FOREIGN, "text": {}}}
            ),
        ),
    ],
)
def test_no_module_is_imported_for_a_feature(copy, name, change, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imports {name}"))
    file = copy / name
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    message = refuse("tfds:tiny:train", copy.parents[1])
    assert "which is not TFDS's own" in message or '"type"' in message
    assert "antigravity" not in sys.modules


def test_only_what_is_asked_for_is_decoded(root):
    """Bytes that are no text stand in the last record's `blob`; nobody asks for it here."""
    path = "tfds:reviews/plain:train"
    records = [r for _, r in read_tfds(path, str(root), ["tags"], ["answers.text", "nothing"])]
    assert [sorted(r) for r in records] == [["answers.text", "tags"]] * 6
    whole = [r for _, r in read_tfds(path, str(root))]
    assert records == [{n: r[n] for n in ("answers.text", "tags")} for r in whole]


def test_a_damaged_shard_is_told_or_reads_as_it_was(copy):
    (shard,) = copy.glob("*-train.*")
    root, whole = copy.parents[1], shard.read_bytes()
    records = list(read_tfds("tfds:tiny:train", str(root)))
    for content in (b"", b"junk" * 9, whole[: len(whole) // 2], b"\0" * len(whole)):
        shard.write_bytes(content)
        assert f"{shard.name}: damaged" in refuse("tfds:tiny:train", root)
    told, rng = 0, random.Random(0)
    used = [i for i, byte in enumerate(whole) if byte]
    for _ in range(40):
        place = rng.choice(used)
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert list(read_tfds("tfds:tiny:train", str(root))) == records
        except KeftError as error:
            told += f"{shard.name}: damaged" in str(error)
    assert told > 30
    shard.unlink()
    assert f"{shard.name}: damaged" in refuse("tfds:tiny:train", root)


def test_a_broken_source_leaves_what_was_there(copy, tmp_path):
    root, good = tmp_path, tmp_path / "good.jsonl"
    good.write_text('{"question": "new"}\n')
    before = sorted(p.name for p in root.iterdir())
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"question": "a"}\n' * 999)[:-9])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "slash.jsonl").write_text('{"a/b": 1}\n')
    for name, sources, part in (
        ("tiny", ["good.jsonl", "bad.jsonl.gz"], "damaged gzip"),
        ("tiny", ["good.jsonl", "empty.jsonl"], "holds no record"),
        ("tiny", ["good.jsonl", "god.jsonl"], "did you mean good.jsonl"),
        ("tiny", ["good.jsonl", "good.jsonl"], "is the split 'good' too"),
        ("tiny", ["all=good.jsonl"], "no name of a split"),
        ("tiny", ["slash.jsonl"], "'a/b': TFDS takes no such name"),
        ("tiny", [], "--source: none for tiny"),
        ("Tiny", ["good.jsonl"], "no name of a data set"),
        ("keft_metaqa", ["."], "1hop-train.jsonl.gz: no such file"),
    ):
        paths = [
            s.replace("=", f"={tmp_path}/") if "=" in s else f"{tmp_path}/{s}" for s in sources
        ]
        with pytest.raises(KeftError, match=part):
            prepare(name, paths, folder=str(root))
    with pytest.raises(KeftError, match=r"nokg.tsv: no such file"):
        prepare("tiny", [str(good)], kg=str(tmp_path / "nokg.tsv"), folder=str(root))
    for file in ("bad.jsonl.gz", "empty.jsonl", "slash.jsonl"):
        (tmp_path / file).unlink()
    assert sorted(p.name for p in root.iterdir()) == before
    assert len(list(read_tfds("tfds:tiny:train", str(root)))) == 40  # as before
    prepare("tiny", [str(good)], kg=str(good), folder=str(root))
    assert [r for _, r in read_tfds("tfds:tiny:good", str(root))] == [{"question": "new"}]
    assert sorted(p.name for p in root.iterdir()) == before and (copy / "good.jsonl").is_file()
    meta = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(meta | {"moduleName": "theirs"}))
    with pytest.raises(KeftError, match="keft did not make"):
        prepare("tiny", [str(good)], folder=str(root))


@pytest.mark.parametrize("moves", range(3))
def test_a_kill_leaves_the_old_set_or_the_new_one(tmp_path, monkeypatch, moves):
    target, made, done = tmp_path / "set/1.0.0", tmp_path / "made", iter(range(moves))
    for folder in (target, made):
        folder.mkdir(parents=True)
        (folder / folder.name).touch()

    def move(*paths, really=os.rename):
        if next(done, None) is None:
            raise SystemExit("killed")
        really(*paths)

    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(os, "rename", move)
        patch.setattr(tfds_builders, "_recover", lambda target: None)
        tfds_builders._put(made, target)
    tfds_builders._recover(target)  # by the next call
    assert [p.name for p in target.parent.iterdir()] == ["1.0.0"]
    assert [p.name for p in target.iterdir()] == ["made" if moves == 2 else "1.0.0"]


def test_the_command_prepares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "generate", tiny.write_files)
    assert cli.run(["tfds", "keft_quickstart", "--data-dir", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "keft_quickstart/1.0.0")
    assert told.err.splitlines() == [
        "tfds:keft_quickstart:select  10 records",
        "tfds:keft_quickstart:test  10 records",
        "tfds:keft_quickstart:train  40 records",
    ]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(read_examples("tfds:keft_quickstart:train", DataConfig())) == 40


def test_metaqa(shared, tmp_path):
    source = tmp_path / "metaqa"
    source.mkdir()
    for name in ("kg.tsv.gz", "1hop-train.jsonl.gz", "1hop-valid.jsonl.gz"):
        with gzip.open(shared / "data/kgqa/metaqa" / name) as whole:
            (source / name).write_bytes(gzip.compress(b"".join(islice(whole, 200))))
    made, _ = prepare("keft_metaqa", [str(source)], folder=str(tmp_path))
    assert (made / "kg.tsv.gz").is_file()
    data = DataConfig(brackets=True, entity="topic", pattern="qtype", tfds_dir=str(tmp_path))
    for split in ("train", "valid"):
        found = read_examples(f"tfds:keft_metaqa:{split}", data, need=("answers", "pattern"))
        assert len(found) == 200
        assert same(found, read_examples(source / f"1hop-{split}.jsonl.gz", data))


@pytest.mark.parametrize("name", ["typing", "commonsense", "squad", "wikigold"])
def test_made_from_raw_files(name, tmp_path):
    """What a generator makes, with its graph; read by the fields of its recipe."""
    raw = raw_data.write_all(tmp_path / "raw")
    GENERATORS[name](str(raw), tmp_path / "files")
    made, _ = prepare(f"keft_{name}", [str(raw)], folder=str(tmp_path / "tfds"))
    config = load_config_file(str(Path(__file__).parents[1] / f"configs/{name}.py"))
    data = dataclasses.replace(config.data, tfds_dir=str(tmp_path / "tfds"))
    for file in (data.train, data.select, *data.test):
        split = Path(file).stem
        found = read_examples(f"tfds:keft_{name}:{split}", data)
        assert same(found, read_examples(tmp_path / f"files/{split}.jsonl", data))
    for file in (tmp_path / "files").glob("*.tsv"):
        assert (made / file.name).read_bytes() == file.read_bytes()


def test_raw_files_that_are_not_there(tmp_path):
    for sources, said in (([], "no such folder"), (["a", "b"], "2 given; keft_cola is made from")):
        with pytest.raises(KeftError, match=said):
            prepare("keft_cola", sources, folder=str(tmp_path))
    assert not list(tmp_path.rglob("*.json"))
