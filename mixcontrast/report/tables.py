"""The tables of a comparison, from values a query, averaged over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from tabulate import tabulate

from mixcontrast.retrieval import Evaluation, Interval, bootstrap_interval, paired_difference

NAMES = {"hit@1": "Recall@1", "hit@2": "Recall@2", "hit@4": "Recall@4", "hit@8": "Recall@8", "map@r": "MAP@R"}


def compare(raw: Evaluation, plain: list[Evaluation], mixed: list[Evaluation]) -> dict[str, dict[str, Any]]:
    """For each metric: raw, plain and mixed, and mixed minus plain, each with its 95% interval.

    A query's value is its mean over seeds; intervals are over test classes, drawn whole. Beside them the difference of
    each seed.
    """
    found = {}
    for metric in NAMES:
        groups = raw.groups
        of_plain = np.mean([run.values[metric] for run in plain], axis=0)
        of_mixed = np.mean([run.values[metric] for run in mixed], axis=0)
        found[metric] = {
            "raw": vars(bootstrap_interval(raw.values[metric], groups=groups)),
            "plain": vars(bootstrap_interval(of_plain, groups=groups)),
            "mixed": vars(bootstrap_interval(of_mixed, groups=groups)),
            "mixed - plain": vars(paired_difference(of_mixed, of_plain, groups=groups)),
            "mixed - plain, each seed": [
                b.mean(metric) - a.mean(metric) for a, b in zip(plain, mixed, strict=True)
            ],
        }
    return found


def results_table(metrics: dict[str, dict[str, Any]], titles: dict[str, str], tablefmt: str = "github") -> str:
    """A row an encoder, a column a metric, means with their intervals."""
    rows = [
        [title] + [_with_interval(Interval(**found[arm])) for found in metrics.values()]
        for arm, title in titles.items()
    ]
    return tabulate(rows, headers=["", *(NAMES[m] for m in metrics)], tablefmt=tablefmt, disable_numparse=True)


def difference_table(metrics: dict[str, dict[str, Any]], tablefmt: str = "github") -> str:
    """A row a metric: mixed minus plain with its interval, and the difference of each seed."""
    rows = []
    for metric, found in metrics.items():
        seeds = found["mixed - plain, each seed"]
        rows.append(
            [
                NAMES[metric],
                _with_interval(Interval(**found["mixed - plain"]), "+.3f"),
                " ".join(f"{value:+.3f}" for value in seeds),
                f"{sum(value > 0 for value in seeds)} of {len(seeds)}",
            ]
        )
    headers = ["mixed minus plain", "difference [95% interval]", "each seed", "seeds above 0"]
    return tabulate(rows, headers=headers, tablefmt=tablefmt, disable_numparse=True)


def time_table(milliseconds: dict[str, float], titles: dict[str, str], tablefmt: str = "github") -> str:
    """Milliseconds a training step of each arm, and how many times the plain one's."""
    rows = [[titles[arm], f"{ms:.1f}", f"{ms / milliseconds['plain']:.2f}"] for arm, ms in milliseconds.items()]
    headers = ["", "ms a step (median)", "times the plain"]
    return tabulate(rows, headers=headers, tablefmt=tablefmt, disable_numparse=True)


def _with_interval(found: Interval, form: str = ".3f") -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
