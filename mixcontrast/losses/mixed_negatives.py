"""Cross-entropy of pairs whose negatives are mixtures of pairs, read both ways, a few rows at a time.

The tables of images with images and of texts with texts, and those mixed from them, are made in chunks, forward and
again backward, so that none of them is ever whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 17  # cells of a chunk: half a megabyte of float32, of which a few are alive

Coefficients = tuple[Tensor, Tensor]


def mixed_negatives_both_ways(
    image: Tensor,
    text: Tensor,
    similarity: Tensor,
    scale: Tensor | float,
    of_images: Coefficients,
    of_texts: Coefficients,
) -> Tensor:
    """The mean over images and texts of the cross-entropy of the own pair against mixtures of the other pairs.

    The mixture of pair `j` has the similarity `c1_j image_i.image_j + c2_j image_i.text_j` to image `i`, and
    `c1_j text_i.text_j + c2_j text_i.image_j`, of the other coefficients, to text `i`.

    Args:
        image: (A, D), of the dtype of the others.
        text: (A, D).
        similarity: (A, A) images by texts; its diagonal is positive.
        scale: multiplies; a number or 0-dimensional.
        of_images: (A,) each: `c1` and `c2` against images.
        of_texts: against texts.

    Returns:
        A 0-dimensional tensor.
    """
    scale = torch.as_tensor(scale, dtype=similarity.dtype, device=similarity.device)
    return _MixedNegatives.apply(image, text, similarity, scale, *of_images, *of_texts)


class _Chunk:
    """Some rows of the table of one direction: anchors by candidates, and anchors by each other.

    Attributes:
        rows: of the table.
        across: (H, A), a view.
        own: (H,) a view of `across`: the pair's own cells.
        among: (H, A) products of anchors.
        logits: (H, A) the own pair and mixtures.
    """

    def __init__(
        self, anchors: Tensor, table: Tensor, scale: float, c1: Tensor, c2: Tensor, rows: slice, buffers: list[Tensor]
    ) -> None:
        self.rows, self.across = rows, table[rows]
        cells = self.across.shape
        self.among, self.logits, self.free = (buffer[: cells.numel()].view(cells) for buffer in buffers)
        torch.mm(anchors[rows], anchors.mT, out=self.among)
        torch.mul(self.among, c1, out=self.logits).addcmul_(self.across, c2)
        self.own = self.across.diagonal(rows.start)
        self.logits.diagonal(rows.start).copy_(self.own)
        self.logits.mul_(scale)


def _chunks(anchors: Tensor, table: Tensor, scale: float, c1: Tensor, c2: Tensor) -> Iterator[_Chunk]:
    count = len(table)
    step = max(1, _CHUNK // count)
    buffers = [table.new_empty(min(step, count) * count) for _ in range(3)]
    for start in range(0, count, step):
        yield _Chunk(anchors, table, scale, c1, c2, slice(start, min(start + step, count)), buffers)


class _MixedNegatives(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, image: Tensor, text: Tensor, similarity: Tensor, scale: Tensor, *coefficients: Tensor) -> Tensor:
        sums = similarity.new_empty(2, len(similarity))
        for way, (anchors, table) in enumerate(((image, similarity), (text, similarity.mT))):
            c1, c2 = coefficients[2 * way : 2 * way + 2]
            for chunk in _chunks(anchors, table, float(scale), c1, c2):
                torch.logsumexp(chunk.logits, dim=1, out=sums[way, chunk.rows])
        ctx.save_for_backward(image, text, similarity, scale, sums, *coefficients)
        return sums.mean() - similarity.diagonal().mean() * scale

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, text, similarity, scale, sums, *coefficients = ctx.saved_tensors
        part = float(grad * scale) / (2 * len(similarity))  # of a similarity, a row
        of_similarity, of_scale = torch.zeros_like(similarity), torch.zeros_like(scale)
        of_anchors = [torch.zeros_like(image), torch.zeros_like(text)]
        of_coefficients = [torch.zeros_like(c) for c in coefficients]
        ways = ((image, similarity, of_similarity), (text, similarity.mT, of_similarity.mT))
        for way, (anchors, table, of_table) in enumerate(ways):
            c1, c2 = coefficients[2 * way : 2 * way + 2]
            for chunk in _chunks(anchors, table, float(scale), c1, c2):
                share = torch.sub(chunk.logits, sums[way, chunk.rows, None], out=chunk.free).exp_().mul_(part)
                own = share.diagonal(chunk.rows.start)
                own -= part
                if ctx.needs_input_grad[3]:
                    of_scale += torch.linalg.vecdot(share, chunk.logits).sum()
                of_table[chunk.rows].diagonal(chunk.rows.start).add_(own)
                own.zero_()  # the own pair is not mixed
                of_table[chunk.rows].addcmul_(share, c2)
                if any(ctx.needs_input_grad[4:]):
                    of_coefficients[2 * way] += torch.mul(share, chunk.among, out=chunk.logits).sum(dim=0)
                    of_coefficients[2 * way + 1] += torch.mul(share, chunk.across, out=chunk.logits).sum(dim=0)
                share.mul_(c1)
                of_anchors[way][chunk.rows].addmm_(share, anchors)
                of_anchors[way].addmm_(share.mT, anchors[chunk.rows])
        return *of_anchors, of_similarity, of_scale / scale**2, *of_coefficients
