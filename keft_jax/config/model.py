"""The model: text encoder, graph network, and how they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keft_jax.config.errors import check


@dataclass(frozen=True)
class EncoderConfig:
    """The text encoder: BERT, post-LN (Devlin et al. 2019)."""

    pretrained: str = ""
    """A folder that transformers' BertModel saved (config.json, model.safetensors, tokenizer), or
    the id of one on its hub. It gives the start of the parameters, the tokenizer and all sizes
    below; `dropout` and what follows it stay as set here. Empty: from scratch."""
    layers: int = 2
    width: int = 128
    heads: int = 4
    mlp: int = 512
    max_length: int = 512
    """Rows of the position table."""
    norm_eps: float = 1e-12
    """Of every LayerNorm of the encoder."""
    dropout: float = 0.1
    """On embeddings, attention and both sub-layers."""
    dtype: Literal["float32", "bfloat16", "mixed"] = "float32"
    """Of matmuls and activations; parameters, softmax, LayerNorm, logits and losses stay f32.
    mixed: matmuls with a kernel in bfloat16, summed in f32; activations in f32 (on a CPU that has
    bfloat16 the fastest; on an accelerator bfloat16 is)."""
    attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """cudnn: fused attention on NVIDIA GPUs, in bfloat16. flash: on TPUs, for rows of a multiple
    of 128 tokens. Both have no dropout on attention weights (the other dropouts stay). auto: the
    one that computes the same and is worth it, else xla."""
    scan: bool = False
    """One compiled layer, scanned: shorter compile, same result."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute in the backward pass: nothing, each layer, or all but its matmuls."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp", "max_length"):
            value = getattr(self, name)
            check(value >= 1, f"encoder.{name}", value, "use 1 or more")
        check(
            self.width % self.heads == 0,
            "encoder.heads",
            self.heads,
            f"must divide encoder.width = {self.width}",
        )
        check(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "use [0, 1)")


@dataclass(frozen=True)
class GraphConfig:
    """The graph network over each example's subgraph."""

    kind: Literal["gcn", "gat", "rgcn", "rgat", "triple_concat", "triple_sum"] = "rgat"
    """gcn (Kipf and Welling 2017), gat (Velickovic et al. 2018), and their relation-aware kin
    rgcn (Schlichtkrull et al. 2018, basis decomposition) and rgat. triple_concat, triple_sum: no
    message passing; a node takes the mean of its triples, each the concatenation or the weighted
    sum of its head, relation and tail vectors."""
    layers: int = 2
    """Layers at each exchange with the text. 0: none, the text reads nodes as they come."""
    width: int = 64
    heads: int = 4
    """Attention heads (gat, rgat) or bases (rgcn)."""
    gate: bool = True
    """Weigh nodes and edges by their relevance to the text; all weights can go to zero."""
    compute: Literal["auto", "dense", "segment"] = "auto"
    """dense: matmuls with the batched adjacency. segment: jraph's segment operations. auto: dense
    up to 200 nodes, else segment. Equal results."""

    def __post_init__(self) -> None:
        check(self.layers >= 0, "graph.layers", self.layers, "use 0 or more")
        for name in ("width", "heads"):
            value = getattr(self, name)
            check(value >= 1, f"graph.{name}", value, "use 1 or more")
        check(
            self.width % self.heads == 0,
            "graph.heads",
            self.heads,
            f"must divide graph.width = {self.width}",
        )


@dataclass(frozen=True)
class FusionConfig:
    """How node states reach the tokens."""

    kind: Literal["none", "mention_add", "cross_attention", "interaction"] = "mention_add"
    """none: plain BERT. mention_add: a node's state is added at its mention. cross_attention:
    every token attends to the nodes, or to nothing. interaction: [CLS] and the pooled graph are
    mixed, and the result goes to both (Zhang et al. 2022, GreaseLM)."""
    layers: tuple[int, ...] = (0,)
    """Encoder layers followed by an exchange; -1 is the last."""
    trains: Literal["together", "by_turns", "apart"] = "by_turns"
    """How a head that adds what it reads of the graph to what it reads of the text learns both
    (classification, relation and typing). together: on their sum. by_turns: the same, but a quarter
    of the texts by the graph alone and half by the text alone (Neverova et al. 2016, ModDrop),
    where there is dropout. apart: each by a loss of its own, so that the text learns what it would
    without a graph (but for what it reads of it by the exchanges; a group of `optim` can keep these
    at nothing). It alone chooses the checkpoint, and how much the graph's answer counts is fitted
    on the selection split (1 without one, and where a further term trains the sum)."""
    calibrated: bool = False
    """Apart: the graph's answer is weighed beside the text's at the temperature, 1 or more, that
    suits that one (Guo et al. 2017). For a text model that is sure of what it has by heart."""
    expected_scale: float = 0.7
    """Apart: how much the graph's answer counts before the selection split is seen; a hundred of
    its examples outweigh that, if their loss depends on it. 0: not at all until they speak for it,
    where facts need not tell."""
    centred: bool = False
    """Apart: what the graph's answer is on average over the selection split is taken off it. Two
    that know how frequent the labels are would tell it twice, which costs where they are uneven."""

    def __post_init__(self) -> None:
        check(
            self.kind == "none" or len(self.layers) > 0,
            "fusion.layers",
            self.layers,
            "name a layer, or set fusion.kind=none",
        )
        for name, value in self.asked_of_fit.items():
            check(
                self.trains == "apart",
                f"fusion.{name}",
                value,
                "needs fusion.trains=apart: otherwise the two learn one answer",
            )
        check(
            0 <= self.expected_scale <= 2,
            "fusion.expected_scale",
            self.expected_scale,
            "use a number from 0 to 2: the scales that are tried",
        )

    @property
    def asked_of_fit(self) -> dict[str, bool | float]:
        """Options of the fit on the selection split that are not as usual."""
        told = {name: getattr(self, name) for name in ("calibrated", "expected_scale", "centred")}
        return {name: value for name, value in told.items() if value != getattr(type(self), name)}
