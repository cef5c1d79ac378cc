"""What a graph is worth to questions, without a neural model: look-up by a guessed relation.

A question's options are the relations of its linked entities (with several hops also walks of so
many relations), each with the entities they lead to. The ceiling is a fair pick among the best
option, the relation being known; a classifier of the question's words guesses the relation. Both
look at the whole graph, not at the subgraph that a budget leaves.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from keft_jax.data.features import Dataset
from keft_jax.gain.baselines import majority_per_pattern
from keft_jax.kg.store import KG
from keft_jax.train.parts import Parts

Walk = tuple[int, ...]
"""Relations passed one after another; r + n_relations is r against its arrow."""
Options = dict[Walk, set[int]]

ORACLE, LOOK_UP = "oracle relation + look-up", "relation classifier + look-up"
NEIGHBOUR, MAJORITY, ANSWERER = "random neighbour", "majority", "text answer classifier"
MAX_STEPS = 2
_HUB = 300  # a walk does not pass through an entity of more facts
MAX_TRAIN = 4_000  # questions that the classifiers learn from
_ANSWERS = 100  # most frequent answers that the answer classifier knows


def list_options(kg: KG, entities: Sequence[int], hops: int) -> Options:
    """The walks of 1 to `hops` (at most MAX_STEPS) steps from some entities, and where they end.
    No walk returns to where it began."""
    options: Options = {}
    for start in entities:
        reached: Options = {(): {start}}
        for step in range(min(hops, MAX_STEPS)):
            further: Options = {}
            for walk, ends in reached.items():
                for end in ends:
                    if step and kg.degrees[end] > _HUB:
                        continue
                    for relation, other in _facts(kg, end):
                        if other != start:
                            further.setdefault((*walk, relation), set()).add(other)
            for walk, ends in further.items():
                options.setdefault(walk, set()).update(ends)
            reached = further
    return options


def _facts(kg: KG, entity: int) -> list[tuple[int, int]]:
    """(relation, neighbour) of an entity, in both directions."""
    out = slice(*kg.out_offsets[entity : entity + 2])
    back = kg.in_triples[slice(*kg.in_offsets[entity : entity + 2])]
    return [
        *zip(kg.rels[out].tolist(), kg.tails[out].tolist(), strict=True),
        *zip((kg.rels[back] + kg.n_relations).tolist(), kg.heads[back].tolist(), strict=True),
    ]


class Questions:
    """The questions of a split with their options in a graph."""

    def __init__(self, dataset: Dataset, kg: KG, hops: int):
        self.dataset, self.kg = dataset, kg
        self.right = [
            {i for i in map(kg.find, e.answers) if i is not None} for e in dataset.examples
        ]
        self.options = [
            list_options(kg, [i for i in row if i >= 0], hops) for row in dataset.seeds.tolist()
        ]
        self.masked = [_mask(dataset, i) for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.right)

    def share(self, candidates: set[int], i: int) -> float:
        """A fair pick's chance to be right."""
        return len(candidates & self.right[i]) / max(1, len(candidates))

    def oracle(self) -> np.ndarray:
        """float[n]: with the best walk known, of any length."""
        shares = (
            (self.share(ends, i) for ends in options.values())
            for i, options in enumerate(self.options)
        )
        return np.array([max(some, default=0.0) for some in shares])

    def neighbour(self) -> np.ndarray:
        """float[n]: a fair pick among all neighbours."""
        steps = ((v for w, v in options.items() if len(w) == 1) for options in self.options)
        return np.array([self.share(set().union(*some), i) for i, some in enumerate(steps)])

    def walk_of(self, i: int) -> Walk | None:
        """The walk that matches the answers best (Dice), the shortest of equals."""
        score = {
            walk: len(v & self.right[i]) / (len(v) + len(self.right[i]))
            for walk, v in self.options[i].items()
        }
        best = min(score, key=lambda walk: (-score[walk], len(walk), walk), default=None)
        return best if best and score[best] else None

    def said(self, answers: Sequence[str]) -> np.ndarray:
        """float[n]: single answers, right or wrong."""
        pairs = zip(answers, self.dataset.examples, strict=True)
        return np.array([float(said in e.answers) for said, e in pairs])


def ceilings(questions: Questions, learnt: Questions | None = None) -> dict[str, Any]:
    """{"examples": {part: number}, "rows": {ORACLE: {part: share}, NEIGHBOUR: ...}} over all
    questions, those with an answer in reach (covered), and those where a walk leads to right
    answers alone (unambiguous). With questions to learn from, also what a guessed walk reaches."""
    oracle = questions.oracle()
    parts = {"all": oracle >= 0, "covered": oracle > 0, "unambiguous": oracle == 1}
    rows = {ORACLE: oracle, NEIGHBOUR: questions.neighbour()}
    if learnt is not None:
        rows[LOOK_UP] = look_up(learnt, questions)
    return {
        "examples": {part: int(mask.sum()) for part, mask in parts.items()},
        "rows": {name: average(values, parts) for name, values in rows.items()},
    }


def average(values: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {part: float(values[mask].mean()) for part, mask in parts.items() if mask.any()}


def measure_ceilings(
    parts: Parts, train: Dataset, drawn: np.ndarray, tests: Mapping[str, Dataset]
) -> dict[str, Any]:
    """For each split what `ceilings` says, and what a guessed relation reaches, learnt from the
    training examples `drawn`."""
    kg, hops = parts.knowledge.kg, parts.config.knowledge.hops
    learnt = Questions(subset(train, _spread(drawn)), kg, hops)
    return {name: ceilings(Questions(d, kg, hops), learnt) for name, d in tests.items()}


def look_up(train: Questions, asked: Questions) -> np.ndarray:
    """float[n]: chance of a fair pick among what the likeliest walk leads to, of those that a
    question has. Walks are told by the question's words and pairs of words, mentions masked."""
    labelled = [(i, walk) for i in range(len(train)) if (walk := train.walk_of(i))]
    if not labelled:
        return np.zeros(len(asked))
    names = sorted({walk for _, walk in labelled})
    number = {walk: n for n, walk in enumerate(names)}
    ranks = _rank(
        CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+"),
        [train.masked[i] for i, _ in labelled],
        np.array([number[walk] for _, walk in labelled]),
        asked.masked,
    )
    chosen = (
        next((o[names[n]] for n in row if names[n] in o), set())
        for row, o in zip(ranks, asked.options, strict=True)
    )
    return np.array([asked.share(found, i) for i, found in enumerate(chosen)])


def answer_by_text(train: Questions, asked: Questions) -> dict[str, np.ndarray]:
    """Text alone: the most frequent answer of each pattern, and a classifier of frequent ones."""
    examples, others = train.dataset.examples, asked.dataset.examples
    said = majority_per_pattern(
        [e.pattern for e in examples],
        [e.answers for e in examples],
        [e.pattern for e in others],
    )
    scores = {MAJORITY: asked.said(said)}
    frequency = Counter(answer for e in examples for answer in e.answers)
    common = [answer for answer, _ in frequency.most_common(_ANSWERS)]
    place = {answer: n for n, answer in enumerate(common)}
    usable = [
        (e.text, min(known))
        for e in examples
        if (known := [place[a] for a in e.answers if a in place])
    ]
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    texts, numbers = [text for text, _ in usable], np.array([n for _, n in usable])
    best = _rank(vectorizer, texts, numbers, [e.text for e in others])[:, 0]
    return scores | {ANSWERER: asked.said([common[n] for n in best])}


def _rank(
    vectorizer: CountVectorizer, texts: Sequence[str], labels: np.ndarray, others: Sequence[str]
) -> np.ndarray:
    """int[len(others), classes]: the labels, the likeliest first."""
    if len(np.unique(labels)) < 2:
        return np.full((len(others), 1), labels[0])
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=10, max_iter=60, tol=1e-3)
        model.fit(vectorizer.fit_transform(texts), labels)
    probability = model.predict_proba(vectorizer.transform(others))
    return model.classes_[np.argsort(-probability, axis=1, kind="stable")]


def subset(dataset: Dataset, numbers: np.ndarray) -> Dataset:
    """Some examples of a split, without arrays of the model."""
    return dataclasses.replace(
        dataset,
        examples=[dataset.examples[i] for i in numbers],
        texts=[dataset.texts[i] for i in numbers],
        owner=np.arange(len(numbers), dtype=np.int32),
        lengths=dataset.lengths[numbers],
        mentions=[dataset.mentions[i] for i in numbers],
        seeds=dataset.seeds[numbers],
        cut=dataset.cut[numbers],
        truncated=0,
    )


def _spread(numbers: np.ndarray) -> np.ndarray:
    return numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), MAX_TRAIN)).astype(int)]


def _mask(dataset: Dataset, i: int) -> str:
    """The question with every linked mention replaced, so that its kind is left."""
    text, at, out = dataset.examples[i].text, 0, []
    for mention in sorted(dataset.mentions[i], key=lambda m: m.start):
        if mention.entities and mention.start >= at and mention.end - mention.start < len(text):
            out += [text[at : mention.start], " TOPIC "]
            at = mention.end
    return "".join([*out, text[at:]])
