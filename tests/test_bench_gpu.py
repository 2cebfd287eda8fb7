"""The tables of a GPU, tried on a CPU at small sizes; their numbers mean nothing here."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "eval" / "bench_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


TITLES = {
    "mixers": "## Mixers",
    "training": "## As a share of training",
    "batches": "## Big batches",
    "topk": "## The hardest",
    "retrieval": "## Retrieval",
}


@pytest.mark.parametrize(
    "tables", [["batches", "topk", "retrieval"], pytest.param(["mixers", "training"], marks=pytest.mark.slow)]
)
def test_the_tables_are_made(tables, tmp_path):
    page = tmp_path / "page.md"
    done = run("--device", "cpu", "--small", "--out", str(page), *tables)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert all((title in text) == (name in tables) for name, title in TITLES.items())
    assert "no GPU: " in text and "Not run: " in text
    if "mixers" in tables:
        assert text.count("| on embeddings ") == text.count("| loss alone ") == 9
        assert text.count(" % ") == 13  # four mixers on two networks, and five on one


def test_without_a_gpu_it_says_so_in_one_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = run()
    assert done.returncode != 0
    assert done.stderr == "The tables need a GPU. torch finds none here; --device cpu --small tries the code.\n"
