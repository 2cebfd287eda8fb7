"""Losses of image and text towers, with open_clip's own call."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mixcontrast.losses.base import Loss, mean_over_tables
from mixcontrast.losses.rowsums import negatives, positives, weighted_sum
from mixcontrast.losses.softmax import cross_entropy_rows
from mixcontrast.pairs import Pairs


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

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = mean_over_tables(self, self.tables(image_features, text_features, logit_scale, logit_bias))
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
        loss = mean_over_tables(self, self.tables(image_features, text_features, logit_scale, logit_bias))
        return {"contrastive_loss": loss} if output_dict else loss


def _scale_of(pairs: Pairs) -> Tensor | float:
    if pairs.logit_scale is None:
        raise TypeError(
            "A CLIP loss needs the model's logit_scale, which multiplies. Got none; "
            "call criterion(image_features, text_features, model.logit_scale.exp())."
        )
    return pairs.logit_scale
