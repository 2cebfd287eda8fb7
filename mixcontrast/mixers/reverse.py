"""Rows or columns mixed with those in reverse order, each way in few passes."""

from __future__ import annotations

import torch
from torch import Tensor


class ReverseCosine(torch.autograd.Function):
    """(A,) the product of each row with its reverse, which is the reverse's with it."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        count = len(features)
        half = (features[: (count + 1) // 2] * features[count // 2 :].flip(0)).sum(dim=1)
        return torch.cat([half, half[: count // 2].flip(0)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        return features.flip(0).mul_((grad + grad.flip(0))[:, None])


class MixWithReverse(torch.autograd.Function):
    """`c1 * table + c2 * table.flip(dim)` in place over one new table, forward and backward."""

    @staticmethod
    def forward(ctx, table: Tensor, c1: Tensor, c2: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(table, c1, c2)
        ctx.dim = dim
        return table.flip(dim).mul_(c2).addcmul_(table, c1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (table, c1, c2), dim = ctx.saved_tensors, ctx.dim
        turned = grad.flip(dim)
        of_c1 = of_c2 = None
        if ctx.needs_input_grad[1]:
            products = grad * table
            of_c1 = products.sum(dim=1 - dim, keepdim=True)
            torch.mul(turned, table, out=products)
            of_c2 = products.sum(dim=1 - dim, keepdim=True).flip(dim)
        return turned.mul_(c2.flip(dim)).addcmul_(grad, c1), of_c1, of_c2, None
