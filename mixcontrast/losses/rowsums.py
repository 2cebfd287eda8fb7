"""Weighted sums over the columns of a table, over all its blocks, without joining them.

Weights enter a log-sum-exp as log weights; cells of weight 0 are left out. Weights carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixcontrast import kernels
from mixcontrast.cells import Cells, of_what_is_read, product

_LEAST = 1e-30  # of what an average is divided by: its inverse is finite, so that times a weight of 0 it is 0
_CHUNK = 1 << 18  # cells of a CPU's pass over a large block: one megabyte of float32 stays in its cache


def log_sum_exp(similarities: Sequence[Tensor], weights: Sequence[Cells], scale: Tensor | float) -> Tensor:
    """`log sum_x w_x * exp(scale * s_x)` over the columns of all blocks.

    Args:
        similarities: (A, C_b) each.
        weights: for each block a number, or a bool or float table that broadcasts to it; >= 0, no gradient.
        scale: multiplies; a number or a 0-dimensional tensor, of either sign.

    Returns:
        (A,); -inf, with gradient 0, where every weight of the row is 0.
    """
    return log_sum_exp_and_total(similarities, weights, [0.0] * len(similarities), scale)[0]


def log_sum_exp_and_total(
    similarities: Sequence[Tensor], weights: Sequence[Cells], marks: Sequence[Cells], scale: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """`log_sum_exp(similarities, weights, scale)` and `weighted_total(similarities, marks)`, in one pass each way.

    Args:
        marks: for each block, as `weights`; 0 wherever the weight is 0.
    """
    used = [block for block in zip(similarities, weights, marks, strict=True) if _counts(*block[:2])]
    if not used:
        empty = similarities[0].new_full((similarities[0].shape[0],), -torch.inf)
        return empty, torch.zeros_like(empty), torch.zeros_like(empty)
    similarities, weights, marks = (list(column) for column in zip(*used, strict=True))
    if torch.compiler.is_compiling():
        logits = [_logits(s, _log_weight(w, s), scale) for s, w in zip(similarities, weights, strict=True)]
        return _combine([_row_log_sum_exp(x) for x in logits]), *weighted_total(similarities, marks)
    if not isinstance(scale, Tensor):
        scale = similarities[0].new_full((), scale)
    scale = scale.to(similarities[0])
    if kernels.fused(*similarities):
        from mixcontrast.kernels.row_sums import FusedLogSumExp

        return FusedLogSumExp.apply(scale, weights, marks, *similarities)
    return _LogSumExp.apply(scale, weights, marks, *similarities)


def _logits(similarity: Tensor, weight: Cells, scale: Tensor | float, out: Tensor | None = None) -> Tensor:
    """A table `scale * similarity + log(weight)`; new, or written to `out`.

    Args:
        weight: as `_log_weight` gives it.
    """
    logits = torch.mul(similarity, scale, out=out)
    if isinstance(weight, Tensor):
        return logits.masked_fill_(weight, -torch.inf) if weight.dtype == torch.bool else logits.add_(weight)
    return logits.add_(weight) if weight else logits


def _log_weight(weight: Cells, like: Tensor) -> Cells:
    """What is added to logits: a log weight, -inf where it is 0; or, for a bool weight, which cells become -inf."""
    if not isinstance(weight, Tensor):
        return math.log(weight)
    return ~weight if weight.dtype == torch.bool else weight.to(like.dtype).log()


def _row_log_sum_exp(logits: Tensor) -> Tensor:
    most = logits.detach().amax(dim=1, keepdim=True)
    most = torch.where(most == -torch.inf, 0.0, most)
    total = (logits - most).exp().sum(dim=1)
    return torch.where(total > 0, total, 1.0).log().where(total > 0, -torch.inf) + most.squeeze(1)


def _combine(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else _row_log_sum_exp(torch.stack(rows, dim=1))


class _LogSumExp(torch.autograd.Function):
    """Log-sum-exp and marked total of each row, from similarities that are alive anyway.

    Keeps one number a row; each pass makes one table a block, the gradient, and the cells of one chunk of rows.
    """

    @staticmethod
    def forward(ctx, scale: Tensor, weights: list[Cells], marks: list[Cells], *similarities: Tensor):
        weights = [_log_weight(w, s) for s, w in zip(similarities, weights, strict=True)]
        parts = []
        near = similarities[0].new_zeros(similarities[0].shape[0])
        count = torch.zeros_like(near)
        for similarity, weight, mark in zip(similarities, weights, marks, strict=True):
            rows = similarity.new_empty(similarity.shape[0])
            scratch = None
            for part in _row_chunks(similarity):
                cells = similarity[part]
                if scratch is None or scratch.shape != cells.shape:
                    scratch = torch.empty_like(cells)
                if isinstance(mark, Tensor):
                    marked = scratch.copy_(_part(mark, part))
                    count[part] += marked.sum(dim=1)
                    near[part] += marked.mul_(cells).sum(dim=1)
                elif mark:
                    count[part] += mark * cells.shape[1]
                    near[part] += mark * cells.sum(dim=1)
                logits = _logits(cells, _part(weight, part), scale, out=scratch)
                most = logits.amax(dim=1, keepdim=True)
                most = torch.where(most == -torch.inf, 0.0, most)
                rows[part] = logits.sub_(most).exp_().sum(dim=1).log_() + most.squeeze(1)
            parts.append(rows)
        every = parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), dim=0)
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
        every = torch.where(every == -torch.inf, 0.0, every)[:, None]
        of_every, of_near = of_every[:, None], of_near[:, None]
        of_scale = torch.zeros_like(scale) if ctx.needs_input_grad[0] else None
        of_blocks: list[Tensor | None] = []
        for block, (similarity, weight, mark) in enumerate(zip(similarities, ctx.weights, marks, strict=True)):
            wanted = ctx.needs_input_grad[3 + block]
            if not wanted and of_scale is None:
                of_blocks.append(None)
                continue
            table = torch.empty_like(similarity)
            for part in _row_chunks(similarity):
                share = _logits(similarity[part], _part(weight, part), scale, out=table[part])
                share.sub_(every[part]).exp_().mul_(of_every[part])
                if of_scale is not None:
                    of_scale += torch.linalg.vecdot(share, similarity[part]).sum()
                share.mul_(scale)
                if isinstance(mark, Tensor):
                    share.addcmul_(_part(mark, part).to(share.dtype), of_near[part])
                elif mark:
                    share.add_(of_near[part], alpha=mark)
            of_blocks.append(table if wanted else None)
        return of_scale, None, None, *of_blocks


def _row_chunks(table: Tensor) -> list[slice]:
    rows, columns = table.shape
    step = max(1, _CHUNK // max(columns, 1)) if table.device.type == "cpu" else max(rows, 1)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _part(weight: Cells, rows: slice) -> Cells:
    return weight[rows] if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[0] > 1 else weight


def weighted_sum(
    similarities: Sequence[Tensor], weights: Sequence[Cells], of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Cells]:
    """`sum_x w_x * of(s_x)` and `sum_x w_x` over the columns of all blocks.

    Cells of weight 0 are left out, so that `of` may be infinite there.

    Returns:
        (A,) each; the second a number where it is the same of all rows, known without reading a cell.
    """
    totals, counts = [], []
    for similarity, weight in zip(similarities, weights, strict=True):
        if isinstance(weight, Tensor):
            values = of(similarity)
            if weight.dtype == torch.bool:
                totals.append(torch.where(weight, values, 0.0).sum(dim=1))
                counts.append(weight.expand_as(values).sum(dim=1))
            else:
                weight = weight.to(values.dtype).expand_as(values)
                totals.append((torch.where(weight > 0, values, 0.0) * weight).sum(dim=1))
                counts.append(weight.sum(dim=1))
        elif weight > 0:
            totals.append(product(weight, of(similarity).sum(dim=1)))
            counts.append(weight * similarity.shape[1])
    return _added(totals, similarities[0]), sum(counts[1:], counts[0]) if counts else 0.0


def weighted_total(similarities: Sequence[Tensor], weights: Sequence[Cells]) -> tuple[Tensor, Cells]:
    """As `weighted_sum` of the similarities themselves, which must be finite."""
    totals, counts = [], []
    for similarity, weight in zip(similarities, weights, strict=True):
        if isinstance(weight, Tensor):
            weight = weight.to(similarity.dtype)
            with torch.autocast(similarity.device.type, enabled=False):  # whose product would be half
                totals.append(torch.linalg.vecdot(similarity, weight.expand_as(similarity)))
            counts.append(weight.expand_as(similarity).sum(dim=1))
        elif weight > 0:
            totals.append(product(weight, similarity.sum(dim=1)))
            counts.append(weight * similarity.shape[1])
    return _added(totals, similarities[0]), sum(counts[1:], counts[0]) if counts else 0.0


def _added(totals: list[Tensor], like: Tensor) -> Tensor:
    return sum(totals[1:], totals[0]) if totals else like.new_zeros(like.shape[0])


def mean_or_zero(total: Tensor, count: Cells) -> Tensor:
    """(A,) `total / count`, 0 with gradient 0 where there is nothing to average."""
    if not isinstance(count, Tensor):
        return total if count in (0, 1) else total / count
    return total / count.clamp(min=_LEAST)


def shares_of_mean(total: Tensor, count: Cells, kept: Tensor | None) -> Tensor:
    """(A,) numbers whose mean over the kept rows is `total.sum() / count.sum()`; 0 where there is nothing to average.

    Args:
        total: (A,) each row's sum, 0 in rows that are not kept.
        count: (A,) how much went into it, likewise.
        kept: (A,) bool; None: all.
    """
    kept = torch.ones_like(total, dtype=torch.bool) if kept is None else kept
    every = torch.where(kept, count, 0).sum()
    return total * (kept.sum() / torch.where(every > 0, every, 1))


def positives(pairs) -> tuple[list[Tensor], list[Cells]]:
    """Similarities and positive weights of the blocks that can hold a positive."""
    return _select(pairs, [block.positive for block in pairs])


def negatives(pairs) -> tuple[list[Tensor], list[Cells]]:
    """Similarities and negative weights of the blocks that can hold a negative."""
    return _select(pairs, [block.negative for block in pairs])


def _counts(similarity: Tensor, weight: Cells) -> bool:
    return similarity.shape[1] > 0 and (isinstance(weight, Tensor) or weight > 0)


def _select(pairs, weights: list[Cells]) -> tuple[list[Tensor], list[Cells]]:
    used = [(b.similarity, w) for b, w in zip(pairs.blocks, weights, strict=True) if _counts(b.similarity, w)]
    if not used:
        return [pairs.blocks[0].similarity], [0.0]
    return [s for s, _ in used], [w for _, w in used]
