"""Numbers with their doubt: bootstrap intervals of means over queries."""

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
    values: Any, *, groups: Any = None, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
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
    totals, counts = values, np.ones(len(values))
    if groups is not None:
        groups = as_array(groups)
        if groups.shape != values.shape:
            raise ValueError(f"`values` and `groups` must have one length. Got {len(values)}, {groups.shape}.")
        inverse = np.unique(groups, return_inverse=True)[1]
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


def paired_difference(
    first: Any, second: Any, *, groups: Any = None, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `first - second`, query by query, with its bootstrap interval; arguments as `bootstrap_interval`.

    Raises:
        ValueError: lengths that differ, and as `bootstrap_interval`.
    """
    first, second = as_array(first).astype(np.float64), as_array(second).astype(np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"A paired difference needs the same queries in the same order. Got {first.shape}, {second.shape}."
        )
    return bootstrap_interval(
        first - second, groups=groups, confidence=confidence, num_resamples=num_resamples, seed=seed
    )
