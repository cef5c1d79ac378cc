"""The leak audit: ways in which a score could come from something other than the knowledge.

Every check gives {"value", "verdict", "note"}; the verdict is ok, look (read the note before you
claim a gain), leak (the score is not what it seems) or not applicable. A check of one split is
called `<check>/<split>`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keft_jax.config import KeftError

NEAR = 0.9
"""Jaccard similarity of 3-gram sets from which two texts are near duplicates."""
MAX_TEST = 5_000
PERMUTATIONS = 1_000
_MAX_CANDIDATES = 500

Check = dict[str, Any]


@dataclass(frozen=True)
class Audited:
    """What the audit looks at in one split. Lists have one entry for each example; what a task
    does not have stays None and its checks are not applicable."""

    name: str
    texts: Sequence[str]
    topics: Sequence[Sequence[Hashable]] | None = None
    """Entities linked in the text."""
    labels: Sequence[str] | None = None
    """The gold label, or the kind of question: what coverage should not give away."""
    covered: np.ndarray | None = None
    """bool[n]: the graph has something on this example."""
    node_texts: Sequence[str] | None = None
    """Names and descriptions of the nodes shown, joined (classification)."""
    answer_in_graph: np.ndarray | None = None
    """bool[n]: a right answer is a node of the subgraph (kgqa)."""
    gold_edge: np.ndarray | None = None
    """bool[n]: the fact asked for stands in the subgraph as an edge between the marked pair, its
    inverse or a 2-hop composition (relation classification)."""


def audit(
    train: Audited,
    tests: Sequence[Audited],
    *,
    task: str,
    selected_on: str = "",
    reused: Sequence[str] = (),
    vocab_from_test: bool | None = False,
    linker_from_test: bool = False,
    embeddings_from_test: bool | None = None,
    unlabelled: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Check]:
    """All checks of one table. `selected_on`: the file that chose checkpoints and
    hyper-parameters; `reused`: reported splits whose examples it holds; `vocab_from_test`: None
    where that is not known; `embeddings_from_test`: None where no KG embeddings are used;
    `unlabelled`: texts that were learnt from without labels."""
    checks: dict[str, Check] = {}
    checks["selection"] = _check(
        selected_on or "nothing",
        "leak" if reused else "ok",
        f"checkpoints were chosen on the examples of {', '.join(reused)}, which is reported"
        if reused
        else "checkpoints and hyper-parameters were chosen on a split that is not reported",
    )
    checks["vocabulary"] = _yes_no(
        vocab_from_test, "vocabulary built from {} text", "not known: the vocabulary was given"
    )
    checks["linker"] = _yes_no(linker_from_test, "linker built from {} mentions")
    checks["embeddings"] = _yes_no(embeddings_from_test, "KG embeddings trained on {} facts")
    for split in tests:
        _check_lengths(split)
        found = {
            "shared texts": _shared_texts(train, split),
            "near duplicates": _near_duplicates(train, split, task, seed),
            "unlabelled texts": _unlabelled_texts(unlabelled, split, seed),
            "shared topics": _shared_topics(train, split),
            "label in node text": _label_in_nodes(split, task, seed),
            "gold fact as edge": _gold_edge(split),
            "coverage and label": _coverage_information(split, seed),
            "answer in graph": _answer_in_graph(split),
        }
        checks |= {f"{name}/{split.name}": check for name, check in found.items()}
    return checks


def _check(value: Any, verdict: str, note: str) -> Check:
    return {"value": value, "verdict": verdict, "note": note}


def _absent(note: str) -> Check:
    return _check(None, "not applicable", note)


def _yes_no(fault: bool | None, what: str, absent: str = "not used here") -> Check:
    if fault is None:
        return _absent(absent)
    return _check(fault, "leak" if fault else "ok", what.format("test" if fault else "no test"))


def _grade(value: float, look: float, leak: float) -> str:
    return "leak" if value > leak else "look" if value > look else "ok"


def _check_lengths(split: Audited) -> None:
    n = len(split.texts)
    for name, values in vars(split).items():
        if name not in ("name", "texts") and values is not None and len(values) != n:
            raise KeftError(f"split {split.name}: {name} has {len(values)} entries for {n} texts")


def normalise(text: str) -> str:
    """Case and spaces do not make a text another one."""
    return " ".join(text.casefold().split())


def _shared_texts(train: Audited, test: Audited) -> Check:
    seen = {normalise(text) for text in train.texts}
    value = _share([normalise(text) in seen for text in test.texts])
    return _check(value, _grade(value, 0, 0.01), "share of test texts that training holds as well")


def _share_near(texts: Sequence[str], what: str, test: Audited, seed: int) -> tuple[float, str]:
    """(share of test texts that are near duplicates of some of `texts`, a note of it)."""
    rng = np.random.default_rng(seed)
    drawn = [test.texts[i] for i in np.sort(rng.permutation(len(test.texts))[:MAX_TEST])]
    note = f"share of test texts with {what} of 3-gram Jaccard {NEAR} or more"
    if len(drawn) < len(test.texts):
        note += f" (of {len(drawn):,} test texts, drawn)"
    return _share(find_near_duplicates(texts, drawn)), note


def _unlabelled_texts(texts: Sequence[str], test: Audited, seed: int) -> Check:
    if not len(texts):
        return _absent("no texts without labels")
    value, note = _share_near(texts, "a text without label", test, seed)
    # No label of theirs was seen, but a text that was learnt from is no new one.
    return _check(value, _grade(value, 0, np.inf), note)


def _near_duplicates(train: Audited, test: Audited, task: str, seed: int) -> Check:
    value, note = _share_near(train.texts, "a training text", test, seed)
    verdict = _grade(value, 0.01, 0.05)
    if task == "kgqa" and verdict == "leak":
        # Questions from a template differ in their topic alone, which "shared topics" looks at.
        verdict, note = "look", note + "; questions of one template are alike by their making"
    return _check(value, verdict, note)


def find_near_duplicates(train: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """bool[len(test)]: some training text has a 3-gram set of Jaccard >= NEAR.

    Exact by prefix filtering (Chaudhuri et al. 2006): with 3-grams sorted rare first, two sets
    that similar share one among the first |x| - ceil(NEAR |x|) + 1 of each. Training texts pass
    one by one, and most of them hold too many 3-grams that no test text has. Only so many
    candidates are looked at for each 3-gram, so that boilerplate stays cheap.
    """
    sets = [_trigrams(text) for text in test]
    frequency = Counter(gram for grams in sets for gram in grams)
    known = frozenset(frequency)

    def prefix(grams: frozenset[str]) -> list[str]:
        keep = len(grams) - int(np.ceil(NEAR * len(grams) - 1e-9)) + 1
        return sorted(grams, key=lambda gram: (frequency[gram], gram))[:keep]

    index: dict[str, list[int]] = defaultdict(list)
    for i, grams in enumerate(sets):
        for gram in prefix(grams):
            index[gram].append(i)
    found = np.zeros(len(test), bool)
    for text in train:
        grams = _trigrams(text)
        if len(grams & known) < NEAR * len(grams) - 1e-9:
            continue
        low, high = NEAR * len(grams), len(grams) / NEAR
        for i in {i for gram in prefix(grams) for i in index.get(gram, ())[:_MAX_CANDIDATES]}:
            if not found[i] and low <= len(sets[i]) <= high:
                found[i] = len(grams & sets[i]) >= NEAR * len(grams | sets[i]) - 1e-9
    return found


def _trigrams(text: str) -> frozenset[str]:
    text = f" {normalise(text)} "
    return frozenset(text[i : i + 3] for i in range(max(1, len(text) - 2)))


def _shared_topics(train: Audited, test: Audited) -> Check:
    if train.topics is None or test.topics is None:
        return _absent("no linked entities")
    seen = {topic for topics in train.topics for topic in topics}
    value = _share([any(topic in seen for topic in topics) for topics in test.topics])
    note = "share of test examples with a linked entity that training links as well"
    if value:
        note += "; what was learned of it there is not in the graph"
    return _check(value, _grade(value, 0, np.inf), note)


def _label_in_nodes(test: Audited, task: str, seed: int) -> Check:
    if task == "kgqa" or test.node_texts is None or test.labels is None:
        return _absent("answers are nodes here" if task == "kgqa" else "no texts of nodes")
    nodes = [f" {normalise(text)} " for text in test.node_texts]
    labels = [normalise(label.replace("_", " ")) for label in test.labels]

    def rate(names: Sequence[str]) -> float:
        return _share([bool(n) and f" {n} " in text for n, text in zip(names, nodes, strict=True)])

    value = rate(labels)
    rng = np.random.default_rng(seed)
    chance = rate([labels[i] for i in rng.permutation(len(labels))])
    verdict = _grade(value - chance, 0.01, 0.05)
    note = f"share of examples that show the name of their label in a node; {chance:.3f} by chance"
    return _check(value, verdict, note)


def _gold_edge(test: Audited) -> Check:
    if test.gold_edge is None:
        return _absent("no pair whose relation is asked for")
    value = _share(test.gold_edge)
    note = "share of examples whose gold fact is an edge between the marked pair"
    return _check(value, _grade(value, 0, 0.01), note)


def _answer_in_graph(test: Audited) -> Check:
    if test.answer_in_graph is None:
        return _absent("no answers that are nodes")
    value = _share(test.answer_in_graph)
    note = "share of questions with a right answer in their subgraph: the task itself, no leak"
    if value == 0:
        note = "no question has its answer in its subgraph: the knowledge cannot help"
    return _check(value, "ok" if value else "look", note)


def _coverage_information(test: Audited, seed: int) -> Check:
    if test.covered is None or test.labels is None or not len(test.labels):
        return _absent("no coverage or no labels")
    covered = np.asarray(test.covered, bool)
    names, label = np.unique(np.asarray(test.labels, dtype=str), return_inverse=True)
    if covered.all() or not covered.any():
        return _check(0.0, "ok", "all examples are covered, or none is")
    if len(names) > len(label) / 5:
        return _absent(f"{len(names):,} labels for {len(label):,} examples are too many to tell")
    value = mutual_information(covered, label)
    rng = np.random.default_rng(seed)
    draws = [mutual_information(rng.permutation(covered), label) for _ in range(PERMUTATIONS)]
    p = (1 + sum(d >= value - 1e-12 for d in draws)) / (1 + PERMUTATIONS)
    sure = p < 0.01
    gain = _majority_gain(covered, label)
    verdict = "look" if sure and (gain > 0.01 or value > 0.02) else "ok"
    note = f"bits that coverage tells about the label, p = {p:.3f} by permutation"
    if verdict == "look":
        note += (
            f"; knowing it adds {100 * gain:.1f} points to the majority: compare the row dictionary"
        )
    return _check(value, verdict, note)


def mutual_information(covered: np.ndarray, label: np.ndarray) -> float:
    """Bits between a bit and an int label, from their counts."""
    joint = _joint(covered, label)
    expected = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
    seen = joint > 0
    return max(0.0, float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum()))


def _majority_gain(covered: np.ndarray, label: np.ndarray) -> float:
    joint = _joint(covered, label)
    return float(joint.max(1).sum() - joint.sum(0).max())


def _joint(covered: np.ndarray, label: np.ndarray) -> np.ndarray:
    size = int(label.max()) + 1
    counts = np.bincount(label + size * covered.astype(int), minlength=2 * size)
    return counts.reshape(2, size) / len(label)


def _share(hits: Sequence[bool] | np.ndarray) -> float:
    return float(np.mean(hits)) if len(hits) else 0.0
