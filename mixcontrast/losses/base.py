"""What every loss shares: it builds its table, reduces each row to a number, and takes the mean of the rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixcontrast.checks import reads_values
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan
from mixcontrast.records import changed


@dataclass(frozen=True)
class Part:
    """A term of a loss, `weight * total / count`; those of the tiles of a table add up.

    Attributes:
        total: 0-dimensional, summed over rows.
        count: how many are averaged over; a number or 0-dimensional, no gradient.
        kept: how many rows entered; where none did, the term is an error or NaN, else a count of 0 makes it 0.
        weight: of the term in the loss.
        name: of the loss, for the error.
        shape: (A, C) of the table, likewise.
        needs: what rows that enter have, likewise.
        seen: what else the table is, likewise.
        remedy: likewise.
    """

    total: Tensor
    count: Tensor | float
    kept: Tensor | float
    weight: float = 1.0
    name: str = "the loss"
    shape: tuple[int, int] = (0, 0)
    needs: str = "at least one anchor with a positive"
    seen: str = ""
    remedy: str = "sample two examples a class"

    def times(self, weight: float) -> Part:
        """The term with a further weight."""
        return changed(self, weight=self.weight * weight)


def value_of(parts: Sequence[Part]) -> Tensor:
    """The loss of its parts; a 0-dimensional tensor.

    Raises:
        ValueError: on a CPU, a part is left without rows.
    """
    first, *others = (_value_of(part) for part in parts)
    return sum(others, first)


def _value_of(part: Part) -> Tensor:
    """Weight and count in one division where both are numbers: on a GPU each operation is a launch."""
    by = divisor_of(part)
    if not isinstance(by, Tensor) and part.weight:
        return part.total / (by / part.weight)
    return part.total / by if part.weight == 1 else part.weight * (part.total / by)


def divisor_of(part: Part) -> Tensor | float:
    """What a part's total is divided by; raises as `value_of`."""
    if not isinstance(part.kept, Tensor):
        return part.count
    if reads_values(part.total) and not bool(part.kept):
        raise ValueError(
            f"{part.name} needs {part.needs}. "
            f"Got none among {part.shape[0]} anchors and {part.shape[1]} columns{part.seen}; {part.remedy}."
        )
    return part.count if part.count is part.kept else torch.where((part.count > 0) | (part.kept == 0), part.count, 1)


class Batch:
    """What the tiles of one batch have in common: numbers drawn once a batch, steps counted once.

    Args:
        around: what makes a number, given a way to make it: by a seed that all tiles share, say.
    """

    def __init__(self, around: Callable[[Callable[[], Any]], Any] = lambda make: make()) -> None:
        self._around, self._known = around, {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave when `key` was first asked for."""
        if key not in self._known:
            self._known[key] = self._around(make)
        return self._known[key]


class Loss(nn.Module, ABC):
    """A loss over one table: `Pairs -> Tensor (A,)`.

    A final loss says how its tables are made from what its users have (`plans`) and how it reduces a row (`rows`).
    Calling it does both and takes the mean over the rows that have a positive. Rows without a positive are left out
    of the mean; `Pairs.has_positive()` tells which. Where no row is left, a CPU raises ValueError; elsewhere, where
    looking would cost a device sync, the loss is NaN, never a silent zero.
    """

    soft_targets: bool = True
    """Whether targets between 0 and 1 are read; Metrix and V-, L- and VL-Mix need it."""
    mixtures: bool = True
    """Whether columns without embeddings are read; every mixer needs it."""

    counts_rows: bool = True
    """Whether it is the mean over the rows that have a positive, so that targets tell how many there are."""

    towers: bool = False
    """Whether it is called with the features of two towers, image and text; GeodesicMixup needs it."""

    @abstractmethod
    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        """How the tables of a batch are made, from what the loss is called with: one, or one a direction."""

    def tables(self, *inputs: Tensor) -> tuple[Pairs, ...]:
        """The tables of a batch, from what the loss is called with: one, or one a direction."""
        return Pairs.whole(self.plans(*inputs))

    @abstractmethod
    def rows(self, pairs: Pairs) -> Tensor:
        """(A,) the loss of each anchor; what rows without a positive hold is not read."""

    def kept(self, pairs: Pairs) -> Tensor | None:
        """(A,) bool: the rows that enter the mean; None: all, known without reading a cell."""
        return None if pairs.every_row_has_positive else pairs.has_positive()

    def parts(self, pairs: Pairs) -> list[Part]:
        """The mean over the kept rows of a table, as its total and its count; or several such terms."""
        kept = self.kept(pairs)
        return [self.part(sum_of(self.rows(pairs), kept), number_of(kept, pairs), pairs)]

    def part(
        self, total: Tensor, count: Tensor | float, pairs: Pairs, *, kept: Tensor | float | None = None
    ) -> Part:
        """A term of a table; `kept` where it is not the count."""
        return Part(total, count, count if kept is None else kept, name=type(self).__name__, shape=pairs.shape)

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        """The parts of the tables of a batch, or of a tile of each."""
        return [part.times(1 / len(tables)) for pairs in tables for part in self.parts(pairs)]

    def counts(self, pairs: Pairs) -> list[tuple[Tensor | float, Tensor | float]] | None:
        """`count` and `kept` of each part, from targets and weights alone; None where they need the similarities.

        Args:
            pairs: a table, or a tile of one, whose similarities are not there.
        """
        kept = number_of(self.kept(pairs), pairs)
        return [(kept, kept)]

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor | float, Tensor | float]] | None:
        """`counts` for `parts_of`."""
        found = [self.counts(pairs) for pairs in tables]
        return None if any(counts is None for counts in found) else [count for counts in found for count in counts]

    def read(self, plans: Sequence[Plan]) -> Sequence[Plan]:
        """Which of a batch's plans the loss needs."""
        return plans

    def in_tiles(self, inputs: tuple, rows: int, batch: Batch) -> Tensor | None:
        """The loss of a call, of which no more than some rows are ever there, where the loss has a pass of its own.

        Args:
            inputs: of the call.
            rows: how many.
            batch: what all rows have in common.
        """
        return None

    def reduce(self, pairs: Pairs) -> Tensor:
        """The mean of the kept rows of a table, a 0-dimensional tensor.

        Raises:
            ValueError: on a CPU, no row is left.
        """
        return value_of(self.parts(pairs))

    def reduce_tables(self, tables: Sequence[Pairs]) -> Tensor:
        """The mean of `reduce` over the tables of a batch; a 0-dimensional tensor."""
        return value_of(self.parts_of(tables, Batch()))

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


def sum_of(rows: Tensor, kept: Tensor | None) -> Tensor:
    """0-dimensional: the sum of the rows that are kept; None: of all."""
    return rows.sum() if kept is None else torch.where(kept, rows, 0.0).sum()


def number_of(kept: Tensor | None, pairs: Pairs) -> Tensor | float:
    """How many rows are kept; None: all."""
    return float(len(pairs.anchors)) if kept is None else kept.sum()


def positive_number(**numbers: float) -> None:
    """One line where a hyper-parameter that must be positive is not."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"`{name}` must be positive. Got {name}={number}; the defaults are the paper's.")
