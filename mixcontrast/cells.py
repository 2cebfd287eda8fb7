"""What is known of a table's cells before they are made: rules that give some rows of a target or a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.checks import check_same_device, reads_values

Cells = Tensor | float  # a table (A, C), anything that broadcasts to it, or one number for every cell of a block


class Rule(ABC):
    """A table (A, C) that is made some rows at a time."""

    @abstractmethod
    def cells(self, rows: Tensor | None) -> Tensor:
        """(R, C) bool or float, of rows (R,) or of all (None)."""

    @abstractmethod
    def transpose(self) -> Rule:
        """The rule of the transposed table."""


@dataclass(frozen=True)
class Match(Rule):
    """Whether what row and column are labelled with is the same (or is not).

    Attributes:
        mine: (A,) or (A, L) of the rows.
        theirs: (C,) or (C, L) of the columns.
        equal: True: all L are the same; False: none is.
    """

    mine: Tensor
    theirs: Tensor
    equal: bool = True

    def cells(self, rows: Tensor | None) -> Tensor:
        mine = self.mine if rows is None else self.mine[rows]
        if mine.ndim == 1:
            return mine[:, None] == self.theirs if self.equal else mine[:, None] != self.theirs
        both = zip(mine.unbind(1), self.theirs.unbind(1), strict=True)
        cells = [one[:, None] == other if self.equal else one[:, None] != other for one, other in both]
        return cells[0] if len(cells) == 1 else torch.stack(cells).all(dim=0)

    def transpose(self) -> Match:
        return Match(self.theirs, self.mine, self.equal)


@dataclass(frozen=True)
class Diagonal(Rule):
    """Row `i` with column `i`, or every other.

    Attributes:
        like: a tensor of as many rows, on the device of the table.
        on: True for the diagonal, False for all but it.
    """

    like: Tensor
    on: bool = True

    def cells(self, rows: Tensor | None) -> Tensor:
        size, device = len(self.like), self.like.device
        if rows is None:
            table = torch.full((size, size), not self.on, dtype=torch.bool, device=device)
            return table.fill_diagonal_(self.on)
        table = torch.full((len(rows), size), not self.on, dtype=torch.bool, device=device)
        return table.scatter_(1, rows[:, None], self.on)

    def transpose(self) -> Diagonal:
        return self


@dataclass(frozen=True)
class Linked(Rule):
    """Whether some known pair has the row's number and the column's (or none has).

    Attributes:
        mine: (A,) whole numbers of the rows.
        theirs: (C,) of the columns, each of which is that of a pair.
        pairs: (P,) and (P,) the numbers of the pairs, of rows' kind and of columns'; None: row `i` and column `i` are a
            pair, and there are no others.
        linked: False turns it over.
    """

    mine: Tensor
    theirs: Tensor
    pairs: tuple[Tensor, Tensor] | None = None
    linked: bool = True

    def cells(self, rows: Tensor | None) -> Tensor:
        mine = self.mine if rows is None else self.mine[rows]
        of_rows, of_columns = (self.mine, self.theirs) if self.pairs is None else self.pairs
        order = of_columns.sort().values
        numbers = torch.searchsorted(order, of_columns.contiguous())  # (P,) below P, equal where the pairs' are
        same = (mine[:, None] == of_rows).float()  # (R, P)
        found = torch.zeros_like(same).index_add(1, numbers, same)  # by way of a pair that has both
        found = found.index_select(1, torch.searchsorted(order, self.theirs.contiguous()))  # (R, C)
        return found > 0 if self.linked else found == 0

    def transpose(self) -> Linked:
        return Linked(self.theirs, self.mine, None if self.pairs is None else self.pairs[::-1], self.linked)


@dataclass(frozen=True)
class Given(Rule):
    """A table that is there: (A, C), without gradient."""

    table: Tensor

    def cells(self, rows: Tensor | None) -> Tensor:
        return self.table if rows is None else self.table[rows]

    def transpose(self) -> Given:
        return Given(self.table.mT)


@dataclass(frozen=True)
class Both(Rule):
    """The product of two rules."""

    first: Rule
    second: Rule

    def cells(self, rows: Tensor | None) -> Tensor:
        return product(self.first.cells(rows), self.second.cells(rows))

    def transpose(self) -> Both:
        return Both(self.first.transpose(), self.second.transpose())


def cells_of(rule: Rule | float, rows: Tensor | None) -> Cells:
    """Some rows (or all) of a rule, or the number that holds for all cells."""
    return rule.cells(rows) if isinstance(rule, Rule) else rule


def pairs_that_match(labels: Tensor, features: Tensor) -> Tensor:
    """(A, A) bool: which texts (columns) belong to which images (rows), beside each image's own.

    Args:
        labels: (A,) integers: all images and texts of one label belong together (a caption of several images, an image
            of several captions). Or (A, 2): the image's number and the caption's; a text belongs to an image where
            some pair of the batch has this image's number and this caption's.
        features: (A, D) of either tower.

    Raises:
        TypeError: not integers.
        ValueError: another shape; on a CPU, labels that leave no negative.

    >>> pairs_that_match(torch.tensor([[0, 5], [0, 6], [1, 5]]), torch.ones(3, 2)).int()
    tensor([[1, 1, 1],
            [1, 1, 1],
            [1, 0, 1]], dtype=torch.int32)
    """
    return match_of_pairs(labels, features).cells(None)


def match_of_pairs(labels: Tensor, features: Tensor) -> Rule:
    """The rule of `pairs_that_match`; raises as it does."""
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`labels` of pairs must be a tensor of integers. Got {got}; number captions or image groups.")
    check_same_device("features", features, "labels", labels)
    if tuple(labels.shape) not in ((len(features),), (len(features), 2)):
        raise ValueError(
            "`labels` of pairs must have shape (pairs,), one a pair, or (pairs, 2), the image's and the caption's. "
            f"Got labels {tuple(labels.shape)}, features {tuple(features.shape)}."
        )
    rule = Match(labels, labels) if labels.ndim == 1 else Linked(*labels.unbind(1))
    if reads_values(features) and _all_match(rule, len(labels)):
        raise ValueError(
            "Image and text pairs need at least two that do not belong together, else there are no negatives. "
            f"Got {len(labels)} pairs whose labels match them all; sample several captions a batch."
        )
    return rule


def _all_match(rule: Rule, size: int) -> bool:
    """Whether every cell is set; it looks no further than the first rows that have one that is not."""
    return all(bool(rule.cells(rows).all()) for rows in torch.arange(size).split(16))


def product(first: Cells, second: Cells) -> Cells:
    """`first * second`, of bools a bool."""
    for constant, other in ((first, second), (second, first)):
        if not isinstance(constant, Tensor) and constant in (0.0, 1.0):
            return other if constant == 1.0 else 0.0
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype == second.dtype == torch.bool:
            return first & second
    return first * second


def complement(cells: Cells) -> Cells:
    """`1 - cells`, of bools a bool."""
    if isinstance(cells, Tensor) and cells.dtype == torch.bool:
        return ~cells
    return 1 - cells


def of_what_is_read(
    of_every: Tensor | None, of_near: Tensor | None, marks: list[Cells]
) -> tuple[Tensor, Tensor, list[Cells]]:
    """Gradients of row sums and of marked totals, of which one may be missing, and the marks that are to be read.

    Marked totals that nobody reads need no marks, and no zeros in place of their gradient.
    """
    if of_near is None:
        return of_every, of_every, [0.0] * len(marks)
    return torch.zeros_like(of_near) if of_every is None else of_every, of_near, marks


def dense(cells: Cells, like: Tensor) -> Tensor:
    """(A, C) of the dtype of `like`, expanded."""
    if isinstance(cells, Tensor):
        return cells.to(like.dtype).expand_as(like)
    return like.new_full((1, 1), cells).expand_as(like)
