"""What `mixcontrast fit` asks of a module, and the checks and looks that its modules share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from mixcontrast.distributed import Gathered
from mixcontrast.losses import CyClipLoss, HardNegativeLoss, Loss
from mixcontrast.mixers import Mixer, SupReMix
from mixcontrast.queue import KeyQueue
from mixcontrast.retrieval import DML, Evaluation, evaluate
from mixcontrast.similarity import unit
from mixcontrast.tiling import Tiled
from mixcontrast.training.callbacks import embed_loader
from mixcontrast.training.chunks import warn_of_batch_norm
from mixcontrast.training.sharding import clip_gradients, is_sharded, load_whole, shard, share_buffers

KS = (1, 2, 4, 8)
LOOKED_AT = 2048  # examples of a batch that are looked at when it is logged: a table of all would undo `Tiled`
LABELS, VALUES, VIEWS = ("embeddings", "labels"), ("embeddings", "values"), ("query", "key")
TOWERS = ("image_features", "text_features")
FITS = {
    LABELS: "SupConLoss(), MultiSimilarityLoss() or Metrix(MultiSimilarityLoss())",
    VALUES: "SupReMix(SupConLoss()) or RankNContrastLoss()",
    VIEWS: "InfoNCE(), InfoNCE(queue=KeyQueue(...)) or MoCHi(InfoNCE(), queue=KeyQueue(...))",
    TOWERS: "ClipLoss(), SigLipLoss(), GeodesicMixup(ClipLoss()) or MoCHi(ClipLoss())",
}


class FitModule(lightning.LightningModule, ABC):
    """A module that `mixcontrast fit` trains, watches and judges.

    Attributes:
        encoder: what is trained to be used: inputs to (B, D) embeddings.
        criterion: a loss or mixer of mixcontrast, or None.
        chunk_size: examples that pass through the encoder at once; None: the batch.
        entrances: methods of the encoder that are called from outside as forward is.

    Under ModelParallelStrategy the networks are in shards (`training.sharding.shard`); the criterion is whole.
    """

    encoder: nn.Module
    criterion: nn.Module | None
    chunk_size: int | None = None
    entrances: tuple[str, ...] = ()
    _of_all_ranks: tuple[Gathered, ...] = ()  # the criterion as a step calls it; of a tuple no names in a checkpoint

    @abstractmethod
    def monitor(self, data: lightning.LightningDataModule) -> tuple[str, str]:
        """The logged name that tells the best checkpoint, and whether its "max" or "min" is best."""

    @abstractmethod
    def judges(self, data: lightning.LightningDataModule, every_n_epochs: int) -> list[lightning.Callback]:
        """Callbacks that judge the validation part every n epochs and log under the name of `monitor`."""

    @abstractmethod
    def judge_test(self, data: lightning.LightningDataModule) -> Evaluation:
        """What the module as it is reaches on the test part, a value a query or row."""

    def setup(self, stage: str) -> None:
        """Refuses FSDP's first version, which leaves a rank a piece of all parameters strung together; warns of batch
        norm in chunks.

        Raises:
            ValueError: it is the trainer's strategy.
        """
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                "Parameters must keep their shapes: by these, biases are told from weights, and a momentum encoder "
                f"follows. Got the strategy {type(self.trainer.strategy).__name__}, which flattens them; take ddp, or "
                "ModelParallelStrategy, under which the module shards itself."
            )
        if stage == "fit" and self.chunk_size is not None:
            warn_of_batch_norm(self, self.chunk_size)

    def networks(self) -> list[nn.Module]:
        """What embeds, copies included, or is behind it: all parts but the criterion that have parameters."""
        parts = [part for part in self.children() if part is not self.criterion]
        return [part for part in parts if any(True for _ in part.parameters())]

    def configure_model(self) -> None:
        """Shards the networks among all processes under ModelParallelStrategy, else does nothing."""
        if self._trainer is not None and is_sharded(self.trainer):
            for network in self.networks():
                shard(network, self.device_mesh["data_parallel"], self.entrances)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Under shards, what DistributedDataParallel does before a forward pass."""
        if is_sharded(self.trainer):
            share_buffers(self.networks())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, and of shards and whole parameters together."""
        if gradient_clip_val and is_sharded(self.trainer):
            clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def load_file(self, path: str | Path) -> None:
        """Loads the weights of a checkpoint; under shards every process must, each takes its share."""
        load_whole(self, torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"])

    def prepare(self, data: lightning.LightningDataModule) -> None:
        """Tells the data what they must know of the module, before any loader of theirs is asked for."""
        return None

    def begun(self, folder: Path, config: dict[str, Any]) -> None:
        """Writes what is kept of a run before its first step."""
        return None

    def ended(self, folder: Path, config: dict[str, Any]) -> None:
        """Writes what is kept of a run when the module has the weights that were judged; called by the first process,
        and under shards by all, of which the first writes."""
        return None


def untiled(criterion: nn.Module) -> nn.Module:
    """What `Tiled` is around, or the criterion itself."""
    return criterion.criterion if isinstance(criterion, Tiled) else criterion


def called_with(criterion: Loss | Mixer | Tiled) -> tuple[str, ...]:
    """The names of the two tensors that a criterion is called with."""
    part: Loss | Mixer = untiled(criterion)
    while isinstance(part, Mixer):
        if isinstance(part, SupReMix):
            return VALUES
        if any(isinstance(child, KeyQueue) for child in part.children()):
            return VIEWS
        part = part.loss
    while isinstance(part, HardNegativeLoss | CyClipLoss):  # called as what they wrap
        part = part.loss
    return tuple(inspect.signature(part.plans).parameters)[:2]


def check_criterion(owner: str, criterion: nn.Module, wanted: Sequence[tuple[str, str]]) -> None:
    """One line where a module cannot call a criterion.

    Raises:
        TypeError: not a criterion of ours, or one that is called with something else.
    """
    fitting = " or ".join(FITS[kind] for kind in wanted)
    if not isinstance(untiled(criterion), Loss | Mixer):
        raise TypeError(
            f"{owner} needs a mixcontrast loss or mixer. Got {type(criterion).__name__}; use {fitting}."
        )
    found = called_with(criterion)
    if found not in wanted:
        asked = " or ".join(f"({', '.join(kind)})" for kind in wanted)
        raise TypeError(
            f"{owner} calls its criterion with {asked}. Got {_written(criterion)}, which is called with "
            f"({', '.join(found)}); use {fitting}."
        )


def _written(criterion: Loss | Mixer | Tiled) -> str:
    name = type(criterion).__name__
    if isinstance(criterion, Tiled):
        return f"{name}({_written(criterion.criterion)})"
    wraps = isinstance(criterion, Mixer | HardNegativeLoss | CyClipLoss)
    return f"{name}({_written(criterion.loss)})" if wraps else name


def check_num_classes(criterion: nn.Module, num_classes: int) -> None:
    """One line where a loss has too few or too many proxies for the data.

    Raises:
        ValueError: so it is.
    """
    for name, proxies in criterion.named_parameters():
        if name.rpartition(".")[2] == "proxies" and len(proxies) != num_classes:
            raise ValueError(
                f"A proxy loss needs one proxy a training class. Got {len(proxies)} proxies for {num_classes} classes; "
                f"set num_classes: {num_classes}."
            )


def at_a_log_step(trainer: lightning.Trainer) -> bool:
    """Whether what this step logs reaches the loggers, so that looking is worth its time; and the first step."""
    return trainer.global_step == 0 or (trainer.global_step + 1) % trainer.log_every_n_steps == 0


@torch.no_grad()
def mean_similarities(embeddings: Tensor, alike: Tensor) -> dict[str, Tensor]:
    """Mean cosine of the pairs that are alike, of two rows each, and of the others; what is empty is left out.

    Args:
        embeddings: (B, D).
        alike: (B, B) bool.
    """
    rows = unit(embeddings)
    table = rows @ rows.T
    positive = alike & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    found = {}
    for name, cells in (("positives", positive), ("negatives", ~alike)):
        if bool(cells.any()):
            found[name] = table[cells].mean()
    return found


def judge_retrieval(module: nn.Module, data: lightning.LightningDataModule) -> Evaluation:
    """Retrieval among the test part's rows, or of its queries in its gallery: Recall@k, R-precision, MAP@R."""
    loaders = data.test_dataloader()
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    (queries, labels), *others = [embed_loader(module, loader) for loader in loaders]
    gallery, of_gallery = others[0] if others else (None, None)
    return evaluate(queries, labels, gallery, of_gallery, ks=KS).named(DML)


def only_test_loader(data: lightning.LightningDataModule) -> DataLoader:
    """The loader of the test part.

    Raises:
        ValueError: it has queries and a gallery.
    """
    loader = data.test_dataloader()
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"A probe is judged on one test part. Got {len(loader)}, queries and gallery; use MetricLearning's judge."
        )
    return loader


def evaluation_of(values: dict[str, np.ndarray], settings: dict[str, Any]) -> Evaluation:
    """Values a row as an evaluation, which can be saved and compared; names that begin with _ are left out."""
    kept = {name: of_rows for name, of_rows in values.items() if not name.startswith("_")}
    return Evaluation(
        values=kept, queries=np.arange(len(next(iter(kept.values())))), groups=None, num_without_positive=0, num_tied=0,
        settings=settings,
    )  # fmt: skip
