"""Examples as the network gets them, batch by batch, and a loader that goes on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mixcontrast.data.augmentation import Augmentation
from mixcontrast.data.examples import Examples
from mixcontrast.data.sampler import DrawnBatches, Place


class Drawn(Dataset):
    """Examples under an augmentation whose random numbers come from the place that each has in the order.

    An item is `(input, label)`, or `((view1, view2), label)`.

    Args:
        examples: to train on.
        augment: an image or vector to a tensor, drawing from torch's generator; None: as it is.
        views: 1 or 2.
    """

    def __init__(self, examples: Examples, augment: Augmentation | None, *, views: int) -> None:
        self.examples, self.augment, self.views = examples, augment, views
        self.labels = torch.from_numpy(examples.labels)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: Place) -> tuple[Any, Tensor]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[Any, Tensor]]:
        """The items of a batch; the process's own random state is left as it was."""
        state = torch.get_rng_state()
        try:
            return [self._item(row, seeds) for row, seeds in places]
        finally:
            torch.set_rng_state(state)

    def _item(self, row: int, seeds: tuple[int, int]) -> tuple[Any, Tensor]:
        example = self.examples[row]
        views = []
        for seed in seeds[: self.views]:
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the accelerators too
            views.append(example if self.augment is None else self.augment(example))
        return (views[0] if self.views == 1 else tuple(views)), self.labels[row]


class InOrder(Dataset):
    """Examples as they are judged: `(input, label)`, nothing drawn."""

    def __init__(self, examples: Examples, transform: Augmentation | None) -> None:
        self.examples, self.transform = examples, transform
        self.labels = torch.from_numpy(examples.labels)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        example = self.examples[row]
        return (example if self.transform is None else self.transform(example)), self.labels[row]


class ResumableLoader(DataLoader):
    """A loader of drawn batches whose state says how many of the epoch it has handed out.

    Lightning keeps that state in its checkpoints. A loader that it is given back goes on with the next batch, as the
    order and the look of an example depend on seed, epoch and place alone. Workers that had fetched ahead lose nothing.

    Args:
        data: what the batches are of.
        batches: this process's.
        num_workers: processes that prepare them; 0: this one.
        pin_memory: for an accelerator.
    """

    def __init__(self, data: Drawn, batches: DrawnBatches, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            data,
            batch_sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            collate_fn=_collate,
        )
        self._epoch, self._handed_out = 0, 0
        self._resume: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begins when the first batch is asked for: Lightning calls `iter` before it tells the epoch."""
        self._epoch, self._handed_out = self.batch_sampler.sampler.epoch, 0
        if self._resume is not None and self._resume[0] == self._epoch:
            self._handed_out = self.batch_sampler.start = self._resume[1]
        self._resume = None
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were handed out."""
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next iteration goes on behind the batches that were handed out; where all were, with the next epoch."""
        epoch, batches = state_dict["epoch"], state_dict["batches"]
        self._epoch, self._handed_out, self._resume = epoch, batches, (epoch, batches)
        self.batch_sampler.sampler.set_epoch(epoch + (batches >= len(self)))


def _collate(items: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    inputs, labels = default_collate(items)
    return (tuple(inputs) if isinstance(inputs, list) else inputs), labels
