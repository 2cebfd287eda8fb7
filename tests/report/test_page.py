"""The page of an evaluation: whole, alone, and honest about what it shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mixcontrast.cli import main
from mixcontrast.report.page import Rows, write_report
from mixcontrast.retrieval import DML, evaluate, evaluate_pairs

LABELS = np.arange(60) // 4
TABLE = np.eye(15)[LABELS] + 0.4 * np.random.default_rng(0).normal(size=(60, 15))


class Page(HTMLParser):
    """Tags, ids, links and texts of a page; unclosed tags are refused."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href", "poster", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_it_stands_alone_and_escapes_what_it_is_told(tmp_path):
    vendors = np.array(["<left>", "$right_"])[np.arange(60) % 2]
    found = evaluate(TABLE, LABELS, attributes={"vendor": vendors}).named(DML)
    Image.new("RGBA", (300, 200), (255, 0, 0, 90)).save(tmp_path / "one.png")
    images = [tmp_path / "one.png"] * 59 + [tmp_path / "gone.png"]
    names = {0: "<script>alert(1)</script>"}
    texts = ["<b>bold</b>"] * 60
    path = write_report(
        tmp_path / "page.html", found, TABLE, labels=LABELS, names=names, of_queries=Rows(images, texts)
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text and "<b>bold" not in text and "&lt;b&gt;bold" in text
    assert len(page.ids) == len(set(page.ids)), "ids clash"
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= set(page.ids) and not [x for x in page.links if not x.startswith(("#", "data:image/jpeg;base64,"))]
    assert not re.search(r"url\((?!#)", text)
    words = " ".join(page.words)
    for metric in found.values:
        assert f"{found.mean(metric):.4f}" in words
    assert "By vendor" in words and "Worst confusions" in words and "Map" in words
    assert not [name for name in tmp_path.iterdir() if name.name.startswith(".")]


def test_the_ink_of_figures_is_the_pages(tmp_path):
    text = write_report(tmp_path / "p.html", evaluate(TABLE, LABELS), TABLE, labels=LABELS).read_text()
    figures = re.findall(r"<svg[^>]* role=\"img\".*?</svg>", text, re.S)
    assert len(figures) == 3  # curve, histogram, map
    for figure in figures:
        assert "#000000" not in figure and "#0102" not in figure and "black" not in figure


def test_pairs_have_no_classes_to_confuse(tmp_path):
    pairs = np.array([[q, g] for q in range(20) for g in (q, q + 20)])
    found = evaluate_pairs(TABLE[:20], TABLE, pairs)
    page = Page(write_report(tmp_path / "p.html", found, TABLE[:20], gallery=TABLE, pairs=pairs).read_text())
    assert "no classes to confuse" in " ".join(page.words)


def test_a_collapsed_encoder_and_a_handful_of_rows(tmp_path):
    for table, labels in ((np.ones((12, 3)), np.arange(12) // 3), (TABLE[:4], LABELS[:4] // 2)):
        Page(write_report(tmp_path / "p.html", evaluate(table, labels), table, labels=labels).read_text())


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", TABLE)
    (tmp_path / "rows.csv").write_text("name,text\n" + "".join(f"class {k},thing {k}\n" for k in LABELS))
    main(["evaluate", "a.npy", "--labels", "rows.csv:name", "--report", "page.html", "--texts", "rows.csv:text"])
    assert "The page is page.html" in capsys.readouterr().out
    words = " ".join(Page((tmp_path / "page.html").read_text()).words)
    assert "class 3" in words and "thing 3" in words
    with pytest.raises(SystemExit, match="--report is an .html file. Got page.pdf"):
        main(["evaluate", "a.npy", "--labels", "rows.csv:name", "--report", "page.pdf"])
