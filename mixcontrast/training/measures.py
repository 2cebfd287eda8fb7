"""The paper's own measure of each method, logged while it trains."""

from __future__ import annotations

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
from mixcontrast.losses import Loss
from mixcontrast.mixers import DeepMetrix, Metrix, Mixer, MoCHi
from mixcontrast.mixers.base import innermost
from mixcontrast.similarity import unit
from mixcontrast.training.callbacks import RetrievalCallback, embed_shared
from mixcontrast.training.fitting import VALUES, VIEWS, FitModule, at_a_log_step, called_with

TRAINING_ROWS = 2048  # of the training part, drawn once, that utilization is measured against


class Measures(lightning.Callback):
    """Looks at what the criterion is called with and logs, by its kind, at the steps that are logged:

    - two views: proxy-task accuracy (how many queries find their key before every negative; with MoCHi also with the
      mixed ones), alignment and uniformity;
    - values: the rank correlation of similarity with nearness of values;
    - two towers: the modality gap;
    - Metrix, each time that retrieval is judged: utilization, the squared distance of validation embeddings to the
      nearest of 2,048 training embeddings, and to the nearest of these and of as many mixtures of them.

    Looking changes no training: random state and queue stay as they are.

    Args:
        judge: whose validation embeddings utilization is measured on; None: it is not measured.
    """

    def __init__(self, judge: RetrievalCallback | None) -> None:
        self.judge = judge
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def on_train_start(self, trainer, module: FitModule) -> None:
        if isinstance(module.criterion, Loss | Mixer):
            self._handle = module.criterion.register_forward_pre_hook(
                lambda criterion, inputs: self._look(trainer, module, criterion, inputs)
            )

    def on_train_end(self, trainer, module) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _look(self, trainer, module, criterion: Loss | Mixer, inputs: tuple[Tensor, ...]) -> None:
        if not criterion.training:
            return
        if not at_a_log_step(trainer):
            return
        with torch.no_grad(), isolate_rng():
            found = measures_of(criterion, tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs))
        module.log_dict(found)

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
        module.log("utilization", utilization(queries, rows))
        module.log("utilization mixed", utilization(queries, torch.cat([rows, mixed])))


@torch.no_grad()
def measures_of(criterion: Loss | Mixer, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The measures of one batch; the criterion's queue and counters stay as they are.

    Args:
        criterion: as it is about to be called.
        inputs: what it is called with.
    """
    first, second = inputs[:2]
    kind = called_with(criterion)
    found: dict[str, Tensor] = {}
    if kind == VALUES:
        found["rank correlation"] = rank_correlation(first, second)
    elif kind == VIEWS:
        found["alignment"] = alignment(unit(first), unit(second))
        found["uniformity"] = uniformity(unit(first))
        training = criterion.training
        criterion.eval()  # keys do not join the queue, steps are not counted
        (pairs,) = criterion.tables(*inputs)
        found["proxy task"] = proxy_task_accuracy(pairs)
        mochi = find(criterion, MoCHi)
        if mochi is not None and mochi.step >= mochi.warmup_steps:
            found["proxy task mixed"] = proxy_task_accuracy(mochi.mix(pairs, mochi.draw(pairs)))
        criterion.train(training)
    elif innermost(criterion).towers:
        found["modality gap"] = modality_gap(first, second)
    return found


def find(criterion: nn.Module, kind: type[Mixer]) -> Mixer | None:
    """The mixer of a kind in a stack, outermost first."""
    while isinstance(criterion, Mixer):
        if isinstance(criterion, kind):
            return criterion
        criterion = criterion.loss
    return None
