"""Embeddings on disk, opened without reading them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval.store_parts import Part, open_part

MANIFEST = "manifest.json"
FORMAT = "mixcontrast embeddings"


class StoredEmbeddings:
    """(N, D) embeddings in a file or a folder, read by slices.

    A path is a `.npy`, `.safetensors` (one tensor, or the one named "embeddings"), `.parquet`, `.arrow` or `.feather`
    file (a column `embedding` of lists), a folder written by `mixcontrast embed` (Parquet parts and a manifest), or a
    folder of `.npy` files, which are joined in the order of their names.

    Attributes:
        path: where they are.
        shape: (N, D).
        dtype: as they are stored; they are read as float32.
        columns: names of what else is stored of each row (`id`, a label).
        settings: how they were made, as the folder's manifest says; empty without one.

    Args:
        path: of the file or folder.

    Raises:
        ValueError: the file or a part is not there, not whole, of another kind, or not what the manifest says; the
            folder has no manifest; an id stands twice.
        ImportError: Parquet and Arrow need pyarrow.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest: dict[str, Any] = {}
        if self.path.is_dir():
            self._parts, manifest = _parts_of_folder(self.path)
        else:
            self._parts = [open_part(self.path)]
        self._ends = np.cumsum([part.num_rows for part in self._parts])
        self.shape = int(self._ends[-1]), self._parts[0].dim
        self.dtype, self.columns = self._parts[0].dtype, self._parts[0].columns
        self.settings: dict[str, Any] = manifest.get("settings", {})
        if manifest and "id" in self.columns:
            self._check_ids()

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, D) float32.

        Raises:
            ValueError: a part cannot be read.
        """
        found = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            begin = end - part.num_rows
            low, high = max(start, begin), min(stop, end)
            if low < high:
                rows = self._read(part, low - begin, high - begin)
                with np.errstate(over="ignore"):  # infinity is refused where the rows are used
                    found.append(rows.astype(np.float32, copy=False))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def column(self, name: str) -> np.ndarray:
        """(N,) integers or texts.

        Raises:
            ValueError: no such column, or a part of it is missing.
        """
        if name not in self.columns:
            there = ", ".join(self.columns) or "none"
            raise ValueError(f"{self.path} has no column {name!r}. There are {there}; name one of them.")
        return np.concatenate([part.column(name) for part in self._parts])

    def fingerprint(self) -> str:
        """What changes when the files do: names, sizes, times of writing."""
        stats = [(part.path.name, part.path.stat().st_size, part.path.stat().st_mtime_ns) for part in self._parts]
        return hashlib.blake2b(repr((self.shape, stats)).encode(), digest_size=16).hexdigest()

    def _read(self, part: Part, start: int, stop: int) -> np.ndarray:
        try:
            rows = part.read(start, stop)
        except Exception as error:  # each format's reader has its own kinds
            reason = " ".join(str(error).split())
            raise ValueError(f"Rows {start} to {stop} of {part.path} cannot be read: {reason}. Is it whole?") from None
        if rows.shape != (stop - start, part.dim):
            raise ValueError(
                f"{part.path} must hold what its beginning says. Got {rows.shape} for {(stop - start, part.dim)}; "
                "it was cut short or changed: write it again."
            )
        return rows

    def _check_ids(self) -> None:
        ids = self.column("id")
        values, first = np.unique(ids, return_index=True)
        if len(values) == len(ids):
            return
        again = np.ones(len(ids), bool)
        again[first] = False
        row = int(np.argmax(again))
        earlier = int(np.argmax(ids == ids[row]))
        one, other = (self._parts[int(np.searchsorted(self._ends, r, side="right"))].path.name for r in (earlier, row))
        raise ValueError(
            f"An id names one row. Got {ids[row].item()!r} in row {earlier} ({one}) and row {row} ({other}) of "
            f"{self.path}; embed the folder anew, or drop one."
        )


def _parts_of_folder(folder: Path) -> tuple[list[Part], dict[str, Any]]:
    file = folder / MANIFEST
    if file.exists():
        return _parts_of_manifest(file)
    if any(folder.glob("part-*.parquet")):
        raise ValueError(
            f"{folder} is unfinished: it has parts and no {MANIFEST}; run the same mixcontrast embed command again, "
            "which goes on where it stopped."
        )
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise ValueError(f"A folder of embeddings has a {MANIFEST} or .npy files. Got {folder} with neither.")
    parts = [open_part(path) for path in files]
    for part in parts:
        if part.dim != parts[0].dim:
            raise ValueError(
                f"The files of a folder must be of one width. Got {parts[0].path.name} {parts[0].dim}, "
                f"{part.path.name} {part.dim} in {folder}; embed all with one encoder."
            )
    return parts, {}


def _parts_of_manifest(file: Path) -> tuple[list[Part], dict[str, Any]]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        kind, version = manifest["format"], manifest["version"]
        dim, num_rows, listed = manifest["dim"], manifest["num_rows"], manifest["parts"]
        sizes = [(part["file"], part["num_rows"]) for part in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a manifest of embeddings ({error!r}); embed the folder again.") from None
    if kind != FORMAT or version != 1:
        raise ValueError(
            f"{file} must be of the format {FORMAT!r}, version 1. Got {kind!r}, {version!r}; "
            "read it with the version that wrote it."
        )
    parts = []
    for name, size in sizes:
        part = open_part(file.parent / name)
        if (part.num_rows, part.dim) != (size, dim):
            raise ValueError(
                f"A part must be what the manifest says. Got {part.path} of {(part.num_rows, part.dim)} for "
                f"{(size, dim)}; embed the folder again."
            )
        parts.append(part)
    if sum(size for _, size in sizes) != num_rows or not parts:
        raise ValueError(
            f"The parts must be all the rows. Got {sum(size for _, size in sizes)} in {len(parts)} parts for "
            f"{num_rows} in {file}; embed the folder again."
        )
    return parts, manifest
