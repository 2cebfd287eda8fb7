"""Candidates of all ranks, with gradient; the only file of the library that knows of ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixcontrast.losses.base import Loss
from mixcontrast.mixers.base import Mixer


class Gathered(nn.Module):
    """A criterion over the batch of all ranks: the loss and gradients of one process with the whole batch.

    Each rank gathers the inputs of all, in rank order, and computes the whole loss, mixers with one draw for all ranks
    (the random state is rank 0's). The backward pass sums each rank's gradient of the gathered inputs, so that after
    DistributedDataParallel's mean over ranks a parameter has the gradient of one process with the whole batch; without
    it, average the gradients yourself. A queue takes the keys of all ranks in one order. Where torch.distributed is not
    initialised, it is the criterion alone.

    Args:
        criterion: a loss or mixer of ours, queue and proxies included.

    Called as the criterion is. Tensors of one or more dimensions are gathered along their first, with as many rows on
    every rank; numbers (logit_scale) are taken as they are and must be the same on every rank.

    Raises:
        TypeError: not a loss or mixer of ours.
        ValueError: ranks have batches of different sizes (checked on CPUs; elsewhere a collective would hang).

    Cost: every rank holds the whole table; a table split by rows is not here yet.
    """

    def __init__(self, criterion: Loss | Mixer) -> None:
        super().__init__()
        if not isinstance(criterion, Loss | Mixer):
            raise TypeError(
                f"Gathered wraps a mixcontrast loss or mixer. Got {type(criterion).__name__}; "
                "use the one of the same name in mixcontrast."
            )
        self.criterion = criterion

    def forward(self, *inputs: Tensor | float | None) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.criterion(*inputs)
        gathered = [gather(x) if isinstance(x, Tensor) and x.ndim else x for x in inputs]
        device = next(x.device for x in gathered if isinstance(x, Tensor))
        seed = torch.randint(2**62, (1,)).to(device)
        dist.broadcast(seed, src=0)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            return self.criterion(*gathered)


def gather(tensor: Tensor) -> Tensor:
    """(ranks * B, ...) the tensors of all ranks in rank order; the gradient is the sum of all ranks' gradients.

    Args:
        tensor: (B, ...) with as many rows on every rank.

    Raises:
        ValueError: the numbers of rows differ (checked on CPUs).
    """
    if tensor.device.type == "cpu":
        rows = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, torch.tensor([len(tensor)]))
        if len({int(count) for count in rows}) > 1:
            raise ValueError(
                "Every rank must have a batch of the same size. "
                f"Got {[int(count) for count in rows]} rows; drop the last, uneven batch (drop_last=True)."
            )
    return _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        rows = len(grad) // dist.get_world_size()
        return grad[dist.get_rank() * rows : (dist.get_rank() + 1) * rows]
