"""Learning rates by steps."""

from __future__ import annotations

import math

import lightning
import pytest
import torch

from mixcontrast import SupConLoss
from mixcontrast.data import ClassData
from mixcontrast.training import MetricLearning
from mixcontrast.training.safety import quieten
from tests.fitting import Plain, Vectors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
STEPS = 8


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


class Rates(lightning.Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("epochs", [0, 0.5])
def test_a_run_of_so_many_steps_is_warmed_up_and_falls_to_zero(epochs: float) -> None:
    data = ClassData(Vectors(), classes_per_batch=4, per_class=3)
    module = MetricLearning(Plain(), SupConLoss(), optimizer=sgd, warmup_epochs=epochs)
    module.prepare(data)
    rates = Rates()
    quieten()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False, callbacks=[rates],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    warmup = round(epochs * trainer.num_training_batches)
    assert 0 < warmup < STEPS or not epochs
    rising = [0.5 * (0.01 + 0.99 * step / warmup) for step in range(warmup)]
    falling = [0.25 * (1 + math.cos(math.pi * step / (STEPS - warmup))) for step in range(STEPS - warmup)]
    assert rates.found == pytest.approx(rising + falling)
