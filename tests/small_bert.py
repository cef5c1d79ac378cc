"""A random BERT in a folder, as transformers' save_pretrained writes it; no torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "vocab_size": 70,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "where",
    "does",
    "live",
    "what",
    "is",
    "the",
    "home",
    "of",
    "in",
    "which",
    "town",
    "person",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = [*SPECIAL, *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS), "?"]
IDS = np.array([[2, 5, 6, 60, 7, 3, 0, 0], [2, 9, 3, 11, 12, 13, 14, 3], [2, 69, 3, 0, 0, 0, 0, 0]])
TYPES = np.array([[0] * 8, [0, 0, 0, 1, 1, 1, 1, 1], [0] * 8])
MASK = IDS > 0


def config(**changes) -> dict:
    """A changed field of None is left out."""
    base = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,  # large, to show where it is not used
        "type_vocab_size": 2,
        "pad_token_id": 0,
        **SIZES,
    }
    return {k: v for k, v in (base | changes).items() if v is not None}


def tensors(seed=0) -> dict[str, np.ndarray]:
    """Encoder, pooler and masked-LM head under the names of BertForMaskedLM and BertModel."""
    width, mlp = SIZES["hidden_size"], SIZES["intermediate_size"]
    linear = {"attention.output.dense": (width, width), "output.dense": (width, mlp)}
    linear |= {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    linear |= {"intermediate.dense": (mlp, width)}
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (SIZES["vocab_size"], width),
        "bert.embeddings.position_embeddings.weight": (SIZES["max_position_embeddings"], width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "cls.predictions.bias": (SIZES["vocab_size"],),
    }

    def add(name: str, shape: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    add("bert.embeddings.LayerNorm", (width,))
    for i in range(SIZES["num_hidden_layers"]):
        for name, shape in (*linear.items(), *((norm, (width,)) for norm in norms)):
            add(f"bert.encoder.layer.{i}.{name}", shape)
    add("bert.pooler.dense", (width, width))
    add("cls.predictions.transform.dense", (width, width))
    add("cls.predictions.transform.LayerNorm", (width,))
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal("LayerNorm.weight" in name, 0.3, shape).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def write(folder: Path, weights: dict[str, np.ndarray] | None = None, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    )
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    return folder
