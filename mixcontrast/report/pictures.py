"""Pictures of a comparison: training curves, and queries with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixcontrast.data.emoji import open_on_white
from mixcontrast.files import write_whole

COLOURS = {"plain": "#3b6fb6", "mixed": "#d1662f"}
HIT, MISS = "#2e8b57", "#b8372f"


def training_curves(curves: dict[str, list[list[dict[str, float]]]], titles: dict[str, str], path: Path) -> None:
    """Loss and validation Recall@1 against the epoch: a thin line a seed, a thick one their mean.

    Args:
        curves: for each arm, for each seed, a row an epoch with `epoch`, `loss` and `validation hit@1`.
        titles: of the arms, for the legend.
        path: a PNG.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, key, label in (
        (axes[0], "loss", "training loss (the mixed one adds its mixed term)"),
        (axes[1], "validation hit@1", "Recall@1, validation classes"),
    ):
        for arm, seeds in curves.items():
            epochs = [row["epoch"] for row in seeds[0]]
            values = np.array([[row[key] for row in seed] for seed in seeds])
            panel.plot(epochs, values.T, color=COLOURS[arm], alpha=0.25, linewidth=1)
            panel.plot(epochs, values.mean(axis=0), color=COLOURS[arm], linewidth=2.5, label=titles[arm])
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    axes[1].legend(frameon=False, loc="lower right")
    figure.suptitle(f"Training, {len(next(iter(curves.values())))} seeds (thin) and their mean (thick)")
    _save(figure, path)


def neighbour_sheet(
    queries: Sequence[int],
    neighbours: dict[str, np.ndarray],
    similarity: dict[str, np.ndarray],
    labels: np.ndarray,
    paths: Sequence[Path],
    vendors: Sequence[str],
    titles: dict[str, str],
    path: Path,
) -> None:
    """Each query with its nearest neighbours in each arm, side by side; a hit is green and ticked, a miss red, crossed.

    Args:
        queries: Q rows.
        neighbours: for each arm (Q, K) rows, best first.
        similarity: for each arm (Q, K) cosines.
        labels: (N,) classes.
        paths: N image files.
        vendors: N names.
        titles: of the arms.
        path: a PNG.
    """
    arms = list(neighbours)
    width = neighbours[arms[0]].shape[1]
    columns = 1 + sum(width for _ in arms) + len(arms)
    ratios = [1.0] + ([0.35] + [1.0] * width) * len(arms)
    figure, axes = plt.subplots(
        len(queries),
        columns,
        figsize=(0.82 * sum(ratios), 0.98 * len(queries) + 0.8),
        width_ratios=ratios,
        squeeze=False,
        layout="constrained",
    )
    for panel in axes.flat:
        panel.axis("off")
    for row, query in enumerate(queries):
        _drawing(axes[row, 0], paths[query], vendors[query], "0.55", 1)
        for number, arm in enumerate(arms):
            for place in range(width):
                found = neighbours[arm][row, place]
                hit = labels[found] == labels[query]
                text = f"{'✓' if hit else '✗'} {similarity[arm][row, place]:.2f}"
                _drawing(axes[row, 2 + number * (width + 1) + place], paths[found], text, HIT if hit else MISS, 2.5)
    axes[0, 0].set_title("query", fontsize=10)
    for number, arm in enumerate(arms):
        middle = 2 + number * (width + 1) + width // 2
        shown = f"{titles[arm]}: its five nearest" if width == 5 else titles[arm]
        axes[0, middle].set_title(shown, fontsize=10, color=COLOURS.get(arm, "0.2"))
    figure.supxlabel("✓ the same emoji by another vendor    ✗ another emoji    numbers are cosines", fontsize=9)
    _save(figure, path)


def _drawing(panel, path: Path, text: str, colour: str, border: float) -> None:
    panel.axis("on")
    panel.imshow(open_on_white(path))
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_xlabel(text, fontsize=8, color=colour if border > 1 else "0.3", labelpad=1)
    for spine in panel.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(border)


def _save(figure: Figure, path: Path) -> None:
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    plt.close(figure)
