"""Cross-entropy of a square table read both ways, by rows and by columns, and of tables mixed from it in the same pass.

On a CPU a pass over a table that does not fit its caches costs more than the arithmetic. Here a table is read once
forward and once backward, a chunk of rows at a time; each chunk's mixtures, exponentials and gradients stay in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 17  # cells of a chunk: half a megabyte of float32, of which a few are alive


@dataclass(frozen=True)
class ReverseMix:
    """A table whose row `i` is `first * row_i + second * row_r(i)`, or the same of columns, or of both; `r` reverses.

    Attributes:
        rows: (A,) coefficients first and second, or None: rows stay.
        columns: likewise.
        lam: 0-dimensional; targets are `lam` at (i, i) and `1 - lam` at (i, r(i)).
        scale: multiplies the similarities; a number or 0-dimensional.
        weight: of this table's loss in the total.
    """

    rows: tuple[Tensor, Tensor] | None
    columns: tuple[Tensor, Tensor] | None
    lam: Tensor
    scale: Tensor | float
    weight: float


def cross_entropy_both_ways(
    similarity: Tensor, scale: Tensor | float, mixtures: Sequence[ReverseMix] = ()
) -> Tensor | None:
    """The mean of row and column cross-entropy of a table whose diagonal is positive, plus those of its mixtures.

    Args:
        similarity: (A, A) on a CPU.
        scale: multiplies; a number or 0-dimensional.
        mixtures: tables mixed from this one; then A must be even.

    Returns:
        A 0-dimensional tensor; None where similarities lie so far apart that a column's sum would lose digits, or A
        does not fit: read the tables one by one.
    """
    if mixtures and len(similarity) % 2:
        return None
    lams = [1.0, *(float(mix.lam) for mix in mixtures)]
    scales = torch.stack([torch.as_tensor(s, dtype=similarity.dtype) for s in (scale, *(m.scale for m in mixtures))])
    weights = [1.0, *(mix.weight for mix in mixtures)]
    kinds = [(False, False), *((mix.rows is not None, mix.columns is not None) for mix in mixtures)]
    coefficients = [c for mix in mixtures for pair in (mix.rows, mix.columns) if pair is not None for c in pair]
    with torch.no_grad(), torch.autocast(similarity.device.type, enabled=False):
        sums = None if bool((scales == 0).any()) else _sums(similarity, _tables(kinds, scales, lams, coefficients))
    return None if sums is None else _BothWays.apply(similarity, scales, lams, kinds, weights, sums, *coefficients)


class _Chunk:
    """Some rows of a table, in order or in pairs: rows `start` and up, and then those that the reverse makes of them.

    Numbers of rows are kept in the same order, (S, A / S, 1); S is 2 where rows come in pairs, else 1.

    Attributes:
        cells: (S, H, A), a view; of pairs a copy in `buffer`.
    """

    def __init__(self, table: Tensor, buffer: Tensor | None, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.index = torch.arange(start, stop)  # (S * H,)
        if buffer is not None:
            self.index = torch.cat([self.index, len(table) - 1 - self.index])
            self.cells = buffer[: len(self.index) * len(table)].view(2, stop - start, -1)
            torch.index_select(table, 0, self.index, out=self.cells.view(-1, len(table)))
        else:
            self.cells = table[start:stop][None]

    def scratch(self, buffer: Tensor) -> Tensor:
        """(S, H, A) of a flat buffer, written over by the next one who asks."""
        return buffer[: self.cells.numel()].view(self.cells.shape)

    def part(self, rows: Tensor) -> Tensor:
        """(S, H, 1) of this chunk, from numbers of all rows."""
        return rows[:, self.start : self.stop]

    def positives(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Views (S, H) of `cells` (S, H, A): on the diagonal through the first row's own cell, and through its reverse.

        In the second half of a pair the two exchange their parts.
        """
        sides, count, width = cells.shape
        rising = cells.as_strided((sides, count), (count * width, width + 1), cells.storage_offset() + self.start)
        last = cells.storage_offset() + width - 1 - self.start
        return rising, cells.as_strided((sides, count), (count * width, width - 1), last)


def _chunks(table: Tensor, paired: bool) -> Iterator[_Chunk]:
    last = len(table) // 2 if paired else len(table)
    step = max(1, _CHUNK // (len(table) * (2 if paired else 1)))
    buffer = _buffers(table, 1)[0] if paired else None
    for start in range(0, last, step):
        yield _Chunk(table, buffer, start, min(start + step, last))


def _buffers(table: Tensor, count: int) -> list[Tensor]:
    """Flat tensors that hold a chunk each."""
    cells = min(table.numel(), max(_CHUNK, 2 * len(table)))
    return [table.new_empty(cells) for _ in range(count)]


def _by_chunk_order(numbers: Tensor, paired: bool) -> Tensor:
    """(S, A / S, 1) of (A,) numbers of rows, as a chunk keeps them."""
    if not paired:
        return numbers[None, :, None]
    return torch.stack([numbers, numbers.flip(0)])[:, : len(numbers) // 2, None]


def _by_row(numbers: Tensor) -> Tensor:
    """(A,), the other way round, of pairs."""
    return torch.cat([numbers[0, :, 0], numbers[1, :, 0].flip(0)])


@dataclass(frozen=True)
class _Table:
    """One of the tables of a pass: how its logits are mixed from a chunk of the real one.

    Attributes:
        rows: (2, A / 2, 1) coefficients of a row and of its reverse, or None.
        columns: (A,) each, or None.
        scale: a number; the first coefficients that there are hold it already.
        shares: (S, 1) what the positives on the rising diagonal of a chunk count; on the falling one, reversed.
    """

    rows: tuple[Tensor, Tensor] | None
    columns: tuple[Tensor, Tensor] | None
    scale: float
    shares: Tensor

    def logits(self, chunk: _Chunk, out: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk with its rows mixed, and its logits, of which the columns are mixed too; one of them in `out`."""
        of_rows = chunk.cells
        if self.rows is None and self.columns is None:
            return of_rows, torch.mul(of_rows, self.scale, out=out)
        if self.rows is not None:
            first, second = (chunk.part(c) for c in self.rows)
            of_rows = torch.mul(chunk.cells, first, out=out)
            for this, other in ((0, 1), (1, 0)):
                of_rows[this].addcmul_(chunk.cells[other], second[this])
        if self.columns is None:
            return of_rows, of_rows
        first, second = self.columns
        return of_rows, of_rows.flip(2).mul_(second).addcmul_(of_rows, first)

    def add_gradient(
        self, total: Tensor, grad: Tensor, of_rows: Tensor, chunk: _Chunk, of: Sequence[Tensor], free: Tensor
    ) -> None:
        """Adds the gradient of the chunk to `total` and those of the coefficients to `of`, from that of the logits.

        Args:
            of: as the coefficients, rows in a chunk's order; empty where they are not wanted.
            free: (S, H, A) to write over.
        """
        if self.columns is not None:
            first, second = self.columns
            turned = grad.flip(2)
            if of:
                by, width = 1.0 if self.rows is not None else self.scale, len(first)
                of[-2].add_(torch.mul(grad, of_rows, out=free).view(-1, width).sum(dim=0), alpha=by)
                of[-1].add_(torch.mul(turned, of_rows, out=free).view(-1, width).sum(dim=0).flip(0), alpha=by)
            if self.rows is None:
                total.addcmul_(turned, second.flip(0)).addcmul_(grad, first)
                return
            grad = turned.mul_(second.flip(0)).addcmul_(grad, first)
        first, second = (chunk.part(c) for c in self.rows)
        if of:
            chunk.part(of[0])[:, :, 0] = torch.linalg.vecdot(grad, chunk.cells).mul_(self.scale)
        total.addcmul_(grad, first)
        for this, other in ((0, 1), (1, 0)):
            total[this].addcmul_(grad[other], second[other])
            if of:
                dots = torch.linalg.vecdot(grad[this], chunk.cells[other])
                chunk.part(of[1])[this, :, 0] = dots.mul_(self.scale)


def _tables(
    kinds: Sequence[tuple[bool, bool]], scales: Tensor, lams: Sequence[float], coefficients: Sequence[Tensor]
) -> list[_Table]:
    left = [c.detach() for c in coefficients]
    paired = len(kinds) > 1
    found = []
    for (by_rows, by_columns), scale, lam in zip(kinds, scales.tolist(), lams, strict=True):
        rows = columns = None
        if by_rows:
            rows = tuple(_by_chunk_order(left.pop(0) * scale, paired) for _ in range(2))
        if by_columns:
            by = 1.0 if by_rows else scale
            columns = left.pop(0) * by, left.pop(0) * by
        shares = scales.new_tensor([[lam], [1 - lam]] if paired else [[lam]])
        found.append(_Table(rows, columns, scale, shares))
    return found


def _sums(similarity: Tensor, tables: list[_Table]) -> tuple[Tensor, Tensor, Tensor] | None:
    """(T, S, A / S, 1) log-sum-exp of rows, (T, A) of columns, and (T,) totals of the logits of positives.

    Columns are summed about one maximum a table; None where one of them comes out too small to be exact.
    """
    size, paired = len(similarity), len(tables) > 1
    rows = similarity.new_empty(len(tables), 1 + paired, size // (1 + paired), 1)
    columns = similarity.new_zeros(len(tables), size)
    near = similarity.new_zeros(len(tables))
    most = [-math.inf] * len(tables)
    first, second = _buffers(similarity, 2)
    for chunk in _chunks(similarity, paired):
        for t, table in enumerate(tables):
            logits = table.logits(chunk, chunk.scratch(first))[1]
            rising, falling = chunk.positives(logits)
            near[t] += (rising * table.shares).sum()
            if paired:
                near[t] += (falling * table.shares.flip(0)).sum()
            share = torch.softmax(logits, dim=2, out=chunk.scratch(second))
            # of the largest cell, whose share is at least one in A: no digits are lost
            sums = logits.amax(dim=2, keepdim=True).sub_(share.amax(dim=2, keepdim=True).log_())
            chunk.part(rows[t]).copy_(sums)
            new = max(most[t], float(sums.max()))
            columns[t].mul_(math.exp(most[t] - new))
            columns[t].addmv_(share.view(-1, size).mT, sums.sub_(new).exp_().view(-1))
            most[t] = new
    if not bool((columns > torch.finfo(similarity.dtype).tiny ** 0.8).all()):
        return None
    return rows, columns.log_().add_(similarity.new_tensor(most)[:, None]), near


class _BothWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx, similarity, scales, lams, kinds, weights, sums, *coefficients) -> Tensor:
        rows, columns, near = sums
        ctx.save_for_backward(similarity, scales, rows, columns, *coefficients)
        ctx.kinds, ctx.lams, ctx.weights = kinds, lams, similarity.new_tensor(weights)
        losses = ((rows.flatten(1) + columns).sum(dim=1) / 2 - near) / len(similarity)
        return (losses * ctx.weights).sum()

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        similarity, scales, rows, columns, *coefficients = ctx.saved_tensors
        tables = _tables(ctx.kinds, scales, ctx.lams, coefficients)
        size, paired = len(similarity), len(tables) > 1
        of_similarity, of_scales = torch.empty_like(similarity), torch.zeros_like(scales)
        of_coefficients = []
        if any(ctx.needs_input_grad[1:]):
            kinds = [pair for by in ctx.kinds for pair in zip((True, False), by, strict=True)]
            by_rows = [kind for kind, count in kinds for _ in range(2 * count)]
            of_coefficients = [
                torch.zeros_like(_by_chunk_order(c, paired) if rows else c)
                for c, rows in zip(coefficients, by_rows, strict=True)
            ]
        parts = grad * ctx.weights / (2 * size)
        parts[0] *= scales[0]  # the gradient of a similarity; mixtures have their scale in their coefficients
        middle = rows.amax(dim=2, keepdim=True).amax(dim=1, keepdim=True)
        by_row = (rows - middle).exp_().mul_(parts[:, None, None, None])  # (T, S, A / S, 1)
        by_column = (middle[:, 0, :, 0] - columns).exp_()
        ones = parts[:, None].repeat(1, size)
        buffers = _buffers(similarity, 3)
        for chunk in _chunks(similarity, paired):
            free, share, total = (chunk.scratch(buffer) for buffer in buffers)
            if not paired:
                total = of_similarity[chunk.start : chunk.stop][None]
            used = 0
            for t, (table, part) in enumerate(zip(tables, parts.tolist(), strict=True)):
                of_rows, logits = table.logits(chunk, free)
                of_logits = torch.softmax(logits, dim=2, out=share if t else total)
                of_logits.mul_(torch.addcmul(ones[t], chunk.part(by_row[t]), by_column[t], out=logits))
                rising, falling = chunk.positives(of_logits)
                rising -= 2 * part * table.shares
                if paired:
                    falling -= 2 * part * table.shares.flip(0)
                if t == 0:  # the real table comes first
                    if ctx.needs_input_grad[1]:
                        of_scales[0] += torch.linalg.vecdot(total, chunk.cells).sum()
                    continue
                of = of_coefficients[used : used + 2 * sum(ctx.kinds[t])]
                used += len(of)
                table.add_gradient(total, share, of_rows, chunk, of, logits)
            if paired:
                of_similarity.index_copy_(0, chunk.index, total.view(-1, size))
        of_scales[0] /= scales[0]
        if not of_coefficients:
            return of_similarity, of_scales, None, None, None, None, *[None] * len(coefficients)
        of_coefficients = [_by_row(of) if of.ndim == 3 else of for of in of_coefficients]
        used = 0
        for t, kind in enumerate(ctx.kinds):
            if any(kind):  # logits are as linear in the first two coefficients as in the scale
                for c, of in zip(coefficients[used : used + 2], of_coefficients[used : used + 2], strict=True):
                    of_scales[t] += torch.dot(c, of) / scales[t]
            used += 2 * sum(kind)
        return of_similarity, of_scales, None, None, None, None, *of_coefficients
