"""Softmax losses: cross-entropy of each row's similarities with its targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixcontrast.cells import Cells
from mixcontrast.losses.base import Loss, Part, number_of, positive_number, sum_of
from mixcontrast.losses.rowsums import (
    log_sum_exp,
    log_sum_exp_and_total,
    mean_or_zero,
    negatives,
    positives,
    shares_of_mean,
    weighted_sum,
    weighted_total,
)
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan
from mixcontrast.queue import KeyQueue


class InfoNCE(Loss):
    """Self-supervision: each example's other view (or key) against all the others.

    Per anchor, the mean over its positives of `-log(e^(s+/temperature) / (e^(s+/temperature) + sum_negatives
    e^(s/temperature)))`; with one positive an anchor, the usual cross-entropy.

    Args:
        temperature: divides, > 0; 0.5 and 0.1 are common with SimCLR, 0.07 and 0.2 with MoCo.
        queue: a KeyQueue of earlier keys; with it the loss is MoCo's, and each training step enqueues its keys.

    Called with `(view1 (B, D), view2 (B, D))` without a queue: SimCLR's NT-Xent, 2B anchors. With a queue, with
    `(query, key)` or `(query, key, labels)`: gradient reaches the query only, and `labels` leave out queue keys of the
    query's own class. Raises as `Pairs.from_views` and `Pairs.from_queue`.

    Source: van den Oord et al., arXiv 1807.03748; SimCLR, arXiv 2002.05709; MoCo, arXiv 1911.05722.
    """

    def __init__(self, *, temperature: float = 0.1, queue: KeyQueue | None = None) -> None:
        super().__init__()
        positive_number(temperature=temperature)
        self.temperature = temperature
        self.queue = queue

    def plans(self, query: Tensor, key: Tensor, labels: Tensor | None = None) -> tuple[Plan]:
        if self.queue is not None:
            return (self.queue.plan(query, key, labels, enqueue=self.training),)
        if isinstance(key, Tensor) and not key.is_floating_point():
            raise TypeError(
                f"InfoNCE compares two views, (B, D) floats each. Got {key.dtype} {tuple(key.shape)} as the second; "
                "for class labels use SupConLoss()(embeddings, labels)."
            )
        if labels is not None:
            raise TypeError("InfoNCE reads labels only with a queue (class oracle). Got labels; pass queue=KeyQueue().")
        return (Plan.from_views(query, key),)

    def rows(self, pairs: Pairs) -> Tensor:
        return mean_or_zero(*_each_positive_against_negatives(pairs, _scale(pairs, self.temperature)))


class SupConLoss(Loss):
    """Supervised contrastive: cross-entropy of each anchor with all its positives at once.

    Per anchor, the mean over its positives of `-(s+/temperature - log sum_all w * e^(s/temperature))`; the sum runs
    over every pair but the anchor's own, with its weight.

    Args:
        temperature: divides, > 0.
        positives_in_denominator: False leaves an anchor's other positives out of the sum: each positive stands alone
            against the negatives, as in InfoNCE (NT-Xent of labelled batches).
        per_anchor: average within an anchor, then over anchors; False: over all positive pairs of the batch, so that
            an anchor counts by its positives.

    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_labels`. For two views, pass
    `torch.cat([view1, view2])` and `labels.repeat(2)`.

    Source: Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2 ("out"), without its factor of the temperature.
    With `positives_in_denominator=False, per_anchor=False` equal to pytorch-metric-learning's NTXentLoss.
    """

    def __init__(
        self, *, temperature: float = 0.1, positives_in_denominator: bool = True, per_anchor: bool = True
    ) -> None:
        super().__init__()
        positive_number(temperature=temperature)
        self.temperature, self.per_anchor = temperature, per_anchor
        self.positives_in_denominator = positives_in_denominator
        self.counts_rows = per_anchor

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_labels(embeddings, labels),)

    def rows(self, pairs: Pairs) -> Tensor:
        if self.per_anchor and self.positives_in_denominator:
            return cross_entropy_rows(pairs, _scale(pairs, self.temperature))
        total, count = self._totals(pairs)
        return mean_or_zero(total, count) if self.per_anchor else shares_of_mean(total, count, self.kept(pairs))

    def parts(self, pairs: Pairs) -> list[Part]:
        if self.per_anchor:
            return super().parts(pairs)
        kept = self.kept(pairs)
        total, count = self._totals(pairs)
        return [self.part(sum_of(total, kept), _all_of(count, kept, pairs), pairs, kept=number_of(kept, pairs))]

    def counts(self, pairs: Pairs) -> list[tuple[Tensor | float, Tensor | float]]:
        kept = self.kept(pairs)
        number = number_of(kept, pairs)
        return [(number if self.per_anchor else _all_of(weighted_total(*positives(pairs))[1], kept, pairs), number)]

    def _totals(self, pairs: Pairs) -> tuple[Tensor, Cells]:
        """(A,) each: the sum over a row's positives, and how much they count."""
        scale = _scale(pairs, self.temperature)
        if not self.positives_in_denominator:
            return _each_positive_against_negatives(pairs, scale)
        _, count = weighted_total(*positives(pairs))
        return cross_entropy_rows(pairs, scale) * count, count


class RankNContrastLoss(Loss):
    """Regression: embeddings ordered as their real-valued labels are.

    Per anchor `i`, the mean over `j != i` of `-log(e^(s_ij/t) / sum e^(s_ik/t))`, the sum over all `k` at least as far
    from `i` in label as `j` is; `s` is minus the Euclidean distance, of embeddings of any length.
    Sorted by label distance and summed from the far end: A^2 log A work, A^2 memory.

    Args:
        temperature: divides, > 0.
        normalize: divide embeddings by their length first; the authors do not.

    Called with `(embeddings (A, D), values (A,) or (A, L))`; label distance is Euclidean over L. Raises as
    `Pairs.from_values`. Mixers are refused: it reads label distances that mixtures do not carry.

    Source: Zha et al., NeurIPS 2023, arXiv 2210.01189, equation 1.
    """

    soft_targets = False
    mixtures = False

    def __init__(self, *, temperature: float = 2.0, normalize: bool = False) -> None:
        super().__init__()
        positive_number(temperature=temperature)
        self.temperature, self.normalize = temperature, normalize

    def plans(self, embeddings: Tensor, values: Tensor) -> tuple[Plan]:
        return (Plan.from_values(embeddings, values, normalize=self.normalize),)

    def kept(self, pairs: Pairs) -> None:
        """Every row."""

    def rows(self, pairs: Pairs) -> Tensor:
        (block,) = pairs.blocks
        squared = pairs.anchors.square().sum(dim=1)[:, None] + block.candidates.square().sum(dim=1)[None, :]
        near = squared - 2 * block.similarity
        logits = -near.clamp(min=1e-12).sqrt() / self.temperature  # (A, A)
        far = label_distance(pairs).to(logits.dtype)
        itself = ~block.weight
        falling, order = torch.where(itself, -torch.inf, far).sort(dim=1, descending=True)  # the anchor itself last
        sorted_logits = logits.gather(1, order)[:, :-1]
        running = torch.logcumsumexp(sorted_logits, dim=1)  # over k at least as far
        rising = (-falling[:, :-1]).contiguous()
        last = torch.searchsorted(rising, rising, right=True) - 1  # ties share one set: up to the last of them
        return (running.gather(1, last) - sorted_logits).mean(dim=1)


def label_distance(pairs: Pairs) -> Tensor:
    """(A, C) Euclidean distance of the real-valued labels, for one dimension their absolute difference.

    Raises:
        TypeError: the table was not built from values.
    """
    if pairs.anchor_labels is None or not pairs.anchor_labels.is_floating_point():
        raise TypeError("A regression loss needs real values. Got a table without; build it by Pairs.from_values.")
    mine, theirs = pairs.anchor_labels, pairs.candidate_labels
    if mine.ndim == 1:
        return (mine[:, None] - theirs[None, :]).abs()
    return torch.linalg.vector_norm(mine[:, None] - theirs[None, :], dim=-1)


def cross_entropy_rows(pairs: Pairs, scale: Tensor | float) -> Tensor:
    """(A,) `log sum_all w e^(scale s) - scale * mean_positives s`."""
    every, near, count = log_sum_exp_and_total(
        [b.similarity for b in pairs], [b.weight for b in pairs], [b.positive for b in pairs], scale
    )
    return _or_zero(every, pairs) - scale * mean_or_zero(near, count)


def cross_entropy_to_even_rows(pairs: Pairs, scale: Tensor | float) -> Tensor:
    """(A,) `log sum_all w e^(scale s) - scale * mean_all s`, to a target that is even over the columns that count."""
    similarities, weights = [b.similarity for b in pairs], [b.weight for b in pairs]
    every, total, count = log_sum_exp_and_total(similarities, weights, weights, scale)
    return _or_zero(every, pairs) - scale * mean_or_zero(total, count)


def _or_zero(every: Tensor, pairs: Pairs) -> Tensor:
    """(A,) a log-sum-exp over all columns that count; 0 where none does."""
    return every if pairs.every_row_has_positive else torch.where(every == -torch.inf, 0.0, every)


def _each_positive_against_negatives(pairs: Pairs, scale: Tensor | float) -> tuple[Tensor, Cells]:
    """(A,) `sum_positives w log(1 + sum_negatives e^(scale (s - s+)))`, and (A,) their weights."""
    push = log_sum_exp(*negatives(pairs), scale)  # (A,)
    return weighted_sum(*positives(pairs), lambda s: F.softplus(push[:, None] - s * scale))


def _all_of(count: Cells, kept: Tensor | None, pairs: Pairs) -> Tensor | float:
    """How much the positives of all kept rows count."""
    return sum_of(count, kept) if isinstance(count, Tensor) else count * number_of(kept, pairs)


def _scale(pairs: Pairs, temperature: float) -> Tensor | float:
    return pairs.logit_scale if pairs.logit_scale is not None else 1 / temperature


