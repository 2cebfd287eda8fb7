"""Image networks to train: any of timm, and the EfficientNet-lite0 whose ImageNet weights come with a package."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixcontrast.models.features import efficientnet_lite0
from mixcontrast.models.weights import check_timm_name, load_timm_weights


class TimmNetwork(nn.Module):
    """A network of timm, pooled, under a linear layer to the embedding.

    Args:
        name: as timm knows it, with the tag of its pretrained weights where you want those (resnet50.a1_in1k).
        embedding_dim: width of an embedding (D); None: the pooled features themselves.
        pretrained: start from the weights that timm fetches.
        weights: a file to start from instead (.pt, .pth, .safetensors), with or without its classifier; or a checkpoint
            of `mixcontrast fit` (best.ckpt), of whose encoder the backbone is taken.
        in_chans: channels of an image.
        pool: how timm pools ("avg", "max", "avgmax", "token"); None: the network's own way.
        image_size: pixels a side, for networks that must know it (vision transformers); None: not said.
        frozen: the network gets no gradient and stays in eval mode; the linear layer is what is trained.
        frozen_batch_norm: batch norm keeps its statistics and its affine, in eval mode through training.

    Called with `(B, in_chans, H, W)`; gives `(B, D)`.

    Attributes:
        backbone: timm's network without its classifier.
        head: the linear layer, or nothing; `head_only_epochs` of a training module trains this alone at first.
        num_features: width of the pooled features.

    Raises:
        ValueError: a name that timm does not have (the nearest are named), weights that cannot be fetched or do not
            fit, an option that the network does not take.
    """

    def __init__(
        self,
        name: str,
        embedding_dim: int | None = None,
        *,
        pretrained: bool = False,
        weights: Path | None = None,
        in_chans: int = 3,
        pool: str | None = None,
        image_size: int | None = None,
        frozen: bool = False,
        frozen_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_timm_name(name)
        options = {"global_pool": pool, "img_size": image_size}
        options = {key: value for key, value in options.items() if value is not None}
        try:
            self.backbone = timm.create_model(
                name, pretrained=pretrained and weights is None, num_classes=0, in_chans=in_chans, **options
            )
        except Exception as error:  # of many kinds: hub, network, options, layers
            what = "fetch its weights or build it" if pretrained else "build it"
            raise ValueError(
                f"timm's {name} with {options or 'no options'}: could not {what} "
                f"({' '.join(str(error).split())[:160]}); give weights: FILE, or leave options out."
            ) from None
        if weights is not None:
            load_timm_weights(self.backbone, weights, name)
        self.num_features = self.backbone.num_features
        self.head = nn.Identity() if embedding_dim is None else nn.Linear(self.num_features, embedding_dim)
        self.frozen, self.frozen_batch_norm = frozen, frozen_batch_norm
        _freeze(self.backbone, frozen, frozen_batch_norm)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> TimmNetwork:
        super().train(mode)
        _keep_in_eval(self.backbone, self.frozen, self.frozen_batch_norm)
        return self


class EfficientNetLite0Network(nn.Module):
    """timm's EfficientNet-lite0 with the package's ImageNet weights, under a linear layer to the embedding.

    Args:
        embedding_dim: width of an embedding (D); None: the 1,280 features.
        frozen: the network gets no gradient and stays in eval mode.
        frozen_batch_norm: batch norm keeps its statistics and its affine, in eval mode through training.

    Called with `(B, 3, H, W)`, pixels scaled as `(x * 255 - 127) / 128`; gives `(B, D)`.

    Attributes:
        backbone: the network without its classifier.
        head: the linear layer, or nothing.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """

    num_features = 1280

    def __init__(
        self, embedding_dim: int | None = None, *, frozen: bool = False, frozen_batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.backbone = efficientnet_lite0().requires_grad_(True).train()
        self.head = nn.Identity() if embedding_dim is None else nn.Linear(self.num_features, embedding_dim)
        self.frozen, self.frozen_batch_norm = frozen, frozen_batch_norm
        _freeze(self.backbone, frozen, frozen_batch_norm)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> EfficientNetLite0Network:
        super().train(mode)
        _keep_in_eval(self.backbone, self.frozen, self.frozen_batch_norm)
        return self


def _freeze(backbone: nn.Module, frozen: bool, frozen_batch_norm: bool) -> None:
    if frozen:
        backbone.requires_grad_(False)
    elif frozen_batch_norm:
        for part in _batch_norms(backbone):
            part.requires_grad_(False)
    _keep_in_eval(backbone, frozen, frozen_batch_norm)


def _keep_in_eval(backbone: nn.Module, frozen: bool, frozen_batch_norm: bool) -> None:
    """What is frozen leaves training mode again."""
    if frozen:
        backbone.eval()
    elif frozen_batch_norm:
        for part in _batch_norms(backbone):
            part.eval()


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, _BatchNorm)]
