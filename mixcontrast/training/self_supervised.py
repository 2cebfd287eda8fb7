"""Self-supervised learning of two views: MoCo v2 with a momentum encoder and a queue, and SimCLR."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from mixcontrast.distributed import Gathered, whole_batch
from mixcontrast.losses import Loss
from mixcontrast.mixers import Mixer
from mixcontrast.queue import KeyQueue
from mixcontrast.retrieval import Evaluation, RetrievalEvaluator
from mixcontrast.tiling import Tiled
from mixcontrast.training.callbacks import RetrievalCallback, embed_loader
from mixcontrast.training.chunks import check_chunk_size, in_chunks
from mixcontrast.training.fitting import (
    LOOKED_AT,
    VIEWS,
    FitModule,
    at_a_log_step,
    check_criterion,
    evaluation_of,
    judge_retrieval,
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
from mixcontrast.training.probes import ProbeCallback, judge_classes, share_classes
from mixcontrast.training.sharding import as_shards
from mixcontrast.training.shuffling import encode_shuffled


class SelfSupervised(FitModule):
    """Two views of each example, each the other's positive. The encoder is judged without its projection head.

    With `momentum` it is MoCo v2: the second view goes through a slowly following copy of encoder and head, its batch
    norm sees rows of other ranks (shuffled; on one device nothing is), and the keys join the criterion's queue.
    Without it is SimCLR: both views go through the one encoder, in one batch.

    Args:
        encoder: inputs to (B, D) features; what is wanted in the end.
        projector: features to (B, P) projections, which the criterion reads; None: the features themselves.
        criterion: InfoNCE, a loss or mixer around it, or Tiled around one; a KeyQueue of it has the width P. A queue
            with labels is given them (class oracle).
        momentum: of the copy, in [0, 1); MoCo's 0.999. None: no copy.
        cosine_momentum: the momentum rises to 1 by a cosine, as in BYOL and MoCo v3.
        optimizer: a class of torch.optim and its arguments; biases and norms do not decay.
        warmup_epochs: the learning rate rises linearly over so many epochs.
        cosine: it then falls to zero by a cosine, else it stays.
        head_only_epochs: at first the part `head` of the encoder and the projector are trained alone, as is right from
            a pretrained encoder; batch norm before them keeps its statistics, in the copy too, which so long differs
            from the encoder in its head alone.
        chunk_size: so many examples pass through the encoder at once, of a rank's batch; their activations are made
            again in the backward pass, so that those of one chunk live, and the gradients are those of the whole
            batch (GradCache: a second forward pass). Batch norm in training normalises each chunk by itself, which
            is warned of. Keys are chunked alike. None: the whole batch at once.

    Batches are `((view1, view2), labels (B,) int64)`; labels are read by a class oracle and by the judges alone.

    Raises:
        TypeError: a criterion that is not called with two views.
        ValueError: a queue without a momentum, or a momentum out of range; `head_only_epochs` below 0, or of an encoder
            without a head and no projector; `chunk_size` below 1.

    Source: He et al., arXiv 1911.05722; Chen et al., arXiv 2003.04297; SimCLR: arXiv 2002.05709.
    """

    def __init__(
        self,
        encoder: nn.Module,
        criterion: Loss | Mixer | Tiled,
        *,
        projector: nn.Module | None = None,
        momentum: float | None = None,
        cosine_momentum: bool = False,
        optimizer: OptimizerCallable = adamw,
        warmup_epochs: float = 0.0,
        cosine: bool = True,
        head_only_epochs: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_criterion("SelfSupervised", criterion, [VIEWS])
        queue = queue_of(criterion)
        if queue is not None and momentum is None:
            raise ValueError(
                "A queue holds keys of a slowly moving encoder. Got a queue and no momentum; set momentum: 0.999 "
                "(MoCo), or leave out the queue (SimCLR)."
            )
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1). Got {momentum}; MoCo's is 0.999.")
        self.encoder, self.criterion = encoder, criterion
        self.projector = nn.Identity() if projector is None else projector
        check_head(encoder, head_only_epochs, self.projector)
        check_chunk_size(chunk_size)
        self.momentum_encoder = self.momentum_projector = None
        if momentum is not None:
            self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
            self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self._of_all_ranks = (Gathered(criterion),)  # no part of this module: names in a checkpoint stay
        self.oracle = queue is not None and queue.label_buffer is not None
        self.momentum, self.cosine_momentum = momentum, cosine_momentum
        self.optimizer, self.warmup_epochs, self.cosine = optimizer, warmup_epochs, cosine
        self.head_only_epochs, self.chunk_size = head_only_epochs, chunk_size

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D) features, as they are judged."""
        return self.encoder(inputs)

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor], index: int) -> Tensor:
        (view1, view2), labels = batch
        if self.momentum_encoder is None:
            first, second = self._chunked(self._queries, torch.cat([view1, view2])).chunk(2)
        else:
            first = self._chunked(self._queries, view1)
            with torch.no_grad():
                second = encode_shuffled(lambda inputs: self._chunked(self._keys, inputs), view2)
        loss = self._of_all_ranks[0](first, second, *([labels] if self.oracle else []))
        self.log("loss", loss, prog_bar=True)
        if at_a_log_step(self.trainer):
            rows = torch.cat([view[:LOOKED_AT] for view in whole_batch([first.detach(), second.detach()])])
            index = torch.arange(len(rows) // 2, device=rows.device).repeat(2)
            self.log_dict(mean_similarities(rows, index[:, None] == index[None, :]), prog_bar=True)
        return loss

    def _chunked(self, embed: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        return in_chunks(embed, inputs, self.chunk_size, nn.ModuleList([self.encoder, self.projector]))

    def _queries(self, inputs: Tensor) -> Tensor:
        with resting(self.encoder, self.current_epoch < self.head_only_epochs):
            return self.projector(self.encoder(inputs))

    def _keys(self, inputs: Tensor) -> Tensor:
        with resting(self.momentum_encoder, self.current_epoch < self.head_only_epochs):
            return self.momentum_projector(self.momentum_encoder(inputs))

    def on_after_backward(self) -> None:
        if self.current_epoch < self.head_only_epochs:
            drop_gradients_but_of_head(self.encoder)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.momentum_encoder is not None:
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        """The copies move by a small step to where encoder and head now are."""
        share = self.momentum
        if self.cosine_momentum:
            done = min(self.trainer.global_step / self.trainer.estimated_stepping_batches, 1.0)
            share = 1 - (1 - share) * (math.cos(math.pi * done) + 1) / 2
        for slow, fast in (
            (self.momentum_encoder, self.encoder),
            (self.momentum_projector, self.projector),
        ):
            as_shards(slow)
            as_shards(fast)
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - share)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of([self.encoder, self.projector], self.criterion.parameters(), self.optimizer, 1.0)
        return with_schedule(self, optimizer, warmup_epochs=self.warmup_epochs, cosine=self.cosine)

    def monitor(self, data: lightning.LightningDataModule) -> tuple[str, str]:
        return ("val/linear probe", "max") if share_classes(data) else ("val/Recall@1", "max")

    def judges(self, data: lightning.LightningDataModule, every_n_epochs: int) -> list[lightning.Callback]:
        """Retrieval, and where validation has the classes of training, a linear probe and k-NN."""
        found: list[lightning.Callback] = [
            RetrievalCallback(RetrievalEvaluator(ks=(1,)), queries=data.val_dataloader(), every_n_epochs=every_n_epochs)
        ]
        if share_classes(data):
            found.append(ProbeCallback(data, judge_classes, every_n_epochs=every_n_epochs))
        return found

    def judge_test(self, data: lightning.LightningDataModule) -> Evaluation:
        """A linear probe and k-NN on frozen features where the test has the classes of training, else retrieval."""
        if not share_classes(data):
            return judge_retrieval(self, data)
        learned = embed_loader(self, data.probe_dataloader())
        judged = embed_loader(self, only_test_loader(data))
        return evaluation_of(judge_classes(*learned, *judged), {"num_learned_from": len(learned[0])})


def queue_of(criterion: nn.Module) -> KeyQueue | None:
    """The queue of a criterion, wherever in a stack it is."""
    return next((part for part in criterion.modules() if isinstance(part, KeyQueue)), None)
