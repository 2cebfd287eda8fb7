"""Encoders by name, each turning images or texts into embeddings: what `mixcontrast embed` runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from mixcontrast.models.features import NETWORK, efficientnet_lite0, head
from mixcontrast.models.open_clip_models import check_open_clip_name, check_open_clip_tag, open_clip_package
from mixcontrast.models.weights import check_timm_name, load_timm_weights, read_state_dict
from mixcontrast.wording import nearest

KINDS = ("timm", "open_clip", "sentence-transformers", "checkpoint", "efficientnet-lite0")


class Encoder(ABC):
    """Items to embeddings.

    Attributes:
        network: the module, in evaluation mode.
        reads: which kinds of items it embeds, "image" or "text".
        settings: what else must be known to embed the same way again, for the record.
    """

    network: nn.Module
    reads: tuple[str, ...]
    settings: dict[str, Any]

    @abstractmethod
    def prepare(self, item: Image.Image | str) -> Tensor | str:
        """An item as the network takes it, without the batch; runs in the loader's workers."""

    @abstractmethod
    def embed(self, batch: Tensor | list[str], device: str) -> Tensor:
        """(B, D) of prepared items: a stacked tensor, or a list of texts."""


class TimmEncoder(Encoder):
    """A timm network without its classifier: its pooled features.

    Args:
        name: as timm knows it.
        weights: a state dict (.pt, .pth, .safetensors); None: the pretrained weights that timm fetches.
        image_size: pixels a side; None: the network's own.

    Raises:
        ValueError: a name that timm does not have, or weights of another network.
    """

    reads = ("image",)

    def __init__(self, name: str, weights: Path | None = None, image_size: int | None = None) -> None:
        check_timm_name(name)
        self.network = timm.create_model(name, pretrained=weights is None, num_classes=0).eval()
        if weights is not None:
            load_timm_weights(self.network, weights, name)
        config = timm.data.resolve_model_data_config(self.network)
        if image_size is not None:
            config["input_size"] = (config["input_size"][0], image_size, image_size)
        self.transform = timm.data.create_transform(**config, is_training=False)
        self.settings = {"timm": timm.__version__, "input_size": list(config["input_size"])}

    def prepare(self, item: Image.Image) -> Tensor:
        return self.transform(item)

    def embed(self, batch: Tensor, device: str) -> Tensor:
        return self.network(batch.to(device))


class OpenClipEncoder(Encoder):
    """One tower of an open_clip model: that of what is embedded.

    Args:
        name: as open_clip knows it, or `local-dir:FOLDER` with an `open_clip_config.json`.
        pretrained: a tag, or a checkpoint file; None with a local folder, which holds its weights.

    Raises:
        ValueError: a name or tag that open_clip does not have.
        ImportError: open_clip is not installed.
    """

    reads = ("image", "text")

    def __init__(self, name: str, pretrained: str | None) -> None:
        open_clip = open_clip_package()
        local = name.startswith("local-dir:")
        check_open_clip_name(name)
        if not local and pretrained is None:
            raise ValueError(
                f"open_clip's {name} needs pretrained weights. Got none; write open_clip:{name}/TAG_OR_FILE, tags are "
                f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none'}."
            )
        if not local:
            check_open_clip_tag(name, pretrained)
        self.network, _, self.transform = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        self.network.eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        self.settings = {"open_clip": open_clip.__version__}

    def prepare(self, item: Image.Image | str) -> Tensor:
        return self.tokenizer([item])[0] if isinstance(item, str) else self.transform(item)

    def embed(self, batch: Tensor, device: str) -> Tensor:
        batch = batch.to(device)
        return self.network.encode_image(batch) if batch.ndim == 4 else self.network.encode_text(batch)


class SentenceTransformersEncoder(Encoder):
    """A sentence-transformers model.

    Args:
        name: a folder, or a name that it fetches.

    Raises:
        ImportError: sentence-transformers is not installed.
    """

    reads = ("text",)

    def __init__(self, name: str) -> None:
        try:
            import sentence_transformers
        except ImportError as error:
            raise ImportError(
                "This encoder needs sentence-transformers. It is not installed; pip install 'mixcontrast[text]'"
            ) from error
        self.network = sentence_transformers.SentenceTransformer(name, device="cpu").eval()
        self.settings = {
            "sentence_transformers": sentence_transformers.__version__,
            "max_seq_length": self.network.max_seq_length,
        }

    def prepare(self, item: str) -> str:
        return item

    def embed(self, batch: list[str], device: str) -> Tensor:
        return self.network.encode(
            batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False, device=device
        )


class EfficientNetLite0(Encoder):
    """The EfficientNet-lite0 whose ImageNet weights come with a package, alone or under a head of `mixcontrast demo`.

    Args:
        checkpoint: `checkpoint.ckpt` of the demo; None: the 1,280 features.
        image_size: pixels a side.

    Raises:
        ValueError: a checkpoint that the demo did not write.
        ModuleNotFoundError: the package is not installed.
    """

    reads = ("image",)

    def __init__(self, checkpoint: Path | None = None, image_size: int | None = None) -> None:
        self.side = image_size or 112
        features = efficientnet_lite0()
        self.network = nn.Sequential(features, nn.Identity() if checkpoint is None else _head(checkpoint)).eval()
        self.settings = {"timm": timm.__version__, "network": NETWORK, "input_size": [3, self.side, self.side]}

    def prepare(self, item: Image.Image) -> Tensor:
        if item.size != (self.side, self.side):
            item = item.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return (torch.from_numpy(np.array(item)).permute(2, 0, 1).float() - 127) / 128

    def embed(self, batch: Tensor, device: str) -> Tensor:
        return self.network(batch.to(device))


def open_encoder(name: str, *, image_size: int | None = None) -> Encoder:
    """An encoder by its written name.

    Args:
        name: `timm:NAME` or `timm:NAME@WEIGHTS`; `open_clip:NAME/TAG`, `open_clip:NAME/FILE` or
            `open_clip:local-dir:FOLDER`; `sentence-transformers:FOLDER_OR_NAME`; `checkpoint:FILE` of fit or the demo;
            `efficientnet-lite0`.
        image_size: pixels a side, where the encoder can take another than its own.

    Raises:
        ValueError: a name that is none of these, weights that do not fit.
        ImportError: its package is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "timm" and rest:
        network, _, weights = rest.partition("@")
        return TimmEncoder(network, Path(weights) if weights else None, image_size)
    if kind == "open_clip" and rest:
        if image_size is not None:
            raise ValueError("open_clip's models have their own image size. Leave --image_size out.")
        if rest.startswith("local-dir:"):
            return OpenClipEncoder(rest, None)
        model, _, pretrained = rest.partition("/")
        return OpenClipEncoder(model, pretrained or None)
    if kind == "sentence-transformers" and rest:
        return SentenceTransformersEncoder(rest)
    if kind == "checkpoint" and rest:
        from mixcontrast.models.fitted import FittedEncoder, is_fitted

        if is_fitted(Path(rest)):
            return FittedEncoder(Path(rest), image_size)
        return EfficientNetLite0(Path(rest), image_size)
    if name == "efficientnet-lite0":
        return EfficientNetLite0(None, image_size)
    raise ValueError(
        "An encoder is timm:NAME, timm:NAME@WEIGHTS, open_clip:NAME/TAG_OR_FILE, sentence-transformers:FOLDER, "
        f"checkpoint:FILE or efficientnet-lite0. Got {name!r}.{nearest(kind, KINDS)}"
    )


def _head(checkpoint: Path) -> nn.Module:
    state = read_state_dict(checkpoint)
    weights = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    if set(weights) != {"0.weight", "0.bias", "2.weight", "2.bias"} or weights["0.weight"].shape != (512, 1280):
        raise ValueError(
            f"{checkpoint} must be the checkpoint of a head over 1,280 features, as `mixcontrast demo` writes it. "
            f"Got {', '.join(list(state)[:4])}, ...; load other networks by timm:NAME@WEIGHTS."
        )
    found = head(1280, len(weights["2.weight"]))
    found.load_state_dict(weights)
    return found
