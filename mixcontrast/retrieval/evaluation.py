"""How good embeddings are at retrieval: search, judge, and keep a value a query."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import as_array, check_rules, check_values, shared_codes
from mixcontrast.retrieval.exact import Rules, Similarity, check_similarity
from mixcontrast.retrieval.judging import Task, judge
from mixcontrast.retrieval.results import Evaluation
from mixcontrast.retrieval.searcher import open_searcher
from mixcontrast.retrieval.tables import check_tables


def evaluate(
    queries: Any,
    labels: Any,
    gallery: Any = None,
    gallery_labels: Any = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    similarity: Similarity = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
    exclude: Sequence[tuple[Any, Any]] = (),
    attributes: Mapping[str, Any] | None = None,
    ranks: bool = False,
    ties: str = "expected",
    memory_limit: int | None = None,
    index: str | None = None,
    index_parameters: str | None = None,
    device: str = "cpu",
    resume: str | Path | None = None,
) -> Evaluation:
    """Class retrieval: a gallery item is relevant when its class is the query's.

    Without a gallery the queries are searched among themselves, each without itself. Reported are `hit@k` (what metric
    learning calls Recall@k), `recall@k`, `precision@k`, `map@k` and `ndcg@k` for each k, `mrr` (among the first places,
    as many as the largest k), `r_precision` and `map@r`; and `first_rank`, if asked for.

    Args:
        queries: (Q, D) floats, a tensor or array, or `StoredEmbeddings`.
        labels: (Q,) integers of any size, or texts.
        gallery: (G, D) floats, or `StoredEmbeddings`.
        gallery_labels: (G,) integers or texts.
        ks: each at least 1.
        similarity: "cosine", "inner product" or "l2".
        query_ids: (Q,) integers or texts; with `gallery_ids`, gallery rows of the query's own id are left out.
        gallery_ids: (G,) integers or texts.
        exclude: further pairs of (Q,) and (G,) integers or texts: gallery rows whose value is the query's are left out,
            relevant or not (the same camera, the same vendor).
        attributes: name to (Q,) of what else is known of the queries; the result also tells them apart by it.
        ranks: also the rank of the first relevant item, in the whole gallery.
        ties: "expected" over the orders of items of equal similarity, "optimistic" or "pessimistic". Equal is within
            1e-6 of the next: of cosine 1, of inner products the length of the query times that of the longest gallery
            row, of squared distances themselves.
        memory_limit: as in `search`; with it, or where embeddings are stored, the values are the same to the last bit.
        index: as in `search`. What the index does not find is missed: its gain is 0 in every metric, and a first rank
            that is not among the places searched is that of the gallery's last row. `settings["index"]` says which
            share of the exact nearest it finds.
        index_parameters: as in `search`.
        device: as in `search`.
        resume: as in `search`.

    Raises:
        ValueError: shapes that do not fit, NaN, rows of zeros, k below 1, no query with a positive.
        TypeError: labels or ids that are neither integers nor texts.

    >>> result = evaluate([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], [0, 0, 1, 1], ks=(1,))
    >>> result.mean("hit@1")
    1.0
    """
    alone = gallery is None
    if alone and (gallery_labels is not None or query_ids is not None or gallery_ids is not None):
        raise ValueError("Labels and ids of a gallery need the gallery. Got none; pass gallery=, or leave them out.")
    if not alone and gallery_labels is None:
        raise ValueError("A gallery needs its labels. Got none; pass gallery_labels=.")
    similarity = check_similarity(similarity)
    queries, gallery = check_tables(queries, gallery, similarity == "cosine")
    labels = check_values("labels", labels, len(queries))
    gallery_labels = labels if alone else check_values("gallery_labels", gallery_labels, len(gallery))
    if alone:
        query_ids = gallery_ids = np.arange(len(queries))
    rules = check_rules(query_ids, gallery_ids, exclude, len(queries), len(gallery))
    query_class, gallery_class, num_classes = shared_codes(labels, gallery_labels)
    num_relevant = np.bincount(gallery_class, minlength=num_classes)[query_class]
    num_relevant = num_relevant - _num_excluded(query_class, gallery_class, rules)

    def gains(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return query_class[rows][:, None] == gallery_class[columns]

    def pairs(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        return np.argwhere(query_class[rows][:, None] == gallery_class[start:stop])

    def ideal(rows: np.ndarray, places: int) -> np.ndarray:
        return np.arange(places) < num_relevant[rows][:, None]

    searcher = open_searcher(
        queries,
        gallery,
        rules,
        similarity=similarity,
        memory_limit=memory_limit,
        index=index,
        index_parameters=index_parameters,
        device=device,
        resume=resume,
    )
    task = Task(searcher, gains, pairs, num_relevant, ideal, ties)
    return judge(task, labels, ks, ranks, _checked(attributes, len(queries)))


def evaluate_pairs(
    queries: Any,
    gallery: Any,
    pairs: Any,
    grades: Any = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    similarity: Similarity = "cosine",
    groups: Any = None,
    query_ids: Any = None,
    gallery_ids: Any = None,
    exclude: Sequence[tuple[Any, Any]] = (),
    attributes: Mapping[str, Any] | None = None,
    ranks: bool = False,
    ties: str = "expected",
    memory_limit: int | None = None,
    index: str | None = None,
    index_parameters: str | None = None,
    device: str = "cpu",
    resume: str | Path | None = None,
) -> Evaluation:
    """Retrieval where you say what is relevant: any number of positives a query (captions of an image, say).

    Args:
        queries: (Q, D) floats.
        gallery: (G, D) floats.
        pairs: (P, 2) integers: row of a query, row of a gallery item that is relevant to it; repeated pairs count once.
        grades: (P,) >= 0, how relevant each pair is (TREC's qrels): the gain of nDCG; for the other metrics a grade
            above 0 is relevant. None: every pair 1.
        ks: each at least 1.
        similarity: as in `evaluate`.
        groups: (Q,) integers or texts over which intervals are taken.
        query_ids: as in `evaluate`.
        gallery_ids: as in `evaluate`.
        exclude: as in `evaluate`.
        attributes: as in `evaluate`.
        ranks: as in `evaluate`.
        ties: as in `evaluate`.
        memory_limit: as in `evaluate`.
        index: as in `evaluate`.
        index_parameters: as in `evaluate`.
        device: as in `evaluate`.
        resume: as in `evaluate`.

    Raises:
        ValueError: as `evaluate`, and pairs outside the tables, and one pair with two grades.

    >>> evaluate_pairs([[1.0, 0.0]], [[1.0, 0.1], [0.0, 1.0], [1.0, -0.2]], [[0, 0], [0, 1]]).mean("recall@1")
    0.5
    """
    similarity = check_similarity(similarity)
    queries, gallery = check_tables(queries, gallery, similarity == "cosine")
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

    def relevant(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        low, high = (np.searchsorted(keys, rows * len(gallery) + end) for end in (start, stop))
        number = np.repeat(np.arange(len(rows)), high - low)
        place = np.arange(len(number)) - np.repeat(np.cumsum(high - low) - high, high - low)
        return np.stack([number, keys[place] % len(gallery) - start], axis=1)

    graded = None if grades is None else _ideal(rows, grade, num_relevant)

    def ideal(rows: np.ndarray, places: int) -> np.ndarray:
        return np.arange(places) < num_relevant[rows][:, None] if graded is None else graded[rows]

    groups = None if groups is None else check_values("groups", groups, len(queries))
    searcher = open_searcher(
        queries,
        gallery,
        rules,
        similarity=similarity,
        memory_limit=memory_limit,
        index=index,
        index_parameters=index_parameters,
        device=device,
        resume=resume,
    )
    task = Task(searcher, gains, relevant, num_relevant, ideal, ties)
    return judge(task, groups, ks, ranks, _checked(attributes, len(queries)))


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
