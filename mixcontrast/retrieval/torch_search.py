"""Exact nearest neighbours through torch, for GPUs that faiss has no build for."""

from __future__ import annotations

import numpy as np

_CELLS = 1 << 26  # similarities alive at once


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
    """
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would lose what tells neighbours apart
    try:
        with torch.no_grad():
            mine = torch.from_numpy(queries).to(device)
            columns = max(k, min(len(gallery), _CELLS // 1024))
            step = max(1, _CELLS // columns)
            best = mine.new_full((len(queries), k), -float("inf"))
            rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
            for begin in range(0, len(gallery), columns):
                theirs = torch.from_numpy(gallery[begin : begin + columns]).to(device)
                for start in range(0, len(queries), step):
                    part = slice(start, start + step)
                    found = mine[part] @ theirs.T
                    if similarity == "l2":
                        found = 2 * found - mine[part].square().sum(1, keepdim=True) - theirs.square().sum(1)
                    top, at = found.topk(min(k, len(theirs)), dim=1)
                    both = torch.cat([best[part], top], dim=1)
                    numbers = torch.cat([rows[part], at + begin], dim=1)
                    best[part], order = both.topk(k, dim=1)
                    rows[part] = numbers.gather(1, order)
    finally:
        torch.set_float32_matmul_precision(precision)
    return best.cpu().numpy(), rows.cpu().numpy()
