"""The text of a config that `keft init` writes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keft_jax.init.budgets import Sizes
from keft_jax.init.columns import Columns

_PAGE = '''"""{title}

keft doctor --config {out}
python train.py --config {out}
keft gain --config {out}
"""

from keft_jax.config import (
{imports}
)


def get_config(arg: str = "") -> Config:
    del arg
    return Config(
        name={name},
{sections}
    )
'''


def render(
    target: Path,
    kg: str,
    text: str,
    aliases: str,
    pretrained: str,
    columns: Columns,
    sizes: Sizes,
    examples: int,
) -> str:
    """The config as Python, as ruff would format it; paths as they were given."""
    kgqa = columns.task == "kgqa"
    task: list[tuple[str, Any, str]] = [("kind", columns.task, "")]
    if columns.labels:
        task.append(
            ("labels", columns.labels, "All of them: a rare one may be in one split alone.")
        )
    data: list[tuple[str, Any, str]] = [("train", text, "")]
    data += [(field, value, "") for field, value in columns.fields.items()]
    data += [
        (
            "select_share",
            sizes.select_share,
            "Set aside by whole clusters; or name files: select=, test=.",
        ),
        ("test_share", sizes.test_share, ""),
        ("buckets", sizes.buckets, "Text lengths in tokens, one compilation each."),
    ]
    if not pretrained:
        data.append(("vocab_size", sizes.vocab_size, ""))
    knowledge: list[tuple[str, Any, str]] = [("kg", kg, "")]
    knowledge += [("aliases", aliases, "")] if aliases else []
    if columns.given:
        knowledge.append(("link", "given", "string: look for names in the text instead."))
    knowledge += [
        ("hops", sizes.hops, ""),
        ("nodes", sizes.nodes, "Budgets of a subgraph; `keft doctor` says how many they cut."),
        ("edges", sizes.edges, ""),
        ("mentions", sizes.mentions, ""),
        ("name_pieces", 6, ""),
    ]
    width, small = sizes.width, sizes.width < 64
    if pretrained:
        encoder: list[tuple[str, Any, str]] = [("pretrained", pretrained, "")]
        optim: list[tuple[str, Any, str]] = [
            (
                "groups",
                _Code('(GroupConfig("embed/", 0.0), GroupConfig("encoder/", 0.1))'),
                "Trained parameters at a tenth of the rate, the word table as it is.",
            )
        ]
    else:
        encoder = [
            ("layers", 1 if small else 2, ""),
            ("width", width, ""),
            ("heads", 2 if small else 4, ""),
            ("mlp", 2 * width, ""),
            ("max_length", max(64, sizes.buckets[-1]), ""),
            ("dropout", 0.0 if small else 0.1, ""),
        ]
        optim = []
    graph = [
        ("kind", "rgat", ""),
        ("layers", sizes.hops, ""),
        ("width", width if small else 48, ""),
    ]
    graph.append(("heads", 2 if small else 4, ""))
    optim = [
        ("steps", sizes.steps, ""),
        ("batch", sizes.batch, ""),
        ("learning_rate", sizes.learning_rate, ""),
        *optim,
    ]
    fusion: list[tuple[str, Any, str]] = [("kind", "mention_add", ""), ("layers", (0,), "")]
    if pretrained and not kgqa:
        task.append(("pooling", "mean", ""))
        fusion = [("kind", "mention_add", ""), ("layers", (1,), "")]
    elif not kgqa:
        why = "The way into a small classifier that learns soonest: every token reads the nodes."
        fusion = [("kind", "cross_attention", why), ("layers", (-1,), "")]
    every = max(sizes.steps // 5, 1)
    sections = [
        ("task", "TaskConfig", task),
        ("data", "DataConfig", data),
        ("knowledge", "KnowledgeConfig", knowledge),
        ("encoder", "EncoderConfig", encoder),
        ("graph", "GraphConfig", graph),
        ("fusion", "FusionConfig", fusion),
        ("optim", "OptimConfig", optim),
        ("eval", "EvalConfig", [("every", every, ""), ("batch", 64, "")]),
        (
            "gain",
            "GainConfig",
            [
                (
                    "rows",
                    ("none", "dictionary", "shuffled", "random", "true"),
                    "What `keft gain` trains, each with every seed.",
                ),
                ("seeds", 5, ""),
            ],
        ),
    ]
    classes = ["Config", *(kind for _, kind, _ in sections)]
    classes += ["GroupConfig"] if pretrained else []
    what = "Questions about entities" if kgqa else f"{len(columns.labels)} labels"
    title = f"{what}: {examples:,} texts and a knowledge graph of one's own, by `keft init`."
    return _PAGE.format(
        title=_wrap(title),
        out=target,
        imports="\n".join(f"    {kind}," for kind in sorted(classes)),
        name=_literal(target.stem),
        sections="\n".join(_section(*section) for section in sections),
    )


class _Code(str):
    """Python that stands as it is."""


def _section(name: str, kind: str, fields: Sequence[tuple[str, Any, str]]) -> str:
    lines = [f"        {name}={kind}("]
    for field, value, comment in fields:
        if comment:
            lines.append(f"            # {comment}")
        line = f"            {field}={_literal(value)},"
        if len(line) > 100 and isinstance(value, tuple):
            items = [f"                {_literal(item)}," for item in value]
            lines += [f"            {field}=(", *items, "            ),"]
        else:
            lines.append(line)
    return "\n".join([*lines, "        ),"])


def _literal(value: Any) -> str:
    """Python, with ruff's quotes."""
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return repr(value) if '"' in value and "'" not in value else text
    if isinstance(value, tuple):
        inside = ", ".join(map(_literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 96))
