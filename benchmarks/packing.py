"""Rows of packed texts against padded ones: real tokens and texts a CPU second of the same training
step, in steps by turns. The batches of each way are those that its plan gives in training.

OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
    python benchmarks/packing.py --source ../shared/data

trains MiniLM's size on masked words of WikiText-2's sentences, cut to 128 tokens. --config names
another config with data files, of which the last of data.buckets is the padded length:

    python benchmarks/packing.py --config configs/sst2.py:all --row 72
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
)
from keft_jax.data.raw import read_gzip
from keft_jax.data.wikitext import plain
from keft_jax.options import load_config_file
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import build
from keft_jax.train.run import load_given

MINILM = EncoderConfig(layers=6, width=384, heads=12, mlp=1536)


def write_sentences(source: Path, file: Path) -> None:
    """A line for each sentence of WikiText-2's validation part."""
    text = read_gzip(source / "mlm/wikitext-2/valid.txt.gz")
    paragraphs = [p for p in text.split("\n") if p.strip() and not p.startswith(" = ")]
    sentences = [s for p in paragraphs for s in re.split(r"(?<= [.?!]) ", plain(p))]
    file.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences))


def masked_words(file: Path, vocab: str, batch: int, length: int) -> Config:
    return Config(
        name="packing",
        task=TaskConfig(kind="mlm"),
        data=DataConfig(train=str(file), text="text", buckets=(length,), vocab=vocab),
        encoder=MINILM,
        fusion=FusionConfig(kind="none"),
        optim=OptimConfig(steps=1000, batch=batch, learning_rate=1e-4),
        mesh=MeshConfig(data=1),
    )


class Way:
    """Training with one kind of batches; each call takes a step."""

    def __init__(self, config: Config):
        parts, splits = build(config)
        self.trainer: Trainer[Any] = Trainer(parts, load_given(parts))
        self.data: Any = parts.given(parts.training(splits))
        self.plan = make_plan(parts.config, self.data, config.seed)
        self.state = self.trainer.fresh(config.seed)
        self.frozen, self.done = self.trainer.frozen(), 0
        # Of each step: real tokens, texts, slots of the encoder, CPU seconds of the step and of
        # making its batch.
        self.steps: list[tuple[float, ...]] = []

    def __call__(self) -> None:
        begin = time.process_time()
        batch = self.data.batch(*self.plan.batch(self.done))
        made = time.process_time()
        rows = batch.tokens if batch.packing is None else batch.packing.slot
        count, texts = int(batch.length.sum()), len(batch.length)
        batch = self.trainer.put(batch)
        start = time.process_time()
        self.state, metrics = self.trainer.train_step(self.state, self.frozen, batch)
        loss = float(metrics["loss/total"][0])
        jax.block_until_ready(self.state)
        spent = time.process_time() - start
        assert np.isfinite(loss)
        self.steps.append((count, texts, rows.size, spent, made - begin))
        self.done += 1

    def timed(self, skip: int) -> np.ndarray:
        return np.array(self.steps[skip:]).T

    def figures(self, skip: int) -> dict[str, float]:
        tokens, texts, slots, cpu, host = self.timed(skip)
        return {
            "tokens_per_cpu_s": float(np.median(tokens / cpu)),
            "texts_per_cpu_s": float(np.median(texts / cpu)),
            "cpu_s_median": float(np.median(cpu)),
            "host_cpu_s_median": float(np.median(host)),
            "real_share": float(tokens.sum() / slots.sum()),
            "mean_length": float(tokens.sum() / texts.sum()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="", help="a config file, as for train.py")
    parser.add_argument("--source", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vocab", default="../shared/models/all-MiniLM-L6-v2/tokenizer.json")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128, help="of the longest text")
    parser.add_argument("--row", type=int, default=0, help="tokens of a packed row; 0: as --length")
    parser.add_argument("--buckets", type=int, nargs="*", default=[], help="a third way: by length")
    parser.add_argument("--steps", type=int, default=5, help="timed, of each way")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.config:
            config = load_config_file(args.config)
            optim = dataclasses.replace(config.optim, batch=args.batch)
            config = dataclasses.replace(config, optim=optim, mesh=MeshConfig(data=1))
        else:
            write_sentences(args.source, Path(folder, "train.jsonl"))
            file = Path(folder, "train.jsonl")
            config = masked_words(file, args.vocab, args.batch, args.length)

        def with_data(**fields: Any) -> Config:
            return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))

        longest = (config.data.buckets[-1],)
        ways = {
            "padded": Way(with_data(buckets=longest)),
            "packed": Way(with_data(buckets=longest, pack=args.row or longest[0])),
        }
        if args.buckets:
            ways["buckets"] = Way(with_data(buckets=tuple(args.buckets)))
        skip = 1 if not args.buckets else 4  # of each length the first step compiles
        for _ in range(skip + args.steps):
            for way in ways.values():
                way()
    padded, packed = ways["padded"].timed(skip), ways["packed"].timed(skip)
    ratios = {
        name: float(np.median(packed[i] / packed[3] / (padded[i] / padded[3])))
        for i, name in enumerate(("tokens", "texts"))
    }
    out = {name: way.figures(skip) for name, way in ways.items()}
    for name, figures in out.items():
        print(name, ", ".join(f"{key} {value:,.3f}" for key, value in figures.items()))
    print(json.dumps({**out, "packed_over_padded": ratios, "batch": args.batch}))


if __name__ == "__main__":
    main()
