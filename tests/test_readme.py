"""Every block of Python in the README runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_there_are_blocks():
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: re.search(r"import (\w+)[^\n]*\n\n", code).group(1))
def test_block_runs(code):
    exec(compile(code, "README.md", "exec"), {})
