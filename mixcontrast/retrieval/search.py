"""Exact nearest neighbours over faiss, the only place that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import check_k, check_pair_of_tables, check_rules, check_table

_MANY = 64  # rows left out of a query's search before it is cheaper to search a gallery without them


@dataclass(frozen=True)
class Neighbours:
    """The nearest gallery rows of each query, best first.

    Attributes:
        indices: (Q, K) int64 rows of the gallery. Where a row has fewer than K (its own entries left out of a small
            gallery), its last places are not `valid` and hold 0.
        similarity: (Q, K) float32, higher is closer, not rising along a row; -inf where not `valid`.
        valid: (Q, K) bool.
    """

    indices: np.ndarray
    similarity: np.ndarray
    valid: np.ndarray


def search(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    normalize: bool = True,
    query_ids: Any = None,
    gallery_ids: Any = None,
    exclude: Sequence[tuple[Any, Any]] = (),
) -> Neighbours:
    """The `k` gallery rows most similar to each query, exactly.

    Args:
        queries: (Q, D) floats, a tensor or array.
        gallery: (G, D) floats.
        k: how many, at least 1. A gallery smaller than `k` gives as many columns as it has rows: never padding.
        normalize: by cosine; without, by inner product.
        query_ids: (Q,) integers of any size; with `gallery_ids`, a gallery row whose id is the query's is left out:
            by identity, wherever it ranks.
        gallery_ids: (G,) integers.
        exclude: further pairs of (Q,) and (G,) integers or texts; a gallery row whose value is the query's is left
            out (the same camera, the same vendor).

    Returns:
        `Neighbours`; equal similarities are in the order of the gallery.

    Raises:
        ValueError: shapes that do not fit, NaN, rows of zeros under cosine, `k` below 1, an empty gallery.
        TypeError: embeddings that are not floats, ids that are not integers.
        ImportError: faiss is not installed.

    >>> found = search([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.1], [-1.0, 0.0]], k=5)
    >>> found.indices
    array([[1, 0, 2]])
    """
    queries, gallery = check_pair_of_tables(queries, gallery, normalize)
    k = check_k(k)
    rules = check_rules(query_ids, gallery_ids, exclude, len(queries), len(gallery))
    return _search(queries, gallery, k, rules)


def assign_clusters(
    embeddings: Any, num_clusters: int, *, normalize: bool = True, num_iterations: int = 20, seed: int = 0
) -> np.ndarray:
    """(N,) the cluster of each row, by faiss's k-means; on the sphere where rows are normalised.

    Args:
        embeddings: (N, D) floats.
        num_clusters: from 1 to N.
        normalize: rows to unit length, and centres too.
        num_iterations: of Lloyd's algorithm.
        seed: of the first centres.

    Raises:
        ValueError: shapes that do not fit, NaN, rows of zeros under cosine, more clusters than rows.
    """
    table = check_table("embeddings", embeddings, normalize)
    if not 1 <= num_clusters <= len(table):
        raise ValueError(f"`num_clusters` must lie in [1, {len(table)}], the rows. Got {num_clusters}; take fewer.")
    faiss = _faiss()
    means = faiss.Kmeans(
        table.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=seed,
        spherical=normalize,
        min_points_per_centroid=1,
        max_points_per_centroid=len(table),
    )
    means.train(table)
    return means.index.search(table, 1)[1][:, 0]


def _search(queries: np.ndarray, gallery: np.ndarray, k: int, rules: list[tuple[np.ndarray, np.ndarray]]) -> Neighbours:
    if not rules:
        similarity, indices = _knn(queries, gallery, min(k, len(gallery)))
        return Neighbours(indices, similarity, np.ones(indices.shape, bool))
    most = [int(np.unique(theirs, return_counts=True)[1].max()) for _, theirs in rules]
    if sum(most) > _MANY:
        return _search_by_value(queries, gallery, k, rules, int(np.argmax(most)))
    similarity, indices = _knn(queries, gallery, min(k + sum(most), len(gallery)))
    own = np.zeros(indices.shape, bool)
    for mine, theirs in rules:
        own |= theirs[indices] == mine[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :k]  # the others first, in their order
    valid = ~np.take_along_axis(own, order, axis=1)
    indices = np.where(valid, np.take_along_axis(indices, order, axis=1), 0)
    similarity = np.where(valid, np.take_along_axis(similarity, order, axis=1), np.float32(-np.inf))
    used = max(int(valid.any(axis=0).sum()), 1)
    return Neighbours(indices[:, :used], similarity[:, :used], valid[:, :used])


def _search_by_value(
    queries: np.ndarray, gallery: np.ndarray, k: int, rules: list[tuple[np.ndarray, np.ndarray]], widest: int
) -> Neighbours:
    """One search for each value of a rule that leaves out much, in the gallery without it."""
    mine, theirs = rules[widest]
    others = rules[:widest] + rules[widest + 1 :]
    shape = len(queries), min(k, len(gallery))
    indices, similarity = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
    valid = np.zeros(shape, bool)
    for value in np.unique(mine):
        rows, left = np.flatnonzero(mine == value), np.flatnonzero(theirs != value)
        if len(left) == 0:
            continue
        part = _search(queries[rows], gallery[left], k, [(m[rows], t[left]) for m, t in others])
        width = part.indices.shape[1]
        valid[rows, :width] = part.valid
        similarity[rows, :width] = part.similarity
        indices[rows, :width] = np.where(part.valid, left[part.indices], 0)
    used = max(int(valid.any(axis=0).sum()), 1)
    return Neighbours(indices[:, :used], similarity[:, :used], valid[:, :used])


def _knn(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) similarities, falling, and rows; equal similarities by row."""
    faiss = _faiss()
    similarity, indices = faiss.knn(queries, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    if (similarity[:, 1:] == similarity[:, :-1]).any():
        order = np.lexsort((indices, -similarity), axis=1)
        similarity, indices = np.take_along_axis(similarity, order, 1), np.take_along_axis(indices, order, 1)
    return similarity, indices.astype(np.int64, copy=False)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Searching needs faiss. It is not installed; pip install 'mixcontrast[retrieval]'") from error
    return faiss
