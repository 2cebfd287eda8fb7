"""Coloured squares by several hands, with captions, classes and files of them; and two small towers to judge."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

COLOURS = {"red": (220, 30, 40), "green": (30, 170, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
HANDS = ("ann", "bob", "cy")


def draw(folder: Path, side: int = 20) -> list[dict[str, str]]:
    """Draws a square a colour and hand, and says two captions of each: rows of a pairs file."""
    rows = []
    for number, (colour, values) in enumerate(COLOURS.items()):
        for place, hand in enumerate(HANDS):
            rng = np.random.default_rng(10 * number + place)
            pixels = np.full((side, side, 3), values) + rng.normal(0, 40, (side, side, 3))
            path = folder / hand / f"{colour}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            for caption in (f"a {colour} square", f"something {colour}"):
                rows.append(
                    {"image": f"{hand}/{colour}.png", "caption": caption, "colour": colour, "hand": hand,
                     "part": "val" if colour == "white" and hand != "cy" else "test"}
                )  # fmt: skip
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


class SmallTowers(nn.Module):
    """An image as its mean colour, a text as counts of letters, each under a linear layer."""

    def __init__(self, seed: int = 0, dim: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(3, dim), nn.Linear(26, dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.5)
        self.opened = 0

    def transform(self, image: Image.Image) -> Tensor:
        self.opened += 1
        return torch.from_numpy(np.asarray(image, np.float32) / 255).mean(dim=(0, 1))

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(text.count(chr(97 + n))) for n in range(26)] for text in texts])

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        found = self.dropout(self.image(images))
        return nn.functional.normalize(found, dim=-1) if normalize else found

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        found = self.dropout(self.text(tokens))
        return nn.functional.normalize(found, dim=-1) if normalize else found
