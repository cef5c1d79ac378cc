"""BERT's encoder (Devlin et al. 2019): post-LN Transformer blocks, exactly.

`layers` can be stopped at any depth (`run`), so that knowledge can be exchanged between blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from keft_jax.config import EncoderConfig, OptimConfig
from keft_jax.models.attend import FUSED, attention_kind
from keft_jax.models.functional import normal, param, use
from keft_jax.models.layers import (
    LayerNorm,
    Linear,
    activation_dtype,
    dropout,
    fold,
    gelu,
    look_up,
)
from keft_jax.sharding import shard


class Embeddings(nnx.Module):
    """Word + position + type, LayerNorm, dropout."""

    def __init__(self, config: EncoderConfig, vocab: int):
        width = ("embed", config.width)
        self.word = param((vocab, config.width), ("vocab", "embed"), normal)
        self.position = param((config.max_length, config.width), ("length", "embed"), normal)
        self.type = param((2, config.width), (None, "embed"), normal)
        self.norm = LayerNorm(width, eps=config.norm_eps)
        self.rate, self.dtype = config.dropout, activation_dtype(config.dtype)

    def __call__(
        self,
        tokens_bl: jax.Array,
        types_bl: jax.Array,
        key: jax.Array | None,
        position_bl: jax.Array | None = None,
    ):
        """position_bl: soft positions, below l. None: as the tokens lie."""
        position = use(self.position)[: tokens_bl.shape[1]]
        if position_bl is not None:
            position = look_up(position, position_bl)
        x = use(self.word)[tokens_bl] + position
        first, second = use(self.type)  # a choice of two: no scatter in its gradient
        x = x + jnp.where(types_bl[..., None] == 1, second, first)
        return dropout(self.norm(x).astype(self.dtype), self.rate, key)


class Reads(NamedTuple):
    """Which tokens each token reads."""

    bias_b1ql: jax.Array  # f32[b, 1, 1 or l, l]: 0, or the least number where one is not read
    text_bl: jax.Array | None  # i32[b, l]: it reads those of its own number; 0: padding. None: it
    # cannot be said so

    @classmethod
    def of(cls, mask: jax.Array) -> Reads:
        """mask: as that of Encoder.run."""
        if mask.dtype == bool and mask.ndim == 3:
            read_bql, text_bl = mask, None
        elif mask.dtype == bool:
            read_bql, text_bl = mask[:, None], mask.astype(jnp.int32)
        else:
            read_bql, text_bl = mask[:, :, None] == mask[:, None, :], mask
        return cls(jnp.where(read_bql, 0.0, jnp.finfo(jnp.float32).min)[:, None], text_bl)


class Attention(nnx.Module):
    """Multi-head self-attention; query, key and value in one matmul; softmax in float32."""

    def __init__(self, config: EncoderConfig):
        embed, heads = ("embed", config.width), ("heads", config.heads)
        kv, dtype = ("kv", config.width // config.heads), config.dtype
        self.qkv = Linear(embed, ("qkv", 3), heads, kv, dtype=dtype)
        self.out = Linear(("heads", config.width), embed, dtype=dtype)
        self.rate, self.scale, self.config = config.dropout, kv[1] ** -0.5, config

    def __call__(self, x_bld: jax.Array, reads: Reads, key: jax.Array | None):
        qkv = shard(self.qkv(x_bld), "batch", "length", None, "heads", "kv")
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        kind = attention_kind(
            self.config,
            training=key is not None,
            each=reads.text_bl is None,
            packed=reads.bias_b1ql.shape[2] > 1,
            length=x_bld.shape[1],
        )
        if kind in FUSED:
            y = FUSED[kind](q, k, v, reads.text_bl, self.scale)
            return self.out(y.reshape(x_bld.shape))
        scores = jnp.einsum("bqhk,bshk->bhqs", q * self.scale, k, preferred_element_type="f4")
        weights = jax.nn.softmax(scores + reads.bias_b1ql, axis=-1).astype(x_bld.dtype)
        y = jnp.einsum("bhqs,bshk->bqhk", dropout(weights, self.rate, key), v)
        return self.out(y.reshape(x_bld.shape))

    def scores(self, x_bld: jax.Array, mask: jax.Array) -> jax.Array:
        """What the softmax is of: f32[b, h, query, key], -1e9 where one is not read. mask: bool[b,
        l], or bool[b, l, l]."""
        q, k, _ = jnp.moveaxis(shard(self.qkv(x_bld), "batch", "length", None, "heads", "kv"), 2, 0)
        scores = jnp.einsum("bqhk,bshk->bhqs", q * self.scale, k, preferred_element_type="f4")
        mask_bql = mask[:, None] if mask.ndim == 2 else mask
        return jnp.where(mask_bql[:, None], scores, -1e9)


class Block(nnx.Module):
    """LN(x + attention(x)), then LN(x + mlp(x))."""

    def __init__(self, config: EncoderConfig):
        embed, mlp = ("embed", config.width), ("mlp", config.mlp)
        dtype = config.dtype
        self.attention = Attention(config)
        self.attention_norm = LayerNorm(embed, eps=config.norm_eps)
        self.up = Linear(embed, mlp, dtype=dtype)
        self.down = Linear(mlp, embed, dtype=dtype)
        self.mlp_norm = LayerNorm(embed, eps=config.norm_eps)
        self.rate = config.dropout

    def __call__(self, x_bld: jax.Array, reads: Reads, key: jax.Array | None):
        y = self.attention(x_bld, reads, fold(key, 0))
        x_bld = self.attention_norm(x_bld + dropout(y, self.rate, fold(key, 1)))
        hidden = shard(gelu(self.up(x_bld)), "batch", "length", "mlp")
        x_bld = self.mlp_norm(x_bld + dropout(self.down(hidden), self.rate, fold(key, 2)))
        return shard(x_bld, "batch", "length", "embed")


class Encoder(nnx.Module):
    """Token ids -> states [b, l, d]: `embed`, then `run` over any range of layers."""

    def __init__(self, config: EncoderConfig, vocab: int):
        self.config = config
        self.embed = Embeddings(config, vocab)
        self.blocks = nnx.Dict({str(i): Block(config) for i in range(config.layers)})

    def count_frozen(self, optim: OptimConfig) -> int:
        """Layers from the first one on that never learn, where the embeddings do not either."""
        paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(self))]
        learns = [path for path in paths if optim.scale_of(f"encoder/{path}") > 0]
        parts = ["embed/", *(f"blocks/{i}/" for i in range(self.config.layers))]
        moving = [any(path.startswith(part) for path in learns) for part in parts]
        return max((moving.index(True) if True in moving else len(parts)) - 1, 0)

    def run(
        self, x_bld: jax.Array, mask: jax.Array, key: jax.Array | None, start: int, stop: int
    ) -> jax.Array:
        """States after layers start..stop-1. mask: bool[b, l], which tokens are read; i32[b, l],
        the text in its row that each is of, from 1 on, whose tokens it reads (0: padding); or
        bool[b, l, l], which ones are read by each."""
        reads = Reads.of(mask)
        if self.config.scan and stop - start > 1:
            return self._scan(x_bld, reads, key, start, stop)
        for i in range(start, stop):
            graphdef, params = nnx.split(self.blocks[str(i)])
            x_bld = self._block(graphdef)(nnx.to_pure_dict(params), x_bld, reads, fold(key, i))
        return x_bld

    def _block(self, graphdef):
        def call(params, x_bld, reads, key):
            return nnx.merge(graphdef, params)(x_bld, reads, key)

        match self.config.remat:
            case "full":
                return jax.checkpoint(call)
            case "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                return jax.checkpoint(call, policy=policy)
        return call

    def _scan(self, x_bld, reads, key, start: int, stop: int) -> jax.Array:
        split = [nnx.split(self.blocks[str(i)]) for i in range(start, stop)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *[nnx.to_pure_dict(s) for _, s in split])
        call = self._block(split[0][0])

        def body(x_bld, layer):
            params, i = layer
            return call(params, x_bld, reads, fold(key, i)), None

        return jax.lax.scan(body, x_bld, (stacked, jnp.arange(start, stop)))[0]
