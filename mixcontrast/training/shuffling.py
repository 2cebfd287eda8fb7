"""Shuffled batch norm: keys are made from rows of all ranks, so that batch statistics give nothing away."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def encode_shuffled(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Encodes a batch whose rows were dealt anew among the ranks, and gives each rank the rows it had.

    Without it a query and its key share the batch norm's statistics of one rank, by which the key is told without
    looking at the picture. One process encodes as it is: there is nobody to deal with.

    Args:
        encode: (B, ...) to (B, D), in training mode.
        inputs: (B, ...), as many on every rank.

    Source: He et al., CVPR 2020, arXiv 1911.05722, section 3.3.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return encode(inputs)
    world, rank, rows = dist.get_world_size(), dist.get_rank(), len(inputs)
    order = torch.randperm(world * rows).to(inputs.device)
    dist.broadcast(order, src=0)
    mine = slice(rank * rows, (rank + 1) * rows)
    dealt = encode(_all(inputs)[order[mine]])
    return _all(dealt)[order.argsort()[mine]]


def _all(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
