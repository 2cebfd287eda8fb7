"""How hard the pretext task is that a table poses."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.pairs import Block, Pairs


@torch.no_grad()
def proxy_task_accuracy(pairs: Pairs) -> Tensor:
    """The share of anchors whose positive outranks every negative, mixed ones included.

    A positive has target 1 and a negative target 0; targets between are not read. An anchor with several positives
    counts the share of them that do. A positive as similar as n hardest negatives counts 1/(1 + n), the chance that
    it comes first, so that a collapsed encoder scores chance. Anchors without a positive or without a negative are
    left out.

    Args:
        pairs: a table as the loss reads it: for MoCHi, `criterion.mix(pairs, criterion.draw(pairs))`.

    Returns:
        A 0-dimensional tensor between 0 and 1. It falls when a mixer makes the task harder.

    Raises:
        ValueError: no anchor has a positive and a negative.

    Source: Kalantidis et al., NeurIPS 2020, arXiv 2010.01028.

    >>> key = torch.tensor([[1., 0.], [0.6, 0.8]])
    >>> proxy_task_accuracy(Pairs.from_queue(torch.eye(2), key, torch.tensor([[0.8, 0.6]])))  # 1 > 0.8 > 0.6; 0.8 > 0.6
    tensor(1.)
    """
    hardest = pairs.anchors.new_full((pairs.shape[0],), -torch.inf)  # (A,) of the negatives
    for block in pairs:
        if block.similarity.shape[1]:
            hardest = torch.maximum(hardest, _where(block, 0.0).amax(dim=1))
    ties, won, count = (torch.zeros_like(hardest) for _ in range(3))
    for block in pairs:
        ties += (_where(block, 0.0) == hardest[:, None]).sum(dim=1)
    for block in pairs:
        positive = _where(block, 1.0)
        count += (positive > -torch.inf).sum(dim=1)
        won += (positive > hardest[:, None]).sum(dim=1)
        won += ((positive == hardest[:, None]) & (positive > -torch.inf)).sum(dim=1) / (1 + ties)
    usable = (count > 0) & (hardest > -torch.inf)
    if not bool(usable.any()):
        raise ValueError(
            "The proxy task needs an anchor with a positive (target 1) and a negative (target 0). "
            f"Got none among {pairs.shape[0]} anchors and {pairs.shape[1]} columns; give a table with both."
        )
    return (won / count)[usable].mean()


def _where(block: Block, target: float) -> Tensor:
    """(A, C) the similarities of cells of a target, -inf elsewhere."""
    mine = torch.as_tensor(block.target, device=block.similarity.device) == target
    counts = torch.as_tensor(block.weight, device=block.similarity.device) > 0
    return torch.where(mine & counts, block.similarity, -torch.inf)
