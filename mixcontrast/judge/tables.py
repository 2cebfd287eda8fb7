"""Judgements of several weights beside each other, as tables and as JSON."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcontrast.judge.collection import Collection
from mixcontrast.judge.judgement import Judgement, differences, intervals, of_part
from mixcontrast.retrieval import Interval

Told = dict[str, dict[str, dict[str, Interval]]]
"""What is judged, to the part, to the metric, to its mean with its interval."""


@dataclass(frozen=True)
class Row:
    """A line of a table: which weights, on which part, and a cell a column; an interval, a number or a text."""

    weights: str
    part: str
    cells: tuple[Interval | float | str, ...]


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: of it.
        columns: of its cells.
        rows: weights by weights, part by part.
        signed: whether its cells are differences.
        of_domains: whether a row is a domain and a column a weights, else the other way around.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    signed: bool = False
    of_domains: bool = False


class Beside:
    """Several weights of one model judged on one collection, the first as the baseline.

    Args:
        judged: of each weights.
        collection: on which.
    """

    def __init__(self, judged: Sequence[Judgement], collection: Collection) -> None:
        self.judged, self.collection = list(judged), collection
        self.told: dict[str, Told] = {found.name: intervals(found, collection.parts) for found in judged}
        self.changed: dict[str, Told] = {
            found.name: differences(self.judged[0], found, collection.parts) for found in self.judged[1:]
        }
        self.domains: dict[str, dict[str, dict[str, Interval]]] = {  # of the first metric, weights, thing, domain
            found.name: {
                what: {
                    str(domain): queries.interval(next(iter(queries.values)))
                    for domain, queries in evaluation.per_group("domain").items()
                }
                for what, evaluation in found.evaluations().items()
                if len(np.unique(evaluation.attributes.get("domain", ()))) > 1
            }
            for found in self.judged
        }

    def only(self, names: Sequence[str]) -> Beside:
        """The same of some of the weights, the first among them; nothing is computed again."""
        found = copy.copy(self)
        found.judged = [each for each in self.judged if each.name in names]
        for told in ("told", "changed", "domains"):
            setattr(found, told, {name: each for name, each in getattr(self, told).items() if name in names})
        return found

    def tables(self) -> list[Table]:
        """All of them: what is judged, with differences from the first weights below, domains, geometry."""
        found = []
        for what in self.judged[0].evaluations():
            found.append(self._table(what.capitalize(), what, self.told))
            if self.changed:
                found.append(self._table(f"{what.capitalize()}: minus {self.judged[0].name}", what, self.changed, True))
            by_domain = self._by_domain(what)
            if by_domain is not None:
                found.append(by_domain)
        if self.judged[0].geometry:
            found.append(self._geometry())
        return found

    def to_markdown(self) -> str:
        """Every table under its title."""
        return "\n\n".join(f"## {table.title}\n\n{table_markdown(table)}" for table in self.tables())

    def differences_markdown(self) -> str:
        """The tables of differences alone."""
        return "\n\n".join(
            f"### {table.title}\n\n{table_markdown(table)}" for table in self.tables() if table.signed
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: where one query gives no interval, its ends are null."""
        found: dict[str, Any] = {}
        for judgement in self.judged:
            of_weights: dict[str, Any] = {"logit_scale": judgement.logit_scale, "geometry": judgement.geometry}
            for what, evaluation in judgement.evaluations().items():
                of_weights[what] = {
                    part: {
                        "num_queries": int(of_part(evaluation, part).sum()),
                        "metrics": {metric: as_dict(value) for metric, value in metrics.items()},
                    }
                    for part, metrics in self.told[judgement.name][what].items()
                }
                if what in self.domains[judgement.name]:
                    metric = next(iter(evaluation.values))
                    of_weights[what]["by domain"] = {
                        domain: {
                            "part": self.collection.part_of(domain),
                            "num_queries": int((evaluation.attributes["domain"] == domain).sum()),
                            metric: as_dict(interval),
                        }
                        for domain, interval in self.domains[judgement.name][what].items()
                    }
            for kind, classified in judgement.zero_shot.items():
                for part, of_queries in of_weights[f"zero-shot, {kind}"].items():
                    if part != "by domain":
                        kept = classified.of_queries(of_part(classified.evaluation, part))
                        of_queries["mean confidence"] = float(kept.confidence.mean())
                        of_queries["reliability"] = _bins(kept)
            found[judgement.name] = of_weights
        told = {"weights": found}
        if self.changed:
            first = self.judged[0].name
            told[f"minus {first}"] = {
                name: {
                    what: {part: {m: as_dict(v) for m, v in metrics.items()} for part, metrics in parts.items()}
                    for what, parts in changed.items()
                }
                for name, changed in self.changed.items()
            }
        return told

    def _table(self, title: str, what: str, told: dict[str, Told], signed: bool = False) -> Table:
        metrics = next(iter(next(iter(told.values()))[what].values()))
        rows = []
        for name, of_weights in told.items():
            for part, values in of_weights[what].items():
                rows.append(Row(name, part, (*(values[metric] for metric in metrics), *self._more(name, what, part))))
        extra = ("mean confidence",) if self._more(self.judged[0].name, what, self.collection.parts[0]) else ()
        if signed:
            rows, extra = [Row(row.weights, row.part, row.cells[: len(metrics)]) for row in rows], ()
        return Table(title, (*metrics, *extra), tuple(rows), signed)

    def _more(self, name: str, what: str, part: str) -> tuple[float, ...]:
        """The mean confidence of a zero-shot classifier, which stands beside its accuracy."""
        judgement = next(found for found in self.judged if found.name == name)
        classified = judgement.zero_shot.get(what.removeprefix("zero-shot, "))
        if classified is None:
            return ()
        kept = of_part(classified.evaluation, part)
        return (float(classified.confidence[kept].mean()) if kept.any() else float("nan"),)

    def _by_domain(self, what: str) -> Table | None:
        """The first metric, a row a domain and a column a weights."""
        if what not in self.domains[self.judged[0].name]:
            return None
        metric = next(iter(self.judged[0].evaluations()[what].values))
        known = sorted(self.domains[self.judged[0].name][what], key=lambda domain: domain in self.collection.held_out)
        rows = [
            Row(domain, self.collection.part_of(domain), tuple(found[what][domain] for found in self.domains.values()))
            for domain in known
        ]
        return Table(f"{what.capitalize()} by domain, {metric}", tuple(self.domains), tuple(rows), of_domains=True)

    def _geometry(self) -> Table:
        columns = tuple(next(iter(self.judged[0].geometry.values())))
        rows = [
            Row(found.name, part, tuple(values.get(column, float("nan")) for column in columns))
            for found in self.judged
            for part, values in found.geometry.items()
            if values
        ]
        return Table("Embeddings on the sphere", columns, tuple(rows))


def table_markdown(table: Table) -> str:
    """A table in Markdown; the part has no column where there is one alone."""
    several = len({row.part for row in table.rows}) > 1
    heads = ["domain" if table.of_domains else "weights", *(["part"] if several else []), *table.columns]
    lines = [heads, ["---"] * len(heads)]
    for row in table.rows:
        cells = [written(cell, table.signed) for cell in row.cells]
        lines.append([row.weights, *([row.part] if several else []), *cells])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def written(cell: Interval | float | str, signed: bool = False) -> str:
    """A cell as a text: `0.123 [0.101, 0.145]`, with a sign where it is a difference."""
    form = "+.3f" if signed else ".3f"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Interval):
        ends = "" if np.isnan(cell.low) else f" [{cell.low:{form}}, {cell.high:{form}}]"
        return f"{cell.mean:{form}}{ends}"
    return "" if np.isnan(cell) else f"{cell:{form}}"


def as_dict(found: Interval) -> dict[str, float | None]:
    """For JSON."""
    return {key: None if np.isnan(value) else value for key, value in vars(found).items()}


def _bins(classified: Any) -> list[dict[str, float | int]]:
    """The bins of a reliability diagram that are not empty."""
    found = classified.reliability()
    return [
        {"confidence": float(c), "accuracy": float(a), "count": int(n)}
        for c, a, n in zip(found.confidence, found.accuracy, found.count, strict=True)
        if n > 0
    ]
