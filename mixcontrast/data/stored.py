"""Embeddings of a frozen encoder as examples to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixcontrast.data.examples import Examples, labels_of
from mixcontrast.data.found import csv_columns, existing, one_of
from mixcontrast.data.image_files import numbers, parts_of
from mixcontrast.data.splits import Parts
from mixcontrast.retrieval.store import StoredEmbeddings


class StoredFeatures(Examples):
    """Embeddings that `mixcontrast embed` wrote, or of a file, as vectors with a class or a value each.

    With neither classes nor values, classes are unknown. All are held in memory, as float32.

    Args:
        path: a folder that `mixcontrast embed` wrote, a .npy, .safetensors, .parquet, .arrow or .feather file, or a
            folder of .npy files.
        label_column: of their classes, or
        value_columns: of their values, one or several.
        split_column: whether each is to `train`, `val` (or `validation`) or `test`; parts are drawn where left out.
        table: a CSV file with these columns, a row an embedding, in the same order; where left out, they are columns
            of `path` (those that --columns kept, or the `label` of a folder of images).

    Attributes:
        features: (N, F) float32.

    Raises:
        ValueError: no file or column, both classes and values, a value that is no number, a table of another length,
            features that are not finite.
        ImportError: Parquet and Arrow need pyarrow.
    """

    def __init__(
        self,
        path: Path,
        *,
        label_column: str | None = None,
        value_columns: list[str] | None = None,
        split_column: str | None = None,
        table: Path | None = None,
    ) -> None:
        if label_column is not None and value_columns:
            raise ValueError(
                f"Features have a class or values. Got label_column={label_column}, value_columns={value_columns}; "
                "leave one out."
            )
        existing(path, "Embeddings", "Name a file, or a folder that mixcontrast embed wrote.")
        stored = StoredEmbeddings(path)
        source = path if table is None else table
        names = [name for name in (label_column, *(value_columns or ()), split_column) if name is not None]
        columns = _columns(stored, names) if table is None else csv_columns(table, names)
        for texts in columns.values():
            if len(texts) != len(stored):
                raise ValueError(
                    f"{source} must have a row an embedding. Got {len(texts)} for {len(stored)} in {path}; name the "
                    "table that they were made of."
                )
        self.features = torch.from_numpy(stored.read(0, len(stored)))
        if not bool(self.features.isfinite().all()):
            row = int((~self.features.isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"Features must be finite. Got NaN or infinity in row {row} of {path}; embed it again.")
        self.names = ()
        if value_columns:
            values = np.stack([numbers(source, name, columns[name]) for name in value_columns], axis=1)
            self.labels = values[:, 0] if len(value_columns) == 1 else values
        elif label_column is not None:
            self.labels, self.names = labels_of(columns[label_column])
        else:
            self.labels = np.full(len(stored), -1)
        self._parts = None if split_column is None else parts_of(source, columns[split_column])

    def __getitem__(self, row: int) -> Tensor:
        return self.features[row]

    def published(self) -> Parts | None:
        return self._parts


def _columns(stored: StoredEmbeddings, names: list[str]) -> dict[str, list[str]]:
    """Columns of what is stored with the embeddings, as texts."""
    if names and not stored.columns:
        raise ValueError(
            f"{stored.path} holds no columns beside the embeddings. Got {', '.join(names)}; name a CSV file that has "
            "them by table."
        )
    return {
        one_of(name, stored.columns, f"A column of {stored.path}"): [str(value) for value in stored.column(name)]
        for name in names
    }
