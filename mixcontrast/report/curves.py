"""Pictures of an ensemble: what each alpha reaches, in-domain against held-out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixcontrast.judge.collection import HELD_OUT, IN_DOMAIN
from mixcontrast.judge.curve import Choice, Line
from mixcontrast.report.figures import PAPER, Palette


def alpha_figure(
    alphas: Sequence[float], lines: Sequence[Line], choice: Choice | None = None, palette: Palette = PAPER
) -> Figure:
    """A panel for each thing that is judged, a line a part with its 95% intervals, against alpha; and, where domains
    were held out, their values against those in-domain, along alpha.

    Args:
        alphas: A of them, rising.
        lines: of each thing and part, A values.
        choice: is marked.
        palette: its two colours are of in-domain and of held-out.
    """
    colours = palette.one, palette.two
    things = list(dict.fromkeys(line.what for line in lines))
    both = {
        what: {line.part: line for line in lines if line.what == what}
        for what in things
        if {line.part for line in lines if line.what == what} == {IN_DOMAIN, HELD_OUT}
    }
    things = list(both) or things
    rows = 2 if both else 1
    figure = Figure(figsize=(max(4.2, 3.6 * len(things)), 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, len(things), squeeze=False)
    for panel, what in zip(panels[0], things, strict=True):
        mine = [line for line in lines if line.what == what]
        for number, line in enumerate(mine):
            mean, low, high = (np.array([getattr(v, end) for v in line.values]) for end in ("mean", "low", "high"))
            panel.plot(alphas, mean, ("-o", "--s")[number % 2], color=colours[number % 2], linewidth=2, markersize=4,
                       label=line.part)  # fmt: skip
            panel.fill_between(alphas, low, high, color=colours[number % 2], alpha=0.15, linewidth=0)
        if choice is not None:
            panel.axvline(choice.alpha, color=palette.ink, alpha=0.6, linewidth=1, linestyle=":")
            panel.annotate(f"chosen, {choice.alpha:g}", (choice.alpha, 1), (3, -3), xycoords=("data", "axes fraction"),
                           textcoords="offset points", va="top", fontsize=8)  # fmt: skip
        panel.set_title(what, fontsize=10)
        panel.set_xlabel("alpha (0 zero-shot, 1 fine-tuned)")
        panel.set_ylabel(mine[0].metric)
        if len(mine) > 1:
            panel.legend(frameon=False, fontsize=8)
    for panel, what in zip(panels[-1], both, strict=False):
        x, y = (np.array([value.mean for value in both[what][part].values]) for part in (IN_DOMAIN, HELD_OUT))
        panel.plot(x, y, "-o", color=colours[0], linewidth=1.5, markersize=4)
        for place in {0, len(alphas) - 1, *([list(alphas).index(choice.alpha)] if choice else [])}:
            panel.annotate(f"{alphas[place]:g}", (x[place], y[place]), (5, 5), textcoords="offset points", fontsize=8)
        metric = both[what][IN_DOMAIN].metric
        panel.set_xlabel(f"{metric}, in-domain")
        panel.set_ylabel(f"{metric}, held-out")
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.2)
        panel.margins(0.08)
    return figure
