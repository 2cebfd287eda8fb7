"""Debiased and hardness-weighted negatives for softmax losses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mixcontrast.losses.base import Loss
from mixcontrast.losses.clip import ClipLoss, scale_of
from mixcontrast.losses.rowsums import log_sum_exp, mean_or_zero, negatives, positives, weighted_sum
from mixcontrast.losses.softmax import InfoNCE, SupConLoss
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan


class HardNegativeLoss(Loss):
    """A softmax loss whose negatives weigh more the harder they are, and of which false negatives are taken out (HCL).

    Per anchor, the mean over its positives of `-log(p / (p + G))`, `p = e^(s+/temperature)`, with

        G = max((N * sum n^(1 + beta) / sum n^beta - tau_plus * N * p) / (1 - tau_plus), N * e^(-1/temperature))

    over its `N` negatives' `n = e^(s/temperature)`. `beta = 0` is the debiased loss; with `tau_plus = 0` too it is
    InfoNCE. Weights of the table count in all three sums.

    Args:
        loss: InfoNCE (queue included), SupConLoss (averaging within an anchor) or ClipLoss: its tables, its temperature
            (or logit_scale) and its call.
        beta: concentration on hard negatives, >= 0; the authors' 0.5 to 2.
        tau_plus: the share of negatives that are of the anchor's own class, in [0, 1); the authors' 0.1 on 10 classes,
            1 / number of classes as a start.

    Raises:
        TypeError: a loss without a sum over negatives to reweight; SupConLoss(per_anchor=False);
            ClipLoss with label_smoothing.
        ValueError: numbers out of range.

    Source: Robinson et al., ICLR 2021, arXiv 2010.04592; tau_plus: Chuang et al., NeurIPS 2020, arXiv 2007.00224. As
    in the authors' code, gradient flows through the weights too.

    >>> criterion = HardNegativeLoss(InfoNCE(temperature=0.5), beta=1.0, tau_plus=0.1)
    >>> loss = criterion(torch.randn(8, 4), torch.randn(8, 4))
    """

    def __init__(self, loss: InfoNCE | SupConLoss | ClipLoss, *, beta: float = 1.0, tau_plus: float = 0.1) -> None:
        super().__init__()
        if not isinstance(loss, InfoNCE | SupConLoss | ClipLoss):
            raise TypeError(
                "HardNegativeLoss reweights the negatives of a softmax loss. "
                f"Got {type(loss).__name__}; use InfoNCE, SupConLoss or ClipLoss, and put mixers around this one."
            )
        if isinstance(loss, SupConLoss) and not loss.per_anchor:
            raise TypeError(
                "HardNegativeLoss averages within an anchor, then over anchors. "
                "Got SupConLoss(per_anchor=False); leave per_anchor out."
            )
        if isinstance(loss, ClipLoss) and loss.label_smoothing:
            raise TypeError(
                "HardNegativeLoss has a sum of its own, in which targets are not smoothed. "
                f"Got ClipLoss(label_smoothing={loss.label_smoothing}); leave label_smoothing out."
            )
        if not (beta >= 0 and 0 <= tau_plus < 1):
            raise ValueError(
                f"HardNegativeLoss needs beta >= 0 and tau_plus in [0, 1). Got beta={beta}, tau_plus={tau_plus}; "
                "the authors' are 1.0 and 0.1."
            )
        self.loss, self.beta, self.tau_plus = loss, beta, tau_plus
        self.towers = loss.towers

    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        return self.loss.plans(*inputs)

    def in_place(self, *inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.loss.in_place(*inputs, labels=labels)

    def answer(self, loss: Tensor, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        return self.loss.answer(loss, *inputs)

    def rows(self, pairs: Pairs) -> Tensor:
        if isinstance(self.loss, ClipLoss):
            scale = scale_of(pairs)
        else:
            scale = 1 / self.loss.temperature if pairs.logit_scale is None else pairs.logit_scale
        pairs = pairs.at_one_scale(scale)
        similarities, weights = negatives(pairs)
        count = weighted_sum(similarities, weights, torch.ones_like)[1]  # (A,) N
        hard = log_sum_exp(similarities, weights, (1 + self.beta) * scale)
        count = count.to(hard.dtype) if isinstance(count, Tensor) else torch.full_like(hard, count)
        if self.beta:
            hard = hard - log_sum_exp(similarities, weights, self.beta * scale) + _log(count)
        none = count == 0
        hard, count = torch.where(none, 0.0, hard)[:, None], torch.where(none, 1.0, count)[:, None]

        def pull(s: Tensor) -> Tensor:
            near = s * scale
            if self.tau_plus:
                most = torch.maximum(hard, near).detach()
                rest = (hard - most).exp() - self.tau_plus * count * (near - most).exp()
                rest = torch.where(rest > 0, rest, 1.0).log().where(rest > 0, -torch.inf)
                push = rest + most - math.log1p(-self.tau_plus)
            else:
                push = hard
            push = torch.maximum(push, count.log() - scale)  # N e^(-1/temperature)
            return F.softplus(push.masked_fill(none[:, None], -torch.inf) - near)

        return mean_or_zero(*weighted_sum(*positives(pairs), pull))

    def extra_repr(self) -> str:
        return f"beta={self.beta}, tau_plus={self.tau_plus}"


def _log(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, 1.0).log()
