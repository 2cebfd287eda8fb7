"""How good embeddings are at retrieval: search, judge, and keep a value a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcontrast.retrieval import metrics
from mixcontrast.retrieval.checks import as_array, check_ids, check_integers, check_k, check_pair_of_tables
from mixcontrast.retrieval.metrics import RankedRelevance
from mixcontrast.retrieval.search import search
from mixcontrast.retrieval.statistics import Interval, bootstrap_interval

TIE_TOLERANCE = 1e-6  # of float32 cosines: the same two vectors at other places of a product differ by about 1e-7
_CELLS = 1 << 24  # similarities alive at once where whole rows are needed


@dataclass(frozen=True)
class Evaluation:
    """Retrieval metrics with a value a query.

    Attributes:
        values: metric name to (Q,) values of the queries that have a positive.
        queries: (Q,) which queries those are.
        groups: (Q,) their classes; None where there are none. Intervals are over groups.
        num_without_positive: how many queries were left out, having nothing to find.
        num_tied: for how many queries a tie reached over a cut, so that the order of equal items would have mattered.
    """

    values: dict[str, np.ndarray]
    queries: np.ndarray
    groups: np.ndarray | None
    num_without_positive: int
    num_tied: int

    def mean(self, metric: str) -> float:
        """The mean of a metric over queries, in [0, 1]."""
        return float(self._of(metric).mean())

    def interval(self, metric: str, *, confidence: float = 0.95, seed: int = 0) -> Interval:
        """The mean with its bootstrap interval, over classes where there are at least two, else over queries."""
        groups = self.groups
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None
        return bootstrap_interval(self._of(metric), groups=groups, confidence=confidence, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Means, intervals and counts, for JSON."""
        return {
            "metrics": {name: vars(self.interval(name)) for name in self.values},
            "num_queries": len(self.queries),
            "num_without_positive": self.num_without_positive,
            "num_tied": self.num_tied,
        }

    def to_markdown(self) -> str:
        """A table of means with their intervals."""
        lines = ["| metric | mean | 95% interval |", "|---|---|---|"]
        for name in self.values:
            found = self.interval(name)
            lines.append(f"| {name} | {found.mean:.4f} | [{found.low:.4f}, {found.high:.4f}] |")
        return "\n".join(lines)

    def _of(self, metric: str) -> np.ndarray:
        if metric not in self.values:
            raise KeyError(f"No metric {metric!r} was computed. There are {', '.join(self.values)}.")
        return self.values[metric]


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
    ties: str = "expected",
) -> Evaluation:
    """Class retrieval: a gallery item is relevant when its class is the query's.

    Without a gallery the queries are searched among themselves, each without itself. Reported are `hit@k` (what metric
    learning calls Recall@k), `recall@k`, `precision@k` and `ndcg@k` for each k, `mrr` (over the places searched),
    `r_precision` and `map@r`.

    Args:
        queries: (Q, D) floats, a tensor or array.
        labels: (Q,) integers of any size.
        gallery: (G, D) floats.
        gallery_labels: (G,) integers.
        ks: each at least 1.
        normalize: by cosine; without, by inner product.
        query_ids: (Q,) integers; with `gallery_ids`, gallery rows of the query's own id are left out.
        gallery_ids: (G,) integers.
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
    query_ids, gallery_ids = check_ids(query_ids, gallery_ids, len(queries), len(gallery))
    classes, inverse = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)
    query_class, gallery_class = inverse[: len(labels)], inverse[len(labels) :]
    num_relevant = np.bincount(gallery_class, minlength=len(classes))[query_class]
    if query_ids is not None:
        num_relevant = num_relevant - _num_own(query_class, gallery_class, query_ids, gallery_ids)

    def gains(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return query_class[rows][:, None] == gallery_class[columns]

    return _judge(queries, gallery, gains, num_relevant, labels, ks, query_ids, gallery_ids, ties)


def evaluate_pairs(
    queries: Any,
    gallery: Any,
    pairs: Any,
    *,
    ks: Sequence[int] = (1, 5, 10),
    normalize: bool = True,
    groups: Any = None,
    query_ids: Any = None,
    gallery_ids: Any = None,
    ties: str = "expected",
) -> Evaluation:
    """Retrieval where you say what is relevant: any number of positives a query (captions of an image, say).

    Args:
        queries: (Q, D) floats.
        gallery: (G, D) floats.
        pairs: (P, 2) integers: row of a query, row of a gallery item that is relevant to it; repeated pairs count once.
        ks: each at least 1.
        normalize: by cosine; without, by inner product.
        groups: (Q,) integers over which intervals are taken.
        query_ids: as in `evaluate`.
        gallery_ids: as in `evaluate`.
        ties: as in `evaluate`.

    Raises:
        ValueError: as `evaluate`, and pairs outside the tables.

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
    query_ids, gallery_ids = check_ids(query_ids, gallery_ids, len(queries), len(gallery))
    keys = np.unique(pairs[:, 0].astype(np.int64) * len(gallery) + pairs[:, 1])
    if query_ids is not None:
        keys = keys[query_ids[keys // len(gallery)] != gallery_ids[keys % len(gallery)]]
    num_relevant = np.bincount(keys // len(gallery), minlength=len(queries))

    def gains(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        wanted = rows[:, None] * len(gallery) + columns
        place = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
        return keys[place] == wanted

    groups = None if groups is None else check_integers("groups", groups, len(queries))
    return _judge(queries, gallery, gains, num_relevant, groups, ks, query_ids, gallery_ids, ties)


def _num_own(
    query_class: np.ndarray, gallery_class: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> np.ndarray:
    """(Q,) how many gallery rows have both the query's id and its class."""
    ids, inverse = np.unique(np.concatenate([query_ids, gallery_ids]), return_inverse=True)
    width = int(max(query_class.max(), gallery_class.max())) + 1
    mine = inverse[: len(query_ids)] * width + query_class
    theirs, counts = np.unique(inverse[len(query_ids) :] * width + gallery_class, return_counts=True)
    place = np.searchsorted(theirs, mine).clip(max=len(theirs) - 1)
    return np.where(theirs[place] == mine, counts[place], 0)


def _judge(
    queries: np.ndarray,
    gallery: np.ndarray,
    gains: Callable[[np.ndarray, np.ndarray], np.ndarray],
    num_relevant: np.ndarray,
    groups: np.ndarray | None,
    ks: Sequence[int],
    query_ids: np.ndarray | None,
    gallery_ids: np.ndarray | None,
    ties: str,
) -> Evaluation:
    ks = sorted({check_k(k) for k in ks})
    if not ks:
        raise ValueError("`ks` must name at least one k. Got none; (1, 2, 4, 8) is common.")
    kept = np.flatnonzero(num_relevant > 0)
    if len(kept) == 0:
        raise ValueError(
            f"Retrieval needs a query with something to find. Got {len(queries)} queries, none with a positive in the "
            "gallery; are labels and embeddings in the same order?"
        )
    num_relevant = num_relevant[kept]
    places = max(ks[-1], int(num_relevant.max()))
    own = (None, None) if query_ids is None else (query_ids[kept], gallery_ids)
    found = search(
        queries[kept], gallery, places + 1, normalize=False, query_ids=own[0], gallery_ids=own[1]
    )  # one place more, to see a tie that reaches over the last
    limit = np.maximum(ks[-1], num_relevant)
    open_end = _tie_reaches_end(found.similarity, found.valid, limit, len(gallery))
    whole = RankedRelevance.from_lists(
        gains(kept, found.indices),
        found.similarity,
        num_relevant=num_relevant,
        ideal=np.arange(places) < num_relevant[:, None],
        valid=found.valid,
        tolerance=TIE_TOLERANCE,
        ties=ties,
    ).cut(places)
    values = _metrics(whole, ks)
    num_tied = int(_ties_at_cuts(whole, ks, num_relevant).sum()) - int(
        (_ties_at_cuts(whole, ks, num_relevant) & open_end).sum()
    )
    step = max(1, _CELLS // len(gallery))
    rows = np.flatnonzero(open_end)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        ranked = _full_rows(queries, gallery, gains, kept[part], num_relevant[part], own, part, places, ties)
        for name, of_part in _metrics(ranked, ks).items():
            values[name][part] = of_part
        num_tied += len(part)
    return Evaluation(
        values=values,
        queries=kept,
        groups=None if groups is None else groups[kept],
        num_without_positive=len(queries) - len(kept),
        num_tied=num_tied,
    )


def _tie_reaches_end(similarity: np.ndarray, valid: np.ndarray, limit: np.ndarray, num_gallery: int) -> np.ndarray:
    """(Q,) bool: the tie group of a query's last needed place goes on past what was searched."""
    if similarity.shape[1] >= num_gallery or not valid.all():
        return np.zeros(len(similarity), bool)  # everything was searched
    apart = similarity[:, :-1] - similarity[:, 1:] > TIE_TOLERANCE
    place = np.arange(1, similarity.shape[1])
    return ~(apart & (place >= np.minimum(limit, similarity.shape[1] - 1)[:, None])).any(axis=1)


def _full_rows(queries, gallery, gains, rows, num_relevant, own, part, places, ties) -> RankedRelevance:
    """The whole ranking of a few queries, whose ties reach far."""
    similarity = queries[rows] @ gallery.T
    excluded = np.zeros(similarity.shape, bool) if own[0] is None else own[0][part][:, None] == own[1]
    similarity = np.where(excluded, -np.inf, similarity)
    order = np.argsort(-similarity, axis=1, kind="stable")
    return RankedRelevance.from_lists(
        np.take_along_axis(gains(rows, np.arange(len(gallery))[None, :].repeat(len(rows), 0)), order, axis=1),
        np.take_along_axis(similarity, order, axis=1),
        num_relevant=num_relevant,
        ideal=np.arange(places) < num_relevant[:, None],
        valid=~np.take_along_axis(excluded, order, axis=1),
        tolerance=TIE_TOLERANCE,
        ties=ties,
    ).cut(places)


def _metrics(ranked: RankedRelevance, ks: list[int]) -> dict[str, np.ndarray]:
    values = {}
    for name, metric in (
        ("hit", metrics.hit_at_k),
        ("recall", metrics.recall_at_k),
        ("precision", metrics.precision_at_k),
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
