"""Pair-sum losses: a sum over positives and a sum over negatives of each anchor, each under a function of its own.

Their general form is Metrix's (Venkataramanan, Psomas et al., ICLR 2022, arXiv 2106.04990, equation 3); a target `t`
between 0 and 1 counts `t` as a positive and `1 - t` as a negative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mixcontrast.cells import Cells
from mixcontrast.losses.base import Loss, Part, positive_number
from mixcontrast.losses.rowsums import (
    log_sum_exp,
    mean_or_zero,
    negatives,
    positives,
    shares_of_mean,
    weighted_sum,
)
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan


class ContrastiveLoss(Loss):
    """Pulls positives together and pushes negatives below a margin.

    Per anchor, the mean over its positives of `[positive_margin - s]+` plus the mean over its negatives of
    `[s - negative_margin]+`, with `s` the cosine. With `euclidean=True`, on unit vectors at distance
    `d = sqrt(2 - 2s)`: the means of `[d - positive_margin]+` and `[negative_margin - d]+`.

    Args:
        positive_margin: in cosine (default 1: every positive is pulled) or distance (default 0).
        negative_margin: in cosine (default 0.5, Metrix's) or distance (default 1).
        euclidean: margins and loss in Euclidean distance instead of cosine.
        per_anchor: average within an anchor, then over anchors that have a positive; False: over all positive and all
            negative pairs of the batch, so that an anchor counts by its pairs, and one without positives still pushes.
        only_violated: the means are over pairs with a loss above 0 instead of over all.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`.

    Source: Hadsell, Chopra, LeCun, CVPR 2006. Differs: linear hinges, and means where Metrix's table has sums, so that
    the loss does not grow with the batch; equal to pytorch-metric-learning's ContrastiveLoss with `per_anchor=False`,
    and with `only_violated=True` to its default, which leaves zeros out.

    >>> loss = ContrastiveLoss()
    >>> loss(torch.tensor([[1., 0.], [1., 0.], [0., 1.]]), torch.tensor([0, 0, 1]))
    tensor(0.)
    """

    def __init__(
        self,
        *,
        positive_margin: float | None = None,
        negative_margin: float | None = None,
        euclidean: bool = False,
        per_anchor: bool = True,
        only_violated: bool = False,
    ) -> None:
        super().__init__()
        self.euclidean, self.per_anchor, self.only_violated = euclidean, per_anchor, only_violated
        self.counts_rows = per_anchor
        self.positive_margin = (0.0 if euclidean else 1.0) if positive_margin is None else positive_margin
        self.negative_margin = (1.0 if euclidean else 0.5) if negative_margin is None else negative_margin

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def kept(self, pairs: Pairs) -> Tensor | None:
        """The rows with a positive; over all pairs of the batch, also those with negatives alone."""
        return super().kept(pairs) if self.per_anchor else pairs.has_positive() | pairs.has_negative()

    def rows(self, pairs: Pairs) -> Tensor:
        pull, push = self._totals(pairs)
        if self.per_anchor:
            return mean_or_zero(*pull) + mean_or_zero(*push)
        kept = self.kept(pairs)
        return shares_of_mean(*pull, kept) + shares_of_mean(*push, kept)

    def parts(self, pairs: Pairs) -> list[Part]:
        if self.per_anchor:
            return super().parts(pairs)
        kept = self.kept(pairs)
        number = kept.sum()
        summed = [[torch.where(kept, rows, 0.0).sum() for rows in totals] for totals in self._totals(pairs)]
        return [self.part(total, count, pairs, kept=number) for total, count in summed]

    def counts(self, pairs: Pairs) -> list[tuple[Tensor | float, Tensor | float]] | None:
        return super().counts(pairs) if self.per_anchor else None

    def _totals(self, pairs: Pairs) -> list[tuple[Tensor, Cells]]:
        """(A,) sum and count of each row's positives, and of its negatives."""
        if self.euclidean:
            pull = self._total(*positives(pairs), lambda s: F.relu(unit_distance(s) - self.positive_margin))
            push = self._total(*negatives(pairs), lambda s: F.relu(self.negative_margin - unit_distance(s)))
        else:
            pull = self._total(*positives(pairs), lambda s: F.relu(self.positive_margin - s))
            push = self._total(*negatives(pairs), lambda s: F.relu(s - self.negative_margin))
        return [pull, push]

    def _total(
        self, similarities: list[Tensor], weights: list[Cells], of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Cells]:
        total, count = weighted_sum(similarities, weights, of)
        if self.only_violated:
            count, _ = weighted_sum(similarities, weights, lambda s: (of(s) > 0).to(s.dtype))
        return total, count


class BinomialDevianceLoss(Loss):
    """A smooth contrastive loss: `softplus` in place of the hinge.

    Per anchor, the mean over positives of `log(1 + e^(-beta (s - margin)))` plus the mean over negatives of
    `log(1 + e^(gamma (s - margin)))`.

    Args:
        beta: slope on positives, > 0.
        gamma: slope on negatives, > 0.
        margin: the cosine between positives and negatives.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`.

    Source: Yi, Lei, Li, ICPR 2014, arXiv 1407.4979 (beta 2, margin 0.5, negatives weighted 25 by default there).
    """

    def __init__(self, *, beta: float = 2.0, gamma: float = 50.0, margin: float = 0.5) -> None:
        super().__init__()
        positive_number(beta=beta, gamma=gamma)
        self.beta, self.gamma, self.margin = beta, gamma, margin

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def rows(self, pairs: Pairs) -> Tensor:
        pull = weighted_sum(*positives(pairs), lambda s: F.softplus(-self.beta * (s - self.margin)))
        push = weighted_sum(*negatives(pairs), lambda s: F.softplus(self.gamma * (s - self.margin)))
        return mean_or_zero(*pull) + mean_or_zero(*push)


class MultiSimilarityLoss(Loss):
    """Weighs each pair by its own similarity and by those of the anchor's other pairs.

    Per anchor `log(1 + sum_positives e^(-alpha (s - base))) / alpha` plus
    `log(1 + sum_negatives e^(beta (s - base))) / beta`.

    Args:
        alpha: slope on positives, > 0.
        beta: slope on negatives, > 0.
        base: the cosine between positives and negatives.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`.

    Source: Wang et al., CVPR 2019, arXiv 1904.06627, without the mining step; the defaults are its own. Metrix trains
    it with alpha 18, beta 75, base 0.77. Equal to pytorch-metric-learning's where every anchor has a positive.
    """

    def __init__(self, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> None:
        super().__init__()
        positive_number(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.base = alpha, beta, base

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def rows(self, pairs: Pairs) -> Tensor:
        pull = F.softplus(log_sum_exp(*positives(pairs), -self.alpha) + self.alpha * self.base)
        push = F.softplus(log_sum_exp(*negatives(pairs), self.beta) - self.beta * self.base)
        return pull / self.alpha + push / self.beta


class LiftedStructureLoss(Loss):
    """Hardest positive against hardest negative, both softened.

    Per anchor `[log sum_positives e^(positive_margin - s) + log sum_negatives e^(s - negative_margin)]+`. With
    `euclidean=True`, on unit vectors at distance `d = sqrt(2 - 2s)`: `e^(d - positive_margin)`, `e^(negative_margin -
    d)`.

    Args:
        positive_margin: cosine or distance.
        negative_margin: cosine or distance.
        euclidean: margins and loss in Euclidean distance instead of cosine.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`.

    Source: Oh Song et al., CVPR 2016, arXiv 1511.06452, in the form per anchor of Hermans et al., arXiv 1703.07737
    (pytorch-metric-learning's GeneralizedLiftedStructureLoss under cosine; its default is Euclidean). A row without
    negatives counts as 0.
    """

    def __init__(
        self, *, positive_margin: float = 0.0, negative_margin: float = 1.0, euclidean: bool = False
    ) -> None:
        super().__init__()
        self.positive_margin, self.negative_margin, self.euclidean = positive_margin, negative_margin, euclidean

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def rows(self, pairs: Pairs) -> Tensor:
        (near, near_weight), (far, far_weight) = positives(pairs), negatives(pairs)
        if self.euclidean:
            pull = log_sum_exp([unit_distance(s) for s in near], near_weight, 1.0) - self.positive_margin
            push = log_sum_exp([unit_distance(s) for s in far], far_weight, -1.0) + self.negative_margin
        else:
            pull = log_sum_exp(near, near_weight, -1.0) + self.positive_margin
            push = log_sum_exp(far, far_weight, 1.0) - self.negative_margin
        usable = (pull != -torch.inf) & (push != -torch.inf)  # NaN is no empty sum: it must be seen
        return F.relu(torch.where(usable, pull, 0.0) + torch.where(usable, push, 0.0)).where(usable, 0.0)


class NCALoss(Loss):
    """Neighbourhood components: the chance that a random neighbour, drawn by similarity, is a positive.

    Per anchor `-log(sum_positives e^(s/temperature) / sum_all e^(s/temperature))`.

    Args:
        temperature: divides, > 0. For pytorch-metric-learning's NCALoss(softmax_scale), which reads squared distances
            of unit vectors, it is `1 / (2 * softmax_scale)`.
        positives_in_denominator: False leaves them out, the form of Metrix's table.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`.

    Source: Goldberger et al., NeurIPS 2004.
    """

    def __init__(self, *, temperature: float = 0.5, positives_in_denominator: bool = True) -> None:
        super().__init__()
        positive_number(temperature=temperature)
        self.temperature, self.positives_in_denominator = temperature, positives_in_denominator

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def rows(self, pairs: Pairs) -> Tensor:
        return nca_rows(pairs, self.temperature, self.positives_in_denominator)


def nca_rows(pairs: Pairs, temperature: float, positives_in_denominator: bool) -> Tensor:
    """(A,) `log sum_denominator - log sum_positives`; 0 in rows where either is empty."""
    scale = pairs.logit_scale if pairs.logit_scale is not None else 1 / temperature
    near = log_sum_exp(*positives(pairs), scale)
    if positives_in_denominator:
        every = log_sum_exp([b.similarity for b in pairs], [b.weight for b in pairs], scale)
    else:
        every = log_sum_exp(*negatives(pairs), scale)
    usable = (near != -torch.inf) & (every != -torch.inf)  # NaN is no empty sum: it must be seen
    return torch.where(usable, every, 0.0) - torch.where(usable, near, 0.0)


def unit_distance(cosine: Tensor) -> Tensor:
    """Euclidean distance of unit vectors at a cosine; bounded below by 1e-6, where its gradient ends."""
    return (2 - 2 * cosine).clamp(min=1e-12).sqrt()
