"""What the pages' Markdown may hold besides: formulas, rows of measured tables, and docstrings as Python has them.

    $a \\cdot v$        a formula in a line, and `$$` around a displayed one, in LaTeX: made MathML here, so that a page
                       needs no script and no network
    {measured bench_mixers.md: MoCHi}
                       a row of its own: the rows of a table in eval/ whose first cell begins so, with the table's head.
                       What is measured anew is in the pages at the next `make docs`; a row that is gone stops it.
"""

from __future__ import annotations

import re
from pathlib import Path

import latex2mathml.converter
from markdown import Extension
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

EVAL = Path(__file__).parents[1] / "eval"
_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r"^\s*([-*]|\d+\.) ")
_LINK = re.compile(r"\[([^\]]+)\]\([^)\s]+\)")
_INTERVAL = re.compile(r"(\[[-+]?[\d.]+), ([-+]?[\d.]+\])")
_WHOLE = 5  # up to so many columns an interval has room on one line
_MEASURED = re.compile(r"^\{measured ([\w/.-]+\.md): ?(.*)\}$")


def measured_rows(file: str, start: str) -> list[str]:
    """The head of a table and its rows whose first cell begins with `start`, as Markdown.

    Args:
        file: a Markdown file, relative to eval/.
        start: "" for every row, "this; that" for rows of two beginnings; before a slash it may name the table by its
            first head: "MiniLM/" is every row of that.

    Raises:
        ValueError: no such row, or rows of several tables.
    """
    head, _, first = start.rpartition("/")
    starts = tuple(first.split("; "))
    text = _LINK.sub(r"\1", (EVAL / file).read_text(encoding="utf-8"))  # its links go from its own folder
    tables, lines = [], text.splitlines()
    for i, line in enumerate(lines[1:], 1):
        if re.fullmatch(r"\|[\s:|-]+\|", line) and lines[i - 1].startswith("|"):
            rows = []
            for row in lines[i + 1 :]:
                if not row.startswith("|"):
                    break
                if row.strip("| ").startswith(starts):
                    rows.append(row)
            if rows and lines[i - 1].strip("| ").startswith(head):
                tables.append([lines[i - 1], line, *rows])
    if len(tables) != 1:
        raise ValueError(
            f"`{{measured {file}: {start}}}` must name rows of one table. Got {len(tables)} tables; name the rows by "
            "how their first cell begins, and the table by its first head before a slash."
        )
    return tables[0]


class _Lines(Preprocessor):
    """Measured rows; and in docstrings: examples become fences, lists begin without a blank line, `::` is a colon."""

    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        fence, example = False, False
        for line in lines:
            if example and (not line.strip() or _FENCE.match(line)):
                out.append("```")
                example = False
            if _FENCE.match(line):
                fence = not fence
            elif not fence and not example:
                found = _MEASURED.match(line)
                if found:
                    rows = measured_rows(*found.groups())
                    if rows[0].count("|") <= _WHOLE + 1:
                        rows = [_INTERVAL.sub("\\1,\u00a0\\2", row) for row in rows]
                    out += ["", *rows, "", _made_by(found[1]), ""]
                    continue
                before = out[-1] if out else ""
                if line.startswith(">>> "):
                    out += ["", "```pycon"]
                    example = True
                elif _ITEM.match(line) and before.strip() and not _ITEM.match(before) and not before.startswith("  "):
                    out.append("")
                elif line.endswith("::") and not line.startswith(":::"):
                    line = line[:-1]
            out.append(line)
        return [*out, "```"] if example else out


def _made_by(file: str) -> str:
    """The line under measured rows: where they come from."""
    name = (EVAL / file).resolve().relative_to(EVAL.parent).as_posix()
    return f'<p class="measured">Read from <code>{name}</code> when this page was made.</p>'


def mathml(formula: str, display: str = "inline") -> str:
    """A LaTeX formula as MathML; a function's name keeps its distance to what follows."""
    apart = re.sub(r"\\(log|sin|cos)(?![a-z])(?! *(?:\(|\\left))", r"\\\1\\,", formula)
    made = latex2mathml.converter.convert(apart, display=display)
    made = made.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # "is drawn from" is a relation, with its distance
    return made.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')  # else it slips down beside an exponent


class _Formula(InlineProcessor):
    def handleMatch(self, m, data):
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


class _Display(BlockProcessor):
    def test(self, parent, block):
        return block.startswith("$$") and block.rstrip().endswith("$$")

    def run(self, parent, blocks):
        formula = blocks.pop(0).strip().strip("$").strip()
        made = mathml(formula, "block")
        parent.append(_element(self.parser.md.htmlStash.store(f'<div class="formula">{made}</div>')))


def _element(placeholder: str):
    from xml.etree.ElementTree import Element

    element = Element("p")
    element.text = placeholder
    return element


class Markup(Extension):
    def extendMarkdown(self, md) -> None:
        md.preprocessors.register(_Lines(md), "mixcontrast-lines", 40)  # before fences are taken out
        md.inlinePatterns.register(_Formula(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])", md), "mixcontrast-formula", 185)
        md.parser.blockprocessors.register(_Display(md.parser), "mixcontrast-display", 200)


def makeExtension(**settings) -> Markup:  # noqa: N802  Python-Markdown's name
    return Markup(**settings)
