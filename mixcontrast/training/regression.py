"""Regression: embeddings ordered as their values are, judged by a probe; and values predicted directly."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn

from mixcontrast.distributed import Gathered, whole_batch
from mixcontrast.losses import Loss
from mixcontrast.mixers import Mixer
from mixcontrast.retrieval import Evaluation
from mixcontrast.tiling import Tiled
from mixcontrast.training.callbacks import embed_loader
from mixcontrast.training.chunks import check_chunk_size, in_chunks
from mixcontrast.training.fitting import (
    LABELS,
    LOOKED_AT,
    VALUES,
    FitModule,
    at_a_log_step,
    called_with,
    check_criterion,
    evaluation_of,
    mean_similarities,
    only_test_loader,
)
from mixcontrast.training.optimization import (
    OptimizerCallable,
    adamw,
    check_head,
    drop_gradients_but_of_head,
    optimizer_of,
    resting,
    with_schedule,
)
from mixcontrast.training.probes import ProbeCallback, errors, judge_values, r2


class Regression(FitModule):
    """Contrastive pretraining with real-valued labels; then ridge regression on frozen embeddings is judged.

    Args:
        encoder: inputs to (B, D) embeddings; what is wanted in the end.
        criterion: called with (embeddings, values), as SupReMix(SupConLoss()) and RankNContrastLoss() are; or, with
            `bins`, a class loss; or Tiled around one.
        projector: embeddings to what the criterion reads; None: the embeddings themselves.
        bins: for a class loss: values become so many classes of equal count (by quantiles of the training part).
        optimizer: a class of torch.optim and its arguments; biases and norms do not decay.
        warmup_epochs: the learning rate rises linearly over so many epochs.
        cosine: it then falls to zero by a cosine, else it stays.
        head_only_epochs: at first the part `head` of the encoder and the projector are trained alone; batch norm before
            them keeps its statistics.
        chunk_size: so many examples pass through the encoder at once, of a rank's batch; their activations are made
            again in the backward pass, so that those of one chunk live, and the gradients are those of the whole
            batch (GradCache: a second forward pass). Batch norm in training normalises each chunk by itself, which
            is warned of. None: the whole batch at once.

    Batches are `((view1, view2), values)` or `(inputs, values)`, values (B,) or (B, L) floats.

    Raises:
        TypeError: a criterion that reads something else.
        ValueError: `bins` without a class loss, or below 2, or missing; `head_only_epochs` below 0, or of an encoder
            without a head and no projector; `chunk_size` below 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        criterion: Loss | Mixer | Tiled,
        *,
        projector: nn.Module | None = None,
        bins: int | None = None,
        optimizer: OptimizerCallable = adamw,
        warmup_epochs: float = 0.0,
        cosine: bool = True,
        head_only_epochs: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_criterion("Regression", criterion, [VALUES, LABELS])
        if (called_with(criterion) == LABELS) != (bins is not None) or (bins is not None and bins < 2):
            raise ValueError(
                "A class loss needs bins for its values, at least 2, and no other loss has them. Got "
                f"{type(criterion).__name__}, bins: {bins}; set bins: 10 for a class loss, else leave it out."
            )
        self.encoder, self.criterion = encoder, criterion
        self.projector = nn.Identity() if projector is None else projector
        check_head(encoder, head_only_epochs, self.projector)
        check_chunk_size(chunk_size)
        self.head_only_epochs, self.chunk_size = head_only_epochs, chunk_size
        self._of_all_ranks = (Gathered(criterion),)  # no part of this module: names in a checkpoint stay
        self.bins = bins
        self.register_buffer("edges", None if bins is None else torch.zeros(bins - 1))
        self.optimizer, self.warmup_epochs, self.cosine = optimizer, warmup_epochs, cosine

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D) embeddings, as they are judged."""
        return self.encoder(inputs)

    def on_fit_start(self) -> None:
        if self.bins is not None:
            values = torch.as_tensor(self.trainer.datamodule.train_examples.labels)
            if values.ndim > 1:
                raise ValueError(
                    f"Bins are of one value an example. Got {values.shape[1]}; use a loss that reads values."
                )
            places = torch.arange(1, self.bins) / self.bins
            self.edges.copy_(torch.quantile(values.double(), places.double()))

    def training_step(self, batch: tuple[Any, Tensor], index: int) -> Tensor:
        inputs, values = batch
        if isinstance(inputs, list | tuple):
            values = torch.cat([values] * len(inputs))
            inputs = torch.cat(list(inputs))
        embeddings = in_chunks(self._embed, inputs, self.chunk_size, nn.ModuleList([self.encoder, self.projector]))
        labels = values if self.bins is None else torch.bucketize(values, self.edges)
        loss = self._of_all_ranks[0](embeddings, labels)
        self.log("loss", loss, prog_bar=True)
        if at_a_log_step(self.trainer):
            embeddings, values = (rows[:LOOKED_AT] for rows in whole_batch([embeddings.detach(), values]))
            self.log_dict(mean_similarities(embeddings, nearer_than_most(values)), prog_bar=True)
        return loss

    def _embed(self, inputs: Tensor) -> Tensor:
        with resting(self.encoder, self.current_epoch < self.head_only_epochs):
            return self.projector(self.encoder(inputs))

    def on_after_backward(self) -> None:
        if self.current_epoch < self.head_only_epochs:
            drop_gradients_but_of_head(self.encoder)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of([self.encoder, self.projector], self.criterion.parameters(), self.optimizer, 1.0)
        return with_schedule(self, optimizer, warmup_epochs=self.warmup_epochs, cosine=self.cosine)

    def monitor(self, data: lightning.LightningDataModule) -> tuple[str, str]:
        return "val/MAE", "min"

    def judges(self, data: lightning.LightningDataModule, every_n_epochs: int) -> list[lightning.Callback]:
        return [ProbeCallback(data, judge_values, summary=r2, every_n_epochs=every_n_epochs)]

    def judge_test(self, data: lightning.LightningDataModule) -> Evaluation:
        """MAE and R2 of ridge regression that learns from the training part's embeddings."""
        learned = embed_loader(self, data.probe_dataloader())
        judged = embed_loader(self, only_test_loader(data))
        values = judge_values(*learned, *judged)
        return evaluation_of(values, r2(values, judged[1]) | {"num_learned_from": len(learned[0])})


class DirectRegression(FitModule):
    """The baseline: encoder and a linear layer trained end to end on the values, by the absolute error.

    Args:
        encoder: inputs to (B, D) embeddings.
        embedding_dim: D.
        num_values: values an example.
        optimizer: a class of torch.optim and its arguments; biases and norms do not decay.
        warmup_epochs: the learning rate rises linearly over so many epochs.
        cosine: it then falls to zero by a cosine, else it stays.
        head_only_epochs: at first the linear layer, and a part `head` of the encoder, are trained alone; batch norm
            before them keeps its statistics.

    Batches are as those of `Regression`; each view is an example. Values are standardised by the training part for the
    loss, and predictions put back.
    """

    criterion = None

    def __init__(
        self,
        encoder: nn.Module,
        embedding_dim: int,
        *,
        num_values: int = 1,
        optimizer: OptimizerCallable = adamw,
        warmup_epochs: float = 0.0,
        cosine: bool = True,
        head_only_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(embedding_dim, num_values)
        check_head(encoder, head_only_epochs, self.head)
        self.head_only_epochs = head_only_epochs
        self.register_buffer("mean", torch.zeros(num_values))
        self.register_buffer("scale", torch.ones(num_values))
        self.optimizer, self.warmup_epochs, self.cosine = optimizer, warmup_epochs, cosine

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, L) predicted values."""
        return self.head(self.encoder(inputs)) * self.scale + self.mean

    def on_fit_start(self) -> None:
        values = torch.as_tensor(self.trainer.datamodule.train_examples.labels).float()
        values = values.reshape(len(values), -1)
        if values.shape[1] != len(self.mean):
            raise ValueError(f"The data has {values.shape[1]} values an example. Got num_values: {len(self.mean)}.")
        self.mean.copy_(values.mean(dim=0))
        self.scale.copy_(values.std(dim=0).clamp(min=1e-12))

    def training_step(self, batch: tuple[Any, Tensor], index: int) -> Tensor:
        inputs, values = batch
        if isinstance(inputs, list | tuple):
            values = torch.cat([values] * len(inputs))
            inputs = torch.cat(list(inputs))
        wanted = (values.reshape(len(values), -1) - self.mean) / self.scale
        with resting(self.encoder, self.current_epoch < self.head_only_epochs):
            loss = (self.head(self.encoder(inputs)) - wanted).abs().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        if self.current_epoch < self.head_only_epochs:
            drop_gradients_but_of_head(self.encoder)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of([self.encoder, self.head], [], self.optimizer, 1.0)
        return with_schedule(self, optimizer, warmup_epochs=self.warmup_epochs, cosine=self.cosine)

    def monitor(self, data: lightning.LightningDataModule) -> tuple[str, str]:
        return "val/MAE", "min"

    def judges(self, data: lightning.LightningDataModule, every_n_epochs: int) -> list[lightning.Callback]:
        return [ProbeCallback(data, _predictions, summary=r2, every_n_epochs=every_n_epochs, learns=False)]

    def judge_test(self, data: lightning.LightningDataModule) -> Evaluation:
        """MAE and R2 of what is predicted."""
        predicted, values = embed_loader(self, only_test_loader(data))
        found = errors(predicted.reshape(values.shape), values)
        return evaluation_of(found, r2(found, values))


def _predictions(learned: Tensor, values: Tensor, predicted: Tensor, of_rows: Tensor) -> dict[str, Any]:
    """The module's own predictions, which nothing is learned from."""
    return errors(predicted.reshape(of_rows.shape), of_rows)


def nearer_than_most(values: Tensor) -> Tensor:
    """(B, B) bool: the tenth of the pairs whose values are nearest to each other, or equal to those."""
    rows = values.reshape(len(values), -1).float()  # which `precision: bf16-true` has made narrow
    far = torch.cdist(rows, rows)
    others = far[~torch.eye(len(rows), dtype=torch.bool, device=rows.device)]
    return far <= torch.quantile(others[:: max(1, len(others) // 100_000)], 0.1)
