"""Rows gathered from a table of embeddings and reduced as they are read: none is ever written down."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_BYTES = 16384  # of gathered rows that a program holds at once: 128 for each of its 128 threads
_WARPS = 4  # of 32 threads each
_PROGRAMS = 2048  # enough to fill a GPU: about sixteen for each of an H100's 132 processors


def on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def row_dots(left_rows: Tensor, left: Tensor, right_rows: Tensor, right: Tensor) -> Tensor:
    """`left_rows[left] . right_rows[right]`, summed in float32 or wider.

    Args:
        left_rows: (L, D).
        left: (A, M) int64; of any strides, as `right`.
        right_rows: (R, D).
        right: (A, M) int64.

    Returns:
        (A, M) of the dtype of `left_rows`.
    """
    out = left_rows.new_empty(left.shape)
    if not out.numel():
        return out
    width = _width(left_rows)
    height = _height(left_rows, width)
    with on(out.device):
        _row_dots[(triton.cdiv(out.numel(), height),)](
            left_rows, right_rows, left, right, out, out.numel(), left.shape[1], left_rows.shape[1],
            *left.stride(), *right.stride(), *left_rows.stride(), *right_rows.stride(),
            SUMS=_sums(left_rows), HEIGHT=height, WIDTH=width, num_warps=_WARPS,
        )  # fmt: skip
    return out


def weighted_rows(rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """`sum_m weights[a, m] * rows[columns[a, m]]`, in the same order at each call, in float32 or wider.

    Args:
        rows: (K, D).
        columns: (A, M) int64.
        weights: (A, M).

    Returns:
        (A, D) of the dtype of `rows`.
    """
    anchors, count = columns.shape
    dim = rows.shape[1]
    if not (anchors and count and dim):
        return rows.new_zeros(anchors, dim)
    width = _width(rows)
    height = min(_height(rows, width), triton.next_power_of_2(count))
    steps = triton.cdiv(count, height)
    across = triton.cdiv(dim, width)
    parts = min(steps, max(1, _PROGRAMS // (anchors * across)))
    steps = triton.cdiv(steps, parts)
    parts = triton.cdiv(count, steps * height)
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    out = rows.new_empty((parts, anchors, dim), dtype=wide)
    with on(rows.device):
        _weighted_rows[(anchors, across, parts)](
            rows, columns, weights, out, anchors, count, dim, steps * height,
            *rows.stride(), *columns.stride(), *weights.stride(),
            SUMS=_sums(rows), HEIGHT=height, WIDTH=width, num_warps=_WARPS,
        )  # fmt: skip
    total = out[0] if parts == 1 else out.sum(dim=0)
    return total.to(rows.dtype)


def _width(rows: Tensor) -> int:
    """How many numbers of a row a program reads at once."""
    return max(16, min(triton.next_power_of_2(rows.shape[1]), 64 if rows.dtype == torch.float64 else 128))


def _height(rows: Tensor, width: int) -> int:
    """Of how many rows; halves are float32 once they are read."""
    return _BYTES // (max(4, rows.element_size()) * width)


def _sums(rows: Tensor) -> tl.dtype:
    return tl.float64 if rows.dtype == torch.float64 else tl.float32


@triton.jit(do_not_specialize=["count", "across"])
def _row_dots(
    left_rows, right_rows, left, right, out, count, across, dim,
    left_down, left_across, right_down, right_across, left_row, left_number, right_row, right_number,
    SUMS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pairs = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    there = pairs < count
    down, over = pairs // across, pairs % across
    left_at, right_at = down * left_down + over * left_across, down * right_down + over * right_across
    of_left = tl.load(left + left_at, mask=there, other=0).to(tl.int64) * left_row  # a table may pass 2^31 numbers
    of_right = tl.load(right + right_at, mask=there, other=0).to(tl.int64) * right_row
    total = tl.zeros((HEIGHT, WIDTH), SUMS)
    for start in range(0, dim, WIDTH):
        numbers = start + tl.arange(0, WIDTH)
        inside = there[:, None] & (numbers < dim)[None, :]
        places = numbers.to(tl.int64)[None, :]
        a = tl.load(left_rows + of_left[:, None] + places * left_number, mask=inside, other=0.0)
        b = tl.load(right_rows + of_right[:, None] + places * right_number, mask=inside, other=0.0)
        total += a.to(SUMS) * b.to(SUMS)
    tl.store(out + pairs, tl.sum(total, axis=1), mask=there)


@triton.jit(do_not_specialize=["anchors", "count", "reach"])
def _weighted_rows(
    rows, columns, weights, out, anchors, count, dim, reach,
    row, number, columns_row, columns_column, weights_row, weights_column,
    SUMS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    anchor = tl.program_id(0).to(tl.int64)
    numbers = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    part = tl.program_id(2)
    across = numbers < dim
    places = numbers.to(tl.int64) * number
    total = tl.zeros((HEIGHT, WIDTH), SUMS)
    for start in range(0, reach, HEIGHT):
        cells = part * reach + start + tl.arange(0, HEIGHT)
        there = cells < count
        cells = cells.to(tl.int64)
        column = tl.load(columns + anchor * columns_row + cells * columns_column, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + anchor * weights_row + cells * weights_column, mask=there, other=0.0).to(SUMS)
        inside = there[:, None] & across[None, :]
        read = tl.load(rows + column[:, None] * row + places[None, :], mask=inside, other=0.0).to(SUMS)
        total += weight[:, None] * read
    to = (part.to(tl.int64) * anchors + anchor) * dim + numbers
    tl.store(out + to, tl.sum(total, axis=0), mask=across)
