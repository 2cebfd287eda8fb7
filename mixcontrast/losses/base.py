"""What every loss shares: it builds its table, reduces each row to a number, and takes the mean of the rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixcontrast.pairs import Pairs, reads_values


class Loss(nn.Module, ABC):
    """A loss over one table: `Pairs -> Tensor (A,)`.

    A final loss says how it builds its tables from what its users have (`tables`) and how it reduces a row (`rows`).
    Calling it does both and takes the mean over the rows that have a positive. Rows without a positive are left out
    of the mean; `Pairs.has_positive()` tells which. Where no row is left, a CPU raises ValueError; elsewhere, where
    looking would cost a device sync, the loss is NaN, never a silent zero.
    """

    soft_targets: bool = True
    """Whether targets between 0 and 1 are read; Metrix and V-, L- and VL-Mix need it."""
    mixtures: bool = True
    """Whether columns without embeddings are read; every mixer needs it."""

    towers: bool = False
    """Whether it is called with the features of two towers, image and text; GeodesicMixup needs it."""

    @abstractmethod
    def tables(self, *inputs: Tensor) -> tuple[Pairs, ...]:
        """The tables of a batch, from what the loss is called with: one, or one a direction."""

    @abstractmethod
    def rows(self, pairs: Pairs) -> Tensor:
        """(A,) the loss of each anchor; what rows without a positive hold is not read."""

    def kept(self, pairs: Pairs) -> Tensor:
        """(A,) bool: the rows that enter the mean."""
        return pairs.has_positive()

    def reduce(self, pairs: Pairs) -> Tensor:
        """The mean of the kept rows of a table, a 0-dimensional tensor.

        Raises:
            ValueError: on a CPU, no row is left.
        """
        kept = self.kept(pairs)
        if reads_values(pairs.anchors):
            if not bool(kept.any()):
                raise ValueError(
                    f"{type(self).__name__} needs at least one anchor with a positive. "
                    f"Got none among {pairs.shape[0]} anchors and {pairs.shape[1]} columns; "
                    "sample two examples a class."
                )
        return torch.where(kept, self.rows(pairs), 0.0).sum() / kept.sum()

    def reduce_tables(self, tables: Sequence[Pairs]) -> Tensor:
        """The mean of `reduce` over the tables of a batch; a 0-dimensional tensor."""
        losses = [self.reduce(pairs) for pairs in tables]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def answer(self, loss: Tensor, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """What a call with `inputs` returns: the loss, or, where they ask for it, a dictionary of it."""
        return loss

    def in_place(self, *inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """The inputs of a call with the labels, which may be given by name, in their place."""
        return inputs if labels is None else (*inputs, labels)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean over the tables of a batch; arguments are those of `tables`, `labels` by place or by name."""
        inputs = self.in_place(*inputs, labels=labels)
        return self.answer(self.reduce_tables(self.tables(*inputs)), *inputs)


def positive_number(**numbers: float) -> None:
    """One line where a hyper-parameter that must be positive is not."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"`{name}` must be positive. Got {name}={number}; the defaults are the paper's.")
