"""Text-only models that a knowledge-enhanced one has to beat, tuned as hard as is cheap.

    majority_per_pattern   the most frequent training answer of each kind of question
    char_ngram             TF-IDF of character n-grams inside words and of words, kernel ridge
                           regression onto the right answers, in closed form

Both answer questions (several right answers each) and classify (one label each): an answer is a
string, and the prediction is the best string seen in training. Both are deterministic.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from keft_jax.config import KeftError

Answers = Sequence[str | Sequence[str]]
Measure = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""(what is answered, right answers) -> the metric of a table."""

MAX_EXACT = 8_000
"""Training texts up to which the N x N Gram matrix is solved exactly."""
TUNE_TRAIN, TUNE_SELECT = 800, 500
# On SST-2, FewRel and MetaQA longer n-grams and powers of the kernel gave nothing beyond these.
_CHARS = ((1, 3), (1, 5))
_WORD_SHARES = (0.0, 0.3, 0.6)
_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


def score_single(said: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Every metric of every task, float32[n], for a model that gives one answer and no ranking:
    its set is that answer, and a miss has no rank."""
    hit = np.array([s in g for s, g in zip(said, gold, strict=True)], np.float32)
    total = np.array([max(len(set(g)), 1) for g in gold], np.float32)
    return {
        **dict.fromkeys(("hits@1", "mrr", "precision", "hit"), hit),
        "accuracy": hit * (total == 1),
        "recall": hit / total,
        **dict.fromkeys(("set_f1", "f1"), 2 * hit / (1 + total)),
        "said": np.ones_like(hit),
        "gold": total,
    }


def majority_per_pattern(
    train_patterns: Sequence[str], train_answers: Answers, test_patterns: Sequence[str]
) -> list[str]:
    """The most frequent answer of each pattern in training; that of all for an unseen pattern.

    Every right answer of an example counts once. Ties go to the more frequent answer over all
    patterns, then to the first in the alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for pattern, right in zip(train_patterns, _as_sets(train_answers), strict=True):
        counts[pattern].update(right)
        overall.update(right)
    if not overall:
        raise KeftError("majority: no training answers; give examples that have some")

    def top(counter: Counter[str]) -> str:
        return min(counter, key=lambda answer: (-counter[answer], -overall[answer], answer))

    best = {pattern: top(counter) for pattern, counter in counts.items() if counter}
    fallback = top(overall)
    return [best.get(pattern, fallback) for pattern in test_patterns]


def char_ngram(
    train_texts: Sequence[str],
    train_answers: Answers,
    select_texts: Sequence[str],
    select_answers: Answers,
    test_texts: Sequence[str],
) -> list[str]:
    """Predictions of `fit_char_ngram` for one list of texts."""
    return fit_char_ngram(train_texts, train_answers, select_texts, select_answers).predict(
        test_texts
    )


def fit_char_ngram(
    train_texts: Sequence[str],
    train_answers: Answers,
    select_texts: Sequence[str],
    select_answers: Answers,
    measure: Measure | None = None,
) -> CharNgram:
    """Fits on the training texts; kernel and ridge come from the selection split, where `measure`
    is what they are chosen by (None: the share that is right).

    The kernel is chosen on at most TUNE_TRAIN x TUNE_SELECT examples, the ridge once more with all
    training texts. Above MAX_EXACT training texts an evenly spaced part of them is used, since
    time grows with the cube; `settings["train"]` says how many were."""
    answers = _as_sets(train_answers)
    usable = [i for i, right in enumerate(answers) if right]
    if not usable:
        raise KeftError("char_ngram: no training answers; give examples that have some")
    usable = _spread(usable, MAX_EXACT)
    texts, answers = [train_texts[i] for i in usable], [answers[i] for i in usable]
    judged = _spread([i for i, right in enumerate(_as_sets(select_answers)) if right], TUNE_SELECT)
    select = [select_texts[i] for i in judged]
    right = [_as_sets(select_answers)[i] for i in judged]
    measure = measure or _hits

    kernel, ridge = (_CHARS[-1], _WORD_SHARES[1]), 1.0
    if select:
        part = _spread(list(range(len(texts))), TUNE_TRAIN)
        some = [texts[i] for i in part], [answers[i] for i in part]
        kernel, ridge = _choose(*some, select, right, measure)
    grams = _Grams(texts, [kernel[0]], with_words=kernel[1] > 0)
    kernel_nn = grams.combine(grams.own(), kernel)
    kernel_sn = grams.combine(grams.against(select), kernel)
    best: tuple[float, CharNgram] | None = None
    # More texts may want another ridge, so the next smaller one has its turn as well.
    for value in (ridge, ridge / 3) if select and len(texts) > TUNE_TRAIN else (ridge,):
        model = CharNgram(grams, kernel, value, kernel_nn, answers)
        score = measure(model.answer(kernel_sn), right) if select else 0.0
        if best is None or score > best[0]:
            best = (score, model)
    assert best is not None
    best[1].settings["select"] = best[0]
    return best[1]


Kernel = tuple[tuple[int, int], float]  # range of character n-grams, share of words


def _choose(
    texts: list[str],
    answers: list[tuple[str, ...]],
    select: list[str],
    right: list[tuple[str, ...]],
    measure: Measure,
) -> tuple[Kernel, float]:
    grams = _Grams(texts, _CHARS)
    own, other = grams.own(), grams.against(select)
    kernels = list(product(_CHARS, _WORD_SHARES))
    score_kr = np.zeros((len(kernels), len(_RIDGES)))
    for k, kernel in enumerate(kernels):
        kernel_nn, kernel_sn = grams.combine(own, kernel), grams.combine(other, kernel)
        for r, ridge in enumerate(_RIDGES):
            model = CharNgram(grams, kernel, ridge, kernel_nn, answers)
            score_kr[k, r] = measure(model.answer(kernel_sn), right)
    # A few hundred examples make a noisy judge: a ridge is judged with its neighbours.
    padded = np.pad(score_kr, ((0, 0), (1, 1)), mode="edge")
    smooth_kr = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    # Of settings within half a standard error of the best, the most damped carries over best.
    top = smooth_kr.max()
    error = np.sqrt(max(top * (1 - top), 0) / len(select))  # as of a share
    near_kr = smooth_kr >= top - 0.5 * error
    r = int(np.flatnonzero(near_kr.any(0))[-1])
    k = int(np.argmax(np.where(near_kr[:, r], smooth_kr[:, r], -1)))
    return kernels[k], _RIDGES[r]


class _Grams:
    """Cosine similarities to the training texts by kind of n-gram; vocabulary from them alone."""

    def __init__(
        self, texts: Sequence[str], chars: Sequence[tuple[int, int]], with_words: bool = True
    ) -> None:
        same = {"sublinear_tf": True, "dtype": np.float32}
        self.vectorizers = {
            span: TfidfVectorizer(analyzer="char_wb", ngram_range=span, **same) for span in chars
        }
        if with_words:
            self.vectorizers[(0, 0)] = TfidfVectorizer(
                token_pattern=r"\S+", ngram_range=(1, 2), **same
            )
        self.train: dict[tuple[int, int], csr_matrix] = {}
        for span, vectorizer in self.vectorizers.items():
            # A vocabulary may be empty: texts of nothing but white space.
            with contextlib.suppress(ValueError):
                self.train[span] = vectorizer.fit_transform(texts)
        self.size = len(texts)

    def own(self) -> dict[tuple[int, int], np.ndarray]:
        """kind -> float32[n_train, n_train]"""
        return self._similarities(self.size, self.train)

    def against(self, texts: Sequence[str]) -> dict[tuple[int, int], np.ndarray]:
        """kind -> float32[len(texts), n_train]"""
        known = [span for span in self.train if len(texts)]
        rows = {span: self.vectorizers[span].transform(texts) for span in known}
        return self._similarities(len(texts), rows)

    def _similarities(
        self, number: int, rows: Mapping[tuple[int, int], csr_matrix]
    ) -> dict[tuple[int, int], np.ndarray]:
        return {
            span: _multiply(rows[span], self.train[span])
            if span in rows
            else np.zeros((number, self.size), np.float32)
            for span in self.vectorizers
        }

    def combine(self, grams: dict[tuple[int, int], np.ndarray], kernel: Kernel) -> np.ndarray:
        chars, share = kernel
        if not share:
            return grams[chars]
        return np.float32(1 - share) * grams[chars] + np.float32(share) * grams[(0, 0)]


def _multiply(a_tf: csr_matrix, b_nf: csr_matrix) -> np.ndarray:
    """a b^T, dense. n-grams in many texts go through a dense product, which is faster for them
    from about one text in fourteen; the long tail of rare ones stays sparse."""
    often = np.bincount(b_nf.indices, minlength=b_nf.shape[1]) > 0.07 * b_nf.shape[0]
    common, rare = np.flatnonzero(often), np.flatnonzero(~often)
    product_tn = a_tf[:, common].toarray() @ b_nf[:, common].toarray().T
    product_tn += (a_tf[:, rare] @ b_nf[:, rare].T).toarray()
    return product_tn


@dataclass
class CharNgram:
    """A fitted model. f(x) = mean answer + k(x) (K + ridge I)^-1 (answers - mean answer)."""

    grams: _Grams
    kernel: Kernel
    ridge: float
    kernel_nn: np.ndarray
    answers: list[tuple[str, ...]]
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = Counter(answer for right in self.answers for answer in right)
        # Frequent answers first, so that argmax gives them the ties.
        self.names = sorted(counts, key=lambda answer: (-counts[answer], answer))
        place = {name: i for i, name in enumerate(self.names)}
        rows = [i for i, right in enumerate(self.answers) for _ in right]
        columns = [place[answer] for right in self.answers for answer in right]
        ones, shape = np.ones(len(rows), np.float32), (len(self.answers), len(self.names))
        self.hot_na = csr_matrix((ones, (rows, columns)), shape=shape)
        self.mean_a = np.asarray(self.hot_na.mean(0)).ravel()
        damped = self.kernel_nn.copy()
        damped.flat[:: len(damped) + 1] += np.float32(self.ridge)
        self.factor = cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
        # Rows of the solution sum to what the mean answer takes away.
        one = np.ones(len(damped), np.float32)
        self.offset_n = cho_solve(self.factor, one, check_finite=False)
        self.settings |= {
            "characters": list(self.kernel[0]),
            "words": self.kernel[1],
            "ridge": self.ridge,
            "train": len(self.answers),
        }

    def answer(self, kernel_tn: np.ndarray) -> list[str]:
        """Kernel values float32[t, n] against the training texts -> the best answer of each."""
        if not len(kernel_tn):
            return []
        # Solving for the tests costs n^2 t, for the answers n^2 a: take the smaller.
        if len(self.names) < len(kernel_tn):
            dual_na = cho_solve(self.factor, self.hot_na.toarray(), check_finite=False)
            score_ta = kernel_tn @ dual_na
        else:
            weight_nt = cho_solve(self.factor, kernel_tn.T, check_finite=False)
            score_ta = np.asarray((self.hot_na.T @ weight_nt).T)
        score_ta = score_ta + np.outer(1 - kernel_tn @ self.offset_n, self.mean_a)
        # Rounding must not decide between answers that the texts do not tell apart.
        return [self.names[a] for a in np.argmax(np.round(score_ta, 5), axis=1)]

    def predict(self, texts: Sequence[str]) -> list[str]:
        parts = [texts[i : i + MAX_EXACT // 4] for i in range(0, len(texts), MAX_EXACT // 4)]
        blocks = (self.grams.combine(self.grams.against(part), self.kernel) for part in parts)
        return [answer for block in blocks for answer in self.answer(block)]


def _hits(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> float:
    return float(np.mean([answer in of for answer, of in zip(predicted, right, strict=True)]))


def _as_sets(answers: Answers) -> list[tuple[str, ...]]:
    """One string or several -> distinct strings in order."""
    return [(a,) if isinstance(a, str) else tuple(dict.fromkeys(a)) for a in answers]


def _spread(items: list[int], most: int) -> list[int]:
    """At most so many items, evenly spaced."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
