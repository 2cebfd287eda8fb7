"""Finished blocks of a search, kept on disk so that a killed one goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class KeptBlocks:
    """A folder `.search-...` with a file a finished block, named after all that its content depends on.

    Args:
        folder: where it stands; what was kept there of another search is removed.
        fingerprint: of what is searched for, where, and how.
        first: whether this process is the one that removes.
    """

    def __init__(self, folder: str | Path, fingerprint: str, first: bool) -> None:
        self.path = Path(folder) / f".search-{fingerprint}"
        if first:
            for other in Path(folder).glob(".search-*"):
                if other != self.path:
                    shutil.rmtree(other, ignore_errors=True)

    def block(self, name: str, search: Callable[[], Arrays]) -> Arrays:
        """The arrays of a block: kept ones, else those of `search`, which are kept from now on."""
        file = self.path / f"{name}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as kept:
                return dict(kept)
        found = search()
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{os.getpid()}.{file.name}")
        with open(temporary, "wb") as target:
            np.savez(target, **found)
        temporary.replace(file)
        return found

    def remove(self) -> None:
        """Called when the whole is done."""
        shutil.rmtree(self.path, ignore_errors=True)


def digest(*parts: np.ndarray | str) -> str:
    """A short name of contents."""
    found = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).view(np.uint8).data)
        else:
            found.update(part.encode())
        found.update(b"\0")
    return found.hexdigest()
