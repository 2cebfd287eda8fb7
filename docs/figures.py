"""The figures of the pages, as SVG, each for a light and for a dark page.

    python docs/figures.py        writes docs/pages/figures/NAME-light.svg and NAME-dark.svg

Drawings are computed here; measured ones are read from the tables in eval/.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mixcontrast.files import write_whole

HERE = Path(__file__).parent
FIGURES = HERE / "pages" / "figures"
EVAL = HERE.parent / "eval"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


@dataclass(frozen=True)
class Ink:
    """The colours of one page."""

    text: str
    faint: str
    anchor: str
    positive: str
    negative: str
    mixed: str
    cells: tuple[str, str]  # of the least and of the most similar pair


INKS = {
    "light": Ink("#1f2937", "#94a3b8", "#111827", "#0f766e", "#1d4ed8", "#c2410c", ("#e0e7ff", "#1e3a8a")),
    "dark": Ink("#e5e7eb", "#64748b", "#f9fafb", "#5eead4", "#93c5fd", "#fdba74", ("#1e293b", "#a5b4fc")),
}


def between(low: str, high: str, share: float) -> str:
    """A colour between two."""
    pairs = zip(bytes.fromhex(low[1:]), bytes.fromhex(high[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


class Drawing:
    """An SVG picture that says what it shows to those who cannot see it."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title, self.parts = (width, height), title, []

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        given = "".join(f' {k.replace("_", "-")}="{escape(_short(v))}"' for k, v in attributes.items())
        self.parts.append(f"<{tag}{given}/>" if text is None else f"<{tag}{given}>{text}</{tag}>")

    def text(self, x: float, y: float, words: str, fill: str, size: int = 15, anchor: str = "middle", **more) -> None:
        self.add("text", words, x=x, y=y, fill=fill, font_size=size, text_anchor=anchor, **more)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, **more: object) -> None:
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **more)

    def svg(self) -> str:
        width, height = self.size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="{FONT}">\n<title>{escape(self.title)}</title>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def _short(value: object) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


SIMILARITIES = (  # invented: a table that has something to look at
    (1.0, 0.2, 0.45, 0.35, 0.1, 0.75, 0.3, 0.6),
    (0.2, 1.0, 0.15, 0.7, 0.4, 0.25, 0.55, 0.1),
    (0.45, 0.15, 1.0, 0.2, 0.65, 0.4, 0.1, 0.7),
)
MIXED = ((5, 7), (3, 6), (4, 7))  # the hardest two of each anchor


def table(ink: Ink) -> Drawing:
    """The one picture: what every loss reads, and where mixtures come from."""
    title = (
        "A table of pairs: a row an anchor; columns of the batch, other ranks, a queue, and mixed columns, each read "
        "from two cells of its row; a loss reduces each row"
    )
    picture = Drawing(600, 260, title)
    groups = {"batch": (0, 1, 2), "ranks": (3, 4), "queue": (5, 6, 7), "mixed": (8, 9, 10)}
    cell, gap, top, left = 30, 4, 92, 84
    at, x = {}, left
    for columns in groups.values():
        for column in columns:
            at[column] = x
            x += cell + gap
        x += 14
    for name, columns in groups.items():
        middle = (at[columns[0]] + at[columns[-1]] + cell) / 2
        picture.text(middle, 60, name, ink.mixed if name == "mixed" else ink.text, font_weight=600)
        picture.line(at[columns[0]], 70, at[columns[-1]] + cell, 70, ink.faint)
    picture.text(x + 20, 60, "loss", ink.text, font_weight=600)
    for row, values in enumerate(SIMILARITIES):
        y = top + row * (cell + gap)
        picture.text(left - 10, y + 20, f"anchor {row + 1}", ink.text, anchor="end")
        for column, value in enumerate(values):
            if column == row:  # itself: left out
                picture.add("rect", x=at[column] + 1, y=y + 1, width=cell - 2, height=cell - 2, rx=4, fill="none",
                            stroke=ink.faint, stroke_dasharray="3 3")  # fmt: skip
                continue
            picture.add("rect", x=at[column], y=y, width=cell, height=cell, rx=4, fill=between(*ink.cells, value))
        for column, share in zip(groups["mixed"], (0.2, 0.5, 0.8), strict=True):
            first, second = (values[of] for of in MIXED[row])
            colour = between(*ink.cells, share * first + (1 - share) * second)
            picture.add("rect", x=at[column] + 1, y=y + 1, width=cell - 2, height=cell - 2, rx=4, fill=colour,
                        stroke=ink.mixed, stroke_width=2)  # fmt: skip
        picture.line(x - 6, y + 15, x + 4, y + 15, ink.faint)
        picture.add("circle", cx=x + 20, cy=y + 15, r=8, fill=ink.text)
    y = top + 3 * (cell + gap)
    end = at[9] + cell / 2
    for column, name, deep in ((5, "c\u2081", 40), (7, "c\u2082", 26)):
        start = at[column] + cell / 2
        picture.add("path", d=f"M {start:.0f} {y} C {start:.0f} {y + deep}, {end:.0f} {y + deep}, {end:.0f} {y}",
                    fill="none", stroke=ink.mixed, stroke_width=2)  # fmt: skip
        picture.text(start - 12, y + 18, name, ink.mixed)
    rule = "v = c\u2081x\u2081 + c\u2082x\u2082  \u21d2  a\u00b7v = c\u2081(a\u00b7x\u2081) + c\u2082(a\u00b7x\u2082)"
    picture.text(300, y + 60, rule, ink.mixed, 16)
    picture.text(300, 22, "similarity, target and weight of every pair", ink.text, size=16)
    return picture


class Circle:
    """A piece of the unit sphere seen from the side: points by angle, in degrees from the anchor."""

    def __init__(self, ink: Ink, title: str, *, width: int = 460, height: int = 250) -> None:
        self.ink, self.drawing = ink, Drawing(width, height, title)
        self.centre, self.radius = (width / 2, height - 26), height - 76
        x, y = self.centre
        r = self.radius
        self.drawing.add("path", d=f"M {x - r} {y} A {r} {r} 0 0 1 {x + r} {y}", fill="none", stroke=ink.faint)
        self.drawing.add("circle", cx=x, cy=y, r=2, fill=ink.faint)

    def at(self, degrees: float, length: float = 1.0) -> tuple[float, float]:
        angle = math.radians(90 + degrees)
        (x, y), r = self.centre, self.radius * length
        return x + r * math.cos(angle), y - r * math.sin(angle)

    def point(self, degrees: float, name: str, colour: str, *, length: float = 1.0, r: int = 6, mixed: bool = False):
        x, y = self.at(degrees, length)
        style = dict(fill="none", stroke=colour, stroke_width=2.5) if mixed else dict(fill=colour)
        self.drawing.add("circle", cx=x, cy=y, r=r, **style)
        if name:
            tx, ty = self.at(degrees, length + (0.13 if length > 0.97 else -0.13))
            self.drawing.text(tx, ty + 5, name, colour)

    def caption(self, words: str) -> None:
        self.drawing.text(self.centre[0], self.centre[1] + 18, words, self.ink.mixed, 14)

    def chord(self, first: float, second: float, colour: str, **more: object) -> None:
        self.drawing.line(*self.at(first), *self.at(second), colour, **more)

    def mixture(self, first: float, second: float, share: float, *, normalize: bool = True, name: str = "") -> float:
        """`share` of the first and the rest of the second; its angle."""
        (x1, y1), (x2, y2) = (_unit(angle) for angle in (first, second))
        x, y = share * x1 + (1 - share) * x2, share * y1 + (1 - share) * y2
        angle, length = math.degrees(math.atan2(y, x)), math.hypot(x, y)
        self.point(angle, name, self.ink.mixed, length=1.0 if normalize else length, r=5, mixed=True)
        return angle


def _unit(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def mixing(ink: Ink) -> Drawing:
    """Linear, normalised and geodesic mixtures of the same two vectors."""
    circle = Circle(ink, "Mixtures of two unit vectors: on the chord, on the chord and divided by their length, and "
                         "at equal angles along the arc", width=460, height=290)  # fmt: skip
    first, second = 58.0, -58.0
    circle.chord(first, second, ink.faint)
    for share in (0.2, 0.4, 0.6, 0.8):
        x = 2 * share - 1
        chord = math.degrees(math.atan2(x * math.sin(math.radians(first)), math.cos(math.radians(first))))
        length = math.hypot(x * math.sin(math.radians(first)), math.cos(math.radians(first)))
        circle.drawing.line(*circle.at(chord, length), *circle.at(chord), ink.faint, stroke_dasharray="2 4")
        circle.point(chord, "", ink.negative, length=length, r=4)
        circle.point(chord, "", ink.negative, r=5, mixed=True)
        circle.point(first * x, "", ink.mixed, r=5)
    circle.point(first, "x\u2081", ink.text)
    circle.point(second, "x\u2082", ink.text)
    x, y = circle.at(0, math.cos(math.radians(first)))
    circle.drawing.text(x, y + 24, "Linear(normalize=False): on the chord", ink.negative, size=14)
    circle.drawing.text(x, 22, "Geodesic(): filled, at equal angles", ink.mixed, size=14)
    circle.drawing.text(x, 40, "Linear(): rings, the chord's points at length 1", ink.negative, size=14)
    return circle.drawing


def mochi(ink: Ink) -> Drawing:
    circle = Circle(ink, "MoCHi: mixtures of two hard negatives, and of a hard negative with the anchor")
    circle.chord(26, 48, ink.faint)
    circle.chord(0, -34, ink.faint)
    for share in (0.3, 0.65):
        circle.mixture(26, 48, share)
    for share in (0.15, 0.4):
        circle.mixture(0, -34, share)
    _cast(circle, positives=(-10,), negatives=(26, 48, -34, 72, -70))
    circle.caption("rings: more negatives, of the hardest and the anchor")
    return circle.drawing


def metrix(ink: Ink) -> Drawing:
    circle = Circle(ink, "Metrix: mixtures of a positive with negatives, each a positive by its share of it")
    for negative, share in ((54, 0.75), (54, 0.3), (-78, 0.6)):
        circle.chord(-30, negative, ink.faint)
        circle.mixture(-30, negative, share, name=f"{share:g}")
    _cast(circle, positives=(-30,), negatives=(54, -78, 80))
    circle.caption("rings: mixtures, with their target")
    return circle.drawing


def supremix(ink: Ink) -> Drawing:
    circle = Circle(ink, "SupReMix: a mixture of a younger and an older example has the anchor's age; mixtures of the "
                         "anchor with others are negatives nearer than those")  # fmt: skip
    circle.chord(-40, 34, ink.faint)
    circle.mixture(-40, 34, 0.45, normalize=False, name="30")
    circle.chord(0, 66, ink.faint)
    circle.mixture(0, 66, 0.3, normalize=False)
    for angle, age in ((-40, "27"), (34, "33"), (66, "52"), (-72, "9")):
        circle.point(angle, age, ink.negative)
    circle.point(0, "30", ink.anchor, r=7)
    circle.caption("numbers: ages; rings: a positive of 30 and a negative")
    return circle.drawing


def synco(ink: Ink) -> Drawing:
    circle = Circle(ink, "SynCo: between the anchor and a hard negative, beyond it, between two, and near one")
    circle.mixture(0, 40, 0.3)
    circle.mixture(0, 40, -0.35)
    circle.chord(0, 40, ink.faint)
    circle.chord(-24, -52, ink.faint)
    circle.mixture(-24, -52, 0.5)
    circle.point(-20, "", ink.mixed, r=5, mixed=True)
    _cast(circle, positives=(-10,), negatives=(40, -24, -52, 74))
    circle.caption("rings: between, beyond, in pairs, a small step")
    return circle.drawing


def geodesic(ink: Ink) -> Drawing:
    circle = Circle(ink, "m2-Mix: the point between another pair's image and text, a negative of this pair's image and "
                         "text")  # fmt: skip
    for image, text in ((22, -30), (52, -60)):
        for share in (0.35,):
            circle.point(share * image + (1 - share) * text, "", ink.mixed, r=5, mixed=True)
    circle.point(30, "image i", ink.anchor, r=7)
    circle.point(-38, "text i", ink.anchor, r=7)
    circle.point(52, "image j", ink.negative)
    circle.point(-60, "text j", ink.negative)
    circle.point(74, "", ink.negative)
    circle.point(-82, "", ink.negative)
    circle.caption("images left, texts right; rings: mixtures on the arc")
    return circle.drawing


def _cast(circle: Circle, positives: tuple[float, ...], negatives: tuple[float, ...]) -> None:
    ink = circle.ink
    for angle in negatives:
        circle.point(angle, "n", ink.negative)
    for angle in positives:
        circle.point(angle, "p", ink.positive)
    circle.point(0, "a", ink.anchor, r=7)


COSTS = {  # the largest sizes of eval/bench_mixers.md
    "MoCHi, InfoNCE, queue 65,536": "MoCHi (1024, 1024, 128) on InfoNCE, B 256, D 128, queue 65536",
    "SynCo, InfoNCE, queue 65,536": "SynCo (1024; 256, 256, 256, 64, 64, 64) on InfoNCE, B 256, D 128, queue 65536",
    "Metrix, multi-similarity, batch 256": "Metrix on MultiSimilarityLoss, all positive x negative, 4 a class, D 512, batch 256",  # noqa: E501
    "SupReMix, SupCon, 512 views": "SupReMix on SupConLoss, D 128, views 512",
    "m2-Mix, CLIP, batch 1,024": "m2-Mix on ClipLoss, D 512, batch 1024",
    "V-Mix, CLIP, batch 1,024": "V-Mix on ClipLoss, D 512, batch 1024",
    "VL-Mix, CLIP, batch 1,024": "VL-Mix on ClipLoss, D 512, batch 1024",
}


def costs() -> dict[str, dict[str, float]]:
    """What, to contestant, to how many times the loss alone its step takes."""
    rows: dict[str, dict[str, float]] = {}
    for line in (EVAL / "bench_mixers.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"[\d.]+", cells[3]):
            rows.setdefault(cells[0], {})[cells[1]] = float(cells[3])
    return rows


def cost(ink: Ink) -> Drawing:
    """Measured: a step with mixing in times its loss alone, ours and on embeddings."""
    found = costs()
    picture = Drawing(600, 74 + 48 * len(COSTS), "Time of a step with mixing, in times the step of the loss alone, by "
                                                 "similarities and on embeddings")  # fmt: skip
    left, width, most = 16, 568, 2000.0

    def x(times: float) -> float:
        return left + width * math.log(times) / math.log(most)

    bottom = 40 + 48 * len(COSTS)
    for times in (1, 10, 100, 1000):
        picture.line(x(times), 34, x(times), bottom, ink.faint, stroke_dasharray="2 4")
        side = "start" if times == 1 else "middle"
        picture.text(x(times), bottom + 20, f"{times:,}\u00d7", ink.text, 14, anchor=side)
    picture.text(left, 20, "\u25cf mixed here", ink.mixed, anchor="start")
    picture.text(left + 120, 20, "\u25cf the same mixtures made as embeddings", ink.negative, anchor="start")
    for row, (name, what) in enumerate(COSTS.items()):
        y, (ours, theirs) = 52 + 48 * row, (found[what]["mixed"], found[what]["on embeddings"])
        picture.text(left + 4, y, name, ink.text, 14, anchor="start")
        picture.line(x(ours), y + 16, x(theirs), y + 16, ink.faint)
        for times, colour, side in ((theirs, ink.negative, 1), (ours, ink.mixed, -1)):
            picture.add("circle", cx=x(times), cy=y + 16, r=6, fill=colour)
            near = abs(x(ours) - x(theirs)) < 40
            end = "end" if side < 0 and x(ours) > 80 else "start"
            dx = -12 if end == "end" else 12
            if end == "start" and side < 0 and near:
                continue
            picture.text(x(times) + dx, y + 21, f"{times:.3g}", colour, 13, anchor=end)
    return picture


FIGURES_OF = {
    "table": table, "mixing": mixing, "mochi": mochi, "metrix": metrix, "supremix": supremix, "synco": synco,
    "geodesic": geodesic, "cost": cost,
}  # fmt: skip


def write(folder: Path = FIGURES) -> None:
    """All figures, in both inks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES_OF.items():
        for page, ink in INKS.items():
            svg = draw(ink).svg()
            write_whole(folder / f"{name}-{page}.svg", lambda path, svg=svg: path.write_text(svg, encoding="utf-8"))


if __name__ == "__main__":
    write()
