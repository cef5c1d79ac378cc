"""Folders of transformers' BertModel and BertForMaskedLM, read and written without torch.

config.json                                   the sizes
model.safetensors                             the weights, in shards too
tokenizer.json, or vocab.txt                  see data/tokenize.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from keft_jax.config import Config, EncoderConfig, KeftError
from keft_jax.files import write_atomic
from keft_jax.models.functional import Tree, paths
from keft_jax.models.names import Rule, make_rules, plain
from keft_jax.sharding import place

logger = logging.getLogger(__name__)

WEIGHTS, INDEX, PICKLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
NEEDED = (
    "config.json",
    "model*.safetensors",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
"""What is downloaded of a model on the hub."""
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "max_length": "max_position_embeddings",
}
"""Our encoder's field -> theirs."""
COMPUTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "type_vocab_size": (2, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""Fields of config.json and the values with which our encoder computes the same as theirs; None: it
may be left out."""
KNOWN = re.compile(r"(embeddings\.position_ids|pooler\.|cls\.|classifier\.|qa_outputs\.|dropout\.)")
"""Tensors of heads and buffers that a text encoder does not need."""


def locate(pretrained: str) -> Path:
    """The folder of `encoder.pretrained`: as it is, or the local copy of the hub's `org/name`,
    downloaded where there is none. Raises KeftError."""
    where = f"encoder.pretrained = {pretrained!r}"
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        return folder
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", pretrained)
    # `models/bert` is a folder misspelt where there is a folder `models`.
    if not is_id or folder.parent.exists() or folder.exists():
        raise KeftError(
            f"{where}: no such folder; give one with config.json and {WEIGHTS}, or an id of "
            "transformers' hub (org/name)"
        )
    return _from_hub(pretrained, where)


def _from_hub(name: str, where: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        if (folder / "config.json").is_file() and _weights(folder):
            return folder
    except LocalEntryNotFoundError:
        pass  # not there yet: downloaded below
    logger.warning("%s: not on this machine; downloading it from transformers' hub", where)
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(NEEDED)))
    except (OSError, ValueError) as error:  # no network, no such model, no right to read it
        reason = str(error).strip().splitlines()[0]
        raise KeftError(
            f"{where}: cannot be downloaded ({reason}); download the folder where there is a "
            "network, and give its path"
        ) from error


def resolve(config: Config) -> Config:
    """The config with the sizes of the folder `encoder.pretrained`; the same where it names none.
    Raises KeftError where our encoder would compute something else than the folder's model."""
    if not config.encoder.pretrained:
        return config
    encoder = read_sizes(locate(config.encoder.pretrained), config.encoder)
    resolved = dataclasses.replace(config, encoder=encoder)
    resolved.check_sizes()
    return resolved


def read_sizes(folder: Path, encoder: EncoderConfig) -> EncoderConfig:
    """The encoder config with the sizes of a folder."""
    file = folder / "config.json"
    theirs = _read_config(file)
    for name, values in COMPUTED.items():
        value = theirs.get(name)
        if value not in values:
            fits = next(v for v in (*values, "nothing") if v is not None)
            raise KeftError(
                f"{file}: {name} = {value!r}: the encoder here computes {name} = {fits!r} alone; "
                "give a folder of transformers' BertModel or BertForMaskedLM"
            )
    for name in (*SIZES.values(), "vocab_size"):
        if type(theirs.get(name)) is not int:
            raise KeftError(f"{file}: {name} = {theirs.get(name)!r}: expected a whole number")
    sizes = {ours: theirs[name] for ours, name in SIZES.items()}
    eps = theirs.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise KeftError(f"{file}: layer_norm_eps = {eps!r}: expected a small number above 0")
    return dataclasses.replace(encoder, **sizes, norm_eps=eps)


def read_vocab_size(folder: Path) -> int:
    """Rows of a folder's word table."""
    return _read_config(folder / "config.json")["vocab_size"]


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise KeftError(
            f"{file}: no such file; give a folder that transformers' save_pretrained made"
        )
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise KeftError(f"{file}: not JSON ({error}); copy it anew") from error
    if not isinstance(value, dict):
        raise KeftError(f"{file}: expected a JSON object; copy it anew")
    return value


def _weights(folder: Path) -> list[Path]:
    """The weight files there are, in order."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    names = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise KeftError(f"{folder / INDEX}: has no weight_map; copy it anew")
    files = [folder / Path(str(name)).name for name in sorted(set(map(str, names.values())))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise KeftError(f"{missing[0]}: no such file, and {INDEX} names it; copy it too")
    return files


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or its shards. Raises KeftError where there are none."""
    files = _weights(folder)
    if not files:
        remedy = (
            f"{PICKLE} is a pickle, which can run code when it is read; convert it where torch is "
            "(BertModel.from_pretrained(...).save_pretrained(...) writes safetensors)"
            if (folder / PICKLE).is_file()
            else "give a folder that transformers' save_pretrained made"
        )
        raise KeftError(f"{folder}: has no {WEIGHTS}; {remedy}")
    return files


def start_digest(config: Config) -> str:
    """sha256 of the weight files that the parameters start from; "" where they start anew."""
    if not config.encoder.pretrained:
        return ""
    out = hashlib.sha256()
    for path in weight_files(locate(config.encoder.pretrained)):
        with path.open("rb") as file:
            out.update(hashlib.file_digest(file, "sha256").digest())
    return out.hexdigest()


class _Tensors:
    """The tensors of open safetensors files, by their plain names."""

    def __init__(self, folder: Path, opened: dict[Path, Any]):
        self.folder = folder
        names = [(file, name) for file in opened.values() for name in list(file.keys())]
        self._at = {plain(name): (file, name) for file, name in names}
        decoder_bias = self._at.get("cls.predictions.decoder.bias")
        if decoder_bias:  # one parameter under two names
            self._at.setdefault("cls.predictions.bias", decoder_bias)
        self.unused = set(self._at)

    def has(self, rule: Rule) -> bool:
        return any(name in self._at for name in rule.names)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._at:
            raise KeftError(f"{self.folder}: tensor {name}: not there; copy the folder anew")
        file, there = self._at[name]
        return tuple(file.get_slice(there).get_shape())

    def read(self, name: str) -> np.ndarray:
        file, there = self._at[name]
        self.unused.discard(name)
        tensor = file.get_tensor(there)
        if tensor.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise KeftError(
                f"{self.folder}: tensor {name}: is {tensor.dtype}, not a float type; give the "
                "weights before they were quantised"
            )
        return tensor


@contextmanager
def _open(folder: Path) -> Iterator[_Tensors]:
    with ExitStack() as stack:
        opened = {}
        for file in weight_files(folder):
            try:
                opened[file] = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
            except (safetensors.SafetensorError, OSError) as error:
                raise KeftError(f"{file}: cannot be read ({error}); copy it anew") from error
        yield _Tensors(folder, opened)


def load_weights(folder: Path, abstract: Tree, *, classifier: bool = False) -> Tree:
    """The parameters that a folder has of a model, as a partial tree of float32 arrays: the
    encoder, and the pooler and the masked-LM head where model and folder both have them.

    classifier: the layer behind the pooler too. Vocabulary rows beyond the folder's are zero. What
    the folder has and the model has not is said in the log. Raises KeftError naming the tensor that
    is missing or has another shape.
    """
    vocab = read_vocab_size(folder)
    out: Tree = {}
    with _open(folder) as tensors:
        shapes = {path: leaf.shape for path, leaf in flat(abstract).items()}
        rules = make_rules(shapes, classifier=classifier)
        there = {"", *(rule.head for rule in rules if tensors.has(rule))}
        absent = {rule.head for rule in rules} - there
        for rule in rules:
            if rule.head in there:
                put(out, rule.path, rule.read(_read(tensors, rule, vocab)))
        if any(rule.masked_lm and rule.head in there for rule in rules):
            _refuse_untied(tensors)
        others = sorted(name for name in tensors.unused if not KNOWN.match(name))
        heads = sorted(tensors.unused - set(others))
    if absent:
        logger.info("%s: has nothing for %s, fresh here", folder, ", ".join(sorted(absent)))
    if heads:
        logger.info("%s: not used: %s", folder, ", ".join(heads))
    if others:
        logger.warning("%s: %d unknown tensors, not used: %s", folder, len(others), others)
    return out


def _read(tensors: _Tensors, rule: Rule, vocab: int) -> list[np.ndarray]:
    for name in rule.names:
        shape, expected = tensors.shape(name), rule.their_shape(vocab)
        if shape != expected:
            raise KeftError(
                f"{tensors.folder}: tensor {name}: has the shape {shape}, and config.json says "
                f"{expected}; copy the folder anew"
            )
    return [tensors.read(name) for name in rule.names]


def _refuse_untied(tensors: _Tensors) -> None:
    name, word = "cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"
    if name in tensors.unused and not np.array_equal(tensors.read(name), tensors.read(word)):
        raise KeftError(
            f"{tensors.folder}: tensor {name}: differs from {word}; the masked-LM head here shares "
            "one table with the encoder; give a folder with tie_word_embeddings"
        )


def flat(tree: Tree) -> dict[str, Any]:
    """{path: leaf}."""
    return dict(zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree), strict=True))


def put(tree: Tree, path: str, value: Any) -> None:
    """Sets the leaf at a path `a/b/c`."""
    *inner, last = path.split("/")
    for part in inner:
        tree = tree.setdefault(part, {})
    tree[last] = value


def overlay(params: Tree, part: Tree) -> Tree:
    """`params` with the leaves of the partial tree in place of its own, on their devices."""
    out = dict(params)
    for name, value in part.items():
        if isinstance(value, dict):
            out[name] = overlay(params[name], value)
        else:  # no alias: the step is given the array to overwrite
            out[name] = place(value, params[name].sharding, may_alias=False)
    return out


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the outputs of a BertForSequenceClassification are."""

    names: tuple[str, ...]
    several: bool
    """Any number of them holds, not one."""

    def json(self) -> dict[str, Any]:
        """The fields of config.json."""
        return {
            "id2label": {str(i): name for i, name in enumerate(self.names)},
            "label2id": {name: i for i, name in enumerate(self.names)},
            "problem_type": f"{'multi' if self.several else 'single'}_label_classification",
        }


def save_weights(
    params: Tree, encoder: EncoderConfig, vocab: int, folder: Path, labels: Labels | None = None
) -> set[str]:
    """Writes config.json and model.safetensors so that transformers loads them: a
    BertForSequenceClassification with `labels`, else a BertForMaskedLM where the parameters have
    its head, else a BertModel (without a pooler where they have none).

    Args:
      params: a run's parameters.
      vocab: pieces of the tokenizer; the padding behind them is left out.
      labels: those of the layer behind the pooler.

    Returns:
      The paths of the parameters that were written.
    """
    leaves = flat(params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    rules = make_rules(shapes, classifier=labels is not None)
    if labels is not None:
        rules = [rule for rule in rules if not rule.masked_lm]
    masked = any(rule.masked_lm for rule in rules)
    kind = "BertForMaskedLM" if masked else "BertModel"
    kind = kind if labels is None else "BertForSequenceClassification"
    tensors = {}
    for rule in rules:
        array = np.asarray(jax.device_get(leaves[rule.path]))
        for name, tensor in rule.write(array, vocab).items():
            outside = name.startswith(("cls.", "classifier.")) or kind == "BertModel"
            tensors[name if outside else f"bert.{name}"] = tensor
    config = {
        "architectures": [kind],
        **{name: values[0] for name, values in COMPUTED.items() if values[0]},
        **{theirs: getattr(encoder, ours) for ours, theirs in SIZES.items()},
        "vocab_size": vocab,
        "layer_norm_eps": encoder.norm_eps,
        "hidden_dropout_prob": encoder.dropout,
        "attention_probs_dropout_prob": encoder.dropout,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "dtype": "float32",
        **({} if labels is None else labels.json()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, safetensors.numpy.save(tensors, {"format": "pt"}))
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return {rule.path for rule in rules}
