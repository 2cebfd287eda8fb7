"""Cross-entropy of a square table read both ways, by rows and by columns, and of tables mixed from it in the same pass.

On a CPU a pass over a table that does not fit its caches costs more than the arithmetic. Here a table is read once
forward and once backward, a chunk of rows at a time; each chunk's mixtures, exponentials and gradients stay in cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixcontrast.losses.chunks import Chunk, GivenTable, ProductTable


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
    return _both_ways((similarity,), None, scale, mixtures)


def cross_entropy_of_features(
    image: Tensor, text: Tensor, scale: Tensor | float, mixtures: Sequence[ReverseMix] = (), *, rows: int
) -> Tensor | None:
    """`cross_entropy_both_ways(image @ text.T, scale, mixtures)`, of which no more than some rows are ever there.

    They are made once forward and once more backward.

    Args:
        image: (A, D) on a CPU.
        text: (A, D).
        scale: as there, and `mixtures` likewise.
        mixtures: as there.
        rows: how many rows are alive at once, at least 1; of mixtures 2.
    """
    return _both_ways((image, text), rows, scale, mixtures)


def _both_ways(
    given: tuple[Tensor, ...], rows: int | None, scale: Tensor | float, mixtures: Sequence[ReverseMix]
) -> Tensor | None:
    like = given[0]
    if mixtures and len(like) % 2:
        return None
    lams = [1.0, *(float(mix.lam) for mix in mixtures)]
    scales = torch.stack([torch.as_tensor(s, dtype=like.dtype) for s in (scale, *(m.scale for m in mixtures))])
    weights = [1.0, *(mix.weight for mix in mixtures)]
    kinds = [(False, False), *((mix.rows is not None, mix.columns is not None) for mix in mixtures)]
    coefficients = [c for mix in mixtures for pair in (mix.rows, mix.columns) if pair is not None for c in pair]
    if bool((scales == 0).any()):
        return None
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        sums = _sums(_source(given, rows), _tables(kinds, scales, lams, coefficients))
    if sums is None:
        return None
    first, second = given if rows is not None else (*given, None)
    return _BothWays.apply(first, second, rows, scales, lams, kinds, weights, sums, *coefficients)


def _source(given: tuple[Tensor, ...], rows: int | None) -> GivenTable | ProductTable:
    return GivenTable(*given) if rows is None else ProductTable(*given, rows)


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

    def logits(self, chunk: Chunk, out: Tensor) -> tuple[Tensor, Tensor]:
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
        self, total: Tensor, grad: Tensor, of_rows: Tensor, chunk: Chunk, of: Sequence[Tensor], free: Tensor
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


def _sums(source: GivenTable | ProductTable, tables: list[_Table]) -> tuple[Tensor, Tensor, Tensor] | None:
    """(T, S, A / S, 1) log-sum-exp of rows, (T, A) of columns, and (T,) totals of the logits of positives.

    Columns are summed about one maximum a table; None where one of them comes out too small to be exact.
    """
    size, similarity, paired = source.size, source.like, len(tables) > 1
    rows = similarity.new_empty(len(tables), 1 + paired, size // (1 + paired), 1)
    columns = similarity.new_zeros(len(tables), size)
    near = similarity.new_zeros(len(tables))
    most = [-math.inf] * len(tables)
    first, second = source.buffers(2)
    for chunk in source.chunks(paired):
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
    def forward(ctx, first, second, tile_rows, scales, lams, kinds, weights, sums, *coefficients) -> Tensor:
        rows, columns, near = sums
        ctx.tile_rows = tile_rows
        given = (first,) if second is None else (first, second)
        ctx.save_for_backward(scales, rows, columns, *given, *coefficients)
        ctx.kinds, ctx.lams, ctx.weights = kinds, lams, first.new_tensor(weights)
        losses = ((rows.flatten(1) + columns).sum(dim=1) / 2 - near) / len(first)
        return (losses * ctx.weights).sum()

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        scales, rows, columns, *rest = ctx.saved_tensors
        given, coefficients = (rest[:1], rest[1:]) if ctx.tile_rows is None else (rest[:2], rest[2:])
        source = _source(given, ctx.tile_rows)
        tables = _tables(ctx.kinds, scales, ctx.lams, coefficients)
        size, paired = source.size, len(tables) > 1
        of_scales, of_coefficients = torch.zeros_like(scales), []
        if any(ctx.needs_input_grad[3:]):
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
        scratch = source.buffers(2)
        for chunk in source.chunks(paired, gradient=True):
            (free, share), total = (chunk.scratch(buffer) for buffer in scratch), chunk.total
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
                    if ctx.needs_input_grad[3]:
                        of_scales[0] += torch.linalg.vecdot(total, chunk.cells).sum()
                    continue
                of = of_coefficients[used : used + 2 * sum(ctx.kinds[t])]
                used += len(of)
                table.add_gradient(total, share, of_rows, chunk, of, logits)
        of_scales[0] /= scales[0]
        if not of_coefficients:
            return *source.gradients(), None, of_scales, None, None, None, None, *[None] * len(coefficients)
        of_coefficients = [_by_row(of) if of.ndim == 3 else of for of in of_coefficients]
        used = 0
        for t, kind in enumerate(ctx.kinds):
            if any(kind):  # logits are as linear in the first two coefficients as in the scale
                for c, of in zip(coefficients[used : used + 2], of_coefficients[used : used + 2], strict=True):
                    of_scales[t] += torch.dot(c, of) / scales[t]
            used += 2 * sum(kind)
        return *source.gradients(), None, of_scales, None, None, None, None, *of_coefficients
