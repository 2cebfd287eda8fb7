"""Figures of two towers judged: what each weights reaches, reliability, and how images and texts lie."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mixcontrast.judge.collection import HELD_OUT
from mixcontrast.judge.judgement import Judgement, of_part
from mixcontrast.judge.tables import Beside
from mixcontrast.report.figures import INK, ONE, PAGE, TWO

COLOURS = PAGE.kinds[1:]
_MARKERS = "osD^vPX*"
_PLAIN = {"text.parse_math": False}  # weights may be called $x


@matplotlib.rc_context(_PLAIN)
def reached_figure(beside: Beside) -> Figure:
    """A panel for each thing that is judged: its first metric with its 95% interval, weights by weights."""
    things = list(beside.judged[0].evaluations())
    names = [found.name for found in beside.judged]
    parts = beside.collection.parts
    figure = Figure(figsize=(max(6.4, 3.5 * len(things)), 1.0 + 0.42 * len(names) * len(parts)), layout="constrained")
    for number, (panel, what) in enumerate(zip(figure.subplots(1, len(things), squeeze=False)[0], things, strict=True)):
        rows = []
        for name in names:
            for part in parts:
                metrics = beside.told[name][what].get(part)
                if metrics:
                    rows.append((name, part, *next(iter(metrics.items()))))
        for place, (_, part, _, found) in enumerate(rows):
            low, high = (found.mean if np.isnan(end) else end for end in (found.low, found.high))
            colour = TWO if part == HELD_OUT else ONE
            panel.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.4, solid_capstyle="butt")
            panel.plot([found.mean], [place], "s" if part == HELD_OUT else "o", color=colour, markersize=6)
            panel.annotate(f"{found.mean:.3f}", (found.mean, place), (0, 6), textcoords="offset points", ha="center",
                           fontsize=8)  # fmt: skip
        told = [f"{_short(name)}, {part}" if len(parts) > 1 else _short(name) for name, part, _, _ in rows]
        panel.set_yticks(range(len(rows)), told if number == 0 else [""] * len(rows))
        panel.set_ylim(len(rows) - 0.4, -0.7)
        panel.set_xlabel(f"{what}: {rows[0][2]}", fontsize=9)
    return figure


@matplotlib.rc_context(_PLAIN)
def reliability_figure(judged: Sequence[Judgement], kind: str, parts: Sequence[str]) -> Figure:
    """Accuracy against confidence in 15 bins, a panel a part; below, how many images each bin has."""
    figure = Figure(figsize=(max(5.2, 4.4 * len(parts)), 4.6), layout="constrained")
    panels = figure.subplots(2, len(parts), squeeze=False, height_ratios=(3, 1), sharex=True)
    for (panel, below), part in zip(panels.T, parts, strict=True):
        panel.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", alpha=0.6)
        for number, found in enumerate(judged):
            classified = found.zero_shot[kind]
            kept = classified.of_queries(of_part(classified.evaluation, part))
            bins = kept.reliability()
            some = (bins.count > 0).numpy()
            confidence, accuracy, count = (
                values.numpy()[some] for values in (bins.confidence, bins.accuracy, bins.count)
            )
            colour, marker = COLOURS[number % 8], _MARKERS[number % 8]
            label = f"{_short(found.name)}, ECE {float(bins.error):.3f}"
            panel.plot(confidence, accuracy, marker=marker, color=colour, linewidth=1.6, markersize=5, label=label)
            below.plot(confidence, count / count.sum(), marker=marker, color=colour, linewidth=1.2, markersize=3.5)
        panel.set_xlim(0, 1.02)
        panel.set_ylim(0, 1.02)
        panel.set_title(part, fontsize=10)
        panel.set_ylabel("accuracy")
        panel.legend(frameon=False, fontsize=8, loc="upper left")
        below.set_ylim(0)
        below.set_ylabel("share")
        below.set_xlabel("confidence")
    return figure


@matplotlib.rc_context(_PLAIN)
def gap_figure(judged: Sequence[Judgement]) -> Figure:
    """Images and their texts in the first two principal components of both together, a panel a weights."""
    shown = [found for found in judged if found.sample is not None]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, found in zip(panels, shown, strict=False):
        images, texts = principal(*found.sample)
        for (x, y), (u, v) in zip(images[:60], texts[:60], strict=True):
            panel.plot([x, u], [y, v], color=INK, linewidth=0.4, alpha=0.25)
        panel.plot(*images.T, "o", color=ONE, markersize=3, alpha=0.7, markeredgewidth=0, label="images")
        panel.plot(*texts.T, "x", color=TWO, markersize=4, alpha=0.8, label="texts")
        gaps = {part: values["modality gap"] for part, values in found.geometry.items() if values}
        told = ", ".join(f"{gap:.3f}{f' {part}' * (len(gaps) > 1)}" for part, gap in gaps.items())
        panel.set_title(f"{_short(found.name)}\ngap {told}", fontsize=9)
        panel.set_aspect("equal", adjustable="datalim")
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in list(panels):
        panel.axis("off")
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


@matplotlib.rc_context(_PLAIN)
def domain_figure(beside: Beside, what: str) -> Figure:
    """The first metric of each domain with its 95% interval, the weights in a row below each other."""
    told = {name: things[what] for name, things in beside.domains.items()}
    held_out = beside.collection.held_out
    known = sorted(next(iter(told.values())), key=lambda domain: domain in held_out)
    step = 0.8 / len(told)
    figure = Figure(figsize=(6.4, 0.9 + (0.22 + 0.16 * len(told)) * len(known)), layout="constrained")
    panel = figure.subplots()
    for number, (name, of_domain) in enumerate(told.items()):
        means = np.array([of_domain[domain].mean for domain in known])
        ends = np.array([[i.mean - i.low, i.high - i.mean] for i in (of_domain[domain] for domain in known)]).T
        places = np.arange(len(known)) + (number - (len(told) - 1) / 2) * step
        panel.errorbar(means, places, xerr=np.nan_to_num(np.abs(ends)), fmt=_MARKERS[number % 8], markersize=5,
                       color=COLOURS[number % 8], capsize=2, label=_short(name))  # fmt: skip
    panel.set_yticks(range(len(known)), [f"{domain} (held out)" if domain in held_out else domain for domain in known])
    panel.invert_yaxis()
    panel.set_xlabel(f"{what}: {next(iter(beside.judged[0].evaluations()[what].values))}")
    panel.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(told)))
    return figure


def principal(images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) and (M, 2): both tables in the first two principal components of both together.

    Args:
        images: (N, D).
        texts: (M, D).
    """
    both = np.concatenate([images, texts]).astype(np.float64)
    both -= both.mean(axis=0)
    axes = np.linalg.svd(both, full_matrices=False)[2][:2]
    points = both @ axes.T
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    return points[: len(images)], points[len(images) :]


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"...{name[-25:]}"
