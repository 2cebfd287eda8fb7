"""The paper's own measure of each method, logged while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from types import UnionType
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mixcontrast.analysis import (
    alignment,
    modality_gap,
    proxy_task_accuracy,
    rank_correlation,
    uniformity,
    utilization,
)
from mixcontrast.distributed import whole_batch
from mixcontrast.losses import Loss
from mixcontrast.mixers import DeepMetrix, Metrix, Mixer, MoCHi, SynCo
from mixcontrast.mixers.base import innermost
from mixcontrast.similarity import unit
from mixcontrast.tiling import Tiled
from mixcontrast.training.callbacks import RetrievalCallback, embed_shared, judging
from mixcontrast.training.fitting import LOOKED_AT, VALUES, VIEWS, FitModule, at_a_log_step, called_with, untiled

TRAINING_ROWS = 2048  # of the training part, drawn once, that utilization is measured against


class Measures(lightning.Callback):
    """Looks at what the criterion is called with and logs, by its kind, at the steps that are logged:

    - two views: proxy-task accuracy (how many queries find their key before every negative), alignment and uniformity;
    - values: the rank correlation of similarity with nearness of values;
    - two towers: the modality gap, alignment of images with their texts, and uniformity, the mean of both towers';
    - MoCHi and SynCo, whatever they are called with: proxy-task accuracy without and with the mixed negatives;
    - Metrix, each time that retrieval is judged: utilization, the squared distance of validation embeddings to the
      nearest of 2,048 training embeddings, and to the nearest of these and of as many mixtures of them.

    Of a batch larger than 2,048 these are of its first 2,048 examples. Under several processes they are of the batch of
    all. Looking changes no training: random state and queue stay as they are.

    Args:
        judge: whose validation embeddings utilization is measured on; None: it is not measured.
    """

    def __init__(self, judge: RetrievalCallback | None) -> None:
        self.judge = judge
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def on_train_start(self, trainer, module: FitModule) -> None:
        if isinstance(untiled(module.criterion), Loss | Mixer):
            self._handles = [
                called.register_forward_pre_hook(lambda called, inputs: self._look(trainer, module, inputs))
                for called in module._of_all_ranks
            ]

    def on_train_end(self, trainer, module) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, trainer, module: FitModule, inputs: tuple[Any, ...]) -> None:
        if not module.criterion.training or not at_a_log_step(trainer):
            return
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in whole_batch(inputs))
        if not trainer.is_global_zero:
            return
        inputs = tuple(x[:LOOKED_AT] if isinstance(x, Tensor) and x.ndim else x for x in inputs)
        with isolate_rng():
            module.log_dict(measures_of(module.criterion, inputs))

    def on_train_epoch_end(self, trainer, module: FitModule) -> None:
        mixes = isinstance(module.criterion, DeepMetrix) or find(module.criterion, Metrix) is not None
        if not mixes or self.judge is None or self.judge.judged_in != trainer.current_epoch:
            return
        loader = trainer.datamodule.probe_dataloader()
        some = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[:TRAINING_ROWS]
        part = DataLoader(Subset(loader.dataset, some.tolist()), loader.batch_size, num_workers=loader.num_workers)
        rows, labels = embed_shared(trainer, module, part)
        rows, queries = unit(rows), unit(self.judge.embeddings)
        generator = torch.Generator().manual_seed(0)
        other = torch.randperm(len(rows), generator=generator)
        share = torch.rand(len(rows), 1, generator=generator)
        mixed = unit(share * rows + (1 - share) * rows[other])[labels != labels[other]]
        every = {"utilization": rows, "utilization mixed": torch.cat([rows, mixed])}
        module.log_dict({name: float(utilization(queries, of)) for name, of in every.items()}, sync_dist=True)


@torch.no_grad()
def measures_of(criterion: Loss | Mixer | Tiled, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The measures of one batch; the criterion's queue and counters stay as they are.

    What a batch does not tell (the order of values that are all equal) is left out.

    Args:
        criterion: as it is about to be called.
        inputs: what it is called with.
    """
    criterion = untiled(criterion)
    first, second = inputs[:2]
    kind = called_with(criterion)
    mixer = find(criterion, MoCHi | SynCo)
    wanted: dict[str, Callable[[], Tensor]] = {}
    if kind == VALUES:
        wanted["rank correlation"] = lambda: rank_correlation(first, second)
    elif kind == VIEWS:
        wanted["alignment"] = lambda: alignment(first, second)
        wanted["uniformity"] = lambda: uniformity(first)
    elif innermost(criterion).towers:
        wanted["modality gap"] = lambda: modality_gap(first, second)
        wanted["alignment"] = lambda: alignment(first, second)
        wanted["uniformity"] = lambda: (uniformity(first) + uniformity(second)) / 2
    if kind == VIEWS or mixer is not None:
        with judging(criterion):  # keys do not join the queue, steps are not counted
            tables = criterion.tables(*inputs)
        wanted["proxy task"] = lambda: _mean(proxy_task_accuracy(pairs) for pairs in tables)
        if mixer is not None and mixer.step >= mixer.warmup_steps:
            wanted["proxy task mixed"] = lambda: _mean(
                proxy_task_accuracy(mixer.mix(pairs, mixer.draw(pairs))) for pairs in tables
            )
    found: dict[str, Tensor] = {}
    for name, measure in wanted.items():
        with suppress(ValueError):
            found[name] = measure()
    return found


def _mean(numbers: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).mean()


def find(criterion: nn.Module, kind: type[Mixer] | UnionType) -> Mixer | None:
    """The mixer of a kind in a stack, outermost first."""
    criterion = untiled(criterion)
    while isinstance(criterion, Mixer):
        if isinstance(criterion, kind):
            return criterion
        criterion = criterion.loss
    return None
