"""Figures for pages and for papers: inline SVG in the page's own colours, and files in plain ones."""

from __future__ import annotations

import html
import io
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from mixcontrast.files import write_whole


@dataclass(frozen=True)
class Palette:
    """Colours: of text, of two things that are compared, and of kinds, the first for what is in the background."""

    ink: str
    one: str
    two: str
    kinds: tuple[str, ...]


PAGE = Palette("#010203", "#0a0b01", "#0a0b02", tuple(f"#0a0c0{number}" for number in range(9)))
"""Stand-ins, which become the page's own colours."""

PAPER = Palette(
    "#1c2024", "#0067a5", "#c0510a",
    ("#9aa3ad", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b3fa0", "#333333"),
)  # fmt: skip

INK, ONE, TWO = PAGE.ink, PAGE.one, PAGE.two
_VARIABLES = {ONE: "var(--one)", TWO: "var(--two)", INK: "currentColor"} | {
    colour: f"var(--k{number})" for number, colour in enumerate(PAGE.kinds)
}


def for_page_and_paper(draw: Callable[[Palette], Figure | None], stem: Path, label: str) -> str | None:
    """Writes `stem.png` and `stem.svg` in colours that print, and returns the figure as inline SVG for a page.

    Where `draw` has nothing to show it is None.
    """
    figure = draw(PAPER)
    if figure is None:
        return None
    save(figure, stem)
    return svg(draw(PAGE), stem.name, label)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem.png` and `stem.svg`, each whole or not at all, and returns their paths."""
    found = []
    for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
        path = stem.with_name(f"{stem.name}.{kind}")

        def write(temporary: Path, kind: str = kind, options: dict = options) -> None:
            figure.savefig(temporary, format=kind, **options)

        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": stem.name}):
            write_whole(path, write)
        found.append(path)
    return found


def svg(figure: Figure, salt: str, label: str) -> str:
    """Inline SVG whose ink is the page's, so that it follows light and dark."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=INK)
    style = {
        "svg.fonttype": "none", "svg.hashsalt": salt, "text.color": INK, "axes.edgecolor": INK,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    file = io.StringIO()
    with matplotlib.rc_context(style):
        for axes in figure.axes:
            axes.tick_params(colors=INK)
            axes.xaxis.label.set_color(INK)
            axes.yaxis.label.set_color(INK)
            for spine in axes.spines.values():
                spine.set_edgecolor(INK)
            axes.title.set_color(INK)
            legend = axes.get_legend()
            for text in [*axes.texts, *([] if legend is None else legend.get_texts())]:
                text.set_color(INK)
        for legend in figure.legends:
            for text in legend.get_texts():
                text.set_color(INK)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
    for name, colour in _VARIABLES.items():
        svg = svg.replace(name, colour)
    return svg.replace('id="', f'id="{salt}-').replace('href="#', f'href="#{salt}-').replace("url(#", f"url(#{salt}-")


def printable(text: str) -> str:
    """A text whose letters the font has; of others their names: `overheated face`."""
    there = get_font(findfont("DejaVu Sans")).get_charmap()
    names = [letter if ord(letter) in there else f" {unicodedata.name(letter, '?').lower()} " for letter in text]
    return " ".join("".join(names).split())


def environment() -> jinja2.Environment:
    """Of the templates of pages."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mixcontrast.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
