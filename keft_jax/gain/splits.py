"""What is known of a split beside the scores: clusters, slices, what the leak audit looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keft_jax.data.features import Dataset, with_row
from keft_jax.data.source import Example
from keft_jax.gain.audit import Audited, audit
from keft_jax.gain.cells import Split
from keft_jax.gain.lookup import Questions
from keft_jax.gain.rows import JUDGED
from keft_jax.kg.subgraph import Subgraphs
from keft_jax.tasks.kinds import KINDS
from keft_jax.tasks.tagging import find_entities
from keft_jax.train.coverage import fingerprint
from keft_jax.train.parts import Parts

MAX_VALUES = 8  # of a field in data.slices
REUSED = 0.5  # of a split's examples in the selection split: it was selected on


def text_of(example: Example) -> str:
    return f"{example.text} {example.pair}".strip()


def gold_of(example: Example, kind: str) -> tuple[str, ...]:
    """What a task of this kind asks for, in words."""
    if "label" in KINDS[kind].needs:
        return () if example.label is None else (example.label,)
    if kind == "tagging":
        tags = example.tags
        found = find_entities([tag for *_, tag in tags])
        return tuple(f"{example.text[tags[a][0] : tags[b - 1][1]]} ({k})" for a, b, k in found)
    return example.answers


def given(dataset: Dataset, parts: Parts) -> Dataset:
    """A split with the knowledge itself."""
    return with_row(dataset, parts.knowledge, JUDGED, 0)


def make_split(name: str, dataset: Dataset, parts: Parts) -> Split:
    """Slices: covered by the graph or not, frequent or rare entities (by degree); of questions also
    those with a right answer in reach, those where some relation leads to right answers alone
    (unambiguous), and the edges between a mention and its nearest answer; and the values of the
    fields in `data.slices`."""
    examples = dataset.examples
    covered = dataset.linked
    degree = np.zeros(len(examples), int)
    of_texts = np.append(parts.knowledge.kg.degrees, 0)[dataset.seeds].max(1)
    np.maximum.at(degree, dataset.text_owner, of_texts)
    frequent = covered & (degree > np.median(degree[covered])) if covered.any() else covered
    masks = {"covered": covered, "uncovered": ~covered}
    masks |= {"frequent entity": frequent, "rare entity": covered & ~frequent}
    if parts.config.task.kind == "kgqa":
        far = hops_to_answer(_subgraphs(dataset, parts), _answers(dataset, parts))
        best = Questions(dataset, parts.knowledge.kg, parts.config.knowledge.hops).oracle()
        masks |= {"answer in reach": best > 0, "unambiguous": best == 1}
        for k in range(1, parts.config.knowledge.hops + 1):
            masks[f"{k} hop{'s' if k > 1 else ''}"] = far == k
    for i, field in enumerate(parts.config.data.slices):
        values = np.array([e.slices[i] for e in examples])
        named = np.unique(values[values != ""])[:MAX_VALUES]
        masks |= {f"{field}={value}": values == value for value in named}
    return Split(
        name,
        cluster=np.array([e.cluster or str(e.id) for e in examples]),
        pattern=np.array([e.pattern for e in examples]),
        slices={k: mask for k, mask in masks.items() if 0 < mask.sum() < len(mask)},
    )


def audit_splits(
    parts: Parts,
    train: Sequence[Example],
    select: Sequence[Example],
    tests: Mapping[str, Dataset],
    unlabelled: Sequence[Example] = (),
) -> dict[str, Any]:
    """The leak audit of some test examples, against all that was trained and chosen on; unlabelled:
    what was learnt from beside the training examples. The linker comes from the graph alone and the
    vocabulary from training text and the graph, by construction, but nothing is known of a
    vocabulary that was given."""

    def look(name: str, dataset: Dataset) -> Audited:
        sub = _subgraphs(dataset, parts)
        shown = [row[:n].tolist() for row, n in zip(sub.entity, sub.n_node, strict=True)]
        nodes = _by_example(dataset, shown)
        names, kgqa = parts.knowledge.kg.names, parts.config.task.kind == "kgqa"
        inside = None
        if kgqa:
            pairs = zip(nodes, _answers(dataset, parts), strict=True)
            inside = np.array([not answers.isdisjoint(there) for there, answers in pairs])
        return Audited(
            name=name,
            texts=[text_of(e) for e in dataset.examples],
            topics=_by_example(dataset, [row[row >= 0].tolist() for row in dataset.seeds]),
            labels=[e.pattern if kgqa else e.label or "" for e in dataset.examples],
            covered=dataset.linked,
            node_texts=None if kgqa else [" ".join(names[i] for i in row) for row in nodes],
            answer_in_graph=inside,
            gold_edge=None if kgqa else _pair_edges(dataset, sub, parts),
        )

    linked = parts.knowledge.link(train)
    return audit(
        Audited(
            name="train",
            texts=[text_of(e) for e in train],
            topics=[[entity for m in row for entity in m.entities] for row in linked],
        ),
        [look(name, dataset) for name, dataset in tests.items()],
        task=parts.config.task.kind,
        selected_on=parts.config.data.select
        or f"{parts.config.data.select_share:.0%} of {parts.config.data.train}",
        reused=[name for name, d in tests.items() if _share_seen(d, select) >= REUSED],
        vocab_from_test=None if parts.config.data.vocab else False,
        linker_from_test=False,
        unlabelled=[text_of(e) for e in unlabelled],
    )


def _pair_edges(dataset: Dataset, sub: Subgraphs, parts: Parts) -> np.ndarray | None:
    """bool[n]: the fact that the label names joins the two marked entities; where labels are not
    relations of the graph, any fact. None unless every text has two marked mentions."""
    if any(len(e.spans) != 2 for e in dataset.examples) or not len(dataset):
        return None
    kg = parts.knowledge.kg
    named = {name: i for i, name in enumerate(kg.relations)}
    typed = all(e.label in named for e in dataset.examples)
    out = np.zeros(len(dataset), bool)
    for i, example in enumerate(dataset.examples):
        ends = [set(mention.entities) for mention in dataset.mentions[i]]
        edges = slice(0, sub.n_edge[i])
        from_to = sub.entity[i][np.stack([sub.senders[i, edges], sub.receivers[i, edges]])]
        joins = np.isin(from_to[0], list(ends[0])) & np.isin(from_to[1], list(ends[1]))
        if typed:
            joins &= sub.relation[i, edges] % kg.n_relations == named[example.label or ""]
        out[i] = joins.any()
    return out


def _by_example(dataset: Dataset, of_texts: Sequence[list[int]]) -> list[list[int]]:
    """Of each example what its texts have."""
    out: list[list[int]] = [[] for _ in range(len(dataset))]
    for example, some in zip(dataset.text_owner.tolist(), of_texts, strict=True):
        out[example] += some
    return out


def _share_seen(dataset: Dataset, other: Sequence[Example]) -> float:
    """The share of examples that another split holds as well, whatever its name and order."""
    seen = {fingerprint([e]) for e in other}
    found = [fingerprint([e]) in seen for e in dataset.examples]
    return sum(found) / max(len(found), 1)


def _subgraphs(dataset: Dataset, parts: Parts) -> Subgraphs:
    return parts.knowledge.subgraphs(dataset.seeds, JUDGED, 0)


def _answers(dataset: Dataset, parts: Parts) -> list[set[int]]:
    """The right answers that are in the graph."""
    kg = parts.knowledge.kg
    found = [{kg.find(name) for name in e.answers} for e in dataset.examples]
    return [{i for i in ids if i is not None} for ids in found]


def hops_to_answer(sub: Subgraphs, answers: Sequence[set[int]]) -> np.ndarray:
    """i32[b]: edges between a mention and its nearest right answer; -1: not in the subgraph."""
    b, n = sub.entity.shape
    far = np.full((b, n), n, np.int32)
    rows, slots = np.nonzero(sub.seed_node >= 0)
    far[rows, sub.seed_node[rows, slots]] = 0
    row, edge = np.nonzero(np.arange(sub.senders.shape[1]) < sub.n_edge[:, None])
    sender, receiver = sub.senders[row, edge], sub.receivers[row, edge]
    before = None
    while before is None or (far != before).any():
        before = far.copy()
        np.minimum.at(far, (row, receiver), before[row, sender] + 1)
    out = np.full(b, -1, np.int32)
    for i, ids in enumerate(answers):
        at = np.isin(sub.entity[i, : sub.n_node[i]], list(ids))
        if at.any():
            nearest = far[i, : sub.n_node[i]][at].min()
            out[i] = nearest if nearest < n else -1
    return out
