"""The curve of an ensemble over alpha: what each reaches, and which is best on the validation part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcontrast.judge.judgement import TO_IMAGE, TO_TEXT, Judgement
from mixcontrast.judge.tables import Beside, as_dict
from mixcontrast.retrieval import Interval


@dataclass(frozen=True)
class Line:
    """A metric of a part against alpha.

    Attributes:
        what: is judged.
        metric: the first of it, R@1 or top-1.
        part: in-domain, held-out or all.
        values: one an alpha.
    """

    what: str
    metric: str
    part: str
    values: tuple[Interval, ...]


@dataclass(frozen=True)
class Choice:
    """The alpha that is best on the validation part.

    Attributes:
        alpha: the smallest of the best.
        by: what it is best at.
        values: of each alpha, on the validation part.
    """

    alpha: float
    by: str
    values: tuple[float, ...]


def lines_of(beside: Beside) -> list[Line]:
    """A line for each thing that is judged and each part, of its first metric.

    Args:
        beside: the alphas, rising.
    """
    told = list(beside.told.values())
    return [
        Line(what, metric, part, tuple(each[what][part][metric] for each in told))
        for what, parts in told[0].items()
        for part, metrics in parts.items()
        for metric in [next(iter(metrics))]
    ]


def score(found: Judgement) -> tuple[float, str]:
    """What alpha is chosen by: the mean of R@1 both ways; without captions the mean top-1 of the classifiers."""
    if found.retrieval:
        both = [found.retrieval[way].mean("R@1") for way in (TO_TEXT, TO_IMAGE)]
        return float(np.mean(both)), "mean of R@1 both ways"
    return float(np.mean([each.evaluation.mean("top-1") for each in found.zero_shot.values()])), "top-1"


def choose(alphas: Sequence[float], validated: Sequence[Judgement]) -> Choice:
    """The best alpha, by judgements of a validation part; of equal ones the smallest, nearest to the zero-shot model.

    Args:
        alphas: rising.
        validated: what each reaches on the validation part.
    """
    scores = [score(found)[0] for found in validated]
    return Choice(alphas[int(np.argmax(scores))], score(validated[0])[1], tuple(scores))


def curve_as_dict(alphas: Sequence[float], lines: Sequence[Line], choice: Choice | None) -> dict[str, Any]:
    """For JSON."""
    found: dict[str, Any] = {
        "alphas": list(alphas),
        "curve": [
            {"what": line.what, "metric": line.metric, "part": line.part,
             "values": [as_dict(value) for value in line.values]}
            for line in lines
        ],
        "chosen": None,
    }  # fmt: skip
    if choice is not None:
        found["chosen"] = {
            "alpha": choice.alpha, "on": "the validation part", "by": choice.by,
            "validation": dict(zip([f"{alpha:g}" for alpha in alphas], choice.values, strict=True)),
        }  # fmt: skip
    return found
