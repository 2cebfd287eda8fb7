"""The record of what a run ran on: the revision is this program's own, or none."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mixcontrast.environment import environment, revision_of


def git(folder, *arguments: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_revision_is_of_our_own_sources(tmp_path):
    mine = tmp_path / "mixcontrast"
    mine.mkdir()
    (mine / "pyproject.toml").write_text('[project]\nname = "mixcontrast"\n')
    assert revision_of(mine) == (None, None)  # no repository
    git(mine, "init", "-q")
    git(mine, "add", ".")
    git(mine, "commit", "-qm", "one")
    head = git(mine, "rev-parse", "HEAD").strip()
    assert revision_of(mine) == (head, False)
    (mine / "runs").mkdir()
    (mine / "runs" / "new").touch()
    assert revision_of(mine) == (head, False)  # what runs leave is no change
    (mine / "pyproject.toml").write_text('[project]\nname = "mixcontrast"\nversion = "2"\n')
    assert revision_of(mine) == (head, True)
    inside = mine / "venv" / "site-packages"  # of a user whose repository this is
    inside.mkdir(parents=True)
    assert revision_of(inside) == (None, None)
    (mine / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    assert revision_of(mine) == (None, None)
    assert {"git", "git changed"} <= set(environment("cpu"))
