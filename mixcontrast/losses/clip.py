"""Losses of image and text towers, with open_clip's own call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixcontrast.losses.base import Loss
from mixcontrast.losses.both_ways import ReverseMix, cross_entropy_both_ways
from mixcontrast.losses.rowsums import negatives, positives, weighted_sum
from mixcontrast.losses.softmax import cross_entropy_rows
from mixcontrast.pairs import Pairs, reads_values


class ClipLoss(Loss):
    """Image to text and text to image cross-entropy, averaged.

    Called with `(image_features (A, D), text_features (A, D), logit_scale)`, unit vectors and a multiplying scale, and
    open_clip's optional `logit_bias` and `output_dict` (returns `{"contrastive_loss": loss}`). Raises as
    `Pairs.from_towers`.

    Source: Radford et al., ICML 2021, arXiv 2103.00020; equal to open_clip's ClipLoss on one process.
    """

    towers = True

    def tables(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> tuple[Pairs, ...]:
        return Pairs.from_towers(image_features, text_features, logit_scale, logit_bias)

    def rows(self, pairs: Pairs) -> Tensor:
        # a bias added to every logit of a row leaves its cross-entropy as it is
        return cross_entropy_rows(pairs, _scale_of(pairs))

    def reduce_tables(self, tables: Sequence[Pairs]) -> Tensor:
        both = self.both_ways(tables)
        return super().reduce_tables(tables) if both is None else both

    def both_ways(self, tables: Sequence[Pairs], mixtures: Sequence[ReverseMix] = ()) -> Tensor | None:
        """The loss of one table read both ways, and of its mixtures with the reverse, in one pass.

        Args:
            tables: as `from_towers` gives them.
            mixtures: added with their weights.

        Returns:
            None where `tables` are not one square table whose diagonal is positive, or not on a CPU.
        """
        block = tables[0].blocks[0]
        similarity, target = block.similarity, block.target
        if len(tables) != 2 or not reads_values(similarity) or isinstance(block.weight, Tensor):
            return None
        if any(len(table.blocks) != 1 for table in tables) or block.weight != 1:
            return None
        if not tables[1].blocks[0].similarity.mT.is_set_to(similarity) or not isinstance(target, Tensor):
            return None
        if target.dtype != torch.bool or not bool(target.diagonal().all()) or int(target.sum()) != len(similarity):
            return None
        return cross_entropy_both_ways(similarity, _scale_of(tables[0]), mixtures)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = self.reduce_tables(self.tables(image_features, text_features, logit_scale, logit_bias))
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(Loss):
    """A sigmoid for each pair of image and text: `-(1/A) sum_ij log sigmoid(z_ij (logit_scale * s_ij + logit_bias))`.

    A target `t` between 0 and 1 counts `t` of the pair as matching and `1 - t` as not.

    Called with `(image_features (A, D), text_features (A, D), logit_scale, logit_bias)` and open_clip's optional
    `output_dict`. Raises as `Pairs.from_towers`.

    Source: Zhai et al., ICCV 2023, arXiv 2303.15343; equal to open_clip's SigLipLoss on one process.
    """

    towers = True

    def tables(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> tuple[Pairs, ...]:
        to_text, _ = Pairs.from_towers(image_features, text_features, logit_scale, logit_bias)
        return (to_text,)

    def rows(self, pairs: Pairs) -> Tensor:
        scale, bias = _scale_of(pairs), 0.0 if pairs.logit_bias is None else pairs.logit_bias
        pull, _ = weighted_sum(*positives(pairs), lambda s: F.softplus(-(s * scale + bias)))
        push, _ = weighted_sum(*negatives(pairs), lambda s: F.softplus(s * scale + bias))
        return pull + push

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = self.reduce_tables(self.tables(image_features, text_features, logit_scale, logit_bias))
        return {"contrastive_loss": loss} if output_dict else loss


def _scale_of(pairs: Pairs) -> Tensor | float:
    if pairs.logit_scale is None:
        raise TypeError(
            "A CLIP loss needs the model's logit_scale, which multiplies. Got none; "
            "call criterion(image_features, text_features, model.logit_scale.exp())."
        )
    return pairs.logit_scale
