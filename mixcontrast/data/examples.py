"""A labelled collection, and how an image of one is opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mixcontrast.data.items import on_white
from mixcontrast.data.splits import Parts


class Examples(Dataset, ABC):
    """Images or vectors with a class or a value each, as they are: nothing is cropped, scaled or drawn here.

    Attributes:
        labels: (N,) int64 classes, indices into `names`, -1 where unknown; or (N,) or (N, L) float32 values.
        names: of the classes; none for values.
    """

    labels: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, row: int) -> Image.Image | Tensor:
        """An RGB or grey image, or an (F,) float32 vector."""

    def published(self) -> Parts | None:
        """The parts that others judge on, where there are such."""
        return None

    def groups(self) -> np.ndarray:
        """(N,) int64: examples of one group never come into two parts of a random split."""
        return np.arange(len(self))

    def standardised(self, rows: np.ndarray) -> Examples:
        """The same examples, scaled by what `rows`, the training part, alone tell; images are as they were."""
        return self


class UnreadableImage(ValueError):
    """An image that cannot be read; still one line where a loader's worker met it and torch adds its traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("UnreadableImage: ")[2].strip())


def open_image(path: Path) -> Image.Image:
    """An image file as RGB, transparent parts white.

    Raises:
        UnreadableImage: it is not there, or broken.
    """
    try:
        with Image.open(path) as image:
            return on_white(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises the last for some broken files
        reason = " ".join(str(error).split()) if path.exists() else "it is not there"
        raise UnreadableImage(
            f"{path} must be an image that can be read. Got: {reason}; mend it or leave it out."
        ) from None


def labels_of(texts: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64 labels and the sorted names that they stand for."""
    names, labels = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return labels.astype(np.int64), tuple(str(name) for name in names)
