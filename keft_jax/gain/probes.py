"""Linear probes: what a graph is worth to logistic regression on sparse features, in seconds.

    linear              words of the text (and, where the data mark their mentions, their order,
                        their last words, the words and bigrams between them, and bigrams of the
                        text with the mentions masked)
    linear-dictionary   and which mentions are linked, and to what
    linear-shuffled     and the facts of the shuffled graph
    linear-knowledge    and the facts: direction and relation, and the neighbour

All are fitted and tuned alike. The facts are those of the subgraph that the model is given, so a
budget that cuts them off counts here too. Read together they say what to expect of the knowledge:
`linear-knowledge` minus the best of the rest.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from keft_jax.data.features import Dataset
from keft_jax.data.source import Example
from keft_jax.gain.rows import LINEAR, LINEAR_DICTIONARY, LINEAR_KNOWLEDGE, LINEAR_SHUFFLED
from keft_jax.train.parts import Parts

Features = list[list[str]]
"""The sparse features of each example, repeated as often as they occur."""

Measure = Callable[[np.ndarray, np.ndarray], float]
"""(gold labels, answers) -> the metric of a table."""

Settings = dict[str, tuple[int, float]]
"""What was chosen, by number, with its C: the form of the text, and what is joined to it."""

MAX_TUNE = 1_000
"""Training examples on which C and the weight of the knowledge are chosen; all are fitted."""
_C, _WEIGHTS, _FOLDS = (1.0, 10.0, 100.0), (1.0, 0.3), 3
_DENSE = 64  # most frequent features that are read as standardised counts
_SHOWN_PATHS = 200  # two-step walks of an example that become features
_GRAPH = {LINEAR_KNOWLEDGE: "true", LINEAR_SHUFFLED: "shuffled"}
_PAIR = "pair "  # begins a feature that tuning may leave out
_TOKEN = re.compile(r"\w+|[^\w\s]")


def share_right(gold: np.ndarray, said: np.ndarray) -> float:
    return float((gold == said).mean())


class Probes:
    """The probes of one training split on others. Features are made once, fits are for each draw.

    `predict(row, drawn, seed)`: labels for every other split, from training examples `drawn`
    (their numbers); the seed draws the shuffled graph. The form of the text is chosen once for
    all rows of a draw: they differ in the knowledge alone. `tune_once`: settings are chosen in the
    first draw and kept for the others. `measure`: what they are tuned for."""

    def __init__(
        self,
        parts: Parts,
        train: Dataset,
        others: Mapping[str, Dataset],
        tune_once: bool = False,
        measure: Measure = share_right,
    ):
        self._parts, self._train, self._others, self._measure = parts, train, others, measure
        self._labels = np.array([str(e.label) for e in train.examples])
        self._clusters = np.array([e.cluster or str(e.id) for e in train.examples])
        # Marked mentions of one number everywhere (head and tail) each have a role of their own.
        counts = {len(e.spans) for e in train.examples}
        self._roles = len(counts) == 1 and min(counts, default=0) > 1
        self._tune_once = tune_once
        self._settings: dict[tuple[str, int, bytes], Settings] = {}
        self._text: dict[bytes, Settings] = {}
        self._kept: dict[tuple[str, int, int], list[Features]] = {}

    def predict(self, row: str, drawn: np.ndarray, seed: int) -> dict[str, list[str]]:
        made = {split: self._features(row, split, seed) for split in ("", *self._others)}
        train = [[kind[i] for i in drawn] for kind in made[""]]
        draw = b"" if self._tune_once else np.asarray(drawn).tobytes()
        graph = seed if row == LINEAR_SHUFFLED and not self._tune_once else 0
        settings = self._settings.setdefault((row, graph, draw), dict(self._text.get(draw, {})))
        fitted = fit_probe(
            train, self._labels[drawn], self._clusters[drawn], settings, self._measure
        )
        self._text[draw] = {"text": settings["text"]} if settings else {}
        return {split: fitted(made[split]) for split in self._others}

    def _features(self, row: str, split: str, seed: int) -> list[Features]:
        """The text's features, then the kinds of knowledge features among which tuning chooses."""
        dataset = self._others[split] if split else self._train
        text = self._keep(
            LINEAR,
            dataset,
            0,
            lambda: [[read_text(e, self._roles) for e in dataset.examples]],
        )
        if row == LINEAR:
            return text
        if row == LINEAR_DICTIONARY:
            return text + self._keep(row, dataset, 0, lambda: self._linked(dataset))
        seed = seed if row == LINEAR_SHUFFLED else 0
        return text + self._keep(row, dataset, seed, lambda: self._facts(dataset, row, seed))

    def _keep(
        self, row: str, dataset: Dataset, seed: int, make: Callable[[], list[Features]]
    ) -> list[Features]:
        key = (row, id(dataset), seed)
        if key not in self._kept:
            old = [k for k in self._kept if k[:2] == key[:2]]
            for k in old:  # another draw of the shuffled graph
                del self._kept[k]
            self._kept[key] = make()
        return self._kept[key]

    def _role(self, dataset: Dataset, example: int, entity: int) -> str:
        if not self._roles:
            return ""
        mentions = dataset.mentions[example]
        return "".join(str(m) for m, found in enumerate(mentions) if entity in found.entities)

    def _linked(self, dataset: Dataset) -> list[Features]:
        """Whether something is linked, and what."""
        bits: Features = []
        ids: Features = []
        for i, row in enumerate(dataset.seeds.tolist()):
            found = [(self._role(dataset, i, entity), entity) for entity in row if entity >= 0]
            bits.append([f"{role} linked" for role, _ in found] or ["none"])
            ids.append([f"{role} is {entity}" for role, entity in found] or ["none"])
        return [bits, ids]

    def _facts(self, dataset: Dataset, row: str, seed: int) -> list[Features]:
        """The relations of the linked entities with the neighbours, and walks of two steps where
        the subgraphs reach that far; the relations alone."""
        knowledge, far = self._parts.knowledge, self._parts.config.knowledge.hops > 1
        sub = knowledge.subgraphs(dataset.seeds, _GRAPH[row], seed)
        relations: Features = []
        neighbours: Features = []
        for i in range(len(dataset)):
            count = sub.n_edge[i]
            entity = sub.entity[i].tolist()
            into: dict[int, list[tuple[int, int]]] = {}
            for sender, receiver, relation in zip(
                sub.senders[i, :count].tolist(),
                sub.receivers[i, :count].tolist(),
                sub.relation[i, :count].tolist(),
                strict=True,
            ):
                into.setdefault(receiver, []).append((relation, sender))
            kinds: list[str] = []
            facts: list[str] = []
            walks: list[str] = []
            for slot, node in enumerate(sub.seed_node[i].tolist()):
                if node < 0:
                    continue
                role = self._role(dataset, i, int(dataset.seeds[i, slot]))
                for relation, other in into.get(node, ()):
                    kinds.append(f"{role} {relation}")
                    facts.append(f"{role} {relation} {entity[other]}")
                    if not far:
                        continue
                    walks += [
                        f"{role} {relation} {second} {entity[end]}"
                        for second, end in into.get(other, ())
                        if end != node and len(walks) < _SHOWN_PATHS
                    ]
            relations.append(kinds or ["none"])
            neighbours.append(kinds + facts + walks or ["none"])
        return [neighbours, relations]


def read_text(example: Example, roles: bool) -> list[str]:
    """Words in lower case; with `roles` also what stands around and between the marked mentions."""
    text = example.text
    tokens = [(m.group().lower(), m.start()) for m in _TOKEN.finditer(text)]
    words = [word for word, _ in tokens] + [w.lower() for w in _TOKEN.findall(example.pair)]
    if not roles:
        return words
    marked = [
        next((f"<{m}>" for m, (a, b, _) in enumerate(example.spans) if a <= at < b), word)
        for word, at in tokens
    ]
    places = [i for i, word in enumerate(marked) if word[0] == "<" and len(word) > 1]
    first, last = (places[0], places[-1]) if places else (0, 0)
    middle = [w for w in marked[first:last] if not (w[0] == "<" and len(w) > 1)]
    between = [f"between {w}" for w in middle]
    between += [f"between {a} {b}" for a, b in pairwise(["^", *middle, "$"])]
    pairs = [f"{_PAIR}{a} {b}" for a, b in pairwise(marked) if a != b]
    order = sorted(range(len(example.spans)), key=lambda m: example.spans[m][0])
    mentions = (_TOKEN.findall(text[a:b].lower()) for a, b, _ in example.spans)
    ends = [f"<{m}> ends {found[-1]}" for m, found in enumerate(mentions) if found]
    return words + between + pairs + ends + [f"order {order}"]


@dataclass(frozen=True)
class _Block:
    """Features as numbers: fitted on training examples, then applied to any."""

    train: csr_matrix
    apply: Callable[[Features], csr_matrix]


_Choice = tuple[csr_matrix, Callable[[Sequence[Features]], csr_matrix]]
"""Features of the training examples, and what makes those of others."""


def fit_probe(
    train: Sequence[Features],
    labels: np.ndarray,
    clusters: np.ndarray,
    settings: Settings | None = None,
    measure: Measure = share_right,
) -> Callable[[Sequence[Features]], list[str]]:
    """Logistic regression on the text (the first kind of features) and one other kind, if any.

    Pairs of words or not, which one if any, its form and weight, and C come from 3-fold
    cross-validation inside the sample, whole clusters in one fold; of equals the first. `settings`
    keeps them: filled where it is empty, else used. measure: what is tuned for.
    Gives a function from the same kinds of features of other examples to labels."""
    settings = {} if settings is None else settings
    if len(np.unique(labels)) < 2:
        return lambda made: [str(labels[0])] * len(made[0])
    texts = [_choice(_tf_idf(train[0]))]
    if any(feature.startswith(_PAIR) for some in train[0] for feature in some):
        texts.append(_choice(_tf_idf(_without_pairs(train[0])), _without_pairs))
    with threadpool_limits(1):  # problems so small wait for threads longer than they compute
        if "text" not in settings:
            settings["text"] = _choose([x_nf for x_nf, _ in texts], labels, clusters, measure)
        (text, c), number = settings["text"], 0
        choices = [texts[text]]
        if len(train) > 1:
            choices = _join(choices[0], train)
            if "joined" not in settings:
                joined = _choose([x_nf for x_nf, _ in choices], labels, clusters, measure)
                settings["joined"] = joined
            number, c = settings["joined"]
        x_nf, apply = choices[number]
        model = _fit(x_nf, labels, c)
    return lambda made: [str(label) for label in model.predict(apply(made))]


def _choice(block: _Block, change: Callable[[Features], Features] = lambda made: made) -> _Choice:
    """The text alone, which is the first kind of features."""
    return block.train, lambda made: block.apply(change(made[0]))


def _without_pairs(features: Features) -> Features:
    return [[f for f in some if not f.startswith(_PAIR)] for some in features]


def _join(text: _Choice, train: Sequence[Features]) -> list[_Choice]:
    """The text alone, and with each other kind of features, in each form and weight."""
    x_nf, apply_text = text
    out = [text]
    kinds = enumerate(train[1:], 1)
    blocks = [(n, form(features)) for n, features in kinds for form in (_both, _occur)]
    for (number, block), weight in product(blocks, _WEIGHTS):

        def apply(
            made: Sequence[Features],
            number: int = number,
            block: _Block = block,
            weight: float = weight,
        ) -> csr_matrix:
            return hstack([apply_text(made), block.apply(made[number]) * weight]).tocsr()

        out.append((hstack([x_nf, block.train * weight]).tocsr(), apply))
    return out


def _choose(
    choices: Sequence[csr_matrix], labels: np.ndarray, clusters: np.ndarray, measure: Measure
) -> tuple[int, float]:
    """The features (by number) and C that do best on the folds left out."""
    part = np.linspace(0, len(labels) - 1, min(len(labels), MAX_TUNE)).astype(int)
    folds = _split(labels[part], clusters[part])

    def judge(pick: tuple[int, float]) -> float:
        return round(_judge(choices[pick[0]][part], labels[part], folds, pick[1], measure), 6)

    return max(product(range(len(choices)), _C), key=judge)


def _split(labels: np.ndarray, clusters: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    with warnings.catch_warnings():  # classes rarer than the folds
        warnings.simplefilter("ignore", UserWarning)
        if len(np.unique(clusters)) < _FOLDS:
            clusters = np.arange(len(labels))
        if len(labels) < _FOLDS or np.unique(labels, return_counts=True)[1].max() < _FOLDS:
            return []
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
        return list(folds.split(labels, labels, clusters))


def _judge(
    x_nf: csr_matrix,
    labels: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    c: float,
    measure: Measure,
) -> float:
    """The measure on the folds left out. Folds that lack a second class to learn say nothing."""
    scores = [
        measure(labels[rest], _fit(x_nf[fit], labels[fit], c).predict(x_nf[rest]))
        for fit, rest in folds
        if len(np.unique(labels[fit])) > 1 and len(rest)
    ]
    return float(np.mean(scores)) if scores else 0.0


def _fit(x_nf: csr_matrix, labels: np.ndarray, c: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(x_nf, labels)


def _same(features: list[str]) -> list[str]:
    return features


def _tf_idf(features: Features) -> _Block:
    vectorizer = TfidfVectorizer(analyzer=_same, sublinear_tf=True)
    try:
        return _Block(vectorizer.fit_transform(features), vectorizer.transform)
    except ValueError:  # texts without any word
        return _nothing(len(features))


def _nothing(examples: int) -> _Block:
    return _Block(csr_matrix((examples, 1)), lambda others: csr_matrix((len(others), 1)))


def _occur(features: Features) -> _Block:
    """Whether a feature occurs, however often."""
    block = _tf_idf([[*dict.fromkeys(some)] for some in features])
    return _Block(block.train, lambda others: block.apply([[*dict.fromkeys(o)] for o in others]))


def _both(features: Features) -> _Block:
    """tf-idf and counts beside each other: the regression takes what each is good for."""
    blocks = _tf_idf(features), _counts(features)
    return _Block(
        hstack([block.train for block in blocks]).tocsr(),
        lambda others: hstack([block.apply(others) for block in blocks]).tocsr(),
    )


def _counts(features: Features) -> _Block:
    """The most frequent features, counted and standardised: how often matters here."""
    vectorizer = CountVectorizer(analyzer=_same, max_features=_DENSE)
    try:
        count_nf = vectorizer.fit_transform(features).toarray().astype(float)
    except ValueError:  # no feature at all
        return _nothing(len(features))
    mean, spread = count_nf.mean(0), count_nf.std(0)
    spread = np.where(spread > 0, spread, 1)

    def scale(count: np.ndarray) -> csr_matrix:
        return csr_matrix(np.clip((count - mean) / spread, -3, 3) / 2)

    def apply(others: Features) -> csr_matrix:
        return scale(vectorizer.transform(others).toarray())

    return _Block(scale(count_nf), apply)
