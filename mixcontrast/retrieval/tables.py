"""Embeddings as a search needs them, in memory or read when they are needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import as_array, check_table
from mixcontrast.retrieval.store import StoredEmbeddings

_SPAN = 1 << 15  # rows read at once where some of them are wanted


class Table:
    """(N, D) float32 rows, of unit length where asked for, checked as they are read.

    Attributes:
        name: in errors.
        stored: the file or folder they are read from; None: they are in memory.
        shape: (N, D).
        dtype: of the embeddings as they were given.

    Args:
        name: in errors.
        embeddings: (N, D) floats, or `StoredEmbeddings`.
        normalize: rows to unit length.

    Raises:
        ValueError: a shape that does not fit, NaN, rows of zeros that must be normalised.
        TypeError: embeddings that are not floats.
    """

    def __init__(self, name: str, embeddings: Any, normalize: bool) -> None:
        self.name, self._normalize = name, normalize
        self.stored = embeddings if isinstance(embeddings, StoredEmbeddings) else None
        self._last: tuple[int, int, np.ndarray] | None = None
        self._longest = 0.0
        if self.stored is not None:
            self.shape, self.dtype = self.stored.shape, self.stored.dtype
        else:
            self.dtype = str(getattr(embeddings, "dtype", "float64")).removeprefix("torch.")
            rows, self._longest = check_table(name, as_array(embeddings), normalize)
            self.shape = rows.shape
            self._last = 0, len(rows), rows

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, D) rows; the last block read is kept."""
        if self.stored is None:
            return self._last[2][start:stop]
        if self._last is None or self._last[:2] != (start, stop):
            self._last = None  # before the next is there
            try:
                block = self.stored.read(start, stop)
                rows, self._longest = check_table(self.name, block, self._normalize, start)
            except ValueError as error:
                raise ValueError(f"{error} ({self.stored.path})") from None
            self._last = start, stop, rows
        return self._last[2]

    def longest(self, start: int, stop: int) -> float:
        """A length that no row of a block exceeds: of unit rows 1, in memory the whole table's."""
        self.read(start, stop)
        return self._longest

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) of row numbers, which rise."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self.read(int(rows[0]), int(rows[-1]) + 1)
        if self.stored is None:
            return self._last[2][rows]
        found = np.empty((len(rows), self.shape[1]), np.float32)
        for start in range(0, len(self), _SPAN):
            low, high = np.searchsorted(rows, [start, start + _SPAN])
            if low < high:
                found[low:high] = self.read(start, min(start + _SPAN, len(self)))[rows[low:high] - start]
        return found


def check_tables(queries: Any, gallery: Any, normalize: bool) -> tuple[Table, Table]:
    """Queries and gallery of one width; `gallery=None`: the queries again.

    Raises:
        ValueError: as `Table`, and widths that differ.
        TypeError: as `Table`.
    """
    same = gallery is None or gallery is queries
    queries = Table("queries", queries, normalize)
    if same and queries.stored is None:
        return queries, queries
    gallery = Table("gallery", queries.stored if same else gallery, normalize)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            "`queries` and `gallery` must be of one width. "
            f"Got queries {queries.shape}, gallery {gallery.shape}; embed both with the same encoder."
        )
    return queries, gallery
