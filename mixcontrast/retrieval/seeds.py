"""Runs of several seeds judged on the same queries: means and paired differences with the doubt of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval.results import MEDIANS, Evaluation
from mixcontrast.retrieval.statistics import Interval


@dataclass(frozen=True)
class SeededRuns:
    """Runs of one recipe, a row a seed.

    Attributes:
        values: metric to (S, Q).
        groups: (Q,) classes, numbered from 0; the queries themselves where there are none.
        settings: of each run, as its evaluation has them.
        attributes: (Q,) texts by which queries are told apart, such as `retrieval`, the direction.
        shares: the metrics whose mean lies in [0, 1].
    """

    values: dict[str, np.ndarray]
    groups: np.ndarray
    settings: list[dict[str, Any]]
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    shares: frozenset[str] = frozenset()

    @classmethod
    def load(cls, folders: Sequence[str | Path]) -> SeededRuns:
        """What `Evaluation.save` wrote in each folder, or `mixcontrast fit`.

        Of runs that are judged by MAE and say their R2, R2 is a metric too: with the test's variance as given, it is a
        mean over rows, `1 - error^2 / variance`.

        Raises:
            ValueError: a folder does not hold an evaluation, or they are of other queries.
        """
        found = [Evaluation.load(folder) for folder in folders]
        first = found[0]
        if any(not np.array_equal(first.queries, other.queries) for other in found):
            raise ValueError(
                f"All seeds must be judged on the same queries. Got others in {folders[0]} and beside; remove them and "
                "run again."
            )
        values = {metric: np.stack([each.values[metric] for each in found]) for metric in first.values}
        if "MAE" in values and "R2" in first.settings:
            squared = values["MAE"] ** 2
            explained = np.array([each.settings["R2"] for each in found])
            variance = squared.mean(axis=1) / (1 - explained)
            values["R2"] = 1 - squared / variance[:, None]
        groups = first.groups if first.groups is not None else np.arange(len(first.queries))
        shares = frozenset(name for name, of in values.items() if 0 <= of.min() and of.max() <= 1)
        return cls(
            values, np.unique(groups, return_inverse=True)[1], [each.settings for each in found], first.attributes,
            shares,
        )  # fmt: skip

    def by_direction(self) -> SeededRuns:
        """Runs judged both ways, as those of two towers are: each metric as the mean of the directions, and of each.

        `R@1` becomes the mean of both directions' means, however many queries each has, as it is on the validation
        part; `image to text R@1` and `text to image R@1` are those of one. Where domains are held out, a direction is
        of the queries of all of them. Values are moved so that their plain mean over all queries is that mean, and
        `mean_of_seeds` finds the variance of it: with weights `w_q` that sum to 1 and a direction's mean `m`, a query's
        value `v` becomes `M + Q w_q (v - m)`, where `M` is the mean that is wanted. Runs that are judged one way are
        given back as they are; medians, which are no means, are left out.

        >>> runs = SeededRuns({"R@1": np.array([[1.0, 0.0, 0.0, 1.0]])}, np.array([0, 1, 0, 1]), [],
        ...                   {"retrieval": np.array(["to text", "to image", "to image", "to image"])})
        >>> {name: round(float(values.mean()), 3) for name, values in runs.by_direction().values.items()}
        {'R@1': 0.667, 'to text R@1': 1.0, 'to image R@1': 0.333}
        """
        if "retrieval" not in self.attributes:
            return self
        of_query = np.array([told.partition(",")[0] for told in self.attributes["retrieval"]])
        directions = list(dict.fromkeys(of_query.tolist()))
        where = {name: of_query == name for name in directions}
        values: dict[str, np.ndarray] = {}
        for wanted in (directions, *([name] for name in directions)):
            for metric, of_metric in self.values.items():
                if metric in MEDIANS:
                    continue
                name = metric if len(wanted) > 1 else f"{wanted[0]} {metric}"
                values[name] = _moved(of_metric, [where[direction] for direction in wanted])
        shares = frozenset(name for name in values if name.rpartition(" ")[2] in self.shares or name in self.shares)
        return replace(self, values=values, shares=shares)


def _moved(values: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """(S, Q) values whose mean over Q, of each seed, is the mean of the parts' means.

    Args:
        values: (S, Q).
        parts: (Q,) bool each, apart from each other.
    """
    means = [values[:, part].mean(axis=1, keepdims=True) for part in parts]
    found = np.repeat(np.mean(means, axis=0), values.shape[1], axis=1)
    for part, mean in zip(parts, means, strict=True):
        found[:, part] += values.shape[1] / (len(parts) * part.sum()) * (values[:, part] - mean)
    return found


@dataclass(frozen=True)
class SeededMean:
    """A mean over seeds and queries, and how far it may be off.

    Attributes:
        interval: the mean with its confidence interval.
        p_value: two-sided, of a mean of 0.
        of_seeds: the variance of the mean that comes from the seeds; 0 of one seed.
        of_groups: the variance of the mean that comes from the groups of queries.
        num_seeds: S.
        num_groups: G.
    """

    interval: Interval
    p_value: float
    of_seeds: float
    of_groups: float
    num_seeds: int
    num_groups: int


def mean_of_seeds(values: Any, groups: Any, *, confidence: float = 0.95) -> SeededMean:
    """The mean of (S, Q) values, to be expected of other seeds and of other classes of queries.

    Seeds and groups are crossed: every seed meets every group. The variance of the mean is the sum of two, that of the
    mean of S seeds, and that of the mean of G groups (of the values averaged over seeds; groups count by their size);
    it is a little too large, by what is neither's alone. The interval is Student's, with Satterthwaite's degrees of
    freedom: with few seeds a bootstrap over them is too narrow (in a simulation in which the seeds make the spread, 95%
    intervals by bootstrap held the truth in 80% of cases for 3 seeds and in 86% for 5). One seed is taken as it is: the
    interval is then over groups alone.

    Args:
        values: (S, Q) finite floats; for a paired difference, those of one recipe minus those of another, seed by seed.
        groups: (Q,) integers from 0, classes of queries, at least two.
        confidence: in (0, 1).

    Raises:
        ValueError: shapes that do not fit, NaN, fewer than two groups.

    Source: Owen, Annals of Applied Statistics 2007, of crossed random effects; Satterthwaite, Biometrics 1946.

    >>> found = mean_of_seeds([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [0, 1, 2])
    >>> found.interval.mean, found.of_seeds, round(found.of_groups, 3)
    (1.5, 0.25, 0.333)
    """
    from scipy.stats import t

    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.ndim != 2 or groups.shape != values.shape[1:] or not np.isfinite(values).all():
        raise ValueError(
            "`values` must be finite, (seeds, queries), and `groups` one a query. "
            f"Got values {values.shape}, groups {groups.shape}; leave out queries without a value."
        )
    counts = np.bincount(groups)
    num_seeds, num_groups = len(values), len(counts)
    if num_groups < 2:
        raise ValueError(f"An interval needs at least two groups of queries. Got {num_groups}; judge more classes.")
    mean = float(values.mean())
    off = np.bincount(groups, values.mean(axis=0)) - mean * counts  # (G,)
    of_groups = float(num_groups / (num_groups - 1) * np.square(off).sum() / len(groups) ** 2)
    of_seeds = float(values.mean(axis=1).var(ddof=1) / num_seeds) if num_seeds > 1 else 0.0
    error = np.sqrt(of_seeds + of_groups)
    if error == 0:
        return SeededMean(
            Interval(mean, mean, mean, confidence), float(mean == 0), 0.0, 0.0, num_seeds, num_groups
        )
    freedom = degrees_of_freedom(of_seeds, of_groups, num_seeds, num_groups)
    half = float(t.ppf((1 + confidence) / 2, freedom) * error)
    p_value = float(2 * t.sf(abs(mean) / error, freedom))
    interval = Interval(mean, mean - half, mean + half, confidence)
    return SeededMean(interval, p_value, of_seeds, of_groups, num_seeds, num_groups)


def degrees_of_freedom(of_seeds: Any, of_groups: float, num_seeds: Any, num_groups: int) -> Any:
    """Satterthwaite's, of the sum of the two variances of a mean; numbers or arrays of them."""
    spread = of_seeds**2 / np.maximum(num_seeds - 1, 1)
    return (of_seeds + of_groups) ** 2 / (spread + of_groups**2 / (num_groups - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are: the chance that any at all is called true by mistake stays below it.

    Source: Holm, Scandinavian Journal of Statistics 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def seeds_that_tell(
    found: SeededMean, *, significance: float = 0.05, power: float = 0.8, most: int = 1000
) -> int | None:
    """How many seeds would tell a mean of this size from 0, if it and the spread are what they seem.

    Args:
        found: of a paired difference of at least two seeds.
        significance: the largest p-value that is believed; divide by the number of comparisons.
        power: the chance to find it.
        most: the largest number that is tried.

    Returns:
        The least number of seeds; None where `most` do not, as when the groups of queries alone make too much doubt.
    """
    from scipy.stats import t

    if found.num_seeds < 2:
        raise ValueError(f"The spread of seeds needs at least two. Got {found.num_seeds}; run more seeds.")
    if found.of_seeds + found.of_groups == 0:
        return 2 if found.interval.mean else None
    seeds = np.arange(2, most + 1)
    of_seeds = found.of_seeds * found.num_seeds / seeds
    freedom = degrees_of_freedom(of_seeds, found.of_groups, seeds, found.num_groups)
    needed = (t.ppf(1 - significance / 2, freedom) + t.ppf(power, freedom)) * np.sqrt(of_seeds + found.of_groups)
    tell = np.flatnonzero(abs(found.interval.mean) >= needed)
    return int(seeds[tell[0]]) if len(tell) else None
