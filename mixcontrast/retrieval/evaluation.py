"""How good embeddings are at retrieval: search, judge, and keep a value a query."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixcontrast.retrieval import metrics
from mixcontrast.retrieval.checks import as_array, check_integers, check_k, check_pair_of_tables, check_rules
from mixcontrast.retrieval.metrics import RankedRelevance
from mixcontrast.retrieval.results import Evaluation
from mixcontrast.retrieval.search import search

Rules = list[tuple[np.ndarray, np.ndarray]]  # of each query, of each gallery row: what must differ

TIE_TOLERANCE = 1e-6  # of float32 cosines: the same two vectors at other places of a product differ by about 1e-7
_CELLS = 1 << 24  # similarities alive at once where whole rows are needed


def evaluate(
    queries: Any,
    labels: Any,
    gallery: Any = None,
    gallery_labels: Any = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: bool = True,
    query_ids: Any = None,
    gallery_ids: Any = None,
    exclude: Sequence[tuple[Any, Any]] = (),
    attributes: Mapping[str, Any] | None = None,
    ranks: bool = False,
    ties: str = "expected",
) -> Evaluation:
    """Class retrieval: a gallery item is relevant when its class is the query's.

    Without a gallery the queries are searched among themselves, each without itself. Reported are `hit@k` (what metric
    learning calls Recall@k), `recall@k`, `precision@k`, `map@k` and `ndcg@k` for each k, `mrr` (over the places
    searched), `r_precision` and `map@r`; and `first_rank`, if asked for.

    Args:
        queries: (Q, D) floats, a tensor or array.
        labels: (Q,) integers of any size.
        gallery: (G, D) floats.
        gallery_labels: (G,) integers.
        ks: each at least 1.
        normalize: by cosine; without, by inner product.
        query_ids: (Q,) integers; with `gallery_ids`, gallery rows of the query's own id are left out.
        gallery_ids: (G,) integers.
        exclude: further pairs of (Q,) and (G,) integers or texts: gallery rows whose value is the query's are left out,
            relevant or not (the same camera, the same vendor).
        attributes: name to (Q,) of what else is known of the queries; the result also tells them apart by it.
        ranks: also the rank of the first relevant item, in the whole gallery.
        ties: "expected" over the orders of items of equal similarity (within 1e-6 of the next), "optimistic" or
            "pessimistic".

    Raises:
        ValueError: shapes that do not fit, NaN, rows of zeros, k below 1, no query with a positive.
        TypeError: labels or ids that are not integers.

    >>> result = evaluate([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], [0, 0, 1, 1], ks=(1,))
    >>> result.mean("hit@1")
    1.0
    """
    alone = gallery is None
    if alone and (gallery_labels is not None or query_ids is not None or gallery_ids is not None):
        raise ValueError("Labels and ids of a gallery need the gallery. Got none; pass gallery=, or leave them out.")
    if not alone and gallery_labels is None:
        raise ValueError("A gallery needs its labels. Got none; pass gallery_labels=.")
    queries, gallery = check_pair_of_tables(queries, queries if alone else gallery, normalize)
    labels = check_integers("labels", labels, len(queries))
    gallery_labels = labels if alone else check_integers("gallery_labels", gallery_labels, len(gallery))
    if alone:
        query_ids = gallery_ids = np.arange(len(queries))
    rules = check_rules(query_ids, gallery_ids, exclude, len(queries), len(gallery))
    classes, inverse = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)
    query_class, gallery_class = inverse[: len(labels)], inverse[len(labels) :]
    num_relevant = np.bincount(gallery_class, minlength=len(classes))[query_class]
    num_relevant = num_relevant - _num_excluded(query_class, gallery_class, rules)

    def gains(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return query_class[rows][:, None] == gallery_class[columns]

    return _judge(
        _Task(queries, gallery, gains, num_relevant, None, rules, ties),
        labels,
        ks,
        ranks,
        _checked(attributes, len(queries)),
        {"similarity": "cosine" if normalize else "inner product"},
    )


def evaluate_pairs(
    queries: Any,
    gallery: Any,
    pairs: Any,
    grades: Any = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    normalize: bool = True,
    groups: Any = None,
    query_ids: Any = None,
    gallery_ids: Any = None,
    exclude: Sequence[tuple[Any, Any]] = (),
    attributes: Mapping[str, Any] | None = None,
    ranks: bool = False,
    ties: str = "expected",
) -> Evaluation:
    """Retrieval where you say what is relevant: any number of positives a query (captions of an image, say).

    Args:
        queries: (Q, D) floats.
        gallery: (G, D) floats.
        pairs: (P, 2) integers: row of a query, row of a gallery item that is relevant to it; repeated pairs count once.
        grades: (P,) >= 0, how relevant each pair is (TREC's qrels): the gain of nDCG; for the other metrics a grade
            above 0 is relevant. None: every pair 1.
        ks: each at least 1.
        normalize: by cosine; without, by inner product.
        groups: (Q,) integers over which intervals are taken.
        query_ids: as in `evaluate`.
        gallery_ids: as in `evaluate`.
        exclude: as in `evaluate`.
        attributes: as in `evaluate`.
        ranks: as in `evaluate`.
        ties: as in `evaluate`.

    Raises:
        ValueError: as `evaluate`, and pairs outside the tables, and one pair with two grades.

    >>> evaluate_pairs([[1.0, 0.0]], [[1.0, 0.1], [0.0, 1.0], [1.0, -0.2]], [[0, 0], [0, 1]]).mean("recall@1")
    0.5
    """
    queries, gallery = check_pair_of_tables(queries, gallery, normalize)
    pairs = as_array(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer) or len(pairs) == 0:
        raise ValueError(f"`pairs` must be (pairs, 2) integers: query row, gallery row. Got {pairs.shape}.")
    limits = np.array([len(queries), len(gallery)])
    if not ((pairs >= 0) & (pairs < limits)).all():
        raise ValueError(
            f"`pairs` must name rows of the tables. Got up to {pairs.max(axis=0).tolist()} for {len(queries)} queries "
            f"and {len(gallery)} gallery rows; count from 0."
        )
    rules = check_rules(query_ids, gallery_ids, exclude, len(queries), len(gallery))
    keys = pairs[:, 0].astype(np.int64) * len(gallery) + pairs[:, 1]
    grade = _check_grades(grades, len(pairs))
    keys, grade = _distinct(keys, grade)
    rows, columns = keys // len(gallery), keys % len(gallery)
    kept = grade > 0
    for mine, theirs in rules:
        kept &= mine[rows] != theirs[columns]
    keys, grade, rows = keys[kept], grade[kept], rows[kept]
    num_relevant = np.bincount(rows, minlength=len(queries))

    def gains(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        wanted = rows[:, None] * len(gallery) + columns
        place = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
        found = keys[place] == wanted if len(keys) else np.zeros(wanted.shape, bool)
        return found if grades is None else np.where(found, grade[place], 0.0)

    ideal = None if grades is None else _ideal(rows, grade, num_relevant)
    groups = None if groups is None else check_integers("groups", groups, len(queries))
    return _judge(
        _Task(queries, gallery, gains, num_relevant, ideal, rules, ties),
        groups,
        ks,
        ranks,
        _checked(attributes, len(queries)),
        {"similarity": "cosine" if normalize else "inner product"},
    )


@dataclass(frozen=True)
class _Task:
    """What is searched for where, and what is relevant.

    Attributes:
        queries: (Q, D) float32.
        gallery: (G, D) float32.
        gains: rows (Q',) of queries and columns (Q', K) of the gallery to their (Q', K) gains.
        num_relevant: (Q,) relevant rows of the gallery, those left out not counted.
        ideal: (Q, K) gains of all relevant rows, falling; None: all 1.
        rules: which gallery rows are left out.
        ties: as `RankedRelevance`.
    """

    queries: np.ndarray
    gallery: np.ndarray
    gains: Callable[[np.ndarray, np.ndarray], np.ndarray]
    num_relevant: np.ndarray
    ideal: np.ndarray | None
    rules: Rules
    ties: str

    def of(self, rows: np.ndarray) -> _Task:
        """The same task of some queries."""
        return replace(
            self,
            queries=self.queries[rows],
            gains=lambda inner, columns: self.gains(rows[inner], columns),
            num_relevant=self.num_relevant[rows],
            ideal=None if self.ideal is None else self.ideal[rows],
            rules=[(mine[rows], theirs) for mine, theirs in self.rules],
        )

    def ranked(self, gains: np.ndarray, similarity: np.ndarray, valid: np.ndarray, places: int) -> RankedRelevance:
        """The first places of rankings whose last tie group is complete."""
        ideal = np.arange(places) < self.num_relevant[:, None] if self.ideal is None else self.ideal
        return RankedRelevance.from_lists(
            gains,
            similarity,
            num_relevant=self.num_relevant,
            ideal=ideal,
            valid=valid,
            tolerance=TIE_TOLERANCE,
            ties=self.ties,
        ).cut(places)

    def rows_of_similarity(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q, G) similarities, and which of them count."""
        similarity = self.queries @ self.gallery.T
        valid = np.ones(similarity.shape, bool)
        for mine, theirs in self.rules:
            valid &= mine[:, None] != theirs
        return np.where(valid, similarity, -np.inf), valid

    def all_gains(self) -> np.ndarray:
        """(Q, G) gains of the whole gallery."""
        columns = np.broadcast_to(np.arange(len(self.gallery)), (len(self.queries), len(self.gallery)))
        return self.gains(np.arange(len(self.queries)), columns)


def _checked(attributes: Mapping[str, Any] | None, num_queries: int) -> dict[str, np.ndarray]:
    found = {name: as_array(values) for name, values in (attributes or {}).items()}
    for name, values in found.items():
        if values.shape != (num_queries,):
            raise ValueError(
                f"An attribute needs a value a query. Got {name} {values.shape} for {num_queries} queries; "
                "give one each."
            )
    return found


def _check_grades(grades: Any, num_pairs: int) -> np.ndarray:
    if grades is None:
        return np.ones(num_pairs)
    grades = as_array(grades).astype(np.float64)
    if grades.shape != (num_pairs,) or not (np.isfinite(grades) & (grades >= 0)).all():
        raise ValueError(
            f"`grades` must be one a pair, finite and >= 0. Got {grades.shape} for {num_pairs} pairs; "
            "trec_eval's negative grades are not relevant: set them to 0."
        )
    return grades


def _distinct(keys: np.ndarray, grade: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, sorted."""
    keys, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if (grade != grade[first][inverse]).any():
        raise ValueError(
            "A pair has one grade. "
            f"Got {int((grade != grade[first][inverse]).sum())} pairs again with another; keep one of each."
        )
    return keys, grade[first]


def _ideal(rows: np.ndarray, grade: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """(Q, K) the grades of each query, falling."""
    order = np.lexsort((-grade, rows))
    ideal = np.zeros((len(num_relevant), max(int(num_relevant.max(initial=0)), 1)))
    start = np.cumsum(num_relevant) - num_relevant
    ideal[rows[order], np.arange(len(rows)) - start[rows[order]]] = grade[order]
    return ideal


def _num_excluded(query_class: np.ndarray, gallery_class: np.ndarray, rules: Rules) -> np.ndarray:
    """(Q,) how many gallery rows of the query's class some rule leaves out, by inclusion and exclusion."""
    total = np.zeros(len(query_class), np.int64)
    for size in range(1, len(rules) + 1):
        for some in itertools.combinations(rules, size):
            mine = np.stack([query_class, *(m for m, _ in some)], axis=1)
            theirs = np.stack([gallery_class, *(t for _, t in some)], axis=1)
            inverse = np.unique(np.concatenate([mine, theirs]), axis=0, return_inverse=True)[1].reshape(-1)
            counts = np.bincount(inverse[len(mine) :], minlength=int(inverse.max()) + 1)
            total += (-1) ** (size + 1) * counts[inverse[: len(mine)]]
    return total


def _judge(
    task: _Task,
    groups: np.ndarray | None,
    ks: Sequence[int],
    ranks: bool,
    attributes: dict[str, np.ndarray],
    settings: dict[str, Any],
) -> Evaluation:
    ks = sorted({check_k(k) for k in ks})
    if not ks:
        raise ValueError("`ks` must name at least one k. Got none; (1, 2, 4, 8) is common.")
    kept = np.flatnonzero(task.num_relevant > 0)
    num_queries, num_gallery = len(task.queries), len(task.gallery)
    if len(kept) == 0:
        raise ValueError(
            f"Retrieval needs a query with something to find. Got {num_queries} queries, none with a positive in the "
            "gallery; are labels and embeddings in the same order?"
        )
    task = task.of(kept)
    num_relevant = task.num_relevant
    places = max(ks[-1], int(num_relevant.max()))
    found = search(
        task.queries, task.gallery, places + 1, normalize=False, exclude=task.rules
    )  # one place more, to see a tie that reaches over the last
    limit = np.maximum(ks[-1], num_relevant)
    open_end = _tie_reaches_end(found.similarity, found.valid, limit, num_gallery)
    whole = task.ranked(
        task.gains(np.arange(len(kept)), found.indices), found.similarity, found.valid, places
    )
    values = _metrics(whole, ks)
    tied = _ties_at_cuts(whole, ks, num_relevant) | open_end
    step = max(1, _CELLS // num_gallery)
    rows = np.flatnonzero(open_end)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        ranked = _full_rows(task.of(part), places)
        for name, of_part in _metrics(ranked, ks).items():
            values[name][part] = of_part
    if ranks:
        values["first_rank"] = _first_ranks(task, whole, open_end, step)
    return Evaluation(
        values=values,
        queries=kept,
        groups=None if groups is None else groups[kept],
        num_without_positive=num_queries - len(kept),
        num_tied=int(tied.sum()),
        attributes={name: of_queries[kept] for name, of_queries in attributes.items()},
        settings={
            **settings,
            "ties": task.ties,
            "tie_tolerance": TIE_TOLERANCE,
            "ks": ks,
            "search": "exact",
            "precision": "float32",
            "dim": task.gallery.shape[1],
            "num_gallery": num_gallery,
        },
    )


def _first_ranks(task: _Task, whole: RankedRelevance, open_end: np.ndarray, step: int) -> np.ndarray:
    """(Q,) in the whole gallery: for queries without a hit among those searched, by counting what is nearer."""
    rank = metrics.first_rank(whole)
    missing = np.flatnonzero(np.isinf(rank) | open_end)
    for start in range(0, len(missing), step):
        part = missing[start : start + step]
        of_part = task.of(part)
        similarity, valid = of_part.rows_of_similarity()
        relevant = (of_part.all_gains() > 0) & valid
        best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        nearer = (similarity > best + TIE_TOLERANCE).sum(axis=1)
        tied = valid & (np.abs(similarity - best) <= TIE_TOLERANCE)
        size, good = tied.sum(axis=1), (tied & relevant).sum(axis=1)
        within = {"expected": (size + 1) / (good + 1), "optimistic": 1.0, "pessimistic": size - good + 1}
        rank[part] = nearer + within[task.ties]
    return rank


def _tie_reaches_end(similarity: np.ndarray, valid: np.ndarray, limit: np.ndarray, num_gallery: int) -> np.ndarray:
    """(Q,) bool: the tie group of a query's last needed place goes on past what was searched."""
    if similarity.shape[1] >= num_gallery or not valid.all():
        return np.zeros(len(similarity), bool)  # everything was searched
    apart = similarity[:, :-1] - similarity[:, 1:] > TIE_TOLERANCE
    place = np.arange(1, similarity.shape[1])
    return ~(apart & (place >= np.minimum(limit, similarity.shape[1] - 1)[:, None])).any(axis=1)


def _full_rows(task: _Task, places: int) -> RankedRelevance:
    """The whole ranking of a few queries, whose ties reach far."""
    similarity, valid = task.rows_of_similarity()
    order = np.argsort(-similarity, axis=1, kind="stable")
    gains, similarity, valid = (
        np.take_along_axis(table, order, axis=1) for table in (task.all_gains(), similarity, valid)
    )
    return task.ranked(gains, similarity, valid, places)


def _metrics(ranked: RankedRelevance, ks: list[int]) -> dict[str, np.ndarray]:
    values = {}
    for name, metric in (
        ("hit", metrics.hit_at_k),
        ("recall", metrics.recall_at_k),
        ("precision", metrics.precision_at_k),
        ("map", metrics.map_at_k),
        ("ndcg", metrics.ndcg_at_k),
    ):
        for k in ks:
            values[f"{name}@{k}"] = metric(ranked, k)
    wide = _padded(ranked)
    values["mrr"] = metrics.reciprocal_rank(ranked)
    values["r_precision"] = metrics.r_precision(wide)
    values["map@r"] = metrics.map_at_r(wide)
    return values


def _padded(ranked: RankedRelevance) -> RankedRelevance:
    """As many places as the most relevant items: a gallery smaller than that ends early, and misses the rest."""
    missing = int(ranked.num_relevant.max()) - ranked.gain.shape[1]
    if missing <= 0:
        return ranked
    ends = [np.pad(a, ((0, 0), (0, missing))) for a in (ranked.gain, ranked.relevant, ranked.size, ranked.offset)]
    return RankedRelevance(*ends, ranked.num_relevant, ranked.ideal)


def _ties_at_cuts(ranked: RankedRelevance, ks: list[int], num_relevant: np.ndarray) -> np.ndarray:
    """(Q,) bool: a tie group with both kinds of items reaches over a k or over R."""
    mixed = (ranked.relevant > 0) & (ranked.relevant < ranked.size)
    reaches = mixed & (ranked.offset + 1 < ranked.size)
    columns = np.array([k - 1 for k in ks if k <= reaches.shape[1]], dtype=int)
    at_r = np.take_along_axis(reaches, np.minimum(num_relevant - 1, reaches.shape[1] - 1)[:, None], axis=1)[:, 0]
    return reaches[:, columns].any(axis=1) | at_r
