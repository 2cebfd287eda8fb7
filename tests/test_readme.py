"""Every block of Python in the README runs as it stands, and its tables are what eval/results/ says."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_there_are_blocks():
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: re.search(r"import (\w+)[^\n]*\n\n", code).group(1))
def test_block_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.fixture
def readme_table(monkeypatch):
    """eval/readme_table.py, which is no part of the package."""
    monkeypatch.syspath_prepend(ROOT / "eval")
    return importlib.import_module("readme_table")


def test_tables_are_what_was_measured(readme_table):
    text = README.read_text(encoding="utf-8")
    assert text == readme_table.updated(text), "run python eval/readme_table.py"
    assert text.count(" + Metrix | Recall@1 | ") >= 3


def test_a_figure_that_was_changed_by_hand_is_noticed(readme_table):
    text = README.read_text(encoding="utf-8")
    changed = re.sub(r"(\| Recall@1 \| )0\.\d+", r"\g<1>0.999", text, count=1)
    assert changed != text and readme_table.updated(changed) == text


def test_marks_that_are_gone_are_told(readme_table):
    with pytest.raises(ValueError, match="must have <!-- gains --> and <!-- /gains --> once"):
        readme_table.updated("nothing")
