"""What two towers are judged on: images, texts, which belong together, classes, and domains held out of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mixcontrast.data.examples import open_image
from mixcontrast.wording import nearest

IN_DOMAIN, HELD_OUT, ALL = "in-domain", "held-out", "all"


class ImageFiles(Sequence):
    """Image files, opened one by one: on white, as RGB.

    Args:
        paths: N files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])


@dataclass(frozen=True)
class Classifier:
    """The texts of the classes of a zero-shot classifier.

    Attributes:
        texts: T texts.
        classes: (T,) int64 the class of each.
    """

    texts: Sequence[str]
    classes: np.ndarray


@dataclass(frozen=True)
class Collection:
    """Images with what is known of them.

    Attributes:
        images: N images, or features of them; an index opens one.
        image_names: N texts, by which queries are told.
        texts: M captions, each once.
        pairs: (P, 2) int64: row of an image, row of a caption of it; several of either. None: no captions.
        labels: (N,) int64 classes, -1 where an image has none. None: no classes.
        class_names: C texts.
        classifiers: name to the texts of a zero-shot classifier of these classes.
        domains: (N,) texts, where each image is from; None: one domain.
        held_out: domains that were not trained on; none: nothing is told apart.
        prepared_texts: M captions as the text tower takes them, where they are features; None: they are tokenized.

    Raises:
        ValueError: a domain held out that no image is from, or all of them.
    """

    images: Sequence[Image.Image | Tensor]
    image_names: Sequence[str]
    texts: Sequence[str] = ()
    pairs: np.ndarray | None = None
    labels: np.ndarray | None = None
    class_names: Sequence[str] = ()
    classifiers: dict[str, Classifier] = field(default_factory=dict)
    domains: np.ndarray | None = None
    held_out: tuple[str, ...] = ()
    prepared_texts: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        known = [] if self.domains is None else np.unique(self.domains).tolist()
        for domain in self.held_out:
            if domain not in known:
                there = f" There are {', '.join(known)}." if known else " No domains are known; name their column."
                raise ValueError(f"A domain held out is one of the images'. Got {domain!r}.{there}"
                                 f"{nearest(domain, known, 1)}")  # fmt: skip
        if known and set(known) == set(self.held_out):
            raise ValueError(f"Some domain must not be held out. Got {', '.join(known)}; there are no others.")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that are told apart."""
        return (IN_DOMAIN, HELD_OUT) if self.held_out else (ALL,)

    def part_of(self, domain: str) -> str:
        """The part that a domain belongs to."""
        return (HELD_OUT if domain in self.held_out else IN_DOMAIN) if self.held_out else ALL

    def in_part(self, part: str) -> np.ndarray:
        """(N,) bool, the images of a part."""
        if part == ALL or self.domains is None:
            return np.ones(len(self.images), bool)
        return np.isin(self.domains, self.held_out) == (part == HELD_OUT)

    def all_texts(self) -> list[str]:
        """The captions, then the texts of the classifiers in their order: what a text tower is asked for."""
        return [*self.texts, *(text for classifier in self.classifiers.values() for text in classifier.texts)]
