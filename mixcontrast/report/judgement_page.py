"""One self-contained HTML page about two towers judged: tables, intervals, reliability, the modality gap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixcontrast.files import write_whole
from mixcontrast.judge.tables import Beside, Table, written
from mixcontrast.report.figures import environment, svg
from mixcontrast.report.judgement_figures import domain_figure, gap_figure, reached_figure, reliability_figure
from mixcontrast.retrieval import Interval


def write_judgement(
    path: Path, beside: Beside, *, title: str, note: str, settings: Mapping[str, Any], first: Figure | None = None
) -> None:
    """Writes the page.

    Args:
        path: an .html file, written whole.
        beside: the weights that were judged.
        title: of the page.
        note: how it was judged.
        settings: for the record, name to value.
        first: a figure above all others.
    """
    judged, parts = beside.judged, beside.collection.parts
    figures = [] if first is None else [(svg(first, "first", "Against alpha"), "Against alpha.")]
    of_parts = " Circles: in-domain; squares: domains held out of training." if len(parts) > 1 else ""
    figures.append(
        (svg(reached_figure(beside), "reached", "What each weights reaches, with 95% intervals"),
         f"What each weights reaches, with 95% intervals.{of_parts}")
    )  # fmt: skip
    of_domains = [
        (what, svg(domain_figure(beside, what), f"domain{number}", f"{what} by domain"))
        for number, what in enumerate(beside.domains[judged[0].name])
    ]
    diagrams = [
        (kind, svg(reliability_figure(judged, kind, parts), f"reliability{number}", f"Reliability, {kind}"))
        for number, kind in enumerate(judged[0].zero_shot)
    ]
    tables, gap = beside.tables(), None
    if any(found.sample is not None for found in judged):
        label = "Images and texts in two principal components"
        gap = svg(gap_figure(judged), "gap", label)
    page = environment().get_template("judge.html.jinja").render(
        title=title, note=note, figures=figures,
        tables=[_shown(table) for table in tables if not table.of_domains],
        of_domains=[_shown(table) for table in tables if table.of_domains],
        domains=of_domains, diagrams=diagrams, gap=gap, settings=[(k, str(v)) for k, v in settings.items()],
        several=len(judged) > 1,
    )  # fmt: skip
    write_whole(path, lambda file: file.write_text(page, encoding="utf-8"))


def _shown(table: Table) -> dict[str, Any]:
    """A table as the template takes it: each cell a value, the ends of its interval, and which side of 0 it is on."""
    several = len({row.part for row in table.rows}) > 1
    rows = [(row.weights, row.part, [_cell(cell, table.signed) for cell in row.cells]) for row in table.rows]
    first = "domain" if table.of_domains else "weights"
    return {"title": table.title, "columns": table.columns, "rows": rows, "several": several, "first": first}


def _cell(cell: Interval | float | str, signed: bool) -> dict[str, str]:
    value, _, ends = written(cell, signed).partition(" ")
    side = ""
    if signed and isinstance(cell, Interval) and not np.isnan(cell.low) and (cell.low > 0 or cell.high < 0):
        side = "above" if cell.low > 0 else "below"
    return {"value": value, "ends": ends.strip("[]").replace(", ", " to "), "side": side}
