"""Exact nearest neighbours through torch, for GPUs that faiss has no build for, and for more places than it finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_CELLS = 1 << 26  # similarities alive at once
_PLACES = 1 << 26  # neighbours alive on the device at once: of 12 bytes each, and as many again while blocks are joined


def torch_knn(
    queries: np.ndarray, gallery: np.ndarray, k: int, similarity: str, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each query, by matrix products in float32 block by block.

    Args:
        queries: (Q, D) float32.
        gallery: (G, D) float32.
        k: at most G.
        similarity: "cosine" (of unit rows), "inner product" or "l2" (the negative squared distance).
        device: as torch names it.

    Returns:
        (Q, k) similarities, falling, and rows; equal similarities are in no order.

    Cost: the gallery crosses to the device once for each `_PLACES / k` queries; memory of one block of it, of the
    queries, of `_CELLS` similarities and of `_PLACES` neighbours.
    """
    import torch

    step = max(1, _PLACES // k)
    parts = []
    with torch.no_grad(), _full_precision():
        for start in range(0, max(len(queries), 1), step):
            best, rows = _of_queries(queries[start : start + step], gallery, k, similarity, device)
            parts.append((best.cpu().numpy(), rows.cpu().numpy()))
    return tuple(np.concatenate(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))


def _of_queries(
    queries: np.ndarray, gallery: np.ndarray, k: int, similarity: str, device: str
) -> tuple[Tensor, Tensor]:
    import torch

    mine = _moved(queries, device)
    columns = max(k, min(len(gallery), _CELLS // 1024))
    step = max(1, _CELLS // columns)
    best = mine.new_full((len(queries), k), -float("inf"))
    rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    my_length = mine.square().sum(1, keepdim=True) if similarity == "l2" else None
    for begin in range(0, len(gallery), columns):
        theirs = _moved(gallery[begin : begin + columns], device)
        length = theirs.square().sum(1) if similarity == "l2" else None
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            found = mine[part] @ theirs.T
            if length is not None:
                found.mul_(2).sub_(my_length[part]).sub_(length)
            top, at = found.topk(min(k, len(theirs)), dim=1, sorted=False)
            both = torch.cat([best[part], top], dim=1)
            numbers = torch.cat([rows[part], at + begin], dim=1)
            best[part], order = both.topk(k, dim=1)
            rows[part] = numbers.gather(1, order)
    return best, rows


def _moved(table: np.ndarray, device: str) -> Tensor:
    import torch

    return torch.from_numpy(table if table.flags.writeable else table.copy()).to(device)  # torch warns of the others


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, whatever the process has chosen: TF32 would lose what tells neighbours apart."""
    import torch

    places = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    try:
        before = [place.fp32_precision for place in places]
    except AttributeError:  # torch before 2.9 has one setting for all; newer ones refuse to mix it with these
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
        return
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
