"""Log-sum-exp and marked total of each row of a table: one reading of it forward, one reading and one writing back.

A thread keeps sums of its own for every cell of a block that goes along the row, so that threads meet once, at the end.
Blocks are wide where the cells of a row lie next to each other, and tall where those of a column do (a transposed
table), so that neighbouring threads read neighbouring cells. Where rows are few, several programs share one; their
parts are joined in order, so that results repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixcontrast.cells import Cells, of_what_is_read
from mixcontrast.kernels.gathers import on

_CELLS = 1024  # of a block: eight for each of a program's 128 threads
_TALL = 64  # rows of a block of a transposed table: 256 bytes of float32 next to each other
_PROGRAMS = 2048  # enough to fill a GPU: about sixteen for each of an H100's 132 processors
_WARPS = 4  # of 32 threads each
_JOINED = 128  # rows whose parts one program joins

_UNREAD, _BOOL, _FLOAT = 0, 1, 2  # every weight 1 or no mark; a bool table; a table of numbers


class FusedLogSumExp(torch.autograd.Function):
    """As the plain log-sum-exp of `mixcontrast.losses.rowsums`, values and gradients; keeps one number a row."""

    @staticmethod
    def forward(ctx, scale: Tensor, weights: list[Cells], marks: list[Cells], *similarities: Tensor):
        blocks = [_Block.of(*block) for block in zip(similarities, weights, marks, strict=True)]
        rows, parts = len(similarities[0]), sum(block.parts for block in blocks)
        every, near, count = (similarities[0].new_empty(parts * rows) for _ in range(3))
        done = 0
        for block in blocks:
            block.sums(scale, every, near, count, done)
            done += block.parts
        if parts > 1:
            every, near, count = _joined(every, near, count, rows, parts)
        ctx.weights, ctx.marks = weights, marks
        ctx.save_for_backward(scale, every, *similarities)
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)
        return every, near, count

    @staticmethod
    @once_differentiable
    def backward(ctx, of_every: Tensor | None, of_near: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        scale, every, *similarities = ctx.saved_tensors
        if of_every is None and of_near is None:
            return (None,) * len(ctx.needs_input_grad)
        of_every, of_near, marks = of_what_is_read(of_every, of_near, ctx.marks)
        of_scale = torch.zeros_like(scale) if ctx.needs_input_grad[0] else None
        of_blocks: list[Tensor | None] = []
        for place, (similarity, weight, mark) in enumerate(zip(similarities, ctx.weights, marks, strict=True)):
            wanted = ctx.needs_input_grad[3 + place]
            table, moved = None, None
            if wanted or of_scale is not None:
                block = _Block.of(similarity, weight, mark)
                table, moved = block.gradients(scale, every, of_every, of_near, wanted, of_scale is not None)
            if moved is not None:
                of_scale += moved.sum()
            of_blocks.append(table)
        return of_scale, None, None, *of_blocks


@dataclass(frozen=True)
class _Block:
    """A block of columns, and how programs share it.

    Attributes:
        similarity: (A, C).
        weight: (A, C), expanded, or `similarity` where it is not read.
        weighing: what `weight` is.
        mark: likewise.
        marking: likewise.
        tall: rows of a program.
        wide: columns that it reads at once.
        steps: how often.
        parts: programs that share a row.
    """

    similarity: Tensor
    weight: Tensor
    weighing: int
    mark: Tensor
    marking: int
    tall: int
    wide: int
    steps: int
    parts: int

    @staticmethod
    def of(similarity: Tensor, weight: Cells, mark: Cells) -> _Block:
        rows, columns = max(1, similarity.shape[0]), similarity.shape[1]
        across = similarity.stride(1) > similarity.stride(0) and rows > 1
        tall = min(_TALL, triton.next_power_of_2(rows)) if across else 1
        wide = min(_CELLS // tall, triton.next_power_of_2(columns))
        tall = min(_CELLS // wide, triton.next_power_of_2(rows))  # short rows: several a program
        steps = triton.cdiv(columns, wide)
        parts = min(steps, max(1, _PROGRAMS // triton.cdiv(rows, tall)))
        steps = triton.cdiv(steps, parts)
        parts = triton.cdiv(columns, steps * wide)
        return _Block(similarity, *_read(weight, 1, similarity), *_read(mark, 0, similarity), tall, wide, steps, parts)

    @property
    def _grid(self) -> tuple[int, int]:
        return triton.cdiv(len(self.similarity), self.tall), self.parts

    def sums(self, scale: Tensor, every: Tensor, near: Tensor, count: Tensor, done: int) -> None:
        """Writes each part's sums at (`done` + part, row) of (parts, A)."""
        if not len(self.similarity):
            return
        with on(self.similarity.device):
            _row_sums[self._grid](
                self.similarity, self.weight, self.mark, scale, every, near, count,
                *self.similarity.shape, self.steps * self.wide, done,
                *self.similarity.stride(), *self.weight.stride(), *self.mark.stride(),
                WEIGHING=self.weighing, MARKING=self.marking, LEAST=torch.finfo(self.similarity.dtype).min,
                TALL=self.tall, WIDE=self.wide, num_warps=_WARPS,
            )  # fmt: skip

    def gradients(
        self, scale: Tensor, every: Tensor, of_every: Tensor, of_near: Tensor, wanted: bool, of_scale: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """(A, C) of the similarities, if wanted; and numbers whose sum is the scale's, if wanted."""
        grid = self._grid
        table = torch.empty_like(self.similarity) if wanted else self.similarity
        moved = self.similarity.new_empty(grid) if of_scale else every
        if len(self.similarity):
            with on(self.similarity.device):
                _row_gradients[grid](
                    self.similarity, self.weight, self.mark, scale, every, of_every, of_near, table, moved,
                    *self.similarity.shape, self.steps * self.wide,
                    *self.similarity.stride(), *self.weight.stride(), *self.mark.stride(), *table.stride(),
                    *of_every.stride(), *of_near.stride(),
                    WEIGHING=self.weighing, MARKING=self.marking, OF_TABLE=wanted, OF_SCALE=of_scale,
                    TALL=self.tall, WIDE=self.wide, num_warps=_WARPS,
                )  # fmt: skip
        return table if wanted else None, moved if of_scale else None


def _read(cells: Cells, unread: float, similarity: Tensor) -> tuple[Tensor, int]:
    """A table as a kernel reads it, and what it is; one number is a table of strides 0."""
    if not isinstance(cells, Tensor):
        if cells == unread:
            return similarity, _UNREAD
        cells = similarity.new_full((1, 1), cells)
    table = cells.expand_as(similarity)
    return (table.view(torch.uint8), _BOOL) if cells.dtype == torch.bool else (table, _FLOAT)


def _joined(every: Tensor, near: Tensor, count: Tensor, rows: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of whole rows, (A,), from those of parts, (parts * A,)."""
    joined = [every.new_empty(rows) for _ in range(3)]
    if rows:
        with on(every.device):
            _join[(triton.cdiv(rows, _JOINED),)](
                every, near, count, *joined, rows, parts,
                LEAST=torch.finfo(every.dtype).min, TALL=_JOINED, num_warps=_WARPS,
            )  # fmt: skip
    return joined[0], joined[1], joined[2]


@triton.jit
def _logits(cells, scale, weight, there, WEIGHING: tl.constexpr):
    """`scale * cells + log(weight)`, -inf where the weight is 0 or nothing is there; `weight` points at the weights."""
    logits = cells * scale
    if WEIGHING == 1:
        kept = tl.load(weight, mask=there, other=0) != 0
        logits = tl.where(kept, logits, float("-inf"))
    elif WEIGHING == 2:
        number = tl.load(weight, mask=there, other=0.0).to(cells.dtype)
        logits += tl.log(tl.where(number == 0, 1.0, number))
        logits = tl.where(number == 0, float("-inf"), logits)
    return tl.where(there, logits, float("-inf"))


@triton.jit
def _exp_sum(most, total, axis: tl.constexpr):
    """`log sum e^most * total` along an axis; -inf where every total is 0."""
    top = tl.max(most, axis=axis)
    total = tl.sum(total * tl.exp(most - tl.expand_dims(top, axis)), axis=axis)
    return tl.where(total == 0, float("-inf"), top + tl.log(tl.where(total == 0, 1.0, total)))


@triton.jit(do_not_specialize=["done"])  # the rest tells whether four cells may be read at once
def _row_sums(
    similarity, weight, mark, scale, every, near, count, rows, columns, reach, done,
    similarity_row, similarity_column, weight_row, weight_column, mark_row, mark_column,
    WEIGHING: tl.constexpr, MARKING: tl.constexpr, LEAST: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
    inside = row < rows
    factor = tl.load(scale)
    kind = similarity.dtype.element_ty
    most = tl.full((TALL, WIDE), LEAST, kind)  # what a thread has seen; finite, so that no difference is undefined
    total = tl.zeros((TALL, WIDE), kind)  # of e^(logit - most)
    marked = tl.zeros((TALL, WIDE), kind)
    marks = tl.zeros((TALL, WIDE), kind)
    for start in range(0, reach, WIDE):
        column = part * reach + start + tl.arange(0, WIDE)
        there = inside[:, None] & (column < columns)[None, :]
        down, across = row[:, None], column.to(tl.int64)[None, :]
        cells = tl.load(similarity + down * similarity_row + across * similarity_column, mask=there, other=0.0)
        logits = _logits(cells, factor, weight + down * weight_row + across * weight_column, there, WEIGHING)
        if MARKING != 0:
            number = tl.load(mark + down * mark_row + across * mark_column, mask=there, other=0).to(kind)
            marked += number * cells
            marks += number
        step = logits - most
        shrunk = tl.exp(-tl.abs(step))  # one exponential a cell, of whichever is less
        total = tl.where(step > 0, total * shrunk + 1.0, total + shrunk)
        most = tl.maximum(most, logits)
    to = (done + part).to(tl.int64) * rows + row
    tl.store(every + to, _exp_sum(most, total, 1), mask=inside)
    tl.store(near + to, tl.sum(marked, axis=1), mask=inside)
    tl.store(count + to, tl.sum(marks, axis=1), mask=inside)


@triton.jit(do_not_specialize=["parts"])
def _join(
    every, near, count, to_every, to_near, to_count, rows, parts, LEAST: tl.constexpr, TALL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
    inside = row < rows
    kind = every.dtype.element_ty
    most = tl.full((TALL,), LEAST, kind)
    total = tl.zeros((TALL,), kind)
    marked = tl.zeros((TALL,), kind)
    marks = tl.zeros((TALL,), kind)
    at = row
    for _ in range(0, parts):
        logits = tl.load(every + at, mask=inside, other=0.0)
        marked += tl.load(near + at, mask=inside, other=0.0)
        marks += tl.load(count + at, mask=inside, other=0.0)
        step = logits - most
        shrunk = tl.exp(-tl.abs(step))
        total = tl.where(step > 0, total * shrunk + 1.0, total + shrunk)
        most = tl.maximum(most, logits)
        at += rows
    whole = tl.where(total == 0, float("-inf"), most + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(to_every + row, whole, mask=inside)
    tl.store(to_near + row, marked, mask=inside)
    tl.store(to_count + row, marks, mask=inside)


@triton.jit
def _row_gradients(
    similarity, weight, mark, scale, every, of_every, of_near, table, moved, rows, columns, reach,
    similarity_row, similarity_column, weight_row, weight_column, mark_row, mark_column, table_row, table_column,
    of_every_row, of_near_row,
    WEIGHING: tl.constexpr, MARKING: tl.constexpr, OF_TABLE: tl.constexpr, OF_SCALE: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
    inside = row < rows
    factor = tl.load(scale)
    kind = similarity.dtype.element_ty
    whole = tl.load(every + row, mask=inside, other=0.0)
    whole = tl.where(whole == float("-inf"), 0.0, whole)
    pull = tl.load(of_every + row * of_every_row, mask=inside, other=0.0)
    near_pull = tl.load(of_near + row * of_near_row, mask=inside, other=0.0)
    of_scale = tl.zeros((TALL, WIDE), kind)
    for start in range(0, reach, WIDE):
        column = part * reach + start + tl.arange(0, WIDE)
        there = inside[:, None] & (column < columns)[None, :]
        down, across = row[:, None], column.to(tl.int64)[None, :]
        cells = tl.load(similarity + down * similarity_row + across * similarity_column, mask=there, other=0.0)
        logits = _logits(cells, factor, weight + down * weight_row + across * weight_column, there, WEIGHING)
        share = tl.exp(logits - whole[:, None]) * pull[:, None]
        if OF_SCALE:
            of_scale += share * cells
        if OF_TABLE:
            gradient = share * factor
            if MARKING != 0:
                number = tl.load(mark + down * mark_row + across * mark_column, mask=there, other=0).to(kind)
                gradient += number * near_pull[:, None]
            tl.store(table + down * table_row + across * table_column, gradient, mask=there)
    if OF_SCALE:
        to = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + part
        tl.store(moved + to, tl.sum(tl.sum(of_scale, axis=1), axis=0))
