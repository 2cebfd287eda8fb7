"""Batches of images with captions, for two towers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixcontrast.data.augmentation import Augmentation
from mixcontrast.data.captions import Captioned
from mixcontrast.data.found import one_of
from mixcontrast.data.loading import ResumableLoader
from mixcontrast.data.modules import Data
from mixcontrast.data.sampler import DrawnBatches, Place, ShuffledBatchSampler, natural_seed
from mixcontrast.data.splits import Parts, split, with_validation
from mixcontrast.judge.cross_modal import connected
from mixcontrast.models.towers import FeatureTowers, Towers


@dataclass(frozen=True)
class PairPart:
    """Images and captions that are judged, each side searched by the other.

    Attributes:
        images: rows of the collection.
        captions: rows of the captions that belong to some of these images.
        pairs: (P, 2) int64: place in `images`, place in `captions`.
        domains: (N,) texts; None: one domain.
        held_out: domains that were not trained on.
    """

    images: np.ndarray
    captions: np.ndarray
    pairs: np.ndarray
    domains: np.ndarray | None
    held_out: tuple[str, ...]


class PairData(Data):
    """Batches of pairs of an image and a caption: `((images, texts), labels)`, for two towers.

    An epoch meets every training image once, with one of its captions, drawn anew. `labels` are (B, 2), the image's
    group and the caption: by them several images of a caption, and several captions of an image, are positives of each
    other (`pairs_that_match`). Transforms and tokenizer are those of the towers that are trained.

    Args:
        pairs: the collection.
        batch_size: pairs a batch, of all processes together.
        augment: an image to what is trained on, drawn anew each time; the towers' own where left out.
        transform: an image to what is judged, nothing drawn; the towers' own where left out.
        held_out: domains that are judged and never trained on.
        validation_share: of the images of the other domains, kept for the curves; 0 for none. Images that have a
            caption in common, by whatever way, come into one part.
        test_share: likewise, kept for the test; where left out, the published test part, or a fifth.
        split_seed: of the parts; apart from the seed, so that runs of several seeds are judged on the same.
        num_workers: processes that prepare batches; 0: none beside the run itself.
        eval_batch_size: images, and captions, at once in validation and test.
        seed: of the order, the captions and the augmentation.

    Attributes:
        validation: what is watched; None where there is none.
        test: what is judged at the end, the domains held out as well; None where there is none.

    Raises:
        ValueError: a domain that there is not, fewer images than a batch, parts that cannot be drawn as captions join
            all images.
    """

    views = 1
    num_classes = 0
    num_features = None

    def __init__(
        self,
        pairs: Captioned,
        *,
        batch_size: int = 256,
        augment: Augmentation | None = None,
        transform: Augmentation | None = None,
        held_out: list[str] | None = None,
        validation_share: float = 0.1,
        test_share: float | None = None,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.collection, self.batch_size, self.seed = pairs, batch_size, natural_seed(seed)
        self.augment, self.transform = augment, transform
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.held_out = tuple(held_out or ())
        for domain in self.held_out:
            one_of(domain, sorted(set(() if pairs.domains is None else pairs.domains.tolist())), "A domain held out")
        parts = _parts(pairs, validation_share, test_share, split_seed)
        known = np.ones(len(pairs), bool) if pairs.domains is None else ~np.isin(pairs.domains, self.held_out)
        self.train_rows = parts.train[known[parts.train]]
        self.validation = self.part(parts.validation[known[parts.validation]])
        self.test = self.part(parts.test)
        self._tokenize: Callable[[list[str]], Tensor] | None = None
        self._sampler()

    def use(self, towers: Towers) -> None:
        """Takes transforms and tokenizer of a model, where the data have none of their own.

        Raises:
            ValueError: features for a model that does not read them.
        """
        if isinstance(self.collection.image(0), Tensor) and not isinstance(towers, FeatureTowers):
            raise ValueError(
                f"{type(towers).__name__} reads images and texts. Got features in {type(self.collection).__name__}; "
                "take EmojiCaptions, or FeatureTowers."
            )
        self.augment = towers.augment if self.augment is None else self.augment
        self.transform = towers.transform if self.transform is None else self.transform
        self._tokenize = towers.tokenize

    def train_dataloader(self) -> ResumableLoader:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        batches = DrawnBatches(self._sampler(), seed=self.seed, rank=rank, world_size=world_size)
        data = DrawnPairs(self.collection, self.train_rows, self.augment, self._tokenize)
        return ResumableLoader(
            data, batches, num_workers=self.num_workers, pin_memory=torch.accelerator.is_available()
        )

    def val_dataloader(self) -> list[DataLoader]:
        """`(inputs, places)` of the images and of the captions of the validation part; empty where there is none."""
        return [] if self.validation is None else self.loaders(self.validation)

    def test_dataloader(self) -> list[DataLoader]:
        """The same of the test part."""
        return [] if self.test is None else self.loaders(self.test)

    def loaders(self, part: PairPart) -> list[DataLoader]:
        """Of images and of captions, in order."""
        sides = (
            _Side(self.collection.image, part.images, self.transform),
            _Side(self.collection.caption, part.captions, lambda text: self._tokenize([text])[0]),
        )
        return [
            DataLoader(
                side, self.eval_batch_size, num_workers=self.num_workers, pin_memory=torch.accelerator.is_available()
            )
            for side in sides
        ]

    def part(self, rows: np.ndarray) -> PairPart | None:
        """What is judged of some images: every caption of their groups belongs to them. None of none.

        Args:
            rows: (N,) of the collection.
        """
        if not len(rows):
            return None
        collection = self.collection
        of_groups = np.unique(np.stack([collection.groups[collection.pairs[:, 0]], collection.pairs[:, 1]], 1), axis=0)
        captions_of: dict[int, list[int]] = {}
        for group, caption in of_groups.tolist():
            captions_of.setdefault(group, []).append(caption)
        found = [(place, caption) for place, row in enumerate(rows) for caption in captions_of[collection.groups[row]]]
        pairs = np.array(found, np.int64)
        captions, pairs[:, 1] = np.unique(pairs[:, 1], return_inverse=True)
        domains = None if collection.domains is None else collection.domains[rows]
        return PairPart(rows, captions, pairs, domains, self.held_out)

    def _sampler(self) -> ShuffledBatchSampler:
        return ShuffledBatchSampler(len(self.train_rows), batch_size=self.batch_size, seed=self.seed)

    def _what(self) -> dict[str, Any]:
        digest = hashlib.sha256(repr((self.collection.captions, self.held_out)).encode())
        for array in (self.collection.pairs, self.collection.groups, self.train_rows):
            digest.update(np.ascontiguousarray(array).data)
        return {"seed": self.seed, "batch_size": self.batch_size, "training pairs": digest.hexdigest()[:16]}


class DrawnPairs(Dataset):
    """Images with a caption each, whose random numbers come from the place that each has in the order.

    An item is `((image, text), label (2,))`: prepared, and the image's group and the caption's row.

    Args:
        collection: of images and captions.
        rows: the images to train on.
        augment: an image to a tensor, drawing from torch's generator.
        tokenize: texts to a tensor.
    """

    def __init__(
        self,
        collection: Captioned,
        rows: np.ndarray,
        augment: Callable[[Image.Image], Tensor] | None,
        tokenize: Callable[[list[str]], Tensor] | None,
    ) -> None:
        self.collection, self.rows, self.augment, self.tokenize = collection, rows, augment, tokenize
        first = np.searchsorted(collection.pairs[:, 0], np.arange(len(collection) + 1))
        self._captions_of = [collection.pairs[first[row] : first[row + 1], 1] for row in range(len(collection))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> tuple[Any, Tensor]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[Any, Tensor]]:
        """The items of a batch; the process's own random state is left as it was."""
        state = torch.get_rng_state()
        try:
            return [self._item(int(self.rows[row]), seeds) for row, seeds in places]
        finally:
            torch.set_rng_state(state)

    def _item(self, row: int, seeds: tuple[int, int]) -> tuple[Any, Tensor]:
        image, mine = self.collection.image(row), self._captions_of[row]
        if not isinstance(image, Tensor):
            torch.default_generator.manual_seed(seeds[0])  # not torch.manual_seed, which seeds the accelerators too
            image = self.augment(image)
        caption = int(mine[seeds[1] % len(mine)])
        text = self.collection.caption(caption)
        text = text if isinstance(text, Tensor) else self.tokenize([text])[0]
        return (image, text), torch.tensor([int(self.collection.groups[row]), caption])


class _Side(Dataset):
    """Images, or captions, as they are judged, with their place."""

    def __init__(self, item: Callable[[int], Any], rows: np.ndarray, prepare: Callable[[Any], Tensor] | None) -> None:
        self.item, self.rows, self.prepare = item, rows, prepare

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        found = self.item(int(self.rows[place]))
        return (found if isinstance(found, Tensor) else self.prepare(found)), place


def _parts(pairs: Captioned, validation_share: float, test_share: float | None, seed: int) -> Parts:
    """The published parts, or parts at random in which images that hang together stay together."""
    published = pairs.published() if test_share is None else None
    if published is not None and (len(published.validation) or not validation_share):
        return published
    of_groups = np.stack([pairs.groups[pairs.pairs[:, 0]], pairs.pairs[:, 1]], 1)
    together, _ = connected(of_groups, int(pairs.groups.max()) + 1, len(pairs.captions))
    together = together[pairs.groups]
    largest = int(np.bincount(together).max())
    if 2 * largest > len(pairs):
        raise ValueError(
            f"Images with a caption in common come into one part. Got {largest:,} of {len(pairs):,} that hang together "
            "so; name the parts by a split_column."
        )
    if published is not None:
        return with_validation(published, together, share=validation_share, seed=seed)
    return split(
        together, validation_share=validation_share, test_share=0.2 if test_share is None else test_share, seed=seed
    )


