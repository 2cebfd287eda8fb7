"""What watches a run of the comparison."""

from __future__ import annotations

import time
from collections.abc import Callable

import lightning
import torch
from torch import Tensor, nn

from mixcontrast.training.callbacks import RetrievalCallback, judging


class Watch(lightning.Callback):
    """Times each step, tells of progress, and keeps the curve of loss and retrieval.

    Args:
        judge: of the validation classes, each epoch; before this one in the trainer's callbacks.
        advance: told after each step.
    """

    def __init__(self, judge: RetrievalCallback, advance: Callable[[], None]) -> None:
        self.judge, self.advance = judge, advance
        self.seconds: list[float] = []
        self.curve: list[dict[str, float]] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self.advance()

    def on_train_epoch_end(self, trainer, module) -> None:
        self.curve.append(
            {
                "epoch": trainer.current_epoch + 1,
                "loss": float(trainer.callback_metrics["loss"]),
                "validation hit@1": self.judge.history[-1]["hit@1"],
            }
        )


def embed(module: nn.Module, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    """(N, D) embeddings on the CPU; the module is left in the mode it was in."""
    device = next(module.parameters()).device
    with judging(module):
        return torch.cat([module(part.to(device)).float().cpu() for part in inputs.split(batch_size)])
