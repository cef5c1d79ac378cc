"""Weights of transformers' BERT: read and written by name, computing what torch computes."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import small_bert
import tiny
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

import keft_jax
from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    GroupConfig,
    KeftError,
    MeshConfig,
    MlmConfig,
    ObjectiveConfig,
    TaskConfig,
)
from keft_jax.data.batch import Batch, MaskTarget
from keft_jax.data.tokenize import (
    encode,
    load_tokenizer,
    save_for_transformers,
    save_tokenizer,
    train_wordpiece,
)
from keft_jax.export import export, load_export
from keft_jax.models.encoder import Encoder
from keft_jax.models.functional import Model
from keft_jax.models.fusion import FusedModel, Sizes
from keft_jax.models.pretrained import flat, load_weights, locate, overlay, resolve, save_weights
from keft_jax.train.checkpoint import save_params
from keft_jax.train.loop import Trainer
from keft_jax.train.parts import VECTORS, build, make_tokenizer, save_parts
from keft_jax.train.run import load_run, train
from keft_jax.train.workdir import refuse_other_run

GOLDENS = Path(__file__).parent / "goldens"
TRICKY = [
    "Ünïcödé naïve Ça SÃO İstanbul ΑΣ ﬁ ß",
    "東京 is 大, テスト 한국어 ไทย",
    "a\u200bb\u00a0c\td\ne \ufffd \x07 x\u0301",
    "[MASK] [CLS] [sep] ##a don't e-mail 3.14 $€ 😀",
    "",
    "x" * 120,
]


@pytest.fixture(autouse=True)
def highest():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_bert.write(tmp_path_factory.mktemp("bert") / "small")


def on(folder, **sections) -> Config:
    """A config that starts from the folder, resolved."""
    encoder = EncoderConfig(pretrained=str(folder), dropout=0.0)
    base = {"task": TaskConfig(kind="classification"), "fusion": FusionConfig(kind="none")}
    base |= {"data": DataConfig(buckets=(16,))}
    return resolve(Config(**(base | {"encoder": encoder} | sections)))


def model(config: Config, pieces: int, vocab: int = 128) -> Model:
    """With as many labels as the pooler is wide."""
    width = config.encoder.width
    sizes = Sizes(vocab=vocab, pieces=pieces, rows=128, relations=1, labels=width)
    return Model(FusedModel(config, sizes))


class States(nnx.Module):
    """What the encoder holds before the first layer and after each."""

    def __init__(self, config: EncoderConfig, vocab: int):
        self.encoder = Encoder(config, vocab)

    def __call__(self, tokens, types, mask):
        x = self.encoder.embed(tokens, types, None)
        out = [x]
        for layer in range(len(self.encoder.blocks)):
            x = self.encoder.run(x, mask, None, layer, layer + 1)
            out.append(x)
        return out


def text_batch(ids, types, mask) -> Batch:
    every = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    target = MaskTarget(position=every, label=ids, weight=mask.astype("f"))
    return Batch(
        tokens=ids,
        types=types,
        length=mask.sum(1).astype(np.int32),
        graph=None,
        mentions=None,
        targets={"mlm": target},
        example=np.arange(len(ids), dtype=np.int32),
    )


def compute(folder, ids, types, mask, vocab, pieces):
    """(states of all layers, pooled [b, d])."""
    config = on(folder)
    ids, types = np.asarray(ids, np.int32), np.asarray(types, np.int32)
    whole = model(config, pieces, vocab)
    params = load_weights(folder, whole.abstract())
    states = Model(States(config.encoder, vocab)).apply(
        {"encoder": params["encoder"]}, *(ids, types, mask)
    )
    width = config.encoder.width
    params["head"]["out"] = {"kernel": np.eye(width, dtype="f"), "bias": np.zeros(width, "f")}
    pooled = whole.apply(params, text_batch(ids, types, mask)).logits
    return np.stack([np.asarray(s) for s in states]), np.asarray(pooled)


def masked_lm(folder, ids, types, mask):
    config = on(folder, task=TaskConfig(kind="mlm"))
    whole = model(config, len(small_bert.VOCAB))
    params = load_weights(folder, whole.abstract())
    batch = text_batch(np.asarray(ids, np.int32), np.asarray(types, np.int32), mask)
    return np.asarray(whole.apply(params, batch).logits)[..., : len(small_bert.VOCAB)]


def test_a_small_model_computes_what_torch_does(folder):
    golden = np.load(GOLDENS / "small_bert.npz")
    ids, types, mask = small_bert.IDS, small_bert.TYPES, small_bert.MASK
    states, pooled = compute(folder, ids, types, mask, 128, len(small_bert.VOCAB))
    np.testing.assert_allclose(states[:, mask], golden["states"][:, mask], atol=1e-5)
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    logits = masked_lm(folder, ids, types, mask)
    np.testing.assert_allclose(logits[mask], golden["logits"][mask], atol=1e-5)


def test_minilm_computes_what_torch_does(shared):
    path = shared / "models" / "all-MiniLM-L6-v2"
    if not path.is_dir():
        pytest.skip("no shared/models/all-MiniLM-L6-v2 beside the checkout")
    golden = np.load(GOLDENS / "minilm.npz")
    mask = golden["mask"]
    states, pooled = compute(path, golden["ids"], golden["types"], mask, 30592, 30522)
    difference = np.abs(states[:, mask][:, :, ::8] - golden["slices"]).max((1, 2))
    print("largest difference after each layer:", difference)
    assert difference.max() < 1e-5
    assert np.abs(states[-1][mask] - golden["last"]).max() < 1e-5
    assert np.abs(pooled - golden["pooled"]).max() < 1e-5


def test_where_the_numbers_go(folder):
    weights, whole = small_bert.tensors(), model(on(folder), 70)
    params = load_weights(folder, whole.abstract())
    word = params["encoder"]["embed"]["word"]
    assert word.shape == (128, 16) and not word[70:].any()
    np.testing.assert_array_equal(word[:70], weights["bert.embeddings.word_embeddings.weight"])
    value = weights["bert.encoder.layer.1.attention.self.value.weight"]  # [heads * width, d]
    kernel = params["encoder"]["blocks"]["1"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 2, 1], value[8:].T)
    assert set(params) == {"encoder", "head"} and set(params["head"]) == {"pooler"}
    assert {leaf.dtype for leaf in flat(params).values()} == {np.dtype("f4")}


def other_names(weights):
    def rename(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta").removeprefix("bert.")

    return {rename(name): tensor for name, tensor in weights.items()}


def test_other_names_and_types_and_shards_are_the_same_weights(folder, tmp_path):
    abstract = model(on(folder, task=TaskConfig(kind="mlm")), 70).abstract()
    expected = flat(load_weights(folder, abstract))
    weights = small_bert.tensors()

    renamed = small_bert.write(tmp_path / "renamed", other_names(weights))
    for path, leaf in flat(load_weights(renamed, abstract)).items():
        np.testing.assert_array_equal(leaf, expected[path])

    for dtype in (np.float16, ml_dtypes.bfloat16):
        low = small_bert.write(tmp_path / "low", {k: v.astype(dtype) for k, v in weights.items()})
        for path, leaf in flat(load_weights(low, abstract)).items():
            assert leaf.dtype == np.float32
            np.testing.assert_array_equal(leaf, expected[path].astype(dtype).astype("f4"))

    shards = small_bert.write(tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    names = sorted(weights)
    files = {n: f"model-0000{1 + (i > 20)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n] for n in names if files[n] == file}, shards / file)
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    for path, leaf in flat(load_weights(shards, abstract)).items():
        np.testing.assert_array_equal(leaf, expected[path])
    (shards / files[names[0]]).unlink()
    with pytest.raises(KeftError, match=r"00001-of-00002\.safetensors: no such file"):
        load_weights(shards, abstract)


def test_what_is_left_over_is_said(folder, tmp_path, caplog):
    odd = {"bert.encoder.layer.0.adapter.weight": np.ones((2, 2), "f")}
    path = small_bert.write(tmp_path / "odd", small_bert.tensors() | odd)
    with caplog.at_level(logging.INFO, "keft_jax"):
        load_weights(path, model(on(path), 70).abstract())
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1 and "encoder.layer.0.adapter.weight" in warned[0]
    assert "cls.predictions.bias" in caplog.text  # known, and of no use to a classifier


def test_the_folder_gives_the_sizes(folder):
    encoder = on(folder).encoder
    assert (encoder.layers, encoder.width, encoder.heads, encoder.mlp) == (2, 16, 2, 32)
    assert (encoder.max_length, encoder.norm_eps, encoder.dropout) == (24, 1e-3, 0.0)
    assert resolve(on(folder)) == on(folder)
    plain = Config(task=TaskConfig(kind="classification"), fusion=FusionConfig(kind="none"))
    assert resolve(plain) is plain
    with pytest.raises(KeftError, match=r"fusion\.layers.*layers 0 to 1"):
        on(
            folder,
            knowledge=dataclasses.replace(plain.knowledge, kg="x"),
            fusion=FusionConfig(layers=(2,)),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, r"config\.json: model_type = 'roberta'.*'bert' alone"),
        ({"model_type": None}, "model_type = None"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'.*'gelu' alone"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"type_vocab_size": 1}, "type_vocab_size = 1.*2 alone"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size = None: expected a whole number"),
        ({"vocab_size": "70"}, "vocab_size = '70': expected a whole number"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0"),
        ({"num_attention_heads": 3}, r"encoder\.heads = 3: must divide"),
    ],
)
def test_what_the_encoder_does_not_compute_is_refused(tmp_path, changes, message):
    with pytest.raises(KeftError, match=message) as error:
        on(small_bert.write(tmp_path, **changes))
    assert "\n" not in str(error.value)


def damage(name):
    def change(path):
        file = path / "model.safetensors"
        word, norm = "bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias"
        weights = small_bert.tensors()
        match name:
            case "config":
                (path / "config.json").unlink()
            case "json":
                (path / "config.json").write_text("{")
            case "no weights":
                file.unlink()
            case "pickle":
                file.rename(path / "pytorch_model.bin")
            case "cut":
                file.write_bytes(file.read_bytes()[:-100])
            case "missing":
                save_file({k: v for k, v in weights.items() if k != norm}, file)
            case "half a head":
                save_file({k: v for k, v in weights.items() if k != "bert.pooler.dense.bias"}, file)
            case "shape":
                save_file(weights | {word: weights[word][:-1]}, file)
            case "type":
                save_file(weights | {norm: weights[norm].astype(np.int8)}, file)

    return change


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config", r"config\.json: no such file.*save_pretrained"),
        ("json", r"config\.json: not JSON"),
        ("no weights", r"has no model\.safetensors; give"),
        ("pickle", "is a pickle.*convert"),
        ("cut", r"model\.safetensors: cannot be read"),
        ("missing", r"tensor embeddings\.LayerNorm\.bias: not there"),
        ("half a head", r"tensor pooler\.dense\.bias: not there"),
        ("shape", r"word_embeddings\.weight: has the shape \(69, 16\), and .* \(70, 16\)"),
        ("type", r"LayerNorm\.bias: is int8"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, name, message):
    abstract = model(on(folder), 70).abstract()
    path = small_bert.write(tmp_path)
    damage(name)(path)
    with pytest.raises(KeftError, match=message) as error:
        load_weights(path, abstract)
    assert "\n" not in str(error.value)


def test_an_untied_masked_lm_head_is_refused(tmp_path):
    weights = small_bert.tensors()
    word = weights["bert.embeddings.word_embeddings.weight"]
    for factor in (1, 2):
        path = small_bert.write(
            tmp_path, weights | {"cls.predictions.decoder.weight": word * np.float32(factor)}
        )
        abstract = model(on(path, task=TaskConfig(kind="mlm")), 70).abstract()
        if factor == 1:
            load_weights(path, abstract)
            continue
        with pytest.raises(KeftError, match=r"decoder\.weight: differs"):
            load_weights(path, abstract)


def test_a_name_is_looked_up_locally_then_downloaded(folder, monkeypatch, caplog):
    calls = []

    def absent(name, **options):
        calls.append(options)
        raise LocalEntryNotFoundError("Got: ConnectError: [Errno 111] refused\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    for path in (
        "./org/name",
        "/org/name",
        "org/name/deep",
        "name",
        "tests/nothing-here",
        "../nothing-here",
    ):
        with pytest.raises(KeftError, match="no such folder"):
            locate(path)
    assert not calls  # what looks like a path is never asked for
    with pytest.raises(KeftError, match=r"cannot be downloaded.*give its path") as error:
        locate("org/name")
    assert "\n" not in str(error.value) and "downloading" in caplog.text
    assert [c.get("local_files_only", False) for c in calls] == [True, False]
    assert "config.json" in calls[1]["allow_patterns"]
    assert not any("bin" in pattern for pattern in calls[1]["allow_patterns"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    assert locate("org/name") == folder


def check_ids(path):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), load_tokenizer(path)
    pairs = TRICKY[1:] + TRICKY[:1]
    for length in (512, 16):
        mine = encode(ours, TRICKY, None, length).ids
        other = theirs(TRICKY, truncation=True, max_length=length)["input_ids"]
        assert [row.tolist() for row in mine] == other
    mine = encode(ours, TRICKY, pairs, 512)
    for i, (text, pair) in enumerate(zip(TRICKY, pairs, strict=True)):
        other = theirs(text, pair) if pair else theirs(text)
        assert mine.ids[i].tolist() == other["input_ids"]
        assert mine.types[i].tolist() == other["token_type_ids"]


def test_ids_are_those_of_transformers(folder, tmp_path, shared):
    check_ids(folder)  # from vocab.txt
    check_ids(shared / "models" / "all-MiniLM-L6-v2")
    for lowercase in (True, False):
        tok = train_wordpiece([*TRICKY, "Words and words"] * 3, 256, lowercase=lowercase)
        save_for_transformers(tok, tmp_path, 24)
        check_ids(tmp_path)
        written = load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        again = load_tokenizer(tmp_path)  # now from vocab.txt
        assert [e.ids for e in again.encode_batch(TRICKY)] == [
            e.ids for e in written.encode_batch(TRICKY)
        ]


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    path = small_bert.write(tmp_path)
    tok = path / "vocab.txt"
    tok.write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(KeftError, match=r"\[PAD\] is piece 1"):
        load_tokenizer(path)
    tok.write_text("\n".join([*small_bert.SPECIAL, "a", "a", "b"]))
    with pytest.raises(KeftError, match="not numbered one after another"):
        load_tokenizer(path)
    tok.write_text("a\nb\n")
    with pytest.raises(KeftError, match=r"vocab\.txt: has no \[PAD\]"):
        load_tokenizer(path)
    tiny.write_files(tmp_path / "data")
    tok.write_text("\n".join([*small_bert.VOCAB, "more"]))
    with pytest.raises(KeftError, match=r"a tokenizer of 71 pieces.* 70 rows"):
        build(tiny.classification(tmp_path / "data", encoder=EncoderConfig(pretrained=str(path))))


def test_a_given_tokenizer_numbers_its_pieces_as_the_folder_does(tmp_path):
    path, given = small_bert.write(tmp_path / "bert"), tmp_path / "tokenizer.json"
    base = tiny.classification(tmp_path, encoder=EncoderConfig(str(path)))
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, vocab=str(given)))
    save_tokenizer(load_tokenizer(path), given)
    make_tokenizer(config, [])
    *rest, one, two = small_bert.VOCAB
    (path / "vocab.txt").write_text("\n".join([*rest, two, one]))
    with pytest.raises(KeftError, match=rf"data\.vocab = .*'{one}' is 68, and 69 in .*bert;"):
        make_tokenizer(config, [])
    (path / "vocab.txt").unlink()  # weights alone: nothing to compare with
    make_tokenizer(config, [])


def shallow(path, seed=0):
    """One layer: most of the time of these tests is compilation."""
    weights = {k: v for k, v in small_bert.tensors(seed).items() if "layer.1" not in k}
    return small_bert.write(path, weights, num_hidden_layers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that began from the small folder, its encoder frozen."""
    root = tmp_path_factory.mktemp("run")
    tiny.write_files(root / "data")
    path = shallow(root / "bert")
    base = tiny.classification(root / "data")
    config = dataclasses.replace(
        base,
        encoder=EncoderConfig(pretrained=str(path)),
        fusion=FusionConfig(kind="none"),
        optim=dataclasses.replace(base.optim, steps=2, groups=(GroupConfig("encoder", 0.0),)),
    )
    with jax.default_matmul_precision("highest"):
        train(config, root / "run", quiet=True)
    return root, config


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A run with a graph network, as after training: nothing is zero by design."""
    root = tmp_path_factory.mktemp("fused")
    tiny.write_files(root / "data")
    path = small_bert.write(root / "bert")
    base = tiny.classification(root / "data", encoder=EncoderConfig(str(path)))
    knowledge = dataclasses.replace(base.knowledge, vectors="name")
    parts, _ = build(dataclasses.replace(base, knowledge=knowledge))
    rng = np.random.default_rng(0)
    abstract = parts.model.abstract()
    params = jax.tree.map(lambda s: jax.numpy.asarray(rng.normal(0, 0.2, s.shape), "f"), abstract)
    save_parts(parts, root / "run")
    save_params(root / "run" / "best", 1, overlay(params, load_weights(path, abstract)))
    shutil.rmtree(path)  # a run needs it no more
    return root / "run"


def test_a_run_starts_from_the_folder_and_groups_hold(run):
    root, _ = run
    parts, params = load_run(root / "run")
    start = flat(load_weights(root / "bert", parts.model.abstract()))
    leaves = flat(params)
    for path in start:
        same = np.array_equal(leaves[path], start[path])
        assert same == path.startswith("encoder/"), path  # the head has learned
    assert parts.config.encoder.layers == 1
    used, own = parts.knowledge.vocabulary.tokenizer, load_tokenizer(root / "bert")
    assert used.get_vocab() == own.get_vocab()


def test_every_fresh_state_starts_alike_on_any_mesh(run):
    root, config = run
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    config = dataclasses.replace(config, mesh=mesh, fusion=FusionConfig(kind="none"))
    parts, _ = build(config)
    trainer = Trainer(parts)
    start = flat(load_weights(root / "bert", parts.model.abstract()))
    donate = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    donate(trainer.fresh(0).params)  # a step overwrites what it is given
    again = flat(trainer.fresh(1).params)
    shardings = flat(trainer.shardings.params)
    for path, leaf in start.items():
        np.testing.assert_array_equal(again[path], leaf)
        assert again[path].sharding == shardings[path]


def test_other_weights_under_the_same_path_are_another_run(run, tmp_path):
    root, config = run
    (root / "run" / "summary.json").rename(tmp_path / "summary.json")
    shallow(root / "bert", seed=1)
    try:
        with pytest.raises(KeftError, match=r"encoder\.pretrained: not what it was"):
            train(config, root / "run", quiet=True)
    finally:
        shallow(root / "bert")
        (tmp_path / "summary.json").rename(root / "run" / "summary.json")


def test_export_and_back_is_exact(fused, tmp_path):
    out = tmp_path / "out"
    export(fused, out)
    parts, params = load_run(fused)
    there, again = load_export(out)
    np.testing.assert_array_equal(there.knowledge.vectors, parts.knowledge.vectors)
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(flat(again)[path], leaf)
    texts = ["where does person3 live ?", "the town"]
    assert keft_jax.load(fused).predict(texts) == keft_jax.load(out).predict(texts)
    # The text part is a folder to start from, with the numbers and names it came with.
    written = load_file(out / "model.safetensors")
    for name, tensor in small_bert.tensors().items():
        if name.startswith("bert."):
            np.testing.assert_array_equal(written.pop(name.removeprefix("bert.")), tensor)
    assert not written
    own = dataclasses.replace(parts.config.encoder, pretrained=str(out), dropout=0.0)
    assert on(out).encoder == own
    with pytest.raises(KeftError, match="is there already"):
        export(fused, out)
    (out / "knowledge" / "parameters.safetensors").write_bytes(b"x")
    with pytest.raises(KeftError, match=r"parameters\.safetensors: cannot be read"):
        load_export(out)
    vectors = out / "knowledge" / VECTORS
    whole = vectors.read_bytes()
    for content in (None, b"", b"x" * 99, whole[:-1], whole.replace(b"(30,", b"(29,")):
        vectors.unlink(missing_ok=True) if content is None else vectors.write_bytes(content)
        with pytest.raises(KeftError, match=r"vectors\.npy: "):
            load_export(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_run_stopped_while_it_was_made_is_no_other_run(fused, tmp_path):
    parts, _ = load_run(fused)
    save_parts(parts, tmp_path)
    (tmp_path / "config.json").unlink()  # written last
    refuse_other_run(parts.config, tmp_path)


def test_a_masked_lm_head_goes_out_and_in(folder, tmp_path):
    beside = on(folder, objective=ObjectiveConfig(mlm=MlmConfig(weight=1.0)))
    alone = on(folder, task=TaskConfig(kind="mlm"))
    for config in (alone, beside):
        abstract = model(config, 70).abstract()
        params = load_weights(folder, abstract)
        out = tmp_path / config.task.kind
        written = save_weights(params, config.encoder, 70, out)
        assert written == set(flat(params))
        weights = load_file(out / "model.safetensors")
        for name, tensor in small_bert.tensors().items():
            if "pooler" not in name or config is beside:
                np.testing.assert_array_equal(weights[name], tensor)
        assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_transformers_loads_what_is_written(fused, folder, tmp_path, shared):
    torch = pytest.importorskip("torch")
    import transformers

    def ask(model, ids, types, mask):
        tensors = [torch.tensor(np.asarray(x), dtype=torch.long) for x in (ids, types, mask)]
        names = ("input_ids", "token_type_ids", "attention_mask")
        with torch.no_grad():
            return model.eval()(**dict(zip(names, tensors, strict=True)), output_hidden_states=True)

    def load(kind, path):
        model, info = kind.from_pretrained(
            path, attn_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["mismatched_keys"]
        return model

    out = tmp_path / "out"
    export(fused, out)
    given = small_bert.IDS, small_bert.TYPES, small_bert.MASK
    theirs = ask(load(transformers.BertModel, out), *given)
    states, pooled = compute(out, *given, 128, 70)
    real = small_bert.MASK
    for ours, other in zip(states, theirs.hidden_states, strict=True):
        assert np.abs(ours[real] - other.numpy()[real]).max() < 1e-5
    assert np.abs(pooled - theirs.pooler_output.numpy()).max() < 1e-5
    check_ids(out)

    alone = on(folder, task=TaskConfig(kind="mlm"))
    params = load_weights(folder, model(alone, 70).abstract())
    save_weights(params, alone.encoder, 70, tmp_path / "mlm")
    theirs = ask(load(transformers.BertForMaskedLM, tmp_path / "mlm"), *given)
    assert np.abs(masked_lm(tmp_path / "mlm", *given)[real] - theirs.logits.numpy()[real]).max() < (
        1e-5
    )

    path = shared / "models" / "all-MiniLM-L6-v2"
    golden = np.load(GOLDENS / "minilm.npz")
    given = golden["ids"], golden["types"], golden["mask"]
    theirs = ask(load(transformers.BertModel, path), *given)
    states, pooled = compute(path, *given, 30592, 30522)
    real = golden["mask"]
    worst = [
        float(np.abs(ours[real] - other.numpy()[real]).max())
        for ours, other in zip(states, theirs.hidden_states, strict=True)
    ]
    print("largest difference after each layer:", worst)
    assert max(worst) < 1e-5
    assert np.abs(pooled - theirs.pooler_output.numpy()).max() < 1e-5
