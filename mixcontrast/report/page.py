"""One self-contained HTML page about an evaluation: tables, curves, confusions, queries to look at, a map."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mixcontrast.data.items import on_white
from mixcontrast.files import write_whole
from mixcontrast.report.figures import ONE, TWO, environment, svg
from mixcontrast.report.findings import (
    Curve,
    Histogram,
    curve_of,
    histogram,
    map_of,
    queries_to_show,
    worst_confusions,
)
from mixcontrast.retrieval import Evaluation, Similarity, evaluate, evaluate_pairs, search
from mixcontrast.retrieval.tables import Table, check_tables

SAMPLE = 2000  # queries behind curves, histograms and confusions
POINTS = 1200  # of the map
SHOWN, NEIGHBOURS = 8, 6
PER_QUERY = 10  # pairs of each kind behind the histograms


@dataclass(frozen=True)
class Rows:
    """What can be shown of the rows of a table.

    Attributes:
        images: paths, one a row, or None.
        texts: one a row, or None.
    """

    images: Sequence[Any] | None = None
    texts: Sequence[Any] | None = None


def write_report(
    path: str | Path,
    found: Evaluation,
    queries: Any,
    *,
    labels: Any = None,
    gallery: Any = None,
    gallery_labels: Any = None,
    pairs: Any = None,
    similarity: Similarity = "cosine",
    exclude: Sequence[tuple[Any, Any]] = (),
    names: Mapping[int, str] | None = None,
    of_queries: Rows = Rows(),
    of_gallery: Rows | None = None,
    title: str = "Retrieval",
) -> Path:
    """Writes the page of an evaluation.

    Curves, histograms and confusions are of up to 2,000 queries drawn at random, searched exactly, in the whole
    gallery; the table of metrics is the evaluation's own.

    Args:
        path: an .html file, written whole.
        found: the evaluation, under any names.
        queries: (Q, D), as it was evaluated.
        labels: (Q,) integers, where relevance is the class.
        gallery: (G, D); None: the queries themselves.
        gallery_labels: (G,).
        pairs: (P, 2) rows of queries and of relevant gallery rows, instead of labels.
        similarity: as it was evaluated.
        exclude: as it was evaluated.
        names: class to its name; a class without is shown by its number.
        of_queries: images or texts of the queries.
        of_gallery: of the gallery; None: those of the queries, where they are the gallery.
        title: of the page.

    Returns:
        The path.

    Raises:
        ValueError: neither labels nor pairs, or both; shapes that do not fit.
    """
    if (labels is None) == (pairs is None):
        raise ValueError("A report needs what is relevant: labels or pairs. Got both or neither; pass one of them.")
    alone = gallery is None
    mine, theirs = check_tables(queries, gallery, similarity == "cosine")
    shown = of_queries if of_gallery is None and alone else of_gallery or Rows()
    view = _View(
        found, mine, theirs, labels, labels if alone else gallery_labels, pairs, similarity, list(exclude), alone,
        dict(names or {}), of_queries, shown,
    )  # fmt: skip
    page = environment().get_template("page.html.jinja").render(title=title, **view.content())
    write_whole(Path(path), lambda file: file.write_text(page, encoding="utf-8"))
    return Path(path)


class _View:
    """All that the template shows."""

    def __init__(
        self, found: Evaluation, queries: Table, gallery: Table, labels, gallery_labels, pairs,
        similarity: Similarity, exclude: list, alone: bool, names: dict, of_queries: Rows, of_gallery: Rows,
    ) -> None:  # fmt: skip
        self.found, self.queries, self.gallery, self.pairs = found, queries, gallery, pairs
        self.labels = None if labels is None else np.asarray(labels)
        self.gallery_labels = None if gallery_labels is None else np.asarray(gallery_labels)
        self.similarity, self.exclude, self.names = similarity, exclude, names
        self.of_queries, self.of_gallery = of_queries, of_gallery
        self.random = np.random.default_rng(0)
        kept = np.asarray(found.queries)
        self.sample = np.sort(self.random.choice(kept, min(SAMPLE, len(kept)), replace=False))
        self.ids = {"query_ids": self.sample, "gallery_ids": np.arange(len(gallery))} if alone else {}
        self.exclude = [(np.asarray(mine)[self.sample], theirs) for mine, theirs in exclude]
        self.table = queries.take(self.sample)
        self.relevant: dict[int, np.ndarray] = {}
        if pairs is not None:
            rows = np.asarray(pairs)
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
            starts = np.searchsorted(rows[:, 0], [self.sample, self.sample + 1])
            self.relevant = {int(q): rows[a:b, 1] for q, a, b in zip(self.sample, *starts, strict=True)}

    def content(self) -> dict[str, Any]:
        """The template's variables."""
        exact = search(
            self.table, self._rows_of_gallery(), NEIGHBOURS, similarity=self.similarity, exclude=self.exclude,
            **self.ids,
        )  # fmt: skip
        gains = np.stack([self._gain(row, columns) for row, columns in zip(self.sample, exact.indices, strict=True)])
        gains &= exact.valid
        confusions = []
        if self.labels is not None:
            first = np.where(exact.valid[:, 0], self.gallery_labels[exact.indices[:, 0]], -1)
            confusions = worst_confusions(self.sample, self.labels[self.sample], first)
        sheets = []
        for rule, places in queries_to_show(gains, exact, SHOWN):
            sheets.append((rule, [self._shown(place, exact, gains) for place in places]))
        examples = [c.example for c in confusions if c.example not in {s["row"] for _, sheet in sheets for s in sheet}]
        places = [int(np.searchsorted(self.sample, row)) for row in examples[:SHOWN]]
        if places:
            sheets.append(("of the worst confusions", [self._shown(place, exact, gains) for place in places]))
        linked: set[int] = set()
        for _, sheet in sheets:
            for entry in sheet:  # a query that is shown twice is linked to where it is first
                entry["linked"] = entry["row"] not in linked
                linked.add(entry["row"])
        curves = self._curves()
        of_pairs = self._histogram()
        return {
            "metrics": [self._metric(name) for name in self.found.values],
            "settings": self._settings(),
            "found": self.found,
            "sample": len(self.sample),
            "curve": None if curves is None else _curve_figure(curves),
            "histogram": None if of_pairs is None else _histogram_figure(of_pairs, self.similarity),
            "pairs": of_pairs,
            "similarity": self.similarity,
            "by_class": self.labels is not None,
            "confusions": [(self._name(c.of), self._name(c.taken_for), c, c.example in linked) for c in confusions],
            "sheets": [(rule, sheet) for rule, sheet in sheets if sheet],
            "groups": [
                (name, _group_figure(self.found, name, place)) for place, name in enumerate(self.found.attributes)
            ],
            "map": self._map(),
        }

    def _rows_of_gallery(self) -> Any:
        return self.gallery.stored or self.gallery.read(0, len(self.gallery))

    def _gain(self, query: int, columns: np.ndarray) -> np.ndarray:
        if self.labels is not None:
            return self.gallery_labels[columns] == self.labels[query]
        return np.isin(columns, self.relevant.get(int(query), ()))

    def _metric(self, name: str) -> dict[str, Any]:
        interval = self.found.interval(name)
        share = 0 <= interval.mean <= 1 and name not in ("first_rank", "MedR")
        return {"name": name, "interval": interval, "share": share, "told": not np.isnan(interval.low)}

    def _settings(self) -> list[tuple[str, str]]:
        found = [(name.replace("_", " "), _plain(value)) for name, value in self.found.settings.items()]
        return [(name, value) for name, value in found if value not in ("", "None")]

    def _curves(self) -> dict[str, Curve] | None:
        size = len(self.gallery)
        ks = [k for k in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100) if k <= size]
        options = {"ks": ks, "similarity": self.similarity, "exclude": self.exclude, **self.ids}
        if self.labels is not None:
            result = evaluate(
                self.table, self.labels[self.sample], self._rows_of_gallery(), self.gallery_labels, **options
            )
        else:
            rows = [(place, column) for place, q in enumerate(self.sample) for column in self.relevant[int(q)]]
            if not rows:
                return None
            result = evaluate_pairs(self.table, self._rows_of_gallery(), np.array(rows), **options)
        return {name: curve_of(name, result) for name in ("hit", "recall")}

    def _histogram(self) -> Histogram | None:
        """Similarities of sampled queries with up to ten relevant rows, and with ten others, each."""
        chosen = []
        members = {}
        if self.labels is not None:
            order = np.argsort(self.gallery_labels, kind="stable")
            wanted = self.labels[self.sample]
            starts = np.searchsorted(self.gallery_labels[order], [wanted, wanted + 1])
            members = {int(q): order[a:b] for q, a, b in zip(self.sample, *starts, strict=True)}
        for place, query in enumerate(self.sample):
            relevant = members.get(int(query), self.relevant.get(int(query), np.empty(0, int)))
            if self.ids:
                relevant = relevant[relevant != query]
            relevant = self.random.permutation(relevant)[:PER_QUERY]
            others = self.random.integers(0, len(self.gallery), PER_QUERY)
            others = others[~self._gain(query, others)]
            if self.ids:
                others = others[others != query]
            chosen += [(place, column, True) for column in relevant] + [(place, column, False) for column in others]
        places, columns, good = (np.array(part) for part in zip(*chosen, strict=True))
        rows, inverse = np.unique(columns, return_inverse=True)
        theirs = self.gallery.take(rows)[inverse]
        values = np.einsum("pd,pd->p", self.table[places], theirs)
        if self.similarity == "l2":
            values = -np.square(self.table[places] - theirs).sum(axis=1)
        return histogram(values[good], values[~good]) if good.any() and not good.all() else None

    def _shown(self, place: int, found, gains: np.ndarray) -> dict[str, Any]:
        query = int(self.sample[place])
        neighbours = [
            {
                **_item(self.of_gallery, int(column)),
                "hit": bool(hit),
                "similarity": float(value),
                "label": None if self.labels is None else self._name(int(self.gallery_labels[column])),
            }
            for column, hit, value, valid in zip(
                found.indices[place], gains[place], found.similarity[place], found.valid[place], strict=True
            )
            if valid
        ]
        label = None if self.labels is None else self._name(int(self.labels[query]))
        return {**_item(self.of_queries, query), "label": label, "neighbours": neighbours}

    def _map(self) -> dict[str, Any] | None:
        rows = self.sample if len(self.sample) <= POINTS else np.sort(self.random.choice(self.sample, POINTS, False))
        if len(rows) < 8:
            return None
        table = self.queries.take(rows)
        if np.unique(table, axis=0).shape[0] < 4:
            return None
        points = map_of(table)
        low, high = points.min(axis=0), points.max(axis=0)
        points = (points - low) / np.maximum(high - low, 1e-9) * 560 + 20
        kinds, legend = self._kinds(rows)
        titles = [self._title(int(row)) for row in rows]
        shown = list(zip(points.round(1).tolist(), kinds, titles, strict=True))
        return {"points": shown, "legend": legend, "others": bool(legend) and 0 in kinds}

    def _kinds(self, rows: np.ndarray) -> tuple[list[int], list[str]]:
        """A colour a point: of the first attribute's eight largest groups, else of the eight largest classes."""
        if self.found.attributes:
            name, values = next(iter(self.found.attributes.items()))
            of_query = dict(zip(self.found.queries.tolist(), values.tolist(), strict=True))
            values, what = np.array([str(of_query[row]) for row in rows.tolist()]), f"{name} "
        elif self.labels is not None:
            values, what = np.array([self._name(int(label)) for label in self.labels[rows]]), ""
        else:
            return [0] * len(rows), []
        known, counts = np.unique(values, return_counts=True)
        largest = known[np.argsort(-counts, kind="stable")[:8]].tolist()
        kinds = [largest.index(value) + 1 if value in largest else 0 for value in values.tolist()]
        return kinds, [what + value for value in largest]

    def _title(self, row: int) -> str:
        parts = [f"row {row}"]
        if self.labels is not None:
            parts.append(self._name(int(self.labels[row])))
        if self.of_queries.texts is not None:
            parts.append(str(self.of_queries.texts[row])[:80])
        return ", ".join(parts)

    def _name(self, label: int) -> str:
        return str(self.names.get(label, label))


def _item(rows: Rows, row: int) -> dict[str, Any]:
    image = None if rows.images is None else _thumbnail(rows.images[row])
    return {"row": row, "image": image, "text": None if rows.texts is None else str(rows.texts[row])[:300]}


def _thumbnail(path: Any) -> str:
    """A small JPEG as a data URI; where the image cannot be read, an empty text, which the page says."""
    try:
        with Image.open(path) as image:
            small = on_white(image)
    except (OSError, SyntaxError):
        return ""
    small.thumbnail((96, 96))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _curve_figure(curves: dict[str, Curve]) -> str:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for curve, colour, style in zip(curves.values(), (ONE, TWO), ("-", "--"), strict=True):
        axes.plot(curve.ks, curve.mean, style, color=colour, linewidth=2, marker="o", markersize=3.5)
        axes.fill_between(curve.ks, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    hit, recall = (curves[name].mean[-1] for name in ("hit", "recall"))
    ends = [("hit@k", hit), ("recall@k", recall)] if abs(hit - recall) > 0.06 else [("hit, recall@k", hit)]
    for text, height in ends:
        axes.annotate(text, (curves["hit"].ks[-1], height), (6, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    ks = next(iter(curves.values())).ks
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= ks[-1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("k")
    axes.set_ylabel("share")
    return svg(figure, "curve", "Hit and recall against k, with 95% intervals")


def _histogram_figure(found: Histogram, similarity: str) -> str:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for values, colour, style, name in (
        (found.positives, ONE, "-", "positives"), (found.negatives, TWO, "--", "negatives")
    ):  # fmt: skip
        axes.stairs(values, found.edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(values, found.edges, color=colour, linewidth=1.8, linestyle=style)
        top = int(np.argmax(values))
        middle = (found.edges[top] + found.edges[top + 1]) / 2
        axes.annotate(name, (middle, values[top]), (0, 4), textcoords="offset points", ha="center")
    axes.margins(y=0.15)
    axes.set_xlabel({"l2": "negative squared distance"}.get(similarity, similarity))
    axes.set_ylabel("share of pairs")
    return svg(figure, "histogram", "Similarities of positive and of negative pairs")


@matplotlib.rc_context({"text.parse_math": False})  # a group may be called $x
def _group_figure(found: Evaluation, attribute: str, place: int) -> str:
    name = next(iter(found.values))
    groups = found.per_group(attribute)
    most = sorted(groups.items(), key=lambda item: -len(item[1].queries))[:20]
    intervals = [(str(value), len(part.queries), part.interval(name)) for value, part in most]
    intervals.sort(key=lambda item: item[2].mean)
    figure = Figure(figsize=(6.4, 0.8 + 0.34 * len(intervals)), layout="constrained")
    axes = figure.subplots()
    means = np.array([i.mean for _, _, i in intervals])
    ends = np.nan_to_num(np.abs(np.array([[i.mean - i.low, i.high - i.mean] for _, _, i in intervals]).T))
    axes.barh(range(len(intervals)), means, color=ONE, alpha=0.45, height=0.65)
    axes.errorbar(means, range(len(intervals)), xerr=ends, fmt="o", color=ONE, markersize=4, capsize=3)
    axes.set_yticks(range(len(intervals)), [f"{value[:24]} ({count:,})" for value, count, _ in intervals])
    axes.set_xlim(left=0)
    axes.set_xlabel(name)
    return svg(figure, f"group{place}", f"{name} by {attribute}, with 95% intervals")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
