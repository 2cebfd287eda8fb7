"""The data sets of the papers, by their published lists, layouts and splits; each is got from its makers.

Where a data set has classes to train on and others to test on, no class is in both; in none is a validation part
published but AgeDB-DIR's, so a data module keeps some of the training classes for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixcontrast.data.examples import Examples, labels_of, open_image
from mixcontrast.data.found import csv_columns, existing
from mixcontrast.data.image_files import images_under, listed, numbers, parts_of
from mixcontrast.data.splits import NO_ROWS, Parts


class CUB200(Examples):
    """Caltech-UCSD Birds-200-2011: 11,788 photographs of 200 kinds of birds, the first 100 to train on.

    Wah et al., 2011; the split is Song et al.'s, CVPR 2016, arXiv 1511.06452.

    Args:
        root: the folder `CUB_200_2011`, with `images.txt`, `image_class_labels.txt`, `classes.txt` and `images`.

    Raises:
        ValueError: a list or the images are not there.
    """

    def __init__(self, root: Path) -> None:
        tables = [
            dict(_rows(root / name, "CUB-200-2011", 2))
            for name in ("images.txt", "image_class_labels.txt", "classes.txt")
        ]
        images, classes, names = tables
        if images.keys() != classes.keys():
            raise ValueError(
                f"Each image must have a class. Got {len(images)} images in {root / 'images.txt'} and "
                f"{len(classes)} in image_class_labels.txt, others; get the lists anew."
            )
        self.paths = listed(root / "images.txt", list(images.values()), root / "images")
        self.labels = np.array([int(classes[image]) - 1 for image in images])
        self.names = tuple(names[str(number + 1)] for number in range(len(names)))

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts:
        return _first_half(self.labels, len(self.names))


class Cars196(Examples):
    """Stanford Cars: 16,185 photographs of 196 models, the first 98 to train on.

    Krause et al., 3dRR 2013; the split is Song et al.'s, CVPR 2016, arXiv 1511.06452.

    Args:
        root: the folder of `cars_annos.mat` and `car_ims`; or that of `cars_train`, `cars_test` and the devkit's
            `devkit/cars_train_annos.mat`, `cars_test_annos_withlabels.mat` (there or in the root) and
            `devkit/cars_meta.mat`.

    Raises:
        ValueError: a list or the images are not there.
        ImportError: scipy, which reads the lists, is not installed.
    """

    def __init__(self, root: Path) -> None:
        devkit = root / "devkit"
        if devkit.is_dir() and not (root / "cars_annos.mat").exists():
            test = root / "cars_test_annos_withlabels.mat"
            test = test if test.exists() else devkit / test.name
            files = ((devkit / "cars_train_annos.mat", "cars_train"), (test, "cars_test"))
            names = _mat(devkit / "cars_meta.mat")["class_names"]
            found = [
                (f"{folder}/{image['fname']}", image["class"])
                for file, folder in files
                for image in np.atleast_1d(_mat(file)["annotations"])
            ]
            source = devkit / "cars_train_annos.mat"
        else:
            source = root / "cars_annos.mat"
            lists = _mat(source)
            names = lists["class_names"]
            found = [(image["relative_im_path"], image["class"]) for image in np.atleast_1d(lists["annotations"])]
        self.paths = listed(source, [str(path) for path, _ in found], root)
        self.labels = np.array([int(label) - 1 for _, label in found])
        self.names = tuple(map(str, np.atleast_1d(names)))

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts:
        return _first_half(self.labels, len(self.names))


class StanfordOnlineProducts(Examples):
    """Stanford Online Products: 120,053 photographs of 22,634 products, 11,318 of them to train on.

    Song et al., CVPR 2016, arXiv 1511.06452.

    Args:
        root: the folder `Stanford_Online_Products`, with `Ebay_train.txt`, `Ebay_test.txt` and a folder for each kind.

    Raises:
        ValueError: a list or the images are not there.
    """

    def __init__(self, root: Path) -> None:
        lists = [
            _rows(root / name, "Stanford Online Products", 4, header="image_id class_id super_class_id path")
            for name in ("Ebay_train.txt", "Ebay_test.txt")
        ]
        rows = [row for each in lists for row in each]
        self.paths = listed(root / "Ebay_train.txt", [path for _, _, _, path in rows], root)
        numbers_of = np.array([int(number) for _, number, _, _ in rows])
        classes, self.labels = np.unique(numbers_of, return_inverse=True)
        self.names = tuple(map(str, classes))
        self._num_train = len(lists[0])

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts:
        return Parts(np.arange(self._num_train), NO_ROWS, np.arange(self._num_train, len(self)))


class InShop(Examples):
    """DeepFashion's In-shop Clothes: 25,882 photographs to train on, 14,218 queries and a gallery of 12,612.

    Liu et al., CVPR 2016.

    Args:
        root: the folder with `list_eval_partition.txt`, in it or in `Eval`, and the images' folder `img`, in it or in
            `Img`.

    Raises:
        ValueError: the list or the images are not there.
    """

    def __init__(self, root: Path) -> None:
        file = root / "list_eval_partition.txt"
        if (root / "Eval" / file.name).exists():
            file = root / "Eval" / file.name
        rows = _rows(file, "In-shop Clothes", 3, header="image_name item_id evaluation_status", counted=True)
        images = root / "Img" if (root / "Img").is_dir() else root
        self.paths = listed(file, [path for path, _, _ in rows], images)
        self.labels, self.names = labels_of([item for _, item, _ in rows])
        states = np.array([state for _, _, state in rows])
        others = sorted(set(states.tolist()) - {"train", "query", "gallery"})
        if others:
            raise ValueError(f"{file} must name train, query or gallery. Got {others[0]!r}; get the list anew.")
        train, queries, gallery = (np.flatnonzero(states == state) for state in ("train", "query", "gallery"))
        self._parts = Parts(train, NO_ROWS, queries, gallery)

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts:
        return self._parts


class ImageNet100(Examples):
    """A hundred classes of ImageNet: those of a list, from the folders `train` and `val` (the test part).

    The usual list is Tian et al.'s, ECCV 2020, arXiv 1906.05849.

    Args:
        root: the folder of ImageNet, with `train/n01440764/...` and `val/n01440764/...`.
        synsets: a text file of the classes, one a line (n01440764 ...; what follows a blank is not read).

    Raises:
        ValueError: the list or a class's folder is not there, or holds no images; a class twice.
    """

    def __init__(self, root: Path, synsets: Path) -> None:
        existing(synsets, "The list of classes", "Write a synset a line.")
        names = [line.split()[0] for line in synsets.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"{synsets} must name classes, each once. Got {len(names)}, {len(set(names))} different.")
        self.names = tuple(sorted(names))
        self.paths, labels, self._num_train = [], [], 0
        for part in ("train", "val"):
            for label, name in enumerate(self.names):
                folder = existing(
                    root / part / name, f"A class of {synsets}", "Name the root that holds train and val."
                )
                found = images_under(folder)
                self.paths += found
                labels += [label] * len(found)
            self._num_train = self._num_train or len(labels)
        self.labels = np.array(labels)

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts:
        return Parts(np.arange(self._num_train), NO_ROWS, np.arange(self._num_train, len(self)))


class AgeDB(Examples):
    """AgeDB-DIR: 16,488 faces with their age, 12,208 to train on, 2,140 each to validate and to test on.

    Moschoglou et al., CVPRW 2017; the split is Yang et al.'s, ICML 2021, arXiv 2102.09554.

    Args:
        root: the folder that the list's paths begin in.
        csv: the list, with the columns `age`, `path` and `split` (train, val, test); `agedb.csv` in the root where
            left out.

    Raises:
        ValueError: the list or the images are not there, an age that is no number.
    """

    def __init__(self, root: Path, *, csv: Path | None = None) -> None:
        source = csv or root / "agedb.csv"
        columns = csv_columns(source, ["age", "path", "split"])
        self.paths = listed(source, columns["path"], root)
        self.labels, self.names = numbers(source, "age", columns["age"]), ()
        self._parts = parts_of(source, columns["split"])

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts:
        return self._parts


def _first_half(labels: np.ndarray, num_classes: int) -> Parts:
    """The first half of the classes to train on, the second to test on."""
    train = labels < num_classes // 2
    return Parts(np.flatnonzero(train), NO_ROWS, np.flatnonzero(~train))


def _rows(
    path: Path, what: str, num_fields: int, *, header: str | None = None, counted: bool = False
) -> list[list[str]]:
    """The lines of a list, split at blanks, behind its count and its header where it has them."""
    existing(path, f"A list of {what}", "Name the root that holds it.")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = lines[counted:]
    if header is not None:
        if not rows or rows[0] != header.split():
            raise ValueError(
                f"{path} must have the header {header!r}. Got {' '.join(rows[0]) if rows else 'nothing'!r}; get it "
                "anew."
            )
        rows = rows[1:]
    for number, row in enumerate(rows, 1 + counted + (header is not None)):
        if len(row) != num_fields:
            raise ValueError(f"{path} line {number} must have {num_fields} fields. Got {len(row)}; get the list anew.")
    if not rows or (counted and lines[0] != [str(len(rows))]):
        said = f", its first line says {' '.join(lines[0])}" if counted and lines else ""
        raise ValueError(f"{path} must list every image. Got {len(rows)} lines{said}; get the list anew.")
    return rows


def _mat(path: Path) -> dict[str, Any]:
    existing(path, "A list of Cars-196", "Name the root that holds cars_annos.mat or the devkit.")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ModuleNotFoundError(
            "The lists of Cars-196 are read by scipy. It is not installed; pip install scipy"
        ) from None
    return loadmat(str(path), squeeze_me=True)
