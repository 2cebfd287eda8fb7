"""A batch explained: tables of kinds and of single mixtures, the sphere around anchors, similarities of all kinds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mixcontrast.explanation import Explanation, Made
from mixcontrast.explanation.sphere import View, views_of
from mixcontrast.files import write_whole
from mixcontrast.report.figures import PAPER, Palette, printable, save

RINGS = (0.9, 0.7, 0.5, 0.0, -0.5)  # similarities


def kinds_table(found: Explanation) -> tuple[list[str], list[list[str]]]:
    """Header and a row a kind: how many, how similar, how often harder and how often false, and its share of the
    gradient."""
    header = ["mixtures", "each", "similarity", "hardest", "false", "gradient"]
    rows = []
    for kind, share in zip(found.kinds, found.gradients, strict=True):
        counts = kind.weight > 0
        false = found.false_negatives(kind)
        harder = found.harder(kind)
        rows.append(
            [
                kind.kind,
                f"{counts.sum().item() / len(counts):.1f}",
                f"{kind.similarity[counts].mean():.3f}" if bool(counts.any()) else "",
                "" if harder is None else f"{harder:.1%}",
                "" if false is None else f"{false.any:.1%}",
                f"{share.sum():.1%}",
            ]
        )
    return header, rows


def mixtures_table(
    found: Explanation, anchors: Sequence[int], names: Sequence[str] | None = None, most: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and a row a mixture: which parents, in which share, similar how, and what it carries.

    Args:
        found: a batch explained.
        anchors: rows of its table.
        names: of the classes, or the captions; None: their numbers.
        most: of each anchor, those of the largest share of the gradient; None: all that count.
    """
    header = [
        "anchor", "class", "kind", "first", "row", "class", "share", "similarity", "second", "row", "class", "share",
        "similarity", "lambda", "mixture's similarity", "target", "weight", "of the gradient",
    ]  # fmt: skip
    rows = []
    for anchor in anchors:
        mine = []
        for kind, share in zip(found.kinds, found.gradients, strict=True):
            if anchor < len(kind.anchors):
                mine += [
                    (float(share[anchor, column]), kind, column)
                    for column in torch.nonzero(kind.weight[anchor] > 0)[:, 0].tolist()
                ]
        mine.sort(key=lambda entry: -entry[0])
        for share, kind, column in mine[:most]:
            rows.append(_row(kind, anchor, column, share, names))
    return header, rows


def _row(kind: Made, anchor: int, column: int, share: float, names: Sequence[str] | None) -> list[str]:
    cells = [str(anchor), _name(kind.anchor_labels, anchor, names), kind.kind]
    for part in kind.parents:
        row = int(part.rows[anchor, column])
        similarity = float(part.vectors[row] @ kind.anchors[anchor])
        where = "" if part.name in ("noise", "gradient", "sign") else str(row)
        cells += [part.name, where, _name(part.labels, row, names), f"{part.share[anchor, column]:.4f}",
                  f"{similarity:.4f}"]  # fmt: skip
    lam = "" if kind.lam is None else f"{kind.lam[anchor, column]:.4f}"
    return cells + [
        lam, f"{kind.similarity[anchor, column]:.4f}", f"{kind.target[anchor, column]:.4f}",
        f"{kind.weight[anchor, column]:.4f}", f"{share:.3e}",
    ]  # fmt: skip


def _name(labels: torch.Tensor | None, row: int, names: Sequence[str] | None) -> str:
    if labels is None or labels.ndim > 1 and labels.is_floating_point():
        return ""
    label = labels[row].reshape(-1)[-1].item()  # of a pair the caption
    if isinstance(label, float):
        return f"{label:g}"
    return "unknown" if label < 0 else names[label] if names and label < len(names) else str(label)


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """A table as a CSV file; a column whose name comes again is numbered."""
    seen: dict[str, int] = {}
    unique = []
    for name in header:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([unique, *rows])
    write_whole(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8", newline=""))


def write_picture(
    found: Explanation, anchors: Sequence[int], stem: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """The sphere around up to two anchors, and similarities of all kinds: `stem.png` and `stem.svg`.

    Mixtures whose anchors are neither (mixtures themselves, proxies) are named, with what they carry.
    """
    views, left_out = views_of(found, anchors)
    figure = Figure(figsize=(5.4 * len(views) + 5.6, 5.4), layout="constrained")
    panels = figure.subplots(1, len(views) + 1, width_ratios=[1] * len(views) + [1.05])
    for axes, view in zip(panels, views, strict=False):
        _draw_view(axes, view, [kind.kind for kind in found.kinds], names, PAPER)
    draw_hardness(panels[-1], found, PAPER)
    legend = {
        label: handle
        for panel in panels[: len(views)]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=min(len(legend), 7), frameon=False, fontsize=8
    )
    figure.suptitle(
        f"{found.criterion}: mixed columns carry {found.of_gradient:.0%} of the gradient by similarities"
        + (f" and {found.of_loss:.0%} of the loss" if math.isfinite(found.of_loss) else "")
        + "".join(
            f"\nnot drawn, as its anchors are others: {kind}, {share:.0%} of the gradient" for kind, share in left_out
        )
    )
    return save(figure, stem)


def _draw_view(axes, view: View, kinds: list[str], names: Sequence[str] | None, palette: Palette) -> None:
    shown = torch.cat([view.positives, view.negatives, *(kind.mixtures for kind in view.kinds)])
    reach = min(1.06 * float(torch.linalg.vector_norm(shown, dim=1).max()), math.pi) if len(shown) else 1.0
    around = np.linspace(0, 2 * np.pi, 200)
    for ring in RINGS:
        radius = math.acos(ring)
        if radius > reach:
            break
        axes.plot(radius * np.cos(around), radius * np.sin(around), color=palette.ink, alpha=0.15, linewidth=0.8)
        axes.text(0, -radius, f"{ring:g}", fontsize=7, ha="center", va="center", alpha=0.6,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    for kind in view.kinds:
        colour = palette.kinds[1 + kinds.index(kind.name) % (len(palette.kinds) - 1)]  # the same in all views
        for mixture, (first, second) in zip(kind.mixtures, kind.parents, strict=True):
            ends = [end.tolist() for end in (first, mixture, second) if not bool(end.isnan().any())]
            axes.plot(*zip(*ends, strict=True), color=colour, alpha=0.35, linewidth=0.9, zorder=2)
        axes.scatter(*kind.mixtures.T, marker="D", s=22, color=colour, label=f"{kind.name}, mixed", zorder=4)
    axes.scatter(*view.negatives.T, s=12, color=palette.kinds[0], label="negatives", zorder=3)
    axes.scatter(*view.positives.T, s=34, facecolor="none", edgecolor=palette.ink, label="positives", zorder=5)
    axes.scatter([0], [0], marker="*", s=120, color=palette.ink, label="anchor", zorder=6)
    label = "" if view.label is None else f", {_title(view.label, names)}"
    axes.set_title(f"around {view.of} {view.anchor}{label}", fontsize=10)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("distance from the anchor: the true angle; rings: similarity", fontsize=8)


def _title(label: float, names: Sequence[str] | None) -> str:
    if names and float(label).is_integer() and 0 <= label < len(names):
        return printable(names[int(label)])
    return f"{label:g}"


def draw_hardness(axes, found: Explanation, palette: Palette) -> None:
    """Densities of the similarities of positives, negatives and mixtures over the same bins."""
    parts = {
        "positives": (found.hardness.positive, palette.ink, "-"),
        "negatives": (found.hardness.negative, palette.kinds[0], "-"),
        "mixed, target 1": (found.hardness.mixed_positive, palette.kinds[3], "--"),
        "mixed, target between": (found.hardness.mixed_between, palette.kinds[1], "--"),
        "mixed, target 0": (found.hardness.mixed_negative, palette.kinds[2], "--"),
    }
    parts = {name: part for name, part in parts.items() if len(part[0])}
    low = min(float(values.min()) for values, _, _ in parts.values())
    edges = np.linspace(low, 1.0001, 50)
    for name, (values, colour, style) in parts.items():
        heights, _ = np.histogram(values.detach().numpy(), edges, density=True)
        axes.stairs(heights, edges, color=colour, fill=True, alpha=0.2)
        axes.stairs(heights, edges, color=colour, linewidth=1.6, linestyle=style, label=name)
    axes.set_xlabel("similarity to the anchor")
    axes.set_ylabel("density")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
