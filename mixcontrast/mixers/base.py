"""What every mixer shares: it wraps a loss, or another mixer, and is used like one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixcontrast import kernels
from mixcontrast.losses.base import Batch, Loss, Part, value_of
from mixcontrast.mixing import Interpolation, anchor_side, needs_cosine
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Plan
from mixcontrast.similarity import similarity_table

_CHUNK = 1 << 19  # numbers of gathered rows that are alive at once: two megabytes of float32, near a core's cache


@dataclass(frozen=True)
class Groups:
    """Rows of a table that belong in one tile.

    Attributes:
        order: (A,) all rows, those of a group next to each other.
        sizes: how many each group has.
        must: whether a group may not be cut, however small the tiles.
    """

    order: Tensor
    sizes: list[int]
    must: bool


class Mixer(nn.Module, ABC):
    """A criterion that makes harder examples out of a table before its loss reads it.

    Random numbers are drawn apart from the arithmetic: `draw` takes a generator, `mix` is pure, differentiable and
    compiles in one graph. The same draw gives the same loss. Calling a mixer does both, with torch's own generator.
    """

    loss: Loss | Mixer

    @abstractmethod
    def draw(self, pairs: Pairs, generator: torch.Generator | None = None) -> Any:
        """Which pairs are mixed, and in which share; without gradient."""

    @abstractmethod
    def mix(self, pairs: Pairs, draw: Any) -> Any:
        """The table with mixed columns, or the mixed table, of a draw."""

    @abstractmethod
    def loss_of(self, pairs: Pairs, draw: Any) -> Tensor:
        """The loss of a table under a draw; a 0-dimensional tensor."""

    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        """How the tables of a batch are made: those of the wrapped loss."""
        return self.loss.plans(*inputs)

    def tables(self, *inputs: Tensor) -> tuple[Pairs, ...]:
        """The tables of a batch: those of the wrapped loss."""
        return Pairs.whole(self.plans(*inputs))

    def reduce(self, pairs: Pairs) -> Tensor:
        """The loss of a table under a fresh draw; a 0-dimensional tensor."""
        return self.loss_of(pairs, self.draw(pairs))

    def reduce_tables(self, tables: Sequence[Pairs]) -> Tensor:
        """The mean over the tables of a batch, all the way down a stack; a 0-dimensional tensor."""
        return value_of(self.parts_of(tables, Batch()))

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        """The parts of the tables of a batch, or of a tile of each, all the way down a stack.

        A batch passes here once, however many tables it has and wherever in a stack the mixer is; or once a tile, with
        one `batch` for all.
        """
        return self.loss.parts_of([self.mix(pairs, self.draw(pairs)) for pairs in tables], batch)

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]] | None:
        """`count` and `kept` of the parts of `parts_of`, as `Loss.counts`; None where only a draw tells."""
        return None

    def in_tiles(self, inputs: tuple, rows: int, batch: Batch) -> Tensor | None:
        """As `Loss.in_tiles`."""
        return None

    def read(self, plans: Sequence[Plan]) -> Sequence[Plan]:
        """Which of a batch's plans the mixer needs."""
        return plans

    def together(self, plans: Sequence[Plan]) -> Groups | None:
        """Which rows of the tables are best, or must be, in one tile; None where any may be."""
        return None if isinstance(self.loss, Loss) else self.loss.together(plans)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean over the tables of a batch; arguments are those of the wrapped loss, `labels` by name too."""
        loss = innermost(self.loss)
        inputs = loss.in_place(*inputs, labels=labels)
        return loss.answer(self.reduce_tables(self.tables(*inputs)), *inputs)


def innermost(criterion: Loss | Mixer) -> Loss:
    """The loss at the bottom of a stack of mixers."""
    while isinstance(criterion, Mixer):
        criterion = criterion.loss
    return criterion


def check_wrappable(mixer: str, loss: Any, *, soft_targets: bool) -> None:
    """One line where a mixer cannot wrap what it is given.

    Raises:
        TypeError: not a loss or mixer of ours, or a loss that cannot read the mixer's columns.
    """
    if not isinstance(loss, Loss | Mixer):
        raise TypeError(
            f"{mixer} wraps a mixcontrast loss or mixer. Got {type(loss).__module__}.{type(loss).__name__}; "
            "use the loss of the same name in mixcontrast."
        )
    bottom = innermost(loss)
    if not bottom.mixtures:
        raise TypeError(
            f"{mixer} adds mixtures, and {type(bottom).__name__} reads what mixtures do not carry. "
            "Use SupReMix(SupConLoss()) for real values, another loss for classes."
        )
    if soft_targets and not bottom.soft_targets:
        raise TypeError(
            f"{mixer} mixes labels, and {type(bottom).__name__} reads only targets of 0 and 1. "
            "Use a loss of the general pair form (MultiSimilarityLoss, ContrastiveLoss, ...), or MoCHi."
        )


def only_real_block(mixer: str, pairs: Pairs) -> Block:
    """The one block of columns that have embeddings.

    Raises:
        ValueError: there are none or several.
    """
    if len(pairs.real) != 1:
        raise ValueError(
            f"{mixer} mixes the columns of one block. Got {len(pairs.real)} blocks with embeddings; "
            "build the table by one of Pairs' constructors."
        )
    return pairs.real[0]


def is_among_itself(pairs: Pairs, block: Block) -> bool:
    """Whether anchors are the candidates, so that the table also holds the similarities of candidates."""
    return block.candidates is pairs.anchors


def products_with_all(pairs: Pairs, block: Block, columns: Tensor, detach: bool) -> Tensor:
    """(N, C) products of candidates with every candidate, from the rows of the table where it holds them.

    Args:
        columns: (N,) which.
        detach: without gradient.
    """
    table = block.similarity.detach() if detach else block.similarity
    if is_among_itself(pairs, block):
        return table.index_select(0, columns)
    if pairs.tile is not None and block.candidates is pairs.tile.anchors:
        place = torch.full((len(block.candidates),), -1, device=columns.device)
        place[pairs.tile.rows] = torch.arange(len(table), device=columns.device)
        places = place[columns]
        if bool((places >= 0).all()):
            return table.index_select(0, places)
    candidates = block.candidates.detach() if detach else block.candidates
    return similarity_table(candidates.index_select(0, columns), candidates)


def source(pairs: Pairs, block: Block, detach: bool) -> Tensor:
    """(A, C) the similarities to mix: of detached candidates, or of all."""
    return anchor_side(block.similarity, pairs.anchors, block.candidates) if detach else block.similarity


def self_similarity(pairs: Pairs, detach: bool) -> Tensor:
    """(A, 1) each anchor's product with itself, with the gradient a mixture of it needs.

    That lies along the anchor, so what divided the anchor by its length stops it: then the product is 1, without.
    """
    anchors = pairs.anchors
    if pairs.anchors_are_unit:
        return anchors.new_ones(1, 1).expand(len(anchors), 1)
    return (anchors * (anchors.detach() if detach else anchors)).sum(dim=1, keepdim=True)


def parent_cosine(
    pairs: Pairs, block: Block, first: Tensor, second: Tensor, interpolation: Interpolation, detach: bool
) -> Tensor | None:
    """(A, M) cosines of pairs of candidates, from the table where it holds them, else in chunks of gathered rows.

    Args:
        first: (A, M) columns.
        second: (A, M) columns.
        interpolation: None is returned where its coefficients do not need the cosine.
        detach: without gradient.
    """
    if not needs_cosine(interpolation):
        return None
    if is_among_itself(pairs, block):
        table = block.similarity.detach() if detach else block.similarity
        return table.flatten()[first * table.shape[1] + second]
    return row_products(block.candidates.detach() if detach else block.candidates, first, second)


def read_detached(pairs: Pairs, block: Block, columns: Tensor) -> Tensor:
    """(A, M) cells of the table, as similarities to detached candidates: gradient to the anchors alone.

    The backward pass is a weighted sum of the candidates read, so no table of gradients is made for a few cells.
    """
    if torch.compiler.is_compiling():
        return source(pairs, block, detach=True).gather(1, columns)
    return _Read.apply(block.similarity.detach(), pairs.anchors, block.candidates.detach(), columns)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, anchors: Tensor, candidates: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(candidates, columns)
        ctx.fused = kernels.fused(candidates, half=True)
        return table.gather(1, columns)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None, None]:
        candidates, columns = ctx.saved_tensors
        if ctx.fused:
            from mixcontrast.kernels.gathers import weighted_rows

            return None, weighted_rows(candidates, columns, grad), None, None
        return None, F.embedding_bag(columns, candidates, per_sample_weights=grad, mode="sum"), None, None


def row_products(candidates: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(A, M) `candidates[first] . candidates[second]`, a few thousand rows alive at a time."""
    return _RowProducts.apply(candidates, first, second)


class _RowProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, candidates: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(candidates, first, second)
        if kernels.fused(candidates, half=True):
            from mixcontrast.kernels.gathers import row_dots

            return row_dots(candidates, first, candidates, second)
        left, right = first.reshape(-1), second.reshape(-1)
        products = candidates.new_empty(left.shape)
        step = _pairs_at_once(candidates)
        both = torch.stack([left, right], dim=1)  # (A * M, 2)
        squares = torch.linalg.vector_norm(candidates, dim=1).square_()
        for start in range(0, len(left), step):  # x1.x2 = (|x1 + x2|^2 - |x1|^2 - |x2|^2) / 2, in one gathering pass
            part = slice(start, start + step)
            torch.linalg.vector_norm(F.embedding_bag(both[part], candidates, mode="sum"), dim=1, out=products[part])
        return products.square_().sub_(squares[left]).sub_(squares[right]).div_(2).view(first.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        candidates, first, second = ctx.saved_tensors
        left, right, grad = first.reshape(-1), second.reshape(-1), grad.reshape(-1, 1)
        total = torch.zeros_like(candidates)
        step = _pairs_at_once(candidates)
        for start in range(0, len(left), step):
            part = slice(start, start + step)
            total.index_add_(0, left[part], candidates.index_select(0, right[part]).mul_(grad[part]))
            total.index_add_(0, right[part], candidates.index_select(0, left[part]).mul_(grad[part]))
        return total, None, None


def table_products(candidates: Tensor, vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(A, M) `candidates[first] . vectors[second]`, a few thousand rows alive at a time; no gradient to `vectors`."""
    return _TableProducts.apply(candidates, vectors, first, second)


class _TableProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, candidates: Tensor, vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(candidates, vectors, first, second)
        if kernels.fused(candidates, vectors, half=True):
            from mixcontrast.kernels.gathers import row_dots

            return row_dots(candidates, first, vectors, second)
        left, right = first.reshape(-1), second.reshape(-1)
        products = candidates.new_empty(left.shape)
        step = _pairs_at_once(candidates)
        for start in range(0, len(left), step):
            part = slice(start, start + step)
            rows = candidates.index_select(0, left[part]).mul_(vectors.index_select(0, right[part]))
            torch.sum(rows, dim=1, out=products[part])
        return products.view(first.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        candidates, vectors, first, second = ctx.saved_tensors
        left, right, grad = first.reshape(-1), second.reshape(-1), grad.reshape(-1, 1)
        total = torch.zeros_like(candidates)
        step = _pairs_at_once(candidates)
        for start in range(0, len(left), step):
            part = slice(start, start + step)
            total.index_add_(0, left[part], vectors.index_select(0, right[part]).mul_(grad[part]))
        return total, None, None, None


def _pairs_at_once(candidates: Tensor) -> int:
    return max(1, (_CHUNK if candidates.device.type == "cpu" else _CHUNK * 64) // candidates.shape[1])


def pick(mask: Tensor, share: Tensor) -> Tensor:
    """(A, M) columns drawn uniformly among those where `mask` is set.

    Args:
        mask: (A, C) bool; a row without any gives the last column.
        share: (A, M) uniform in [0, 1).
    """
    running = mask.cumsum(dim=1)  # (A, C)
    rank = (share * running[:, -1:]).floor().long() + 1
    return torch.searchsorted(running, rank).clamp(max=mask.shape[1] - 1)
