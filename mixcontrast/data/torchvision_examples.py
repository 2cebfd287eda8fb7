"""Data sets that torchvision reads, and Fashion-MNIST from its four files."""

from __future__ import annotations

import gzip
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mixcontrast.data.examples import Examples
from mixcontrast.data.found import existing, one_of
from mixcontrast.data.splits import NO_ROWS, Parts

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMNIST(Examples):
    """70,000 grey product photos, 28 x 28, ten classes: 60,000 to train on and 10,000 to test on.

    Xiao et al., 2017, arXiv 1708.07747.

    Args:
        root: the folder of the four files, `train-images-idx3-ubyte` and so on, packed (.gz) or not; where left out,
            that of Debian's package dataset-fashion-mnist.
        max_train: only so many of the training images, for a quick look; all where left out.
        max_test: only so many of the test images.

    Raises:
        ValueError: a file is not there, or not of the format.
    """

    def __init__(self, *, root: Path | None = None, max_train: int | None = None, max_test: int | None = None) -> None:
        images, labels = [], []
        for part, most in (("train", max_train), ("t10k", max_test)):
            if most is not None and most < 1:
                raise ValueError(f"`max_train` and `max_test` must be at least 1. Got {most}; leave it out for all.")
            images.append(_idx(root or DEBIAN, f"{part}-images-idx3-ubyte", 3)[:most])
            labels.append(_idx(root or DEBIAN, f"{part}-labels-idx1-ubyte", 1)[:most])
            if len(images[-1]) != len(labels[-1]):
                raise ValueError(
                    f"Images and labels must be as many. Got {len(images[-1])} and {len(labels[-1])} of {part} in "
                    f"{root or DEBIAN}; get the files anew."
                )
        self.images, self.labels = np.concatenate(images), np.concatenate(labels).astype(np.int64)
        self.names, self.num_train = CLOTHES, len(labels[0])

    def __getitem__(self, row: int) -> Image.Image:
        return Image.fromarray(self.images[row])

    def published(self) -> Parts:
        return Parts(np.arange(self.num_train), NO_ROWS, np.arange(self.num_train, len(self)))


class TorchvisionImages(Examples):
    """A data set of torchvision by its name, of items (image, class): CIFAR10, Flowers102, SVHN, ...

    A class with an argument `train` gives a training and a test part, one with `split` those of train, val and test
    that it knows; these are the published parts. Others are one collection.

    Args:
        name: of a class in torchvision.datasets.
        root: the folder where torchvision looks for it.
        download: let torchvision fetch it where it is not there.
        arguments: further ones of the class, {target_type: category}.
        parts: other arguments for each part than these, {train: {split: letters}, test: {split: digits}}.

    Raises:
        ValueError: a class that torchvision has not, files that are not there, items that are not (image, class).
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        download: bool = False,
        arguments: dict[str, Any] | None = None,
        parts: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        import torchvision

        one_of(name, torchvision.datasets.__all__, "A data set of torchvision")
        make = getattr(torchvision.datasets, name)
        known = inspect.signature(make.__init__).parameters
        given: dict[str, Any] = dict(arguments or {})
        for argument in given:
            one_of(argument, known, f"An argument of {name}")
        if "root" in known:
            given["root"] = str(root)
        if "download" in known:
            given["download"] = download
        for part in parts or {}:
            one_of(part, ("train", "validation", "test"), "A part")
        found: dict[str, Dataset] = {}
        for part, of_part in (parts or _parts_of(known)).items():
            try:
                found[part] = make(**given, **of_part)
            except (RuntimeError, FileNotFoundError, ValueError) as error:
                if parts is None and part == "validation" and isinstance(error, ValueError):
                    continue  # it has a split, but none for validation
                raise ValueError(
                    f"torchvision's {name} must open under {root}. Got: {' '.join(str(error).split())}; name "
                    "the root that holds it, or let it be fetched by download: true."
                ) from None
        self.data = list(found.values())
        labels = [_labels(part, name) for part in self.data]
        self.starts = np.cumsum([0, *(len(of_part) for of_part in labels)])
        self.labels = np.concatenate(labels)
        self.names = _names(self.data[0], int(self.labels.max()) + 1)
        self._rows = {
            part: np.arange(start, stop)
            for part, start, stop in zip(found, self.starts[:-1], self.starts[1:], strict=True)
        }

    def __getitem__(self, row: int) -> Image.Image:
        part = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.data[part][row - int(self.starts[part])][0]

    def published(self) -> Parts | None:
        if "test" not in self._rows or "train" not in self._rows:
            return None
        return Parts(self._rows["train"], self._rows.get("validation", NO_ROWS), self._rows["test"])


def _parts_of(known: Any) -> dict[str, dict[str, Any]]:
    if "train" in known:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in known:
        return {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
    return {"train": {}}


def _labels(data: Dataset, name: str) -> np.ndarray:
    """(N,) classes, from where torchvision's classes keep them, else from the items one by one.

    What is kept is believed only where it says the same as the first and the last item.
    """
    ends = {0, len(data) - 1}
    seen = {row: data[row] for row in ends}
    if any(
        not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], Image.Image) for item in seen.values()
    ):
        raise ValueError(
            f"Items of torchvision's {name} must be (image, class). Got {type(seen[0]).__name__} of others; take "
            "another data set."
        )
    for place in ("targets", "labels", "_labels", "y"):
        kept = vars(data).get(place)
        if kept is not None and len(kept) == len(data):
            labels = np.asarray(kept)
            if labels.ndim == 1 and labels.dtype.kind in "iu" and all(labels[row] == seen[row][1] for row in ends):
                return labels.astype(np.int64)
    labels = [data[row][1] for row in range(len(data))]
    try:
        return np.array([int(label) for label in labels])
    except (TypeError, ValueError):
        raise ValueError(
            f"Items of torchvision's {name} must be (image, class). Got {type(labels[0]).__name__} "
            f"{repr(labels[0])[:40]} for the class; say which by arguments, or take another data set."
        ) from None


def _names(data: Dataset, least: int) -> tuple[str, ...]:
    kept = getattr(data, "classes", None)  # most of torchvision's classes have it, some as a property
    if isinstance(kept, list | tuple) and len(kept) >= least:
        return tuple(map(str, kept))
    return tuple(map(str, range(least)))


def _idx(root: Path, name: str, ndim: int) -> np.ndarray:
    """An array of the idx format: two zero bytes, 8 for uint8, the number of axes, their lengths, the numbers."""
    path = root / name
    packed = root / f"{name}.gz"
    if packed.exists():
        path = packed
    existing(path, "Fashion-MNIST", "Install it: apt-get install dataset-fashion-mnist, or name the root of its files.")
    try:
        data = gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()
        lengths = np.frombuffer(data, ">i4", ndim, 4)
        if data[:4] != bytes((0, 0, 8, ndim)):
            raise ValueError(f"it begins with {data[:4].hex()}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(lengths)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} must be an idx file of {ndim} axes. Got: {error}; get it anew.") from None
