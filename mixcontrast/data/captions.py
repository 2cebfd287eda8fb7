"""Images with their captions, from a CSV file, a folder, WebDataset tars or a package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mixcontrast.data.examples import UnreadableImage, labels_of, open_image
from mixcontrast.data.found import existing
from mixcontrast.data.image_files import images_under, parts_of
from mixcontrast.data.image_rows import check_captions, check_images, one_each, read_image_rows
from mixcontrast.data.items import WebDataset, tars
from mixcontrast.data.splits import Parts


class Captioned(ABC):
    """Images, captions, and which belong together: any number of captions an image, of images a caption.

    Attributes:
        captions: M texts, each once.
        pairs: (P, 2) int64: row of an image, row of a caption of it; sorted, each once.
        groups: (N,) int64: images of one group have their captions in common.
        image_names: N texts.
        domains: (N,) texts, where an image is from; None: one domain.
    """

    captions: tuple[str, ...]
    pairs: np.ndarray
    groups: np.ndarray
    image_names: tuple[str, ...]
    domains: np.ndarray | None = None

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.groups)

    @abstractmethod
    def image(self, row: int) -> Image.Image | Tensor:
        """An RGB image, or (F,) float32 features of one."""

    def caption(self, row: int) -> str | Tensor:
        """A text, or (F,) float32 features of one."""
        return self.captions[row]

    def published(self) -> Parts | None:
        """The images of each part, where it is given."""
        return None


class CaptionTable(Captioned):
    """A CSV file with a header, a row a pair of an image and a caption; either may be in several rows.

    Args:
        csv: the file.
        image_column: of the images' paths, from the root.
        caption_column: of their captions.
        group_column: images of equal entries have their captions in common (a product seen from several sides).
        domain_column: where an image is from (a shop, a camera), for parts that are held out.
        split_column: whether an image is to `train`, `val` (`valid`, `validation`) or `test`; parts are drawn where
            left out.
        root: the folder of the images; that of the CSV file where left out.

    Raises:
        ValueError: no file or column, an image that is not there, an empty caption, an image that is given two groups,
            domains or parts.
    """

    def __init__(
        self,
        csv: Path,
        *,
        image_column: str = "image",
        caption_column: str = "caption",
        group_column: str | None = None,
        domain_column: str | None = None,
        split_column: str | None = None,
        root: Path | None = None,
    ) -> None:
        rows = read_image_rows(
            csv, image_column=image_column, caption_column=caption_column, split_column=split_column, root=root,
            told={"group": group_column, "domain": domain_column},
        )  # fmt: skip
        check_images(rows, "name the folder that its paths begin in by root")
        images = {row.path: row.name for row in rows}
        self.paths, self.image_names = list(images), tuple(images.values())
        number = {path: place for place, path in enumerate(self.paths)}
        self.captions, self.pairs = paired([number[row.path] for row in rows], [row.caption for row in rows])
        of_image = {what: list(one_each(rows, what).values()) for what in ("group", "domain", "part")}
        self.groups = labels_of(of_image["group"])[0] if of_image["group"] else np.arange(len(self.paths))
        self.domains = np.array(of_image["domain"]) if of_image["domain"] else None
        self._parts = parts_of(csv, of_image["part"]) if of_image["part"] else None

    def image(self, row: int) -> Image.Image:
        return open_image(self.paths[row])

    def published(self) -> Parts | None:
        return self._parts


class CaptionFolder(Captioned):
    """Images in a folder and below, each with a text file beside it, a caption a line: `cat.jpg` and `cat.txt`.

    Args:
        root: the folder.

    Raises:
        ValueError: it is not there or holds no images, an image without its text file, a text file without a caption.
    """

    def __init__(self, root: Path) -> None:
        existing(root, "A folder of images with captions", "Name one that is.")
        self.paths = images_under(root)
        texts, of_pairs = [], []
        for row, path in enumerate(self.paths):
            file = path.with_suffix(".txt")
            if not file.exists():
                raise ValueError(f"Each image needs a file of captions. {path} has no {file.name}; write one.")
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            check_captions(lines or [""], [str(file)])
            texts += lines
            of_pairs += [row] * len(lines)
        self.captions, self.pairs = paired(of_pairs, texts)
        self.groups = np.arange(len(self.paths))
        self.image_names = tuple(path.relative_to(root).as_posix() for path in self.paths)

    def image(self, row: int) -> Image.Image:
        return open_image(self.paths[row])


class CaptionTars(Captioned):
    """A WebDataset: tar files whose items have an image and a `txt`, a caption a line. The tars are listed once.

    Args:
        shards: the tar files, as `data/{000..009}.tar`.

    Raises:
        ValueError: a tar that is not there or cannot be read, an item with an image and no text, an empty text.
        ModuleNotFoundError: braceexpand is not installed.
    """

    def __init__(self, shards: str) -> None:
        files = tars(shards)
        for file in files:
            existing(file, "A shard", "Name those that are.")
        self.items, described = WebDataset(files), WebDataset(files, texts=True)
        of_key = {key: row for row, key in enumerate(described.ids)}
        texts, of_pairs = [], []
        for row, key in enumerate(self.items.ids):
            if key not in of_key:
                raise ValueError(f"Each item needs a caption. {self.items.where(row)} has no txt; leave it out.")
            lines = [line.strip() for line in described.raw(of_key[key]).decode("utf-8").splitlines() if line.strip()]
            check_captions(lines or [""], [self.items.where(row)])
            texts += lines
            of_pairs += [row] * len(lines)
        self.captions, self.pairs = paired(of_pairs, texts)
        self.groups, self.image_names = np.arange(len(self.items)), tuple(self.items.ids)

    def image(self, row: int) -> Image.Image:
        try:
            return self.items.load(row)
        except (OSError, ValueError, SyntaxError) as error:
            reason = " ".join(str(error).split())
            raise UnreadableImage(
                f"{self.items.where(row)} must be an image that can be read. Got: {reason}; leave it out."
            ) from None


def paired(images: Sequence[int], texts: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The captions, each once, in their order, and the pairs.

    Args:
        images: row of the image of each pair.
        texts: caption of each pair.
    """
    captions = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    pairs = np.array([(image, captions[text]) for image, text in zip(images, texts, strict=True)], np.int64)
    return tuple(captions), np.unique(pairs, axis=0)
