"""Which of transformers' tensors is which of our parameters, and the way between their shapes.

transformers keeps a linear layer's weight as [out, in] where ours is [in, out], and query, key and
value apart where ours are one kernel [in, 3, heads, head width]. Both ways move numbers only, so
they are exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TABLES = {
    "encoder/embed/word": "embeddings.word_embeddings.weight",
    "encoder/embed/position": "embeddings.position_embeddings.weight",
    "encoder/embed/type": "embeddings.token_type_embeddings.weight",
    "mlm/bias": "cls.predictions.bias",
}
MODULES = {
    "encoder/embed/norm": "embeddings.LayerNorm",
    "encoder/blocks/#/attention/qkv": "encoder.layer.#.attention.self.*",
    "encoder/blocks/#/attention/out": "encoder.layer.#.attention.output.dense",
    "encoder/blocks/#/attention_norm": "encoder.layer.#.attention.output.LayerNorm",
    "encoder/blocks/#/up": "encoder.layer.#.intermediate.dense",
    "encoder/blocks/#/down": "encoder.layer.#.output.dense",
    "encoder/blocks/#/mlp_norm": "encoder.layer.#.output.LayerNorm",
    "head/pooler": "pooler.dense",
    "mlm/transform": "cls.predictions.transform.dense",
    "mlm/norm": "cls.predictions.transform.LayerNorm",
}
"""Ours -> theirs, without the `bert.` that stands before all but `cls`. #: a layer's number. The
masked-LM head is `head` where it is the task's own, and `mlm` beside another."""
CLASSIFIER = {"head/out": "classifier"}
"""Behind the pooler, in BertForSequenceClassification."""
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Rule:
    """One of our parameters and the tensors that hold it."""

    path: str  # `encoder/blocks/0/up/kernel`
    names: tuple[str, ...]  # three for query, key and value
    shape: tuple[int, ...]  # ours

    @property
    def vocabulary(self) -> bool:
        """Its first axis is the vocabulary: padded here, as long as the tokenizer there."""
        return self.path in ("encoder/embed/word", "mlm/bias", "head/bias")

    @property
    def head(self) -> str:
        """`head`, `mlm` or `classifier`; "" for the encoder's."""
        if self.names[0].startswith("classifier."):
            return "classifier"
        part = self.path.split("/")[0]
        return "" if part == "encoder" else part

    @property
    def masked_lm(self) -> bool:
        return self.names[0].startswith("cls.")

    def their_shape(self, vocab: int) -> tuple[int, ...]:
        """The shape of each tensor of `names`."""
        if self.vocabulary:
            return (vocab, *self.shape[1:])
        if len(self.names) == 3:
            *inputs, _, heads, width = self.shape
            return (heads * width, *inputs)
        return self.shape[::-1] if self.path.endswith("kernel") else self.shape

    def read(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """Theirs as ours, in float32; vocabulary rows that they lack are zero."""
        arrays = [np.asarray(tensor, np.float32).T for tensor in tensors]
        if self.vocabulary:
            out = np.zeros(self.shape, np.float32)
            rows = tensors[0][: len(out)]
            out[: len(rows)] = rows
            return out
        if len(self.names) == 3:
            *inputs, _, heads, width = self.shape
            heads_apart = [array.reshape(*inputs, heads, width) for array in arrays]
            return np.ascontiguousarray(np.stack(heads_apart, axis=len(inputs)))
        turned = self.path.endswith("kernel")
        return np.ascontiguousarray(arrays[0] if turned else arrays[0].T)

    def write(self, array: np.ndarray, vocab: int) -> dict[str, np.ndarray]:
        """Ours as theirs, by name."""
        shape = self.their_shape(vocab)
        if self.vocabulary:
            parts = [array[:vocab]]
        elif len(self.names) == 3:
            one = np.moveaxis(array, -3, 0)
            parts = [part.reshape(shape[::-1]).T for part in one]
        else:
            parts = [array.T if self.path.endswith("kernel") else array]
        arrays = (np.ascontiguousarray(part, np.float32) for part in parts)
        return dict(zip(self.names, arrays, strict=True))


def make_rules(shapes: Mapping[str, tuple[int, ...]], *, classifier: bool = False) -> list[Rule]:
    """The rules for those of our parameters that transformers has too; `shapes` by path.
    classifier: the layer behind the pooler too, which means nothing to other labels."""
    modules = MODULES | CLASSIFIER if classifier and "head/pooler/kernel" in shapes else MODULES
    named = ((path, _names(path, modules), shape) for path, shape in shapes.items())
    return [Rule(path, names, tuple(shape)) for path, names, shape in named if names]


def _names(path: str, modules: Mapping[str, str]) -> tuple[str, ...]:
    if re.match(r"head/(transform|norm|bias)", path):
        path = path.replace("head", "mlm", 1)
    if path in TABLES:
        return (TABLES[path],)
    module, _, leaf = path.rpartition("/")
    number = re.search(r"/(\d+)/", path)
    theirs = modules.get(re.sub(r"/\d+/", "/#/", module))
    if theirs is None or leaf not in LEAVES:
        return ()
    name = f"{theirs}.{LEAVES[leaf]}".replace("#", number[1] if number else "")
    return tuple(name.replace("*", part) for part in QKV) if "*" in name else (name,)


def plain(name: str) -> str:
    """A tensor's name as this table has it: without `bert.`, and with what LayerNorm's parameters
    are called since 2019."""
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", _new_name, name)


def _new_name(match: re.Match[str]) -> str:
    return "LayerNorm." + {"gamma": "weight", "beta": "bias"}[match[1]]
