"""Pictures of a study's answer, for its page and for papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixcontrast.report.figures import Palette, for_page_and_paper
from mixcontrast.study.reasons import EDGES


def pictures_of(answer: dict[str, Any], folder: Path) -> dict[str, str | None]:
    """Writes `differences`, `values`, `hardness`, `tuning` and `curves` as PNG and SVG, and returns them for a page.

    What there is nothing to show of is None.
    """
    metric, baseline = answer["question"]["metric"], answer["question"]["baseline"]
    draws: dict[str, tuple[Callable[[dict[str, Any], Palette], Figure | None], str]] = {
        "differences": (differences, f"Paired differences in {metric} with 95% intervals and each seed"),
        "values": (values, f"{metric} of each criterion with 95% intervals and each seed, {baseline} first"),
        "hardness": (hardness, "Similarities of positives, negatives and mixtures, criterion by criterion"),
        "tuning": (tuning, "What each point of the grids reached on the validation part"),
        "curves": (curves, "The validation part while training"),
    }
    found: dict[str, str | None] = {}
    for name, (draw, label) in draws.items():

        def with_palette(palette: Palette, draw=draw) -> Figure | None:
            return draw(answer, palette)

        found[name] = for_page_and_paper(with_palette, folder / name, label)
    return found


def differences(answer: dict[str, Any], palette: Palette) -> Figure:
    """A row a comparison: mean, interval, and each seed; zero is no difference."""
    found = answer["differences"]
    figure = Figure(figsize=(8.4, 1.2 + 0.48 * len(found)), layout="constrained")
    axes = figure.subplots()
    colours = {"helps": palette.kinds[3], "hurts": palette.two, "cannot be told": palette.kinds[0]}
    for row, each in enumerate(reversed(found)):
        shown, colour = each["difference"], colours[each["verdict"]]
        axes.scatter(each["each seed"], [row + 0.22] * len(each["each seed"]), s=14, marker="|", color=palette.ink,
                     alpha=0.55, linewidth=1)  # fmt: skip
        axes.plot([shown["low"], shown["high"]], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot([shown["mean"]], [row], "o", color=colour, markersize=7)
    axes.axvline(0, color=palette.ink, linewidth=1, alpha=0.6)
    axes.set_yticks(
        range(len(found)), [f"{each['criterion']}  against  {each['against']}" for each in reversed(found)]
    )
    axes.set_ylim(-0.6, len(found) - 0.3)
    better = answer["question"]["better"]
    axes.set_xlabel(
        f"difference in {answer['question']['metric']} ({better} is better); bars: 95% intervals, strokes: seeds"
    )
    for verdict, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=3, label=verdict)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return _dressed(figure)


def values(answer: dict[str, Any], palette: Palette) -> Figure:
    """A row a criterion: mean, interval, and each seed."""
    metric, found = answer["question"]["metric"], answer["criteria"]
    figure = Figure(figsize=(8.4, 1.0 + 0.42 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, (name, each) in enumerate(reversed(found.items())):
        shown = each["metrics"][metric]
        colour = palette.two if name == answer["question"]["baseline"] else palette.one
        axes.scatter(each["each seed"][metric], [row + 0.24] * len(each["each seed"][metric]), s=14, marker="|",
                     color=palette.ink, alpha=0.55, linewidth=1)  # fmt: skip
        axes.plot([shown["low"], shown["high"]], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot([shown["mean"]], [row], "o", color=colour, markersize=7)
    axes.set_yticks(range(len(found)), list(reversed(found)))
    axes.set_ylim(-0.6, len(found) - 0.3)
    axes.set_xlabel(f"{metric} on the test part")
    return _dressed(figure)


def hardness(answer: dict[str, Any], palette: Palette) -> Figure | None:
    """A panel a criterion: densities of similarities of one batch of each seed, at the best checkpoint."""
    reasons = {name: each["why"] for name, each in answer["criteria"].items()}
    found = {name: why["similarities"] for name, why in reasons.items() if "similarities" in why}
    if not found:
        return None
    figure, panels = _grid(len(found), 2.1)
    styles = {
        "positives": (palette.ink, "-"), "negatives": (palette.kinds[0], "-"), "mixtures": (palette.kinds[2], "--")
    }  # fmt: skip
    every = np.sum([counts for parts in found.values() for counts in parts.values()], axis=0)
    low = EDGES[max(int(np.flatnonzero(every)[0]) - 1, 0)]
    for axes, (name, parts) in zip(panels, found.items(), strict=False):
        for part, counts in parts.items():
            if sum(counts):
                colour, style = styles[part]
                density = np.array(counts) / sum(counts) / np.diff(EDGES)
                axes.stairs(density, EDGES, color=colour, fill=True, alpha=0.2)
                axes.stairs(density, EDGES, color=colour, linestyle=style, linewidth=1.6)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(low, 1.0)
        axes.set_yticks([])
    handles = [panels[0].plot([], [], color=c, linestyle=s, label=n)[0] for n, (c, s) in styles.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel("similarity to the anchor", fontsize=10, color=palette.ink)
    return _dressed(figure)


def tuning(answer: dict[str, Any], palette: Palette) -> Figure | None:
    """A panel a criterion: the validation metric of each point against a knob, a line a value of the others."""
    trials_of = {name: each["tuning"] for name, each in answer["criteria"].items()}
    found = {name: (trials, knob) for name, trials in trials_of.items() for knob in _turned(trials)[:1]}
    if not found:
        return None
    figure, panels = _grid(len(found), 2.3)
    for axes, (name, (trials, knob)) in zip(panels, found.items(), strict=False):
        lines: dict[str, list[tuple[float, float, bool]]] = {}
        for trial in trials:
            if trial["looks"]:
                rest = ", ".join(f"{key} {value:g}" for key, value in trial["point"].items() if key != knob)
                looks = trial["looks"]
                last = looks[max(looks, key=int)]
                lines.setdefault(rest, []).append((trial["point"][knob], last, trial["state"] == "finished"))
        for number, (rest, points) in enumerate(lines.items()):
            colour = palette.kinds[1 + number % 8]
            points.sort()
            ends = [p[0] for p in points], [p[1] for p in points]
            axes.plot(*ends, color=colour, alpha=0.6, linewidth=1.2, label=rest)
            for at, value, finished in points:
                axes.plot([at], [value], "o", color=colour, markersize=5, fillstyle="full" if finished else "none")
        chosen = answer["criteria"][name]["tuned"]
        axes.axvline(chosen[knob], color=palette.ink, alpha=0.35, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_xticks(sorted({trial["point"][knob] for trial in trials}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_title(name, fontsize=10)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7)
        axes.set_xlabel(knob.replace("_", " "), fontsize=8)
    return _dressed(figure)


def _turned(trials: list[dict[str, Any]]) -> list[str]:
    """The knobs of which more than one value was tried."""
    points = [trial["point"] for trial in trials]
    return [knob for knob in (points[0] if points else ()) if len({point[knob] for point in points}) > 1]


def curves(answer: dict[str, Any], palette: Palette) -> Figure | None:
    """A panel a criterion: the validation metric against the epoch, a thin line a seed, a thick one their mean."""
    found = {name: each["curves"] for name, each in answer["criteria"].items() if any(each["curves"])}
    if not found:
        return None
    figure, panels = _grid(len(found), 2.1)
    base = found.get(answer["question"]["baseline"])
    for axes, (name, seeds) in zip(panels, found.items(), strict=False):
        for seed in seeds:
            axes.plot(*np.array(seed).T, color=palette.one, alpha=0.3, linewidth=0.9)
        axes.plot(*_mean_curve(seeds), color=palette.one, linewidth=2.2)
        if base is not None and name != answer["question"]["baseline"]:
            axes.plot(*_mean_curve(base), color=palette.two, linewidth=1.2, linestyle="--")
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].plot([], [], color=palette.two, linestyle="--", label=f"{answer['question']['baseline']}, the mean")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, fontsize=9)
    figure.supxlabel("epoch", fontsize=10, color=palette.ink)
    return _dressed(figure)


def _mean_curve(seeds: list[list[list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    shortest = min(len(seed) for seed in seeds)
    table = np.array([seed[:shortest] for seed in seeds])  # (S, E, 2)
    return table[0, :, 0], table[:, :, 1].mean(axis=0)


def _grid(count: int, height: float) -> tuple[Figure, list]:
    """A figure of panels with one y axis, four in a row."""
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.75 * columns, height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, list(panels)


def _dressed(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.tick_params(labelsize=8)
    return figure
