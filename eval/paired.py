"""Tables of arms that were trained with the same seeds and judged on the same rows; used by the scripts beside it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from mixcontrast.retrieval import bootstrap_interval, paired_difference

Found = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""Arm to its seeds, each a metric to (Q,) values of the judged rows."""


def means(found: Found, metrics: Mapping[str, str], groups: np.ndarray | None, seconds: Mapping[str, float]) -> str:
    """Each arm's mean over seeds with the 95% interval over rows or groups, and what a run took.

    Args:
        found: arms.
        metrics: their names in `found` to those in the table.
        groups: (Q,) the class of each row; None: rows are drawn.
        seconds: arm to its median run; an arm that was not trained has none.
    """
    head = ["", *metrics.values(), "seconds"]
    rows = []
    for arm, seeds in found.items():
        cells = []
        for metric in metrics:
            of = bootstrap_interval(_over_seeds(seeds, metric), groups=groups)
            cells.append(f"{of.mean:.4f} [{of.low:.4f}, {of.high:.4f}]")
        rows.append([arm, *cells, f"{seconds[arm]:.1f}" if arm in seconds else ""])
    return _markdown(head, rows)


def changes(
    found: Found, pairs: Sequence[tuple[str, str]], metrics: Mapping[str, str], groups: np.ndarray | None
) -> str:
    """The paired difference of each two arms, with its interval and in how many seeds it is above zero."""
    rows = []
    for second, first in pairs:
        for metric, name in metrics.items():
            of = paired_difference(
                _over_seeds(found[second], metric), _over_seeds(found[first], metric), groups=groups
            )
            by_seed = [b[metric].mean() - a[metric].mean() for a, b in zip(found[first], found[second], strict=True)]
            above = f"{sum(gap > 0 for gap in by_seed)} of {len(by_seed)}"
            rows.append([f"{second} minus {first}", name, f"{of.mean:+.4f} [{of.low:+.4f}, {of.high:+.4f}]", above])
    return _markdown(["paired, row by row", "metric", "difference [95% interval]", "runs above zero"], rows)


def ran_on(*packages: str) -> str:
    """Machine and versions, in one line."""
    versions = ", ".join(f"{package} {version(package)}" for package in (*packages, "torch", "mixcontrast"))
    return (
        f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s), {platform.system()} {platform.machine()}; "
        f"Python {platform.python_version()}, {versions}."
    )


def _over_seeds(seeds: Sequence[Mapping[str, np.ndarray]], metric: str) -> np.ndarray:
    return np.mean([seed[metric] for seed in seeds], axis=0)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
