"""Batches repeatable by seed: several examples of each class, or all rows shuffled; and a process's share of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Place = tuple[int, tuple[int, int]]  # a row, and the seeds of its two views


class MPerClassBatchSampler(Sampler[list[int]]):
    """Batches of `classes_per_batch` classes with `per_class` examples each; an epoch meets every class once.

    A class with fewer examples gives all it has, and some of them again. Epoch `e` of a seed is always the same; each
    iteration is the next epoch, and `set_epoch` goes to any. A batch holds its classes one after the other.

    Args:
        labels: (N,) integers.
        classes_per_batch: at least 2.
        per_class: at least 2.
        seed: of the order.
        num_batches: an epoch; None: as many as meet every class once. More go through the classes again, and no batch
            holds a class twice.

    Raises:
        ValueError: fewer classes than a batch needs, or numbers below 2.
    """

    def __init__(
        self, labels: Any, *, classes_per_batch: int, per_class: int, seed: int, num_batches: int | None = None
    ) -> None:
        labels = np.asarray(labels)
        if classes_per_batch < 2 or per_class < 2:
            raise ValueError(
                "A batch needs at least two classes and two examples of each. "
                f"Got classes_per_batch={classes_per_batch}, per_class={per_class}."
            )
        order = np.argsort(labels, kind="stable")
        self.rows = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        if len(self.rows) < classes_per_batch:
            raise ValueError(
                f"A batch of {classes_per_batch} classes needs as many. Got {len(self.rows)}; "
                "take fewer classes a batch."
            )
        if num_batches is not None and num_batches < 1:
            raise ValueError(
                f"An epoch needs a batch. Got num_batches={num_batches}; leave it out for every class once."
            )
        self.classes_per_batch, self.per_class, self.seed, self.epoch = classes_per_batch, per_class, seed, 0
        self.batch_size = classes_per_batch * per_class
        self.num_batches = len(self.rows) // classes_per_batch if num_batches is None else num_batches

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        in_a_round = len(self.rows) // self.classes_per_batch
        for number in range(self.num_batches):
            place = number % in_a_round * self.classes_per_batch
            if place == 0:
                order = rng.permutation(len(self.rows))
            batch: list[int] = []
            for label in order[place : place + self.classes_per_batch]:
                rows = rng.permutation(self.rows[label])
                batch += np.resize(rows, self.per_class).tolist()
            yield batch


class ShuffledBatchSampler(Sampler[list[int]]):
    """All rows in another order each epoch; a last batch that would be smaller is left out.

    Epoch `e` of a seed is always the same; each iteration is the next epoch, and `set_epoch` goes to any.

    Args:
        num_rows: N.
        batch_size: at least 2.
        seed: of the order.

    Raises:
        ValueError: fewer rows than a batch.
    """

    def __init__(self, num_rows: int, *, batch_size: int, seed: int) -> None:
        if not 2 <= batch_size <= num_rows:
            raise ValueError(
                f"A batch needs at least two examples and at most all. Got batch_size={batch_size}, {num_rows} "
                "examples to train on; take another batch size."
            )
        self.num_rows, self.batch_size, self.seed, self.epoch = num_rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_rows)
        self.epoch += 1
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class DrawnBatches(Sampler[list[Place]]):
    """One process's share of each batch, every row with the seeds of its augmentation.

    The seeds belong to a place in the epoch's order, so neither workers, nor the number of processes, nor what was
    drawn before changes what an example looks like, and an example drawn twice looks different each time. Ranks take
    consecutive shares, so that what they gather in the order of ranks is the batch of one process.

    Args:
        sampler: of whole batches; an iteration of it is an epoch. Lightning tells it the epoch by this attribute.
        seed: of the augmentation.
        together: rows that stay in one process: `per_class` for whole classes.
        rank: of this process.
        world_size: how many processes there are.

    Attributes:
        start: the batch that the next iteration begins with, 0 after it.

    Raises:
        ValueError: a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        sampler: MPerClassBatchSampler | ShuffledBatchSampler,
        *,
        seed: int,
        together: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if sampler.batch_size // together % world_size:
            what = "rows" if together == 1 else f"classes of {together}"
            raise ValueError(
                f"Processes must get equal shares of a batch. Got {sampler.batch_size // together} {what} for "
                f"{world_size} processes; take a multiple of {world_size}."
            )
        self.sampler, self.seed, self.rank, self.world_size, self.start = sampler, seed, rank, world_size, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Place]]:
        start, self.start = self.start, 0
        size, share = self.sampler.batch_size, self.sampler.batch_size // self.world_size
        entropy = np.random.SeedSequence((self.seed, self.sampler.epoch, 1))  # 1: apart from the order's own
        seeds = entropy.generate_state(2 * len(self) * size).reshape(len(self), size, 2)
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for number, batch in enumerate(self.sampler):
            if number >= start:
                yield [
                    (row, (first, second))
                    for row, (first, second) in zip(batch[mine], seeds[number, mine].tolist(), strict=True)
                ]


def natural_seed(seed: int) -> int:
    """The seed, once it was seen not to be negative, which numpy's generators refuse."""
    if seed < 0:
        raise ValueError(f"A seed must not be negative. Got {seed}.")
    return seed
