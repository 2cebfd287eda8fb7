"""Image files, named by their folders or by a CSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixcontrast.data.examples import Examples, labels_of, open_image
from mixcontrast.data.found import csv_columns, existing, one_of
from mixcontrast.data.items import IMAGES
from mixcontrast.data.splits import Parts

PARTS = ("train", "val", "test")


class ImageFolder(Examples):
    """Images in a folder; the first subfolder of each is its class. Without subfolders classes are unknown.

    Args:
        root: the folder.

    Raises:
        ValueError: it is not there, holds no images, or some in subfolders and some not.
    """

    def __init__(self, root: Path) -> None:
        existing(root, "A folder of images", "Name one that is.")
        self.paths = images_under(root)
        inside = [path.relative_to(root).parts for path in self.paths]
        loose = [parts[0] for parts in inside if len(parts) == 1]
        if loose and len(loose) < len(inside):
            raise ValueError(
                f"Images must all be in a class's folder, or none. Got {len(loose)} of {len(inside)} in {root} itself, "
                f"{loose[0]} first; move them."
            )
        if loose:
            self.labels, self.names = np.full(len(inside), -1), ()
        else:
            self.labels, self.names = labels_of([parts[0] for parts in inside])

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])


class ImageTable(Examples):
    """Images named in a CSV file with a header, with a class or a value each; with neither, classes are unknown.

    Args:
        csv: the file.
        image_column: of the images' paths, from the root.
        label_column: of their classes, or
        value_columns: of their values, one or several.
        split_column: whether each is to `train`, `val` (or `validation`) or `test`; parts are drawn where left out.
        group_column: equal entries never come into two parts that are drawn (a person with several images).
        root: the folder of the images; that of the CSV file where left out.

    Raises:
        ValueError: no file or column, both classes and values, a value that is no number, an image twice.
    """

    def __init__(
        self,
        csv: Path,
        *,
        image_column: str = "image",
        label_column: str | None = None,
        value_columns: list[str] | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        root: Path | None = None,
    ) -> None:
        if label_column is not None and value_columns:
            raise ValueError(
                f"Images have a class or values. Got label_column={label_column}, value_columns={value_columns}; leave "
                "one out."
            )
        wanted = (image_column, label_column, *(value_columns or ()), split_column, group_column)
        columns = csv_columns(csv, [name for name in wanted if name is not None])
        self.paths = listed(csv, columns[image_column], root or csv.parent)
        if value_columns:
            values = np.stack([numbers(csv, name, columns[name]) for name in value_columns], axis=1)
            self.labels, self.names = (values[:, 0] if len(value_columns) == 1 else values), ()
        elif label_column is not None:
            self.labels, self.names = labels_of(columns[label_column])
        else:
            self.labels, self.names = np.full(len(self.paths), -1), ()
        self._parts = None if split_column is None else parts_of(csv, columns[split_column])
        self._groups = np.arange(len(self.paths))
        if group_column is not None:
            self._groups = labels_of(columns[group_column])[0]

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts | None:
        return self._parts

    def groups(self) -> np.ndarray:
        return self._groups


def images_under(folder: Path) -> list[Path]:
    """Image files in a folder and below, sorted.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not paths:
        raise ValueError(f"{folder} must hold images ({', '.join(IMAGES)}). Got none; name a folder that does.")
    return paths


def listed(source: Path, names: list[str], root: Path) -> list[Path]:
    """The paths of images that a list names, each once; the first must be there, the others are seen when read.

    Raises:
        ValueError: one twice, or the first is not there.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"An image must be listed once. Got {name} twice in {source}; leave one out.")
        seen.add(name)
    existing(root / names[0], f"The first image of {source}", "Name the folder that its paths begin in.")
    return [root / name for name in names]


def numbers(source: Path, column: str, texts: list[str]) -> np.ndarray:
    """(N,) float32.

    Raises:
        ValueError: one that is no finite number.
    """
    for line, text in enumerate(texts, 2):
        try:
            number = float(text)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise ValueError(
                f"A value must be a number. Got {text!r} in {source} line {line}, column {column}; mend it."
            )
    return np.array(texts, np.float64).astype(np.float32)


def parts_of(source: Path, names: list[str]) -> Parts:
    """The parts that a column names.

    Raises:
        ValueError: a name that is none of train, val, validation and test.
    """
    names = ["val" if name == "validation" else name for name in names]
    for name in sorted(set(names)):
        one_of(name, PARTS, f"A part of {source}")
    return Parts(*(np.flatnonzero([name == part for name in names]) for part in PARTS))
