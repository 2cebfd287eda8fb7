"""Batches with several examples of each class, repeatable by seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class MPerClassBatchSampler(Sampler[list[int]]):
    """Batches of `classes_per_batch` classes with `per_class` examples each; an epoch meets every class once.

    A class with fewer examples gives all it has, and some of them again. Epoch `e` of a seed is always the same; each
    iteration is the next epoch, and `set_epoch` goes to any.

    Args:
        labels: (N,) integers.
        classes_per_batch: at least 2.
        per_class: at least 2.
        seed: of the order.

    Raises:
        ValueError: fewer classes than a batch needs, or numbers below 2.
    """

    def __init__(self, labels: Any, *, classes_per_batch: int, per_class: int, seed: int) -> None:
        labels = np.asarray(labels)
        if classes_per_batch < 2 or per_class < 2:
            raise ValueError(
                "A batch needs at least two classes and two examples of each. "
                f"Got classes_per_batch={classes_per_batch}, per_class={per_class}."
            )
        self.rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if len(self.rows) < classes_per_batch:
            raise ValueError(
                f"A batch of {classes_per_batch} classes needs as many. Got {len(self.rows)}; "
                "take fewer classes a batch."
            )
        self.classes_per_batch, self.per_class, self.seed, self.epoch = classes_per_batch, per_class, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows) // self.classes_per_batch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(len(self.rows))
        for start in range(0, len(self) * self.classes_per_batch, self.classes_per_batch):
            batch: list[int] = []
            for label in order[start : start + self.classes_per_batch]:
                rows = rng.permutation(self.rows[label])
                batch += np.resize(rows, self.per_class).tolist()
            yield batch
