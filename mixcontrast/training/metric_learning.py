"""Metric learning: embeddings with their classes, given to a criterion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning
from torch import Tensor, nn

from mixcontrast.distributed import Gathered, whole_batch
from mixcontrast.losses import Loss
from mixcontrast.mixers import DeepMetrix, Mixer
from mixcontrast.retrieval import Evaluation, RetrievalEvaluator
from mixcontrast.tiling import Tiled
from mixcontrast.training.callbacks import RetrievalCallback
from mixcontrast.training.chunks import check_chunk_size, in_chunks
from mixcontrast.training.fitting import (
    KS,
    LABELS,
    LOOKED_AT,
    FitModule,
    at_a_log_step,
    check_criterion,
    check_num_classes,
    judge_retrieval,
    mean_similarities,
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


class MetricLearning(FitModule):
    """Embeds inputs and gives them, with their labels, to a criterion.

    Args:
        encoder: inputs to (B, D) embeddings.
        criterion: a loss or mixer called with (embeddings, labels), Tiled around one, or DeepMetrix. Its own parameters
            (proxies) are trained too. Under several processes it reads the batch of all.
        optimizer: a class of torch.optim and its arguments; biases and norms do not decay.
        proxy_factor: the proxies' learning rate is so many times that of the encoder.
        warmup_epochs: the learning rate rises linearly over so many epochs.
        cosine: it then falls to zero by a cosine, else it stays.
        head_only_epochs: at first the part `head` of the encoder is trained alone; batch norm before it keeps its
            statistics.
        chunk_size: so many examples pass through the encoder at once, of a rank's batch; their activations are made
            again in the backward pass, so that those of one chunk live, and the gradients are those of the whole
            batch (GradCache: a second forward pass). Batch norm in training normalises each chunk by itself, which
            is warned of. None: the whole batch at once.

    Batches are `(inputs (B, ...), labels (B,) int64)`.

    Raises:
        TypeError: a criterion that is not called with labels.
        ValueError: `head_only_epochs` below 0, or of an encoder without a head; `chunk_size` below 1, or of DeepMetrix,
            which mixes within the encoder's own pass.
    """

    def __init__(
        self,
        encoder: nn.Module,
        criterion: Loss | Mixer | Tiled | DeepMetrix,
        *,
        optimizer: OptimizerCallable = adamw,
        proxy_factor: float = 100.0,
        warmup_epochs: float = 0.0,
        cosine: bool = True,
        head_only_epochs: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_criterion("MetricLearning", criterion.loss if isinstance(criterion, DeepMetrix) else criterion, [LABELS])
        check_head(encoder, head_only_epochs)
        check_chunk_size(chunk_size)
        if chunk_size is not None and isinstance(criterion, DeepMetrix):
            raise ValueError(
                "DeepMetrix mixes within one pass of the encoder, which reads the whole batch. "
                f"Got chunk_size {chunk_size}; leave it out, or mix embeddings: Metrix(loss)."
            )
        self.encoder, self.criterion = encoder, criterion
        self._of_all_ranks = (Gathered(criterion),)  # no part of this module: names in a checkpoint stay
        self.optimizer, self.proxy_factor = optimizer, proxy_factor
        self.warmup_epochs, self.cosine, self.head_only_epochs = warmup_epochs, cosine, head_only_epochs
        self.chunk_size = chunk_size

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, labels = batch
        if isinstance(self.criterion, DeepMetrix):
            with self._resting(), _seen(self.encoder) as outputs:
                loss = self._of_all_ranks[0](self.encoder, inputs, labels)
            embeddings = outputs[0][: len(labels)]  # mixtures are behind
        else:
            embeddings = in_chunks(self._embed, inputs, self.chunk_size, self.encoder)
            loss = self._of_all_ranks[0](embeddings, labels)
        self.log("loss", loss, prog_bar=True)
        if at_a_log_step(self.trainer):
            embeddings, labels = (rows[:LOOKED_AT] for rows in whole_batch([embeddings.detach(), labels]))
            self.log_dict(mean_similarities(embeddings, labels[:, None] == labels[None, :]), prog_bar=True)
        return loss

    def _embed(self, inputs: Tensor) -> Tensor:
        with self._resting():
            return self.encoder(inputs)

    def _resting(self) -> AbstractContextManager[None]:
        return resting(self.encoder, self.current_epoch < self.head_only_epochs)

    def on_after_backward(self) -> None:
        if self.current_epoch < self.head_only_epochs:
            drop_gradients_but_of_head(self.encoder)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of([self.encoder], self.criterion.parameters(), self.optimizer, self.proxy_factor)
        return with_schedule(self, optimizer, warmup_epochs=self.warmup_epochs, cosine=self.cosine)

    def monitor(self, data: lightning.LightningDataModule) -> tuple[str, str]:
        check_num_classes(self.criterion, data.num_classes)
        return "val/Recall@1", "max"

    def judges(self, data: lightning.LightningDataModule, every_n_epochs: int) -> list[lightning.Callback]:
        evaluator = RetrievalEvaluator(ks=KS)
        return [RetrievalCallback(evaluator, queries=data.val_dataloader(), every_n_epochs=every_n_epochs)]

    def judge_test(self, data: lightning.LightningDataModule) -> Evaluation:
        return judge_retrieval(self, data)


@contextmanager
def _seen(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """What an encoder gives while it is looked at."""
    outputs: list[Tensor] = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    try:
        yield outputs
    finally:
        handle.remove()
