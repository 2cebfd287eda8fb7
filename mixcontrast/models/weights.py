"""Weights in files, and names of timm's networks, checked in one line."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mixcontrast.data.found import existing
from mixcontrast.wording import nearest


def check_timm_name(name: str) -> None:
    """One line with the nearest names where timm has no such network.

    Raises:
        ValueError: it has none.
    """
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no network {name!r}.{nearest(name, timm.list_models())}")


def load_timm_weights(network: nn.Module, weights: Path, name: str) -> None:
    """Loads weights of a network with or without its classifier; of a checkpoint of `mixcontrast fit`, its encoder's.

    Raises:
        ValueError: no such file, or one that does not fit.
    """
    state = _of_encoder(read_state_dict(weights), set(network.state_dict()))
    try:
        found = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit timm's {name}: {' '.join(str(error).split())[:200]}.") from None
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "head"
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    others = [key for key in found.unexpected_keys if not key.startswith(tuple(c + "." for c in classifiers))]
    if found.missing_keys or others:
        raise ValueError(
            f"{weights} does not fit timm's {name}. It lacks {len(found.missing_keys)} tensors of it "
            f"({', '.join(found.missing_keys[:2]) or 'none'}) and has {len(others)} others "
            f"({', '.join(others[:2]) or 'none'}); name the network that they are of."
        )


def _of_encoder(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Of the weights of a training module those of its encoder, or of this one's backbone; other weights as they are.

    Args:
        state: of the module.
        wanted: names that the network has.
    """
    for prefix in ("encoder.backbone.", "encoder."):
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not wanted & set(state) and wanted & set(inside):
            return inside
    return state


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a file, of whatever holds them.

    Raises:
        ValueError: it is not there, or cannot be read.
    """
    existing(path, "A file of weights", "Name one that is.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds
        raise ValueError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:200]}.") from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    return {key.removeprefix("module."): value for key, value in found.items()}
