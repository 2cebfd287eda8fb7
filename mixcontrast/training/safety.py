"""Runs that repeat, go on after a kill, and stop at a loss that is no number."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from mixcontrast.files import write_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written whole or not at all: under another name in the same folder, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_whole(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class Repeatable(lightning.Callback):
    """Random numbers of a step that depend on the seed, the step and the rank alone.

    torch's, numpy's and Python's generators are seeded before and after each step, so a run that goes on from a
    checkpoint draws what it would have drawn, whatever was drawn in between: by judging, by a loader that starts.
    A loader with a state of its own goes on behind the batches that it had handed out.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._loader_states: list[dict[str, Any]] = []
        self._trainer: lightning.Trainer | None = None

    def setup(self, trainer, module, stage) -> None:
        self._trainer = trainer

    def on_train_start(self, trainer, module) -> None:
        for loader, state in zip(_stateful(trainer), self._loader_states, strict=False):
            loader.load_state_dict(state)
        self._loader_states = []
        self._seed(trainer, 1)

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self._seed(trainer, 0)

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self._seed(trainer, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"loaders": [loader.state_dict() for loader in _stateful(self._trainer)]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loader_states = state_dict["loaders"]

    def _seed(self, trainer: lightning.Trainer, part: int) -> None:
        step = trainer.fit_loop.total_batch_idx + 1
        words = np.random.SeedSequence((self.seed, step, part, trainer.global_rank)).generate_state(4)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(words[2])
        random.seed(int(words[3]))


def _stateful(trainer: lightning.Trainer) -> list[Any]:
    loaders = trainer.train_dataloader
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    return [loader for loader in loaders if callable(getattr(loader, "load_state_dict", None))]


class LossIsNoNumber(ValueError):
    """The loss is NaN or infinite."""


class StopAtNaN(lightning.Callback):
    """Stops before a step whose loss is NaN or infinite: no weight is changed by it, and no checkpoint written after.

    On a GPU the loss is copied to the host when it is made and read when the backward pass was handed to the GPU, which
    is then busy with it: the host waits for the forward pass, and the GPU for nothing.

    Raises:
        LossIsNoNumber: what to try.
    """

    def __init__(self) -> None:
        self._host: Tensor | None = None  # (2,) pinned: how many ranks have no number, and the loss
        self._copied: torch.cuda.Event | None = None

    def on_before_backward(self, trainer, module, loss: Tensor) -> None:
        loss = loss.detach()
        if loss.is_cuda:
            self._copy(trainer, loss)
            return
        bad = not bool(torch.isfinite(loss).all())
        if trainer.world_size > 1:  # all stop, or none
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            raise _no_number(float(loss))

    def on_after_backward(self, trainer, module) -> None:
        if self._copied is None:
            return
        copied, self._copied = self._copied, None
        copied.synchronize()
        bad, loss = self._host.tolist()
        if bad:
            raise _no_number(loss)

    def _copy(self, trainer: lightning.Trainer, loss: Tensor) -> None:
        bad = (~torch.isfinite(loss)).any().float()
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad, reduce_op="sum")
        if self._host is None:
            self._host = torch.empty(2, pin_memory=True)
        self._host.copy_(torch.stack([bad, loss.float().reshape(())]), non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(loss.device))


def _no_number(loss: float) -> LossIsNoNumber:
    return LossIsNoNumber(
        f"The loss must be finite. Got {loss:g}; look at the learning rate, the temperature, or the batch."
    )


def where(trainer: lightning.Trainer) -> str:
    """The step and the rows of the batch that a run has come to."""
    index = trainer.fit_loop.batch_idx
    rows = rows_of_batch(trainer, index)
    of_rows = "" if rows is None else f", rows {_short(rows)} of the training part"
    return f"step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}, batch {index + 1}{of_rows})"


def rows_of_batch(trainer: lightning.Trainer, index: int) -> list[int] | None:
    """The rows of a batch of this epoch, from a sampler that can tell; None where it cannot."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None
    sampler = copy.deepcopy(loader.batch_sampler)  # told the epoch, without moving the one in use
    inner = getattr(sampler, "sampler", sampler)
    if not callable(getattr(inner, "set_epoch", None)):
        return None
    inner.set_epoch(trainer.current_epoch)
    for number, batch in enumerate(sampler):
        if number == index:
            return [int(row[0]) if isinstance(row, tuple) else int(row) for row in batch]
    return None


def _short(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:8]))
    return shown if len(rows) <= 8 else f"{shown}, ... ({len(rows)})"


def quieten() -> None:
    """What Lightning says that is of no use here."""
    for message in (
        ".*does not have many workers.*",  # tables and features are in memory
        ".*LeafSpec.*",  # Lightning's own, of newer torch
        "Checkpoint directory .* exists and is not empty",
        "Found .* in eval mode at the start of training",  # frozen parts are
        ".*is smaller than the logging interval.*",
        ".*to determine which device is supported.*",
        ".*exists and is not empty. Previous log files.*",
        "You're resuming from a checkpoint that ended before the epoch ended.*",
        "You passed in a `val_dataloader` but have no `validation_step`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "huggingface_hub"):  # the last tells of each try
        logging.getLogger(name).setLevel(logging.ERROR)
