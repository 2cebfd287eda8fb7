"""CyCLIP: similarities that agree within and across the two towers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixcontrast.losses.base import Batch, Loss, Part
from mixcontrast.losses.clip import ClipLoss, SigLipLoss
from mixcontrast.losses.hard_negatives import HardNegativeLoss
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan
from mixcontrast.similarity import similarity_table


class CyClipLoss(Loss):
    """Adds to an image-text loss that similarities should not depend on which of a pair is image and which is text.

    With `A` pairs, once a batch:
    - within towers: `in_modal / A * sum_jk (image_j.image_k - text_j.text_k)^2`;
    - across towers: `cross_modal / A * sum_jk (image_j.text_k - image_k.text_j)^2`.

    Args:
        loss: ClipLoss, SigLipLoss or HardNegativeLoss(ClipLoss()); mixers go around this one.
        in_modal: weight, >= 0.
        cross_modal: weight, >= 0; not both 0.

    Called as `loss` is. Raises TypeError on a loss that is not of two towers, ValueError on weights out of range.

    Cost: two more products of the batch with itself.

    Source: Goel et al., NeurIPS 2022, arXiv 2205.14459; weights 0.25 as there.

    >>> import torch
    >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
    >>> loss = CyClipLoss(ClipLoss())(image, text, 10.0)
    """

    towers = True

    def __init__(self, loss: Loss, *, in_modal: float = 0.25, cross_modal: float = 0.25) -> None:
        super().__init__()
        if not isinstance(loss, ClipLoss | SigLipLoss | HardNegativeLoss) or not loss.towers:
            raise TypeError(
                "CyClipLoss compares the similarities of an image and a text tower. "
                f"Got {type(loss).__name__}; use ClipLoss, SigLipLoss or HardNegativeLoss(ClipLoss()), "
                "and put mixers around this one."
            )
        if not (in_modal >= 0 and cross_modal >= 0 and in_modal + cross_modal > 0):
            raise ValueError(
                f"CyClipLoss needs weights >= 0, one of them above. Got in_modal={in_modal}, "
                f"cross_modal={cross_modal}; the paper's are 0.25."
            )
        self.loss, self.in_modal, self.cross_modal = loss, in_modal, cross_modal

    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        return self.loss.plans(*inputs)

    def rows(self, pairs: Pairs) -> Tensor:
        """Those of the wrapped loss: consistency is a matter of the whole batch, not of a row."""
        return self.loss.rows(pairs)

    def in_place(self, *inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.loss.in_place(*inputs, labels=labels)

    def answer(self, loss: Tensor, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        return self.loss.answer(loss, *inputs)

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        return [*self.loss.parts_of(tables, batch), self.consistency(tables)]

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]] | None:
        known = self.loss.counts_of(tables)
        rows = torch.full((), len(tables[0].anchors), device=tables[0].anchors.device)
        return None if known is None else [*known, (rows, rows)]

    def consistency(self, tables: Sequence[Pairs]) -> Part:
        """Both terms, of the tables whose first blocks are the batch's images against its texts, and the reverse."""
        there, back = tables
        images, texts = there.anchors, back.anchors
        total = images.new_zeros(())
        if self.in_modal:
            apart = similarity_table(images, there.every_anchor) - similarity_table(texts, back.every_anchor)
            total = total + self.in_modal * apart.square().sum()
        if self.cross_modal:
            apart = there.blocks[0].similarity - back.blocks[0].similarity
            total = total + self.cross_modal * apart.square().sum()
        return self.part(total, torch.full((), len(images), device=images.device), there)

    def extra_repr(self) -> str:
        return f"in_modal={self.in_modal}, cross_modal={self.cross_modal}"
