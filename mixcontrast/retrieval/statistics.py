"""Numbers with their doubt: bootstrap intervals of means over queries, and paired tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import as_array


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    values: Any,
    *,
    groups: Any = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    median: bool = False,
) -> Interval:
    """The mean of values per query, with a percentile bootstrap interval over queries, or over groups of them.

    Queries of one class share its difficulty and are not independent: give their classes as `groups`, and whole
    classes are drawn; without, the interval is too narrow.

    Args:
        values: (Q,) floats.
        groups: (Q,) integers, the class of each query; None: every query is its own.
        confidence: in (0, 1).
        num_resamples: how often to draw.
        seed: of the draws.
        median: of the values instead of their mean; for ranks.

    Raises:
        ValueError: no values, lengths that differ, a confidence outside (0, 1).

    Source: Efron, Annals of Statistics 1979; over clusters, Field and Welsh, JRSS B 2007.

    >>> bootstrap_interval([1.0, 0.0, 1.0, 1.0]).mean
    0.75
    """
    try:
        from scipy.stats import bootstrap
    except ImportError as error:
        raise ImportError("Intervals need scipy. It is not installed; pip install 'mixcontrast[retrieval]'") from error
    values = as_array(values).astype(np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"`values` must be finite, one a query. Got {values.shape}; leave out queries without value.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1). Got {confidence}; 0.95 is common.")
    if median:
        return _percentiles(float(np.median(values)), _medians(values, groups, num_resamples, seed), confidence)
    totals, counts = values, np.ones(len(values))
    if groups is not None:
        inverse = _inverse(groups, values)
        totals, counts = np.bincount(inverse, values), np.bincount(inverse).astype(np.float64)
    mean = float(values.mean())
    if len(totals) < 2:
        raise ValueError(
            f"An interval needs at least two {'groups' if groups is not None else 'queries'}. Got {len(totals)}; "
            "evaluate more."
        )
    if (totals / counts == mean).all():
        return Interval(mean, mean, mean, confidence)

    def ratio(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis=axis) / count.sum(axis=axis)

    result = bootstrap(
        (totals, counts),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, 4_000_000 // len(totals)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), confidence)


def _medians(values: np.ndarray, groups: Any, num_resamples: int, seed: int) -> np.ndarray:
    """(num_resamples,) medians: queries weighted by how often their group was drawn; a seed draws the same groups."""
    inverse = np.arange(len(values)) if groups is None else _inverse(groups, values)
    order = np.argsort(values, kind="stable")
    values, inverse = values[order], inverse[order]
    num_groups = int(inverse.max()) + 1
    rng = np.random.default_rng(seed)
    medians = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
        running = np.cumsum(drawn[inverse])
        half = (running[-1] - 1) / 2  # an even count has two middle values
        low, high = np.searchsorted(running, [np.floor(half), np.ceil(half)], side="right")
        medians[resample] = (values[low] + values[high]) / 2
    return medians


def _percentiles(middle: float, resampled: np.ndarray, confidence: float) -> Interval:
    ends = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(middle, float(ends[0]), float(ends[1]), confidence)


def permutation_p_value(
    first: Any, second: Any, *, groups: Any = None, num_resamples: int = 9999, seed: int = 0
) -> float:
    """The two-sided p-value of a paired permutation test: were first and second drawn from the same?

    The sign of each query's difference is turned at random, of whole groups together; with few of them all
    signs are tried.

    Args:
        first: (Q,) values a query.
        second: (Q,) of the same queries in the same order.
        groups: (Q,) integers, turned together; None: each query for itself.
        num_resamples: how many random signs; the least p-value is `1 / (num_resamples + 1)`.
        seed: of the signs.

    Raises:
        ValueError: lengths that differ, fewer than two queries or groups.

    Source: Fisher, The Design of Experiments, 1935; in retrieval, Smucker, Allan, Carterette, CIKM 2007.

    >>> permutation_p_value([1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0])
    0.0625
    """
    try:
        from scipy.stats import permutation_test
    except ImportError as error:
        raise ImportError("P-values need scipy. It is not installed; pip install 'mixcontrast[retrieval]'") from error
    difference = _paired(first, second)
    totals = difference if groups is None else np.bincount(_inverse(groups, difference), difference)
    if len(totals) < 2:
        raise ValueError(
            f"A test needs at least two {'groups' if groups is not None else 'queries'}. Got {len(totals)}; "
            "evaluate more."
        )
    if not totals.any():
        return 1.0
    result = permutation_test(
        (totals, np.zeros_like(totals)),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, 2_000_000 // len(totals)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def paired_difference(
    first: Any,
    second: Any,
    *,
    groups: Any = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    median: bool = False,
) -> Interval:
    """The mean of `first - second`, query by query, with its bootstrap interval; arguments as `bootstrap_interval`.

    With `median` it is the difference of the two medians, both of the same queries in each resample.

    Raises:
        ValueError: lengths that differ, and as `bootstrap_interval`.
    """
    change = _paired(first, second)
    if median:
        first, second = as_array(first).astype(np.float64), as_array(second).astype(np.float64)
        resampled = _medians(first, groups, num_resamples, seed) - _medians(second, groups, num_resamples, seed)
        return _percentiles(float(np.median(first) - np.median(second)), resampled, confidence)
    return bootstrap_interval(
        change, groups=groups, confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def _paired(first: Any, second: Any) -> np.ndarray:
    first, second = as_array(first).astype(np.float64), as_array(second).astype(np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"A paired comparison needs the same queries in the same order. Got {first.shape}, {second.shape}."
        )
    return first - second


def _inverse(groups: Any, values: np.ndarray) -> np.ndarray:
    """(Q,) groups numbered from 0."""
    groups = as_array(groups)
    if groups.shape != values.shape:
        raise ValueError(f"`values` and `groups` must have one length. Got {len(values)}, {groups.shape}.")
    return np.unique(groups, return_inverse=True)[1]
