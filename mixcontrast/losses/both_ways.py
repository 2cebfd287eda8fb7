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


@dataclass(frozen=True)
class _Table:
    """One of the tables of a pass: how its logits are mixed from a chunk of the real one.

    Attributes:
        rows: (A,) coefficients of a row and of its reverse, or None.
        columns: likewise.
        scale: a number; the first coefficients that there are hold it already.
        lam: a number.
    """

    rows: tuple[Tensor, Tensor] | None
    columns: tuple[Tensor, Tensor] | None
    scale: float
    lam: float

    def logits(self, chunk: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk with its rows mixed, and its logits, of which the columns are mixed too; (S, H, A) each."""
        if self.rows is None and self.columns is None:
            return chunk, chunk.mul(self.scale)
        of_rows = chunk
        if self.rows is not None:
            of_rows = torch.empty_like(chunk)
            first, second = (c[index][:, :, None] for c in self.rows)
            for this, other in ((0, 1), (1, 0)):
                torch.mul(chunk[this], first[this], out=of_rows[this]).addcmul_(chunk[other], second[this])
        if self.columns is None:
            return of_rows, of_rows
        first, second = self.columns
        return of_rows, of_rows.flip(2).mul_(second).addcmul_(of_rows, first)

    def add_gradient(self, total: Tensor, grad: Tensor, of_rows: Tensor, chunk: Tensor, index: Tensor, of) -> None:
        """Adds the gradient of the chunk to `total` and those of the coefficients to `of`, from that of the logits."""
        if self.columns is not None:
            first, second = self.columns
            turned = grad.flip(2)
            by = 1.0 if self.rows is not None else self.scale
            of[-2].add_((grad * of_rows).sum(dim=(0, 1)), alpha=by)
            of[-1].add_((turned * of_rows).sum(dim=(0, 1)).flip(0), alpha=by)
            if self.rows is None:
                total.addcmul_(turned, second.flip(0)).addcmul_(grad, first)
                return
            grad = turned.mul_(second.flip(0)).addcmul_(grad, first)
        first, second = (c[index][:, :, None] for c in self.rows)
        for this, other in ((0, 1), (1, 0)):
            of[0][index[this]] = self.scale * torch.linalg.vecdot(grad[this], chunk[this])
            of[1][index[this]] = self.scale * torch.linalg.vecdot(grad[this], chunk[other])
            total[this].addcmul_(grad[this], first[this]).addcmul_(grad[other], second[other])


def _tables(
    kinds: Sequence[tuple[bool, bool]], scales: Tensor, lams: Sequence[float], coefficients: Sequence[Tensor]
) -> list[_Table]:
    left = [c.detach() for c in coefficients]
    found = []
    for (by_rows, by_columns), scale, lam in zip(kinds, scales.tolist(), lams, strict=True):
        rows = columns = None
        if by_rows:
            rows = left.pop(0) * scale, left.pop(0) * scale
        if by_columns:
            by = 1.0 if by_rows else scale
            columns = left.pop(0) * by, left.pop(0) * by
        found.append(_Table(rows, columns, scale, lam))
    return found


def _chunks(table: Tensor, paired: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of rows (S, H) and their cells (S, H, A); where `paired`, the second half reverse the first."""
    size = len(table)
    last = size // 2 if paired else size
    step = max(1, _CHUNK // size)
    for start in range(0, last, step):
        index = torch.arange(start, min(start + step, last))[None]
        if paired:
            index = torch.cat([index, size - 1 - index])
            yield index, table.index_select(0, index.view(-1)).view(2, -1, size)
        else:
            yield index, table[start : start + step][None]


def _positives(cells: Tensor, index: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views (H,) of each row's own cell and of its reverse's."""
    start, count, width = int(index[0, 0]), index.shape[1], cells.shape[2]
    rising, falling = (
        [side.as_strided((count,), (step,), side.storage_offset() + at) for side in cells]
        for step, at in ((width + 1, start), (width - 1, width - 1 - start))
    )
    return [(rising[0], falling[0]), (falling[-1], rising[-1])][: len(index)]


def _sums(similarity: Tensor, tables: list[_Table]) -> tuple[Tensor, Tensor, Tensor] | None:
    """(T, A) log-sum-exp of rows and of columns, and (T,) totals of the logits of positives.

    Columns are summed about one maximum a table; None where one of them comes out too small to be exact.
    """
    size = len(similarity)
    rows = similarity.new_empty(len(tables), size)
    columns = torch.zeros_like(rows)
    near = similarity.new_zeros(len(tables))
    most = [-math.inf] * len(tables)
    for index, chunk in _chunks(similarity, len(tables) > 1):
        for t, table in enumerate(tables):
            logits = table.logits(chunk, index)[1]
            for own, reverse in _positives(logits, index):
                near[t] += table.lam * own.sum() + (1 - table.lam) * reverse.sum()
            highest = logits.amax(dim=2, keepdim=True)
            share = logits.sub_(highest).exp_()
            rows[t, index] = share.sum(dim=2).log_().add_(highest[:, :, 0])
            new = max(most[t], float(highest.max()))
            columns[t].mul_(math.exp(most[t] - new))
            columns[t] += share.view(-1, size).mT.mv((highest - new).exp_().view(-1))
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
        losses = ((rows + columns).sum(dim=1) / 2 - near) / len(similarity)
        return (losses * ctx.weights).sum()

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        similarity, scales, rows, columns, *coefficients = ctx.saved_tensors
        tables = _tables(ctx.kinds, scales, ctx.lams, coefficients)
        of_similarity, of_scales = torch.empty_like(similarity), torch.zeros_like(scales)
        of_coefficients = [torch.zeros_like(c) for c in coefficients]
        parts = grad * ctx.weights / (2 * len(similarity))
        parts[0] *= scales[0]  # the gradient of a similarity; mixtures have their scale in their coefficients
        divide = scales.clone()
        divide[0] *= scales[0]
        middle = rows.amax(dim=1, keepdim=True)
        by_row, by_column = (rows - middle).exp_(), (middle - columns).exp_()  # none of their products is above A
        for index, chunk in _chunks(similarity, len(tables) > 1):
            total, used = None, 0
            for t, (table, part) in enumerate(zip(tables, parts.tolist(), strict=True)):
                of_rows, logits = table.logits(chunk, index)
                kept = logits.clone() if ctx.needs_input_grad[1] else None
                share = logits.sub_(rows[t, index][:, :, None]).exp_()
                share.mul_(torch.addcmul(share.new_full((), part), by_row[t, index][:, :, None] * part, by_column[t]))
                for own, reverse in _positives(share, index):
                    own -= 2 * part * table.lam
                    if table.lam != 1:
                        reverse -= 2 * part * (1 - table.lam)
                if kept is not None:
                    of_scales[t] += kept.mul_(share).sum() / divide[t]
                if total is None:
                    total = share  # the real table comes first
                    continue
                of = of_coefficients[used : used + 2 * sum(ctx.kinds[t])]
                used += len(of)
                table.add_gradient(total, share, of_rows, chunk, index, of)
            of_similarity.index_copy_(0, index.view(-1), total.view(-1, len(similarity)))
        return of_similarity, of_scales, None, None, None, None, *of_coefficients
