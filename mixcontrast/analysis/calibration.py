"""Whether probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.checks import check_labels, reads_values
from mixcontrast.similarity import wide


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of equal width of their confidence; (bins,) each, of a reliability diagram.

    Attributes:
        confidence: mean largest probability of a bin's predictions; NaN in an empty bin.
        accuracy: share of them that are right; NaN in an empty bin.
        count: how many there are.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def error(self) -> Tensor:
        """The expected calibration error: the mean over predictions of their bin's |accuracy - confidence|."""
        gap = torch.where(self.count > 0, (self.accuracy - self.confidence).abs(), 0)
        return (gap * self.count).sum() / self.count.sum()


@torch.no_grad()
def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Reliability:
    """Accuracy and confidence of the most probable class, bin by bin.

    Args:
        probabilities: (N, C) floats in [0, 1] that sum to 1 in each row: a softmax, not logits.
        labels: (N,) integers in [0, C).
        bins: how many, of equal width: bin m holds confidences in (m/bins, (m+1)/bins].

    Raises:
        TypeError: probabilities that are not floats, labels that are not integers.
        ValueError: shapes that do not fit, `bins` below 1; on a CPU also rows that do not sum to 1 and labels outside.

    Source: Guo et al., ICML 2017, arXiv 1706.04599.

    >>> found = reliability(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]), bins=2)
    >>> found.count, found.accuracy, found.confidence
    (tensor([0, 3]), tensor([   nan, 0.6667]), tensor([   nan, 0.8000]))
    """
    _check(probabilities, labels, bins)
    confidence, predicted = wide(probabilities).max(dim=1)
    return reliability_of(confidence, predicted == labels, bins=bins)


@torch.no_grad()
def reliability_of(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Reliability:
    """The same bins from confidences, where the whole table of probabilities is not kept.

    Args:
        confidence: (N,) floats in [0, 1], the largest probability of each row.
        correct: (N,) bool, or floats in [0, 1], whether that class is the right one; between: a tie of several classes.
        bins: as in `reliability`.

    Raises:
        ValueError: shapes that differ, no rows, `bins` below 1.

    >>> reliability_of(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]), bins=2).accuracy
    tensor([   nan, 0.6667])
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            "`confidence` and `correct` must be one value a prediction. "
            f"Got {tuple(confidence.shape)} and {tuple(correct.shape)}; give both of the same predictions."
        )
    _check_bins(bins)
    place = bin_of(confidence, bins)
    count = torch.bincount(place, minlength=bins)
    sums = torch.zeros(2, bins, dtype=torch.float64, device=confidence.device)
    sums[0].index_add_(0, place, confidence.double())
    sums[1].index_add_(0, place, correct.double())
    mean_confidence, accuracy = (sums / count).to(confidence.dtype)
    return Reliability(mean_confidence, accuracy, count)


def bin_of(confidence: Tensor, bins: int) -> Tensor:
    """(N,) int64, the bin of each confidence: bin m holds (m/bins, (m+1)/bins], the first 0 as well."""
    return (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """The expected calibration error (ECE): `sum_m |B_m|/N |accuracy(B_m) - confidence(B_m)|`.

    Arguments, errors and source as in `reliability`, which gives the bins.

    Returns:
        A 0-dimensional tensor between 0 and 1.

    >>> calibration_error(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
    tensor(0.2500)
    """
    return reliability(probabilities, labels, bins=bins).error


def _check(probabilities: Tensor, labels: Tensor, bins: int) -> None:
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
        seen = probabilities.dtype if isinstance(probabilities, Tensor) else type(probabilities).__name__
        raise TypeError(f"`probabilities` must be a tensor of floats. Got {seen}; pass logits.softmax(dim=1).")
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(
            "`probabilities` must have shape (examples, classes), neither of them 0. "
            f"Got {tuple(probabilities.shape)}; of a binary task give both columns, 1 - p and p."
        )
    check_labels(labels, probabilities)
    _check_bins(bins)
    if reads_values(probabilities):
        sums = wide(probabilities).sum(dim=1)
        if not bool(((sums - 1).abs() < 1e-2).all()) or not bool((probabilities >= 0).all()):
            raise ValueError(
                "`probabilities` must be >= 0 and sum to 1 in each row. "
                f"Got a least of {probabilities.min().item():g} and sums from {sums.min().item():g} to "
                f"{sums.max().item():g}; pass logits.softmax(dim=1)."
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < probabilities.shape[1]:
            raise ValueError(
                f"`labels` must lie in [0, {probabilities.shape[1]}), one column a class. "
                f"Got labels from {int(labels.min())} to {int(labels.max())}; renumber them."
            )


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1. Got {bins}; 15 is usual.")
