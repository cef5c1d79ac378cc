"""A trained run of link prediction, ready to answer: from Python, and behind `keft evaluate`,
`keft predict`, `keft similar` and `keft export --embeddings`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from keft_jax.config import KeftError, MeshConfig
from keft_jax.data.records import SourceReport, read_records
from keft_jax.data.triples import Known
from keft_jax.kg.embeddings import Embeddings
from keft_jax.kg.find import best_of, find_ids, find_similar
from keft_jax.kg.triples import SELECT, TRAIN, read_known
from keft_jax.sharding import make_mesh
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.ranking import SCORES, Ranker, by_relation
from keft_jax.train.run import load_triple_run
from keft_jax.train.triple_parts import TripleParts, vectors_of

logger = logging.getLogger(__name__)

TOP = 10  # answers that a prediction lists
BATCH = 128  # queries at a time, fewer where entities are many
UNKNOWN = "?"
ENDS = ("head", "tail")

Advance = Callable[[int, int], object]
"""Told now and then (queries that are done since, queries of the split)."""
AnyQuery = Mapping[str, Any] | Sequence[str | None]


@dataclass(frozen=True)
class Query:
    """(given, relation, ?), or (?, relation, given) where `inverse`."""

    given: str
    relation: str
    inverse: bool
    where: str  # for messages


class LinkPredictor:
    """The best parameters of a run of link prediction over its own entities."""

    def __init__(self, parts: TripleParts, params: Any):
        self.parts, self._params = parts, params
        self._mesh = make_mesh(MeshConfig(data=1))

    @cached_property
    def _scores(self) -> Callable[..., Any]:
        """(f32[b, n], f32[b]): scores of all entities, and the logarithm of their exponentials'
        sum."""
        model = self.parts.model

        def score(params: Any, *queries: jax.Array) -> tuple[jax.Array, jax.Array]:
            scores = model.apply(params, *queries, method="scores")
            return scores, jax.nn.logsumexp(scores, 1)

        return jax.jit(score)

    @cached_property
    def _seen(self) -> np.ndarray:
        """bool[n]: entities that training had."""
        seen = np.zeros(len(self.parts.entities), bool)
        seen[self.parts.splits[TRAIN][:, ::2]] = True
        return seen

    def evaluate(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        by_relation: bool = False,
        advance: Advance = lambda done, total: None,
    ) -> dict[str, Any]:
        """Filtered ranks of a file's triples, which are head, relation, tail by identifiers:

        {"triples": those that are ranked, "unseen": those of them with an entity that no training
        triple has, "unknown": those left out of the ranks as the run does not know an entity,
        "mrr", "hits@1", "hits@3", "hits@10", "mean_rank", and each for the sides "head/" and
        "tail/"}; `by_relation` adds "relations", a record for each.

        None: the run's own test split, {split: scores} where there are several. The filter is all
        splits and the file. Raises KeftError for a file that cannot be read, a relation that the
        run does not know, and scores that are no numbers.
        """
        parts = self.parts
        if path is not None:
            found = read_known(Path(path), parts.entities, parts.relations)
            for note in found.notes:
                logger.warning("%s", note)
            known = parts.known_with(found.triples)
            return self._rank(found.triples, known, by_relation, advance, unknown=found.unknown)
        tests = {k: t for k, t in parts.splits.items() if k not in (TRAIN, SELECT)}
        if not tests:
            raise KeftError("--data: missing, and the run has no test split; give a file")
        scores = {
            split: self._rank(triples, parts.known, by_relation, advance)
            for split, triples in tests.items()
        }
        return scores if len(scores) > 1 else next(iter(scores.values()))

    def _rank(
        self, triples: np.ndarray, known: Known, relations: bool, advance: Advance, **counts: int
    ) -> dict[str, Any]:
        parts, total = self.parts, 2 * len(triples)
        grouped = parts.config.kge.model == "transr"
        ranker = Ranker(parts.model, known, self._mesh, parts.config.eval.batch, grouped)
        dataset = parts.ready(triples)
        rows = ranker.evaluate(self._params, dataset, lambda done: advance(done, total))
        out = {
            "triples": len(triples),
            "unseen": parts.cover(dataset)["unseen"],
            **counts,
            **parts.task.summarise(rows),
        }
        return out | ({"relations": by_relation(rows, parts.relations)} if relations else {})

    def predict(
        self, queries: Iterable[AnyQuery | Query], *, top: int = TOP, known: bool = False
    ) -> list[dict[str, Any]]:
        """One record for each query, (head, relation, "?"), ("?", relation, tail) or a dict with
        two of "head", "relation" and "tail":

        {"head", "relation", "tail": identifiers, "?" for what is asked, "unseen": whether no
        training triple has the given entity, "answers": [[identifier, name, score], ...] best
        first, "probabilities": of these among all entities}

        Entities are called by their identifiers, or by names to show that one alone has. Answers
        that the training triples give are left out unless `known`. Raises KeftError for a query
        that asks for both ends or none, and for an unknown entity or relation.
        """
        if top < 1:
            raise KeftError(f"--top {top}: use 1 or more")
        asked = [
            q if isinstance(q, Query) else as_query(q, f"query {i}")
            for i, q in enumerate(queries, 1)
        ]
        if not asked:
            return []
        parts, places = self.parts, [q.where for q in asked]
        source = find_ids([q.given for q in asked], parts.entities, parts.names, places=places)
        relation = find_ids(
            [q.relation for q in asked], parts.relations, thing="relation", places=places
        )
        inverse = np.array([q.inverse for q in asked])
        out: list[dict[str, Any]] = [{} for _ in asked]
        for batch, scores_bn, total_b in self._score(source, relation, inverse):
            spans = parts.trained_on.spans(source[batch], relation[batch], inverse[batch])
            for number, scores, total, (first, last) in zip(
                batch.tolist(), scores_bn, total_b, spans, strict=True
            ):
                shown = scores.copy()
                if not known:
                    shown[parts.trained_on.answers[first:last]] = -np.inf
                best = [i for i in best_of(shown, min(top, len(shown))) if shown[i] > -np.inf]
                ends = [parts.entities[int(source[number])], UNKNOWN]
                head, tail = reversed(ends) if asked[number].inverse else ends
                out[number] = {
                    "head": head,
                    "relation": asked[number].relation,
                    "tail": tail,
                    "unseen": not self._seen[source[number]],
                    "answers": [
                        [parts.entities[i], parts.names[i], round(float(scores[i]), 6)]
                        for i in best
                    ],
                    "probabilities": [
                        round(p, 6) for p in np.exp(scores[best] - total).astype(float).tolist()
                    ],
                }
        return out

    def _score(
        self, source: np.ndarray, relation: np.ndarray, inverse: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(numbers of some queries, scores f32[b, n], log-sum-exp f32[b]) until all are done."""
        b = max(1, min(BATCH, SCORES // len(self.parts.entities)))
        order, cuts = np.arange(len(source)), np.arange(0)
        if self.parts.config.kge.model == "transr":  # a batch has one relation
            order = np.argsort(relation, kind="stable")
            cuts = np.flatnonzero(np.diff(relation[order])) + 1
        for own in np.split(order, cuts):
            for batch in np.split(own, range(b, len(own), b)):
                padded = batch[np.minimum(np.arange(b), len(batch) - 1)]
                queries = (source[padded], relation[padded], inverse[padded])
                scores, total = self._scores(self._params, *queries)
                totals = np.asarray(total)[: len(batch)]
                if not np.isfinite(totals).all():
                    raise NotFiniteError(
                        "the scores are not finite; train with a lower optim.learning_rate"
                    )
                yield batch, np.asarray(scores)[: len(batch)], totals

    def similar(self, entity: str, top: int = TOP) -> dict[str, Any]:
        """See `kg.find.find_similar`."""
        return find_similar(self.embeddings, entity, top)

    @cached_property
    def embeddings(self) -> Embeddings:
        """All vectors, to look at or to `write_embeddings`. The vectors of inverses of relations
        and the projections of transr are in `extra`, as "inverse" and "project"."""
        return vectors_of(self.parts, self._params)


def as_query(item: AnyQuery, where: str) -> Query:
    """Raises KeftError where not exactly one end is asked for."""
    if isinstance(item, Mapping):
        relation, ends = item.get("relation"), [item.get(end) for end in ENDS]
    elif isinstance(item, str) or len(item) != 3:
        raise KeftError(
            f"{where}: {item!r} is no query; write head<tab>relation<tab>? or ?<tab>relation<tab>"
            'tail, or {"head": ..., "relation": ...}'
        )
    else:
        relation, ends = item[1], [item[0], item[2]]
    head, tail = (None if end == UNKNOWN else end for end in ends)
    if not (isinstance(relation, str) and relation.strip() not in ("", UNKNOWN)):
        raise KeftError(
            f"{where}: relation is {relation!r}; name one, only an end can be asked for"
        )
    for end in (head, tail):
        if not isinstance(end, str | None) or end == "":
            raise KeftError(f"{where}: entity is {end!r}; give its identifier or its name as text")
    if (head is None) == (tail is None):
        what = "asks for both ends" if head is None else "has both ends given"
        raise KeftError(f"{where}: {what}; put ? in the place of one of them")
    given = tail if head is None else head
    return Query(str(given).strip(), relation.strip(), head is None, where)


def read_queries(path: str | os.PathLike[str]) -> list[Query]:
    """Queries of a file, `-` for standard input: TSV without a header (or CSV, or TXT) of head,
    relation, tail with one `?`, or JSON lines. Raises KeftError, with file:line, at the first line
    that is none."""
    name = "stdin" if str(path) == "-" else str(path)
    report, out = SourceReport(name), []
    for line, record in read_records(os.fspath(path), report, text="1"):
        where, item = f"{name}:{line}", record
        if "1" in record:  # columns by number
            cells = [str(cell) for cell in record.values()]
            item = cells[0].split("\t") if len(cells) == 1 else cells  # type: ignore[assignment]
        out.append(as_query(item, where))
    for file, line, reason in report.malformed:
        raise KeftError(f"{file}:{line}: {reason}; a query is head<tab>relation<tab>?")
    if not out:
        raise KeftError(f"{name}: no query; write head<tab>relation<tab>? on each line")
    return out


def load_links(run: str | os.PathLike[str]) -> LinkPredictor:
    """The trained embeddings of a run's directory. Raises KeftError where it is none."""
    return LinkPredictor(*load_triple_run(Path(run), make_mesh(MeshConfig(data=1))))
