"""What an evaluation found: a value a query, their means with intervals, groups, files, and two of them compared."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import as_integers
from mixcontrast.retrieval.presets import Preset
from mixcontrast.retrieval.statistics import Interval, bootstrap_interval, paired_difference, permutation_p_value

MEDIANS = ("first_rank", "MedR")  # reported as medians: a mean of ranks is a mean of the worst few
SMALLER_IS_BETTER = (*MEDIANS, "MAE")


@dataclass(frozen=True)
class Evaluation:
    """Retrieval metrics with a value a query.

    Attributes:
        values: metric name to (Q,) values of the queries that have a positive.
        queries: (Q,) which queries those are.
        groups: (Q,) their classes; None where there are none. Intervals are over groups.
        num_without_positive: how many queries were left out, having nothing to find.
        num_tied: for how many queries a tie reached over a cut, so that the order of equal items would have mattered.
        attributes: name to (Q,) of what else is known of the queries (vendor, category), for results by group.
        settings: how it was measured: similarity, ties, sizes, dtype, index; for the record.
        names: (Q,) what the queries are called, for people; None: they are told by their number.
        clustering: agreement of clusters with the classes, where it was asked for.
    """

    values: dict[str, np.ndarray]
    queries: np.ndarray
    groups: np.ndarray | None
    num_without_positive: int
    num_tied: int
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    names: np.ndarray | None = None
    clustering: dict[str, float] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """The mean of a metric over queries; in [0, 1] but for ranks."""
        return float(self._of(metric).mean())

    def median(self, metric: str) -> float:
        """The median of a metric over queries, for ranks."""
        return float(np.median(self._of(metric)))

    def interval(self, metric: str, *, confidence: float = 0.95, seed: int = 0) -> Interval:
        """The mean (of a first rank, the median) with its bootstrap interval.

        It is over classes where there are at least two, else over queries. A single class or query gives no interval:
        NaN ends.
        """
        groups = self.groups
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None
        values = self._of(metric)
        if len(values) < 2:
            return Interval(float(values[0]), float("nan"), float("nan"), confidence)
        return bootstrap_interval(
            values, groups=groups, confidence=confidence, seed=seed, median=metric in MEDIANS
        )

    def per_group(self, attribute: str) -> dict[Any, Evaluation]:
        """The same results for each value of an attribute of the queries, in its order.

        Raises:
            KeyError: no such attribute was given.
        """
        if attribute not in self.attributes:
            raise KeyError(
                f"No attribute {attribute!r} is known of the queries. There are {sorted(self.attributes)}; "
                "pass it to evaluate(..., attributes={name: values})."
            )
        of_queries = self.attributes[attribute]
        return {value.item(): self.of_queries(of_queries == value) for value in np.unique(of_queries)}

    def of_queries(self, kept: np.ndarray) -> Evaluation:
        """The same results of some queries alone.

        Args:
            kept: (Q,) bool.
        """
        return replace(
            self,
            values={name: values[kept] for name, values in self.values.items()},
            queries=self.queries[kept],
            groups=None if self.groups is None else self.groups[kept],
            attributes={name: values[kept] for name, values in self.attributes.items()},
            names=None if self.names is None else self.names[kept],
            clustering={},
        )

    def named(self, preset: Preset) -> Evaluation:
        """The metrics that a field reports, under its own names; those that were not computed are left out."""
        ks = sorted({int(name.split("@")[1]) for name in self.values if name.split("@")[-1].isdigit()})
        names = {ours: theirs for ours, theirs in preset.names(ks).items() if ours in self.values}
        return replace(self, values={theirs: self.values[ours] for ours, theirs in names.items()})

    def to_dict(self) -> dict[str, Any]:
        """Means, intervals and counts, for JSON; also for each group of each attribute."""
        found = {
            "metrics": self._intervals(),
            "num_queries": len(self.queries),
            "num_without_positive": self.num_without_positive,
            "num_tied": self.num_tied,
            "settings": self.settings,
        }
        if self.clustering:
            found["clustering"] = self.clustering
        if self.attributes:
            found["by"] = {
                attribute: {
                    str(value): {"num_queries": len(part.queries), "metrics": part._intervals()}
                    for value, part in self.per_group(attribute).items()
                }
                for attribute in self.attributes
            }
        return found

    def to_markdown(self) -> str:
        """A table of means with their intervals, and one for each attribute."""
        rows = [[name, f"{found.mean:.4f}", _ends(found)] for name, found in self._found()]
        tables = [_markdown(["metric", "mean", "95% interval"], rows)]
        for attribute in self.attributes:
            rows = []
            for value, part in self.per_group(attribute).items():
                cells = [f"{found.mean:.4f} {_ends(found)}" for _, found in part._found()]
                rows.append([str(value), str(len(part.queries)), *cells])
            tables.append(_markdown([attribute, "queries", *self.values], rows))
        return "\n\n".join(tables)

    def to_csv(self) -> str:
        """A row a metric: name, mean, low, high, queries; with groups, theirs below."""
        lines = ["group,metric,mean,low,high,num_queries"]
        parts = [("all", self)] + [
            (f"{attribute}={value}", part)
            for attribute in self.attributes
            for value, part in self.per_group(attribute).items()
        ]
        for group, part in parts:
            for name, found in part._found():
                lines.append(f"{_quoted(group)},{name},{found.mean!r},{found.low!r},{found.high!r},{len(part.queries)}")
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes `results.json` and `queries.csv` (a row a query), each whole or not at all; `load` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns: dict[str, np.ndarray] = {"query": self.queries}
        if self.names is not None:
            columns["name"] = self.names
        if self.groups is not None:
            columns["group"] = self.groups
        columns |= {f"attribute:{name}": values for name, values in self.attributes.items()} | self.values
        temporary = folder / f".{os.getpid()}.queries.csv"
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        temporary.replace(folder / "queries.csv")
        temporary = folder / f".{os.getpid()}.results.json"
        temporary.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(folder / "results.json")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """What `save` wrote.

        Raises:
            ValueError: the folder does not hold it whole.
        """
        folder = Path(folder)
        try:
            found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            with open(folder / "queries.csv", newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            if any(len(row) != len(header) for row in rows) or len(rows) != found["num_queries"]:
                raise ValueError("rows are missing")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"A saved evaluation is a folder with results.json and queries.csv. Got {folder} ({error}); "
                "write it by Evaluation.save or mixcontrast evaluate --out."
            ) from None
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        attributes = {name[len("attribute:") :]: as_integers(columns.pop(name)) for name in header if ":" in name}
        queries, groups = as_integers(columns.pop("query")), columns.pop("group", None)
        names = columns.pop("name", None)
        return cls(
            values={name: np.array(column, np.float64) for name, column in columns.items()},
            queries=queries,
            groups=None if groups is None else as_integers(groups),
            num_without_positive=found["num_without_positive"],
            num_tied=found["num_tied"],
            attributes=attributes,
            settings=found["settings"],
            names=None if names is None else np.array(names),
            clustering=found.get("clustering", {}),
        )

    def _found(self) -> list[tuple[str, Interval]]:
        return [(name, self.interval(name)) for name in self.values]

    def _intervals(self) -> dict[str, dict[str, float | None]]:
        """For JSON, which has no NaN: where one query gives no interval, its ends are null."""
        return {
            name: {key: None if np.isnan(value) else value for key, value in vars(found).items()}
            for name, found in self._found()
        }

    def _of(self, metric: str) -> np.ndarray:
        if metric not in self.values:
            raise KeyError(f"No metric {metric!r} was computed. There are {', '.join(self.values)}.")
        return self.values[metric]


@dataclass(frozen=True)
class Comparison:
    """One metric of two evaluations, query by query.

    Attributes:
        metric: its name.
        first: mean of the first; of a first rank, the median.
        second: mean of the second, or its median.
        difference: mean of `second - first` with its 95% interval; of a first rank, that of the medians.
        p_value: two-sided, of a paired permutation test of the mean change; over classes where there are any.
        num_won: queries on which the second is better.
        num_lost: queries on which it is worse.
        num_even: the others.
        changed: (M,) the queries that changed most, largest change first.
        changes: (M,) their changes.
        names: (M,) what they are called; None: they are told by their number.
    """

    metric: str
    first: float
    second: float
    difference: Interval
    p_value: float
    num_won: int
    num_lost: int
    num_even: int
    changed: np.ndarray
    changes: np.ndarray
    names: np.ndarray | None = None


def compare(
    first: Evaluation, second: Evaluation, *, num_changed: int = 10, seed: int = 0
) -> dict[str, Comparison]:
    """Two evaluations of the same queries, by row or else by name, for each metric that both have.

    Args:
        first: say, the baseline.
        second: say, the new encoder. A difference above 0 is in its favour (of a first rank or MAE, below 0).
        num_changed: how many of the queries that changed most are named.
        seed: of bootstrap and permutations.

    Raises:
        ValueError: the queries differ, or no metric is in both.

    >>> from mixcontrast.retrieval import evaluate
    >>> x, labels = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) // 3
    >>> found = compare(evaluate(x, labels), evaluate(x + np.eye(4)[labels] * 9, labels))["hit@1"]
    >>> found.second, found.num_lost
    (1.0, 0)
    """
    second = _in_the_order_of(first, second)
    metrics = [name for name in first.values if name in second.values]
    if not metrics:
        raise ValueError(
            f"Two evaluations need a metric in common. Got {list(first.values)} and {list(second.values)}; "
            "evaluate both with the same ks and preset."
        )
    groups = first.groups
    if groups is not None and len(np.unique(groups)) < 2:
        groups = None
    found = {}
    for metric in metrics:
        a, b = first.values[metric], second.values[metric]
        change = b - a
        order = np.argsort(-np.abs(change), kind="stable")[:num_changed]
        order = order[change[order] != 0]
        of_ranks = metric in MEDIANS
        middle = np.median if of_ranks else np.mean
        better = -change if metric in SMALLER_IS_BETTER else change
        found[metric] = Comparison(
            metric=metric,
            first=float(middle(a)),
            second=float(middle(b)),
            difference=paired_difference(b, a, groups=groups, seed=seed, median=of_ranks),
            p_value=permutation_p_value(b, a, groups=groups, seed=seed),
            num_won=int((better > 0).sum()),
            num_lost=int((better < 0).sum()),
            num_even=int((change == 0).sum()),
            changed=first.queries[order],
            changes=change[order],
            names=None if first.names is None else first.names[order],
        )
    return found


def _in_the_order_of(first: Evaluation, second: Evaluation) -> Evaluation:
    """The second with its queries in the order of the first's: a run of another program knows names and no rows."""
    if np.array_equal(first.queries, second.queries):
        return second
    one, other = ((e.queries if e.names is None else e.names).astype(str) for e in (first, second))
    order = np.argsort(other, kind="stable")
    place = order[np.searchsorted(other, one, sorter=order).clip(max=len(other) - 1)]
    if len(one) != len(other) or len(np.unique(place)) != len(one) or (other[place] != one).any():
        raise ValueError(
            "Two evaluations are compared on the same queries. "
            f"Got {len(one)} and {len(other)}, {len(np.intersect1d(one, other))} in both; evaluate both on one set."
        )
    return second.of_queries(place)


def comparison_markdown(found: Mapping[str, Comparison]) -> str:
    """A row a metric: both means, the difference with its interval, the p-value, queries won and lost."""
    rows = [
        [c.metric, f"{c.first:.4f}", f"{c.second:.4f}", f"{c.difference.mean:+.4f} {_ends(c.difference, '+.4f')}",
         f"{c.p_value:.4f}", str(c.num_won), str(c.num_lost), str(c.num_even)]
        for c in found.values()
    ]  # fmt: skip
    headers = ["metric", "first", "second", "second minus first [95% interval]", "p", "won", "lost", "even"]
    return _markdown(headers, rows)


def _ends(found: Interval, form: str = ".4f") -> str:
    return f"[{found.low:{form}}, {found.high:{form}}]"


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text
