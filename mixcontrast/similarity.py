"""Products of embeddings, in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_table(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(A, C) dot products in float32 or wider, whatever autocast says: fp16 loses what a temperature of 0.01 shows."""
    with torch.autocast(anchors.device.type, enabled=False):
        if anchors is candidates and not torch.compiler.is_compiling():
            return _Gram.apply(wide(anchors))
        return wide(anchors) @ wide(candidates).mT


class _Gram(torch.autograd.Function):
    """`x @ x.T`, with one product in the backward pass where autograd makes two."""

    @staticmethod
    def forward(ctx, embeddings: Tensor) -> Tensor:
        ctx.save_for_backward(embeddings)
        return embeddings @ embeddings.mT

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (embeddings,) = ctx.saved_tensors
        return (grad + grad.mT) @ embeddings


def wide(embeddings: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings


def unit(embeddings: Tensor) -> Tensor:
    """(A, D) rows divided by their Euclidean length, in float32 or wider."""
    if torch.compiler.is_compiling():
        return torch.nn.functional.normalize(wide(embeddings), dim=1)
    return _Unit.apply(wide(embeddings))[0]


class _Unit(torch.autograd.Function):
    """`x / |x|` and `|x|`, with four operations in the backward pass where autograd makes a dozen.

    The length is an output so that a second derivative knows where it came from.
    """

    @staticmethod
    def forward(ctx, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True).clamp(min=1e-12)
        rows = embeddings / length
        ctx.save_for_backward(rows, length)
        ctx.set_materialize_grads(False)
        return rows, length

    @staticmethod
    def backward(ctx, grad: Tensor | None, of_length: Tensor | None) -> Tensor | None:
        rows, length = ctx.saved_tensors
        total = None if of_length is None else of_length * rows
        if grad is not None:
            along = (grad * rows).sum(dim=1, keepdim=True)
            across = torch.addcmul(grad, along, rows, value=-1) / length
            total = across if total is None else total + across
        return total
