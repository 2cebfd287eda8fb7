"""Candidates of all ranks, with gradient; the only file of the library that knows of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixcontrast.losses.base import Loss
from mixcontrast.mixers.base import Mixer, innermost
from mixcontrast.mixers.deep import DeepMetrix, MixedTable
from mixcontrast.tiling import Seeds, Tiled, arguments, check_criterion, loss_by_rows

_SMALL = 1 << 16  # numbers of a tensor that is sent with others


class Gathered(nn.Module):
    """A criterion over the batch of all ranks: the loss and gradients of one process with the whole batch.

    Each rank gathers the inputs of all, in rank order, and computes its share of the rows of the whole table, forward
    and backward, with a share of its memory and time. Values and gradients are then summed over ranks, so that after
    DistributedDataParallel's mean over ranks a parameter has the gradient of one process with the whole batch; without
    it, average the gradients yourself. The criterion's own parameters, and numbers among the inputs (logit_scale), get
    the whole gradient on every rank. A queue takes the keys of all ranks in one order. Where torch.distributed is not
    initialised, or has one rank, it is the criterion alone.

    The random state of a mixer's draw is rank 0's; a share of rows is drawn as a tile of `Tiled` is, so that N ranks
    give what `Tiled` gives in one process with tiles of their shares.

    Args:
        criterion: a loss or mixer of ours, queue and proxies included; or `Tiled` around one, whose tiles the ranks
            take in turn; or DeepMetrix, whose mixtures are each of one rank's examples.

    Called as the criterion is. Tensors of one or more dimensions are gathered along their first, with as many rows on
    every rank; numbers (logit_scale) are taken as they are and must be the same on every rank. As in `Tiled`, gradients
    are computed in the forward pass and have no second derivative.

    Raises:
        TypeError: not a loss or mixer of ours.
        ValueError: ranks have batches of different sizes (checked on CPUs; elsewhere a collective would hang).
    """

    def __init__(self, criterion: Loss | Mixer | Tiled | DeepMetrix) -> None:
        super().__init__()
        if not isinstance(criterion, DeepMetrix):
            check_criterion("Gathered", criterion.criterion if isinstance(criterion, Tiled) else criterion)
        self.criterion = criterion

    def forward(self, *inputs: Tensor | float | None, **named: Any) -> Tensor | dict[str, Tensor]:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.criterion(*inputs, **named)
        ranks = _Ranks()
        criterion, rows_of = self.criterion, ranks.share
        if isinstance(criterion, DeepMetrix):
            return _deep(criterion, ranks, *inputs, **named)
        if isinstance(criterion, Tiled):
            rows, criterion = criterion.rows, criterion.criterion
            rows_of = lambda size: min(rows, ranks.share(size))  # noqa: E731
        called = arguments(criterion, inputs, named)
        return innermost(criterion).answer(_loss(criterion, called, ranks, rows_of), *called)


def _loss(criterion: Loss | Mixer, called: tuple, ranks: _Ranks, rows_of: Callable[[int], int]) -> Tensor:
    return loss_by_rows(criterion, called, ranks, rows_of, Seeds(criterion, called, ranks))


def _deep(criterion: DeepMetrix, ranks: _Ranks, encoder: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Each rank mixes its own examples; embeddings and mixtures of all are read."""
    criterion.check(encoder, inputs, labels)
    seed = ranks.seed(labels.device) + ranks.rank
    draw = criterion.draw(labels, torch.Generator(labels.device).manual_seed(seed))
    embeddings, mixed = criterion.embed(encoder, inputs, draw)
    start = ranks.rank * len(labels)  # of this rank's rows among all
    mixtures = (embeddings, labels, mixed, draw.first + start, draw.second + start, draw.lam)
    real = _loss(criterion.loss, (embeddings, labels), ranks, ranks.share)
    return real + criterion.weight * _loss(MixedTable(criterion), mixtures, ranks, ranks.share)


def whole_batch(inputs: Sequence[Any]) -> list[Any]:
    """What a criterion over the batch of all ranks is called with, of what this rank calls it with.

    Args:
        inputs: tensors of one or more dimensions are gathered along their first, in rank order, without gradient; all
            else is as it is. Every rank must ask.

    Raises:
        ValueError: as `Gathered`.
    """
    found = list(inputs)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        places = [place for place, x in enumerate(found) if isinstance(x, Tensor) and x.ndim]
        for place, tensor in zip(places, _Ranks().whole([found[place].detach() for place in places]), strict=True):
            found[place] = tensor
    return found


class _Ranks:
    """The processes of a group, each with its part of the batch."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def share(self, size: int) -> int:
        """How many of so many rows are a rank's."""
        return -(-size // self.world)

    def whole(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """(ranks * B, ...) each: those of all ranks, in rank order.

        Raises:
            ValueError: the numbers of rows differ (checked on CPUs).
        """
        here = torch.tensor([len(tensor) for tensor in tensors if tensor.device.type == "cpu"], dtype=torch.long)
        if len(here):
            rows = [torch.zeros_like(here) for _ in range(self.world)]
            dist.all_gather(rows, here)
            for counts in torch.stack(rows, dim=1).tolist():
                if len(set(counts)) > 1:
                    raise ValueError(
                        "Every rank must have a batch of the same size. "
                        f"Got {counts} rows; drop the last, uneven batch (drop_last=True)."
                    )
        found = []
        for tensor in tensors:
            parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world)]
            dist.all_gather(parts, tensor.contiguous())
            found.append(torch.cat(parts))
        return found

    def own(self, grad: Tensor) -> Tensor:
        """This rank's rows, times the ranks, whose mean DistributedDataParallel takes."""
        rows = len(grad) // self.world
        return grad[self.rank * rows : (self.rank + 1) * rows] * self.world

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Adds up, in place, what each rank has; small tensors of one type travel together."""
        small: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() > _SMALL:
                dist.all_reduce(tensor)
            else:
                small.setdefault(tensor.dtype, []).append(tensor)
        for alike in small.values():
            joined = torch.cat([tensor.flatten() for tensor in alike])
            dist.all_reduce(joined)
            for tensor, added in zip(alike, joined.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(added.view_as(tensor))

    def seed(self, device: torch.device) -> int:
        """A random number of rank 0's."""
        seed = torch.randint(2**62, (1,)).to(device)
        dist.broadcast(seed, src=0)
        return int(seed)
