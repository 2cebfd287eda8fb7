"""The triplet loss over all triplets of a batch, without a table of triplets."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.losses.base import Loss, Part, number_of, positive_number, sum_of
from mixcontrast.losses.pair_sums import unit_distance
from mixcontrast.losses.rowsums import shares_of_mean
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan


class TripletLoss(Loss):
    """Every positive closer than every negative, by a margin.

    Per anchor the mean over its triplets (positive, negative) of `[margin + s_negative - s_positive]+`, with `s` the
    cosine, or minus the Euclidean distance of unit vectors. An anchor's negatives are sorted once and their running
    sums read at each positive: A*C*log C work and A*C memory, where a table of triplets takes A*C^2.

    Args:
        margin: > 0.
        euclidean: compare distances `sqrt(2 - 2s)` instead of cosines.
        semi_hard: only triplets whose negative is further than the positive by less than the margin; the mean is over
            those, and an anchor without any counts as 0.
        only_violated: the mean over triplets with a loss above 0 instead of over all ("batch all, non-zero").
        per_anchor: average within an anchor, then over anchors; False: over all triplets of the batch, so that an
            anchor counts by its triplets.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`. Targets must be 0 or 1: mixers that
    mix labels (Metrix, V-Mix) are refused, those that add negatives (MoCHi) are not.
    A weight of 0 leaves a pair out; others all count once.

    Source: Schroff et al. (semi-hard), CVPR 2015, arXiv 1503.03832; Hermans et al. (batch all), arXiv 1703.07737.
    Differs: all semi-hard negatives count, not one drawn. With `per_anchor=False` equal to pytorch-metric-learning's
    TripletMarginLoss, and with `only_violated=True` to its default, which leaves zeros out.
    """

    soft_targets = False

    def __init__(
        self,
        *,
        margin: float = 0.1,
        euclidean: bool = False,
        semi_hard: bool = False,
        only_violated: bool = False,
        per_anchor: bool = True,
    ) -> None:
        super().__init__()
        positive_number(margin=margin)
        self.margin, self.euclidean, self.semi_hard, self.only_violated = margin, euclidean, semi_hard, only_violated
        self.per_anchor = per_anchor
        self.counts_rows = per_anchor

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def rows(self, pairs: Pairs) -> Tensor:
        total, triplets = self._totals(pairs)
        return total / triplets.clamp(min=1) if self.per_anchor else shares_of_mean(total, triplets, self.kept(pairs))

    def parts(self, pairs: Pairs) -> list[Part]:
        if self.per_anchor:
            return super().parts(pairs)
        kept = self.kept(pairs)
        total, triplets = (sum_of(rows, kept) for rows in self._totals(pairs))
        return [self.part(total, triplets, pairs, kept=number_of(kept, pairs))]

    def counts(self, pairs: Pairs) -> list[tuple[Tensor | float, Tensor | float]] | None:
        return super().counts(pairs) if self.per_anchor else None

    def _totals(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(A,) each: the sum over a row's triplets, and how many they are."""
        similarity = pairs.similarity
        if self.euclidean:
            similarity = -unit_distance(similarity)
        positive = torch.cat([_mask(b.positive, b.similarity) for b in pairs], dim=1)
        negative = torch.cat([_mask(b.negative, b.similarity) for b in pairs], dim=1)
        rising, order = torch.where(negative, similarity, torch.inf).sort(dim=1)  # (A, C) negatives first
        real = negative.gather(1, order)
        running = torch.where(real, rising, 0.0).cumsum(dim=1)
        running = torch.nn.functional.pad(running, (1, 0))  # (A, C + 1): sum of the n lowest
        count = negative.sum(dim=1, keepdim=True)
        rising = rising.detach().contiguous()
        violated = torch.searchsorted(rising, (similarity - self.margin).detach(), right=True)  # lower ones are fine
        end = count.expand_as(violated)
        if self.semi_hard:
            end = torch.searchsorted(rising, similarity.detach().contiguous())  # and harder ones are left out
        number = (end - violated).clamp(min=0)
        total = running.gather(1, end) - running.gather(1, violated) + number * (self.margin - similarity)
        total = torch.where(positive & (number > 0), total, 0.0).sum(dim=1)
        read = torch.where(positive | negative, similarity.detach(), 0.0)
        total = total + 0 * read.sum(dim=1)  # NaN, which sorting and searching pass over, must be seen
        if self.semi_hard or self.only_violated:
            triplets = torch.where(positive, number, 0).sum(dim=1)
        else:
            triplets = positive.sum(dim=1) * count.squeeze(1)
        return total, triplets


def _mask(cells: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(cells, Tensor):
        return (cells > 0).expand_as(like)
    return torch.full((1, 1), cells > 0, dtype=torch.bool, device=like.device).expand_as(like)
