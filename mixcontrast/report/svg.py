"""Pictures inside a page: SVG in the page's own colours, light and dark, and the templates of pages."""

from __future__ import annotations

import html
import io

import jinja2
import matplotlib
from matplotlib.figure import Figure

INK = "#010203"  # becomes the page's own colour of text
ONE, TWO = "#0a0b01", "#0a0b02"
KINDS = tuple(f"#0a0b1{number}" for number in range(9))  # of up to eight things told apart; the first for others
_COLOURS = {
    ONE: "var(--one)", TWO: "var(--two)", INK: "currentColor",
    **{colour: f"var(--k{number})" for number, colour in enumerate(KINDS)},
}  # fmt: skip


def inline_svg(figure: Figure, salt: str, label: str) -> str:
    """Inline SVG whose ink is the page's, so that it follows light and dark.

    Args:
        figure: drawn in `ONE`, `TWO` and `KINDS`.
        salt: before its ids; each picture of a page has its own.
        label: what it shows, for those who do not see it.
    """
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
            legend = axes.get_legend()
            for text in (axes.title, *axes.texts, *(legend.get_texts() if legend else ())):
                text.set_color(INK)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
    for name, colour in _COLOURS.items():
        svg = svg.replace(name, colour)
    return svg.replace('id="', f'id="{salt}-').replace('href="#', f'href="#{salt}-').replace("url(#", f"url(#{salt}-")


def environment_of_pages() -> jinja2.Environment:
    """What renders the templates of this package; values are escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mixcontrast.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
