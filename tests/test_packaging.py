"""What is given to others: an sdist that holds all that its tests read, and a citation that tools can read."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import mixcontrast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository that says which files there are")
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [name for name in run.stdout.splitlines() if (ROOT / name).exists()]


def test_the_sdist_holds_every_file_of_the_repository(tmp_path):
    names = tracked()
    for name in names:
        copy = tmp_path / "copy" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    (tmp_path / "copy/tests/__pycache__").mkdir()
    (tmp_path / "copy/tests/__pycache__/old.pyc").touch()
    code = "from setuptools import build_meta; build_meta.build_sdist('out')"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path / "copy", capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    (made,) = (tmp_path / "copy/out").glob("*.tar.gz")
    with tarfile.open(made) as archive:
        held = {entry.name.partition("/")[2] for entry in archive.getmembers() if entry.isfile()}
    missing = {name for name in names if not name.startswith(".")} - held
    assert not missing, f"MANIFEST.in must take in {sorted(missing)}"
    assert not [name for name in held if name.endswith(".pyc")]


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == mixcontrast.__version__
    urls = {reference["url"] for reference in citation["references"]}
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all({"family-names", "given-names"} <= set(author) for author in reference["authors"])
        assert reference["type"] != "conference-paper" or reference["conference"]["name"]
    for page in (ROOT / "docs/pages/methods").glob("*.md"):
        if page.stem != "losses":
            source = page.read_text(encoding="utf-8").partition("## Source")[2]
            told = set(re.findall(r"https://arxiv.org/abs/[\d.]+\d", source))
            assert told and told <= urls, f"CITATION.cff lacks {told - urls} of {page.name}"


def test_every_extra_is_told_of():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / "docs/pages/start.md").read_text(encoding="utf-8")
    first = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = re.findall(r"`([\w-]+)`", "".join(first))
    assert sorted(told) == sorted(extras)
