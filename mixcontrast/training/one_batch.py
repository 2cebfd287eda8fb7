"""What a criterion is called with, in a batch of training as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from mixcontrast.training.fitting import FitModule, untiled
from mixcontrast.training.safety import Repeatable, StopAtNaN, quieten

Look = Callable[[torch.nn.Module, tuple[Any, ...], Tensor], None]
"""Told the criterion, what it is called with, and the labels of the batch."""


KEPT = (
    "accelerator", "precision", "max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val",
    "gradient_clip_algorithm",
)  # fmt: skip
"""The options of a recipe's trainer that make its steps what they are."""


class _Looking(lightning.Callback):
    def __init__(self, look: Look, after: int, batches: int, every: int) -> None:
        self.look, self.after, self.every = look, after, every
        self.last = after + (batches - 1) * every
        self.step, self.labels = 0, torch.empty(0)

    def on_train_start(self, trainer, module: FitModule) -> None:
        self.handle = module.criterion.register_forward_pre_hook(self._see)

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.labels = batch[1]

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.step += 1
        trainer.should_stop = self.step > self.last

    def on_train_end(self, trainer, module) -> None:
        self.handle.remove()

    def _see(self, criterion, inputs) -> None:
        if criterion.training and self.step >= self.after and (self.step - self.after) % self.every == 0:
            with isolate_rng():
                self.look(untiled(criterion), inputs, self.labels)


def look_at_batches(
    module: FitModule,
    data: lightning.LightningDataModule,
    look: Look,
    *,
    after: int = 0,
    batches: int = 1,
    every: int = 1,
    seed: int = 0,
    **options: Any,
) -> None:
    """Trains a few steps as `mixcontrast fit` does and looks at what the criterion is called with; writes nothing.

    Args:
        module: with the weights that it is to begin with; they are changed.
        data: of the run.
        look: called with the criterion in training mode, before it computes.
        after: so many steps pass before.
        batches: how many are looked at.
        every: each so manieth.
        seed: of batches, augmentation and mixing.
        options: of a recipe's trainer; those that make no difference to its steps are not read.

    Raises:
        ValueError: as `mixcontrast fit`; a module without a criterion of mixcontrast.
    """
    if module.criterion is None:
        raise ValueError(
            f"There is nothing to look at. Got {type(module).__name__}, which has no criterion; take MetricLearning, "
            "SelfSupervised or Regression."
        )
    with warnings.catch_warnings():
        quieten()
        trainer = lightning.Trainer(
            logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
            callbacks=[Repeatable(seed), StopAtNaN(), _Looking(look, after, batches, every)], devices=1,
            **{name: value for name, value in options.items() if name in KEPT and value is not None},
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
