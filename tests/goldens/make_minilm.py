"""Makes minilm.npz and small_bert.npz: what torch's BERT computes, in float32, eager, no dropout.

    PYTHONPATH=tests python tests/goldens/make_minilm.py ../shared/models/all-MiniLM-L6-v2

in an environment with torch and transformers.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import small_bert
import torch
import transformers

HERE = Path(__file__).resolve().parent
TEXTS = [
    ("The quick brown fox jumps over the lazy dog.", None),
    ("Which river flows through Kraków?", "The Vistula, Poland's longest, does; 東京 it is not."),
    ("no", None),
]


def run(model, ids, types, mask):
    arrays = (torch.tensor(x, dtype=torch.long) for x in (ids, types, mask))
    names = ("input_ids", "token_type_ids", "attention_mask")
    with torch.no_grad():
        return model.eval()(**dict(zip(names, arrays, strict=True)), output_hidden_states=True)


def minilm(folder: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    firsts, seconds = zip(*TEXTS, strict=True)
    rows = [tokenizer(*(t for t in pair if t)) for pair in zip(firsts, seconds, strict=True)]
    batch = tokenizer.pad(rows, return_tensors="np")
    model = transformers.BertModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids, types = batch["input_ids"], batch["token_type_ids"]
    mask = batch["attention_mask"] == 1
    out = run(model, ids, types, mask)
    states = np.stack([h.numpy()[mask] for h in out.hidden_states])
    np.savez_compressed(
        HERE / "minilm.npz",
        ids=ids.astype(np.int32),
        types=types.astype(np.int32),
        mask=mask,
        slices=states[:, :, ::8],  # [layers + 1, real tokens, 48]
        last=states[-1],
        pooled=out.pooler_output.numpy(),
    )


def small() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small_bert.write(Path(folder))
        arrays = small_bert.IDS, small_bert.TYPES, small_bert.MASK
        options = {"attn_implementation": "eager"}
        out = run(transformers.BertModel.from_pretrained(folder, **options), *arrays)
        masked = run(transformers.BertForMaskedLM.from_pretrained(folder, **options), *arrays)
    np.savez_compressed(
        HERE / "small_bert.npz",
        states=np.stack([h.numpy() for h in out.hidden_states]),
        pooled=out.pooler_output.numpy(),
        logits=masked.logits.numpy(),
    )


if __name__ == "__main__":
    small()
    minilm(sys.argv[1])
