"""Nearest neighbours, exact or through an index, and clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import check_k, check_rules, check_table
from mixcontrast.retrieval.exact import Similarity, check_similarity, load_faiss
from mixcontrast.retrieval.searcher import open_searcher, recall_given_away
from mixcontrast.retrieval.statistics import Interval
from mixcontrast.retrieval.tables import check_tables


@dataclass(frozen=True)
class Neighbours:
    """The nearest gallery rows of each query, best first.

    Attributes:
        indices: (Q, K) int64 rows of the gallery. Where a row has fewer than K (its own entries left out of a small
            gallery), its last places are not `valid` and hold 0.
        similarity: (Q, K) float32, higher is closer, not rising along a row; -inf where not `valid`.
        valid: (Q, K) bool.
        recall: of an approximate search, the share of the exact K nearest that it found, over up to 256 queries, with
            its 95% interval; None: the search was exact.
    """

    indices: np.ndarray
    similarity: np.ndarray
    valid: np.ndarray
    recall: Interval | None = None


def search(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    similarity: Similarity = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
    exclude: Sequence[tuple[Any, Any]] = (),
    memory_limit: int | None = None,
    index: str | None = None,
    index_parameters: str | None = None,
    device: str = "cpu",
    resume: str | Path | None = None,
) -> Neighbours:
    """The `k` gallery rows most similar to each query, exactly unless an index is asked for.

    The result depends neither on blocks, nor on threads or processes: products choose candidates, and each candidate's
    similarity is then computed on its own. Within `shared_search` each process searches a part of the gallery, and all
    get the whole result.

    Args:
        queries: (Q, D) floats, a tensor or array, or `StoredEmbeddings`.
        gallery: (G, D) floats, or `StoredEmbeddings`, which are read block by block.
        k: how many, at least 1. A gallery smaller than `k` gives as many columns as it has rows: never padding.
        similarity: "cosine", "inner product", or "l2": the negative squared distance, so that higher is closer.
        query_ids: (Q,) integers of any size, or texts; with `gallery_ids`, a gallery row whose id is the query's is
            left out: by identity, wherever it ranks.
        gallery_ids: (G,) integers or texts.
        exclude: further pairs of (Q,) and (G,) integers or texts; a gallery row whose value is the query's is left
            out (the same camera, the same vendor).
        memory_limit: bytes that embeddings, candidates and their copies may take at once in a process; not counted are
            what is passed in memory, labels, ids, results and an index. None: no limit, but 1 GiB where anything is
            stored.
        index: a faiss factory string ("IVF1024,Flat", "HNSW32", "OPQ16,IVF1024,PQ16") for an approximate search. It is
            trained on a sample and filled in blocks. Rows that it does not find are not `valid`.
        index_parameters: of its search: "nprobe=16", "efSearch=64".
        device: where products are made: "cpu", or a GPU ("cuda"): through faiss where its build and `k` allow, else
            through torch; an index only through faiss.
        resume: a folder in which the exact search keeps finished blocks, so that a killed run goes on where it stopped;
            what it kept is removed at the end.

    Returns:
        `Neighbours`; equal similarities are in the order of the gallery.

    Raises:
        ValueError: shapes that do not fit, NaN, rows of zeros under cosine, `k` below 1, an empty gallery, an index
            that faiss cannot build.
        TypeError: embeddings that are not floats, ids that are neither integers nor texts.
        ImportError: faiss is not installed.

    >>> found = search([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.1], [-1.0, 0.0]], k=5)
    >>> found.indices
    array([[1, 0, 2]])
    """
    similarity = check_similarity(similarity)
    queries, gallery = check_tables(queries, gallery, similarity == "cosine")
    k = check_k(k)
    rules = check_rules(query_ids, gallery_ids, exclude, len(queries), len(gallery))
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
    rows = np.arange(len(queries))
    parts = [searcher.settled(part, k) for part in searcher.chunks(rows, k)]
    indices, similarities, valid = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "similarity", "valid")
    )
    used = max(int(valid.any(axis=0).sum()), 1)
    recall = None if index is None else recall_given_away(searcher, rows, k)
    searcher.finish()
    return Neighbours(indices[:, :used], similarities[:, :used], valid[:, :used], recall)


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
    table, _ = check_table("embeddings", embeddings, normalize)
    if not 1 <= num_clusters <= len(table):
        raise ValueError(f"`num_clusters` must lie in [1, {len(table)}], the rows. Got {num_clusters}; take fewer.")
    faiss = load_faiss()
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
