"""Encoders trained by `mixcontrast fit`, built again from what their checkpoint says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor, nn

from mixcontrast.models.encoders import EfficientNetLite0, Encoder
from mixcontrast.models.towers import FeatureTowers, Towers


class FittedEncoder(Encoder):
    """The encoder of a checkpoint of `mixcontrast fit`, with the transform of its evaluation.

    Two towers read texts as well, by their tokenizer. The checkpoint names classes, which are imported and made: open
    only one that you trust as you do its recipe.

    Args:
        path: `best.ckpt` or `last.ckpt`.
        image_size: pixels a side, where the encoder is a head over a frozen EfficientNet-lite0; else the transform has
            its own.

    Raises:
        ValueError: a checkpoint whose encoder does not read images, or weights that do not fit.
    """

    reads = ("image",)

    def __init__(self, path: Path, image_size: int | None = None) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config, state = saved["config"], saved["state_dict"]
        encoder = made(config["model"]["init_args"]["encoder"])
        prefix = "encoder."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        encoder.load_state_dict(weights)
        self.features: EfficientNetLite0 | None = None
        self.towers = encoder if isinstance(encoder, Towers) else None
        data = config["data"]["init_args"]
        own = data["transform"]
        if self.towers is None and data["examples"]["class_path"].rpartition(".")[2] == "EmojiFeatures":
            self.features = EfficientNetLite0(None, image_size or data["examples"]["init_args"]["image_size"])
            self.network = nn.Sequential(self.features.network, encoder).eval()
            self.transform = self.features.prepare
        elif self.towers is None and own is None:
            raise ValueError(
                f"{path} must hold an encoder of images. Got one of {data['examples']['class_path']}; embed those by "
                "the module itself: module(inputs)."
            )
        else:
            if image_size is not None:
                raise ValueError(f"{path} has its own image size, in its transform. Leave --image_size out.")
            self.transform = self.towers.transform if own is None else made(own).eval()
            self.network = encoder.eval()
        if self.towers is not None:
            self.reads = ("image", "text")
        self.settings = {"config": config["model"], "step": saved["global_step"]}

    def prepare(self, item: Image.Image | str) -> Tensor:
        return self.towers.tokenize([item])[0] if isinstance(item, str) else self.transform(item)

    def embed(self, batch: Tensor, device: str) -> Tensor:
        batch = batch.to(device)
        if self.towers is None:
            return self.network(batch)
        if isinstance(self.towers, FeatureTowers):
            texts = batch.shape[1] == self.towers.text_features  # the frozen networks have other widths
        else:
            texts = batch.ndim == 2
        return self.towers.encode_text(batch) if texts else self.towers.encode_image(batch)


def is_fitted(path: Path) -> bool:
    """Whether a file is a checkpoint of `mixcontrast fit`."""
    try:
        return "config" in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # each kind of broken file has its own; the one that reads it then says which
        return False


def made(config: dict[str, Any]) -> nn.Module:
    """An nn.Module of its class path and arguments; what it was first filled with is not fetched again."""
    arguments = dict(config.get("init_args") or {})
    for name in ("pretrained", "pretrained_towers", "weights"):
        if name in arguments:
            arguments[name] = False if isinstance(arguments[name], bool) else None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--module", type=nn.Module)
    found = parser.parse_object({"module": {"class_path": config["class_path"], "init_args": arguments}})
    return parser.instantiate(found).module
