"""Data sets, and the order and the look in which their examples are drawn.

Names are imported when they are first used, so that no command needs the packages of another.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixcontrast.data.augmentation import Augmentation, CropAndFlip, ResizeAndCrop, Steps, VectorNoise, ViewOfImage
    from mixcontrast.data.captions import Captioned, CaptionFolder, CaptionTable, CaptionTars
    from mixcontrast.data.emoji_captions import EmojiCaptionFeatures, EmojiCaptions
    from mixcontrast.data.emoji_examples import EmojiFeatures, EmojiImages
    from mixcontrast.data.examples import Examples
    from mixcontrast.data.image_files import ImageFolder, ImageTable
    from mixcontrast.data.modules import ClassData, ValuesData, ViewsData
    from mixcontrast.data.pair_data import PairData
    from mixcontrast.data.published import CUB200, AgeDB, Cars196, ImageNet100, InShop, StanfordOnlineProducts
    from mixcontrast.data.sampler import MPerClassBatchSampler, ShuffledBatchSampler
    from mixcontrast.data.splits import Parts
    from mixcontrast.data.stored import StoredFeatures
    from mixcontrast.data.tables import Table
    from mixcontrast.data.torchvision_examples import FashionMNIST, TorchvisionImages
    from mixcontrast.data.words import WordValence

_FILES = {
    "augmentation": ("Augmentation", "CropAndFlip", "ResizeAndCrop", "Steps", "VectorNoise", "ViewOfImage"),
    "captions": ("CaptionFolder", "CaptionTable", "CaptionTars", "Captioned"),
    "emoji_captions": ("EmojiCaptionFeatures", "EmojiCaptions"),
    "emoji_examples": ("EmojiFeatures", "EmojiImages"),
    "examples": ("Examples",),
    "image_files": ("ImageFolder", "ImageTable"),
    "modules": ("ClassData", "ValuesData", "ViewsData"),
    "pair_data": ("PairData",),
    "published": ("AgeDB", "CUB200", "Cars196", "ImageNet100", "InShop", "StanfordOnlineProducts"),
    "sampler": ("MPerClassBatchSampler", "ShuffledBatchSampler"),
    "splits": ("Parts",),
    "stored": ("StoredFeatures",),
    "tables": ("Table",),
    "torchvision_examples": ("FashionMNIST", "TorchvisionImages"),
    "words": ("WordValence",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "AgeDB",
    "Augmentation",
    "CUB200",
    "CaptionFolder",
    "CaptionTable",
    "CaptionTars",
    "Captioned",
    "Cars196",
    "ClassData",
    "CropAndFlip",
    "EmojiCaptionFeatures",
    "EmojiCaptions",
    "EmojiFeatures",
    "EmojiImages",
    "Examples",
    "FashionMNIST",
    "ImageFolder",
    "ImageNet100",
    "ImageTable",
    "InShop",
    "MPerClassBatchSampler",
    "PairData",
    "Parts",
    "ResizeAndCrop",
    "ShuffledBatchSampler",
    "StanfordOnlineProducts",
    "Steps",
    "StoredFeatures",
    "Table",
    "TorchvisionImages",
    "ValuesData",
    "VectorNoise",
    "ViewOfImage",
    "ViewsData",
    "WordValence",
]


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
