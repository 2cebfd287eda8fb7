"""How an image or a vector looks to the network, when it is trained and when it is judged.

All draw from torch's own generator, which the loader seeds for each example and view.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Augmentation(nn.Module, ABC):
    """What makes an input of the network from an example; random numbers are torch's own."""

    @abstractmethod
    def forward(self, example: Image.Image | Tensor) -> Tensor:
        """An image, or an (F,) vector, to the tensor that goes into a batch."""


class Steps(Augmentation):
    """torchvision's own transforms, one after the other; the last must give a tensor.

    Args:
        steps: of torchvision.transforms.v2.
    """

    def __init__(self, steps: list[v2.Transform]) -> None:
        super().__init__()
        self.steps = v2.Compose(steps)

    def forward(self, example: Image.Image | Tensor) -> Tensor:
        return self.steps(example)


class ResizeAndCrop(Augmentation):
    """An image to (C, size, size), nothing drawn: for validation and test.

    Args:
        size: pixels a side.
        resize: pixels of the shorter side before the square is cut out of the middle (256 for a size of 224, in most
            published recipes); as `size` where left out.
        mean: subtracted from each channel, in [0, 1]; three make the image RGB, one grey.
        std: divides each channel; as many.
    """

    def __init__(
        self,
        size: int,
        *,
        resize: int | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        resize = resize or size
        if not 1 <= size <= resize:
            raise ValueError(f"`resize` must be at least `size`. Got size={size}, resize={resize}.")
        self.steps = v2.Compose(
            [
                v2.Resize(resize, interpolation=InterpolationMode.BICUBIC),
                v2.CenterCrop(size),
                *_to_tensor(mean, std),
            ]
        )

    def forward(self, image: Image.Image) -> Tensor:
        return self.steps(image)


class CropAndFlip(Augmentation):
    """A random part of an image, perhaps mirrored, to (C, size, size): the usual one of metric learning.

    Args:
        size: pixels a side.
        scale: the least and greatest share of the image's area that is kept.
        ratio: the least and greatest width to height of that part.
        flip: how often it is mirrored, 0 to 1.
        mean: subtracted from each channel, in [0, 1]; three make the image RGB, one grey.
        std: divides each channel; as many.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.steps = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(flip),
                *_to_tensor(mean, std),
            ]
        )

    def forward(self, image: Image.Image) -> Tensor:
        return self.steps(image)


class ViewOfImage(Augmentation):
    """One view of an image for self-supervised learning, (C, size, size); the defaults are MoCo v2's.

    Chen et al., 2020, arXiv 2003.04297. SimCLR's (Chen et al., 2020, arXiv 2002.05709): scale [0.08, 1], brightness,
    contrast and saturation 0.8, hue 0.2. For small pictures of few colours, as emoji or fashion-mnist, milder ones keep
    what tells them apart: scale [0.4, 1], hue 0.05, blur 0.

    Args:
        size: pixels a side.
        scale: the least and greatest share of the image's area that is kept.
        brightness: greatest change, in shares.
        contrast: greatest change, in shares.
        saturation: greatest change, in shares.
        hue: greatest turn, at most 0.5.
        jitter: how often these four are changed, 0 to 1.
        grey: how often colour is taken away.
        blur: how often it is blurred.
        blur_sigma: least and greatest width of the blur in pixels of an image of 224; smaller with smaller images.
        flip: how often it is mirrored.
        mean: subtracted from each channel, in [0, 1]; three make the image RGB, one grey.
        std: divides each channel; as many.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        jitter: float = 0.8,
        grey: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        flip: float = 0.5,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        least, greatest = (max(sigma * size / 224, 1e-3) for sigma in blur_sigma)
        kernel = 2 * math.ceil(2 * greatest) + 1  # two widths to each side
        channels, *rest = _to_tensor(mean, std)
        self.steps = v2.Compose(
            [
                channels,
                v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
                v2.RandomApply([v2.ColorJitter(brightness, contrast, saturation, hue)], jitter),
                v2.RandomGrayscale(grey),
                v2.RandomApply([v2.GaussianBlur(kernel, (least, greatest))], blur),
                v2.RandomHorizontalFlip(flip),
                *rest,
            ]
        )

    def forward(self, image: Image.Image) -> Tensor:
        return self.steps(image)


class VectorNoise(Augmentation):
    """A vector with noise: a view of features or of a table's row.

    Args:
        std: of the Gaussian noise on each number.
        mask: how often a number is 0 instead, which is the mean of a standardised column; 0 to 1.
    """

    def __init__(self, *, std: float = 0.1, mask: float = 0.0) -> None:
        super().__init__()
        if std < 0 or not 0 <= mask < 1:
            raise ValueError(f"`std` must not be negative, `mask` in [0, 1). Got std={std}, mask={mask}.")
        self.std, self.mask = std, mask

    def forward(self, vector: Tensor) -> Tensor:
        if self.std:
            vector = vector + self.std * torch.randn_like(vector)
        if self.mask:
            vector = vector.masked_fill(torch.rand_like(vector) < self.mask, 0.0)
        return vector


def _to_tensor(mean: tuple[float, ...], std: tuple[float, ...]) -> list[nn.Module]:
    if len(mean) not in (1, 3) or len(mean) != len(std):
        raise ValueError(f"`mean` and `std` must have one or three numbers each. Got {len(mean)} and {len(std)}.")
    channels = v2.RGB() if len(mean) == 3 else v2.Grayscale(1)
    return [channels, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
