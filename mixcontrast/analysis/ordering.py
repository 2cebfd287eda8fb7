"""Whether embeddings are ordered as real-valued labels are."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.analysis.blocks import row_blocks
from mixcontrast.checks import check_embeddings, check_values
from mixcontrast.similarity import unit


@torch.no_grad()
def rank_correlation(embeddings: Tensor, values: Tensor) -> Tensor:
    """Spearman's correlation of similarity with nearness of labels, the mean over anchors; higher is better.

    For each anchor, between its cosines to the others and minus their label distances (Euclidean over L); equal
    numbers share their mean rank. An anchor whose cosines are all equal counts 0: it orders nothing; one whose label
    distances are all equal has no order to find and is left out.

    Args:
        embeddings: (N, D) floats of any length, N at least 3; they are divided by their Euclidean length.
        values: (N,) or (N, L) floats.

    Returns:
        A 0-dimensional tensor between -1 and 1.

    Raises:
        TypeError: `values` are integers.
        ValueError: shapes that do not fit, fewer than three embeddings, label distances that order nothing; on a CPU
            also NaN values and NaN or zero embeddings.

    Cost: 2N sorts of N numbers, in blocks of rows of a few megabytes each.

    Source: the measure of Wu, Dong et al., arXiv 2309.16633, and of Zha et al., NeurIPS 2023, arXiv 2210.01189, here
    as a mean over anchors instead of over all pairs at once.

    >>> rank_correlation(torch.tensor([[1., 0.], [1., .1], [1., .5], [0., 1.]]), torch.tensor([20., 21., 30., 60.]))
    tensor(1.)
    """
    check_embeddings("embeddings", embeddings)
    check_values(values, embeddings)
    if len(embeddings) < 3:
        raise ValueError(
            f"An order needs two others for each anchor. Got embeddings {tuple(embeddings.shape)}; "
            "give at least three."
        )
    z = unit(embeddings)
    labels = values if values.ndim == 2 else values[:, None]  # (N, L)
    total = torch.zeros((), dtype=torch.float64, device=z.device)
    count = torch.zeros_like(total)
    for rows in row_blocks(len(z), len(z)):
        others = torch.arange(len(z), device=z.device)[rows, None] != torch.arange(len(z), device=z.device)
        far = _distance(labels[rows], labels)
        similarity = z[rows] @ z.mT
        shape = (len(far), len(z) - 1)
        near, cosine = _centred_ranks(-far[others].view(shape)), _centred_ranks(similarity[others].view(shape))
        length = near.square().sum(dim=1)
        product = (length * cosine.square().sum(dim=1)).sqrt()
        total += torch.where(product > 0, (near * cosine).sum(dim=1) / torch.where(product > 0, product, 1), 0).sum()
        count += (length > 0).sum()
    if count == 0:
        raise ValueError(
            f"Label distances must differ, else there is no order. Got {len(values)} values, each equally far from "
            "all others; give examples with more different values."
        )
    return (total / count).to(z.dtype)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """(A, N) Euclidean distances by differences, which keep equal distances of equal values equal."""
    if first.shape[1] == 1:
        return (first - second.mT).abs()
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _centred_ranks(table: Tensor) -> Tensor:
    """(A, C) rank of each number in its row, minus the mean rank; equal numbers share the mean of theirs."""
    columns = table.shape[1]
    index = torch.arange(1, columns, device=table.device)
    order, place = table.sort(dim=1)
    new = order[:, 1:] != order[:, :-1]  # (A, C - 1) where a run of equal numbers ends and another begins
    first = torch.nn.functional.pad(torch.where(new, index, 0), (1, 0)).cummax(dim=1).values
    last = torch.nn.functional.pad(torch.where(new, index, columns), (0, 1), value=columns)
    last = last.flip(1).cummin(dim=1).values.flip(1)  # (A, C) one after the last of the run
    rank = (first + last - columns).double() / 2
    return torch.empty_like(rank).scatter_(1, place, rank)
