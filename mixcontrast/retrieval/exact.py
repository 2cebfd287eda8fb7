"""Exact nearest neighbours in one block of the gallery, over faiss or torch, and similarities that never vary.

A matrix product gives the similarity of a pair with rounding errors that depend on the shapes multiplied and on the
number of threads. So products only choose candidates. The similarity of each candidate is then computed on its own,
which gives the same bits wherever the pair stands, and orders them.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_args

import numpy as np

Similarity = Literal["cosine", "inner product", "l2"]
Rules = list[tuple[np.ndarray, np.ndarray]]  # of each query, of each gallery row: what must differ

_MANY = 64  # rows left out of a query's search before it is cheaper to search a gallery without them
GPU_PLACES = 2048  # the most that faiss finds on a GPU
_COLUMNS = 1 << 13


def check_similarity(similarity: str) -> Similarity:
    """One of the three.

    Raises:
        ValueError: it is another.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"`similarity` must be one of {', '.join(get_args(Similarity))}. Got {similarity!r}.")
    return similarity


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, rules: Rules, similarity: Similarity, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """The candidates of each query.

    Args:
        queries: (Q, D) float32.
        gallery: (G, D) float32.
        k: how many.
        rules: gallery rows whose value is the query's are left out.
        similarity: of unit rows, cosine is the inner product.
        device: "cpu", or where torch and faiss find a GPU.

    Returns:
        (Q, min(k, G)) similarities, falling, and rows, equal similarities by row; -inf and -1 past a row's end.
    """
    k = min(k, len(gallery))
    if not rules:
        return _knn(queries, gallery, k, similarity, device)
    most = [int(np.unique(theirs, return_counts=True)[1].max()) for _, theirs in rules]
    if sum(most) > _MANY:
        return _nearest_by_value(queries, gallery, k, rules, int(np.argmax(most)), similarity, device)
    found, rows = _knn(queries, gallery, min(k + sum(most), len(gallery)), similarity, device)
    own = np.zeros(rows.shape, bool)
    for mine, theirs in rules:
        own |= theirs[rows] == mine[:, None]
    return without(own, found, rows, k)


def without(left_out: np.ndarray, found: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each row that are not left out, in their order."""
    order = np.argsort(left_out, axis=1, kind="stable")[:, :k]
    left_out = np.take_along_axis(left_out, order, axis=1)
    found = np.where(left_out, np.float32(-np.inf), np.take_along_axis(found, order, axis=1))
    return found, np.where(left_out, -1, np.take_along_axis(rows, order, axis=1))


def _nearest_by_value(
    queries: np.ndarray, gallery: np.ndarray, k: int, rules: Rules, widest: int, similarity: Similarity, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """One search for each value of a rule that leaves out much, in the gallery without it."""
    mine, theirs = rules[widest]
    others = rules[:widest] + rules[widest + 1 :]
    found, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for value in np.unique(mine):
        asked, left = np.flatnonzero(mine == value), np.flatnonzero(theirs != value)
        if len(left) == 0:
            continue
        narrower = [(m[asked], t[left]) for m, t in others]
        part, of_left = nearest(queries[asked], gallery[left], k, narrower, similarity, device)
        found[asked, : part.shape[1]] = part
        rows[asked, : part.shape[1]] = np.where(of_left < 0, -1, left[of_left])
    return found, rows


def _knn(
    queries: np.ndarray, gallery: np.ndarray, k: int, similarity: Similarity, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) similarities, falling, and rows; equal similarities by row."""
    faiss = load_faiss()
    metric = faiss.METRIC_L2 if similarity == "l2" else faiss.METRIC_INNER_PRODUCT
    if device == "cpu":
        rows = faiss.knn(queries, gallery, k, metric=metric)[1]
    elif device.startswith("cuda") and k <= GPU_PLACES and faiss.get_num_gpus() > 0:
        resources = faiss.StandardGpuResources()
        rows = faiss.knn_gpu(resources, queries, gallery, k, metric=metric, device=gpu_number(device))[1]
    else:
        from mixcontrast.retrieval.torch_search import torch_knn

        rows = torch_knn(queries, gallery, k, similarity, device)[1]
    rows = rows.astype(np.int64, copy=False)
    return in_order(of_places(queries, gallery, rows, similarity), rows)


def gpu_number(device: str) -> int:
    """Of "cuda:1" the 1; of "cuda" torch's current one.

    >>> gpu_number("cuda:1")
    1
    """
    import torch

    return int(device.removeprefix("cuda:")) if ":" in device else torch.cuda.current_device()


def in_order(found: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row by falling similarity, and by row number where that is equal."""
    wrong = np.flatnonzero((found[:, 1:] >= found[:, :-1]).any(axis=1))
    if len(wrong):
        order = np.lexsort((rows[wrong], -found[wrong]), axis=1)
        found[wrong] = np.take_along_axis(found[wrong], order, axis=1)
        rows[wrong] = np.take_along_axis(rows[wrong], order, axis=1)
    return found, rows


def of_places(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray, similarity: Similarity) -> np.ndarray:
    """(Q, K) float32 similarities of each query to its (Q, K) rows: of a pair always the same bits."""
    faiss = load_faiss()
    by_row = faiss.fvec_L2sqr_by_idx if similarity == "l2" else faiss.fvec_inner_products_by_idx
    rows, point = np.ascontiguousarray(rows), faiss.swig_ptr
    found = np.empty(rows.shape, np.float32)
    if found.size:
        by_row(point(found), point(queries), point(gallery), point(rows), queries.shape[1], *rows.shape)
    return 0 - found if similarity == "l2" else found


def of_pairs(queries: np.ndarray, gallery: np.ndarray, pairs: np.ndarray, similarity: Similarity) -> np.ndarray:
    """(P,) float32 similarities of (P, 2) pairs of rows; the same bits as `of_places`."""
    faiss = load_faiss()
    by_pair = faiss.pairwise_indexed_L2sqr if similarity == "l2" else faiss.pairwise_indexed_inner_product
    mine, theirs = (np.ascontiguousarray(pairs[:, side]) for side in (0, 1))
    found, point = np.empty(len(pairs), np.float32), faiss.swig_ptr
    if len(pairs):
        by_pair(
            queries.shape[1], len(pairs), point(queries), point(mine), point(gallery), point(theirs), point(found)
        )
    return 0 - found if similarity == "l2" else found


def of_all(queries: np.ndarray, gallery: np.ndarray, similarity: Similarity) -> np.ndarray:
    """(Q, G) float32 similarities; the same bits as `of_places`."""
    found = np.empty((len(queries), len(gallery)), np.float32)
    for start in range(0, len(gallery), _COLUMNS):
        columns = np.arange(start, min(start + _COLUMNS, len(gallery)))
        rows = np.broadcast_to(columns, (len(queries), len(columns)))
        found[:, columns] = of_places(queries, gallery, rows, similarity)
    return found


def product(queries: np.ndarray, gallery: np.ndarray, similarity: Similarity) -> np.ndarray:
    """(Q, G) float32 similarities by one matrix product: fast, and off by up to `rounding`."""
    found = queries @ gallery.T
    if similarity == "l2":
        found *= 2
        found -= (queries * queries).sum(axis=1)[:, None]
        found -= (gallery * gallery).sum(axis=1)
    return found


def check_device(device: str) -> None:
    """One that torch has here.

    Raises:
        ValueError: it is unknown, or not here.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`device` must be one that torch finds here. Got {device!r}: {reason}; try cpu.") from None


def rounding(dim: int) -> float:
    """How far a product's similarity may lie from that of the pair alone, where rows have unit length."""
    return float(np.finfo(np.float32).eps) * (2 + dim**0.5)


def load_faiss() -> ModuleType:
    """faiss, or the line that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Searching needs faiss. It is not installed; pip install 'mixcontrast[retrieval]'") from error
    return faiss
