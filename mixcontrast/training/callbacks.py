"""Retrieval judged while Lightning trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from mixcontrast.retrieval import Evaluation, RetrievalEvaluator
from mixcontrast.training.sharding import is_sharded


def first_two(batch: Any) -> tuple[Any, Tensor]:
    """The inputs and labels of a batch that begins with them."""
    return batch[0], batch[1]


class Bar(RichProgressBar):
    """Lightning's bar on one line: loss, similarity of positives and negatives, and what the judge found."""

    def configure_columns(self, trainer) -> list[ProgressColumn]:
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
        ]

    def get_metrics(self, trainer, module) -> dict[str, Any]:
        found = super().get_metrics(trainer, module)
        found.pop("v_num", None)
        short = {"positives": "pos", "negatives": "neg", "val/R@1": "R@1"}
        return {short.get(name, name): value for name, value in found.items()}


def embed_loader(
    module: nn.Module,
    loader: DataLoader,
    split: Callable[[Any], tuple[Any, Tensor]] = first_two,
    encode: Callable[[Any], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(N, D) embeddings and (N, ...) labels of a loader, on the CPU, in one process; the module keeps its modes.

    `encode` is the part of the module that embeds, where it is not the module itself.
    """
    embeddings, labels = [], []
    device = next(module.parameters()).device
    with isolate_rng(), judging(module):
        for batch in loader:
            inputs, of_batch = split(batch)
            embeddings.append((encode or module)(as_wide(inputs.to(device), module)).float().cpu())
            labels.append(of_batch)
    return torch.cat(embeddings), torch.cat(labels)


def as_wide(inputs: Any, module: nn.Module) -> Any:
    """Inputs that are floats as wide as the module's parameters, which `precision: bf16-true` has made narrow."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return inputs
    kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
    return inputs.to(next(kinds, inputs.dtype))


def embed_shared(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    loader: DataLoader,
    split: Callable[[Any], tuple[Any, Tensor]] = first_two,
    encode: Callable[[Any], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same among all of a trainer's processes, each its share; all get all rows, each once, in order."""
    loader = shared(loader, trainer.global_rank, trainer.world_size)
    embeddings, labels = [], []
    with isolate_rng(), judging(module), trainer.precision_plugin.forward_context():
        for batch in loader:
            inputs, of_batch = split(trainer.strategy.batch_to_device(batch, module.device))
            embeddings.append((encode or module)(as_wide(inputs, module)).float())
            labels.append(of_batch)
    mine = torch.cat(embeddings), torch.cat(labels)
    if trainer.world_size > 1:
        num_rows = len(_distributed_sampler(loader).dataset)
        mine = tuple(trainer.strategy.all_gather(part).transpose(0, 1).flatten(0, 1)[:num_rows] for part in mine)
    return mine[0].cpu(), mine[1].cpu()


class RetrievalCallback(lightning.Callback):
    """Embeds a loader with the module as it is, judges it at retrieval, and logs the metrics as `val/Recall@1`.

    It runs after the validation loop, or at the end of the training epoch where there is none, before `ModelCheckpoint`
    and `EarlyStopping` read what they monitor. The module is called in eval mode, without gradient, under the trainer's
    precision; modes and random state are put back, so that looking changes no training. The whole loader is read,
    whatever `limit_val_batches` says, as a part of a gallery is another, easier task; not in the sanity check, nor
    under `fast_dev_run`.

    Under several processes each embeds its share, the first judges, and all log the same numbers. Rows that a
    `DistributedSampler` repeats to fill up are counted once.

    Args:
        evaluator: what judges; its `last` holds the last evaluation, on rank 0.
        queries: a loader of batches; None: the trainer's one validation loader.
        gallery: a loader of what is searched; None: the queries, each without itself.
        every_n_epochs: judges in epochs n, 2 n, and so on.
        prefix: of the logged names; two callbacks in one trainer need two.
        split: a batch to (inputs, (B,) integer labels).

    Attributes:
        history: a row for each time: "epoch" (from 1), "step" and the metrics. It is in the checkpoint, so a resumed
            run continues it.
        embeddings: (N, D) what was judged last.
        judged_in: the epoch of that, from 0.

    Raises:
        ValueError: `every_n_epochs` below 1; when it runs, no or several validation loaders and no `queries`, a loader
            that processes cannot share, and as `evaluate`.

    `ModelCheckpoint(monitor="val/Recall@1", mode="max")` keeps the best. With `every_n_epochs` of n give it the same:
    before the first time there is nothing to monitor.
    """

    def __init__(
        self,
        evaluator: RetrievalEvaluator,
        *,
        queries: DataLoader | None = None,
        gallery: DataLoader | None = None,
        every_n_epochs: int = 1,
        prefix: str = "val/",
        split: Callable[[Any], tuple[Any, Tensor]] = first_two,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` must be at least 1. Got {every_n_epochs}; 1 judges every epoch.")
        self.evaluator, self.queries, self.gallery = evaluator, queries, gallery
        self.every_n_epochs, self.prefix, self.split = every_n_epochs, prefix, split
        self.history: list[dict[str, float]] = []
        self.embeddings: Tensor | None = None
        self.judged_in: int | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        return {"history": [dict(row) for row in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(row) for row in state_dict["history"]]

    def on_validation_epoch_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self._judge(trainer, module)

    def on_train_epoch_end(self, trainer, module) -> None:
        if sum(trainer.num_val_batches) == 0:
            self._judge(trainer, module)

    def _judge(self, trainer, module) -> None:
        fitting = trainer.state.fn == "fit"
        if trainer.fast_dev_run or (fitting and (trainer.current_epoch + 1) % self.every_n_epochs):
            return
        queries = self.queries if self.queries is not None else _only_loader(trainer.val_dataloaders)
        loaders = [loader for loader in (queries, self.gallery) if loader is not None]
        tables = [embed_shared(trainer, module, loader, self.split) for loader in loaders]
        self.embeddings, self.judged_in = tables[0][0], trainer.current_epoch
        found: dict[str, float] | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = self.evaluator(*(tensor for table in tables for tensor in table))
            except (ValueError, TypeError) as error:  # told to all: the others would wait for ever
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        for place, (name, value) in enumerate(found.items()):
            module.log(self.prefix + name, value, prog_bar=place == 0, batch_size=1, sync_dist=True)
        if fitting:
            self.history.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **found})


class LooksAtTest(lightning.Callback):
    """Judges the test part as the end of the run does, and logs the means as `test/Recall@1`: to watch, not to choose.

    For runs without a validation part, as of a published protocol, which would show nothing until they end. No
    checkpoint is chosen by it. The first process judges, the others wait, or under shards do so too. Looking changes no
    training.

    Args:
        judge: what the module as it is reaches on the test part: FitModule's `judge_test` of the data.
        every_n_epochs: judges in epochs n, 2 n, and so on.

    Raises:
        ValueError: as `judge`.
    """

    def __init__(self, judge: Callable[[], Evaluation], every_n_epochs: int) -> None:
        self.judge, self.every_n_epochs = judge, every_n_epochs

    def on_train_epoch_end(self, trainer, module) -> None:
        if trainer.fast_dev_run or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        found: dict[str, float] | Exception | None = None
        if trainer.is_global_zero or is_sharded(trainer):
            try:
                judged = self.judge()
                found = {name: judged.mean(name) for name in judged.values}
            except (ValueError, TypeError) as error:  # told to all: the others would wait for ever
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        for place, (name, value) in enumerate(found.items()):
            module.log(f"test/{name}", value, prog_bar=place == 0, batch_size=1, sync_dist=True)


@contextmanager
def judging(module: nn.Module) -> Iterator[None]:
    """In eval mode and without gradient; then each part is back in the mode that it was in, frozen ones too."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def shared(loader: DataLoader, rank: int, world_size: int) -> DataLoader:
    """The loader of one rank's rows: rank, rank + world_size, and so on, filled up to as many on every rank.

    Raises:
        ValueError: its order is its own, so that the ranks' rows cannot be told.
    """
    if world_size == 1 or _distributed_sampler(loader) is not None:
        return loader
    if not isinstance(loader.sampler, SequentialSampler) or loader.batch_size is None:
        raise ValueError(
            "Under several processes a loader needs a DistributedSampler, or rows in their order. "
            f"Got {type(loader.sampler).__name__}, batch_size {loader.batch_size}; pass "
            "sampler=DistributedSampler(dataset, shuffle=False)."
        )
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=DistributedSampler(loader.dataset, world_size, rank, shuffle=False),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


def _distributed_sampler(loader: DataLoader) -> DistributedSampler | None:
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if isinstance(sampler, DistributedSampler):
            return sampler
    return None


def _only_loader(loaders: Any) -> DataLoader:
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        (loaders,) = loaders
    if not isinstance(loaders, DataLoader):
        seen = "none" if loaders is None else f"{type(loaders).__name__} of {len(loaders)}"
        raise ValueError(
            f"Retrieval is judged on one validation loader. Got {seen}; pass queries=DataLoader(...) to the callback."
        )
    return loaders
