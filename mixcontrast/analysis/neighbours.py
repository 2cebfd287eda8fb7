"""Utilization: how near the training embeddings, real or mixed, come to what is asked at test time."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.analysis.blocks import check_same_width, square_blocks
from mixcontrast.checks import check_embeddings
from mixcontrast.similarity import unit


@torch.no_grad()
def utilization(queries: Tensor, examples: Tensor) -> Tensor:
    """Mean over queries of the squared distance to the nearest example; lower: the space is better used.

    Args:
        queries: (A, D) floats of any length, of test examples; they are divided by their Euclidean length.
        examples: (N, D) training embeddings; with mixtures joined by `torch.cat`, what training with them covers.

    Returns:
        A 0-dimensional tensor between 0 and 4.

    Raises:
        ValueError: widths that differ; on a CPU also NaN or zero embeddings.

    Cost: A x N cosines, in blocks of sixteen megabytes. A query that is among the examples is at distance 0.

    Source: Venkataramanan, Psomas et al., ICLR 2022, arXiv 2106.04990.

    >>> utilization(torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([[2., 0.], [-1., 0.]]))
    tensor(1.)
    """
    check_embeddings("queries", queries)
    check_embeddings("examples", examples)
    check_same_width("queries", queries, "examples", examples)
    queries, examples = unit(queries), unit(examples)
    total = torch.zeros((), dtype=torch.float64, device=queries.device)
    for rows in square_blocks(len(queries)):
        query = queries[rows]
        best = query.new_full((len(query),), -torch.inf)
        nearest = torch.zeros_like(best, dtype=torch.long)
        for columns in square_blocks(len(examples)):
            value, place = (query @ examples[columns].mT).max(dim=1)
            better = value > best
            best = torch.where(better, value, best)
            nearest = torch.where(better, place + columns.start, nearest)
        total += (query - examples[nearest]).square().sum(dim=1).sum(dtype=torch.float64)  # 2 - 2 cos would cancel
    return (total / len(queries)).to(queries.dtype)
