"""The paper's own measure of each method, logged while it trains."""

from __future__ import annotations

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from mixcontrast.analysis import (
    alignment,
    modality_gap,
    proxy_task_accuracy,
    rank_correlation,
    uniformity,
    utilization,
)
from mixcontrast.losses import Loss
from mixcontrast.mixers import Metrix, Mixer, MoCHi
from mixcontrast.mixers.base import innermost
from mixcontrast.pairs import unit
from mixcontrast.training.callbacks import RetrievalCallback
from mixcontrast.training.fitting import LABELS, VALUES, VIEWS, FitModule, at_a_log_step, called_with

KEPT_ROWS = 4096  # training embeddings that utilization is measured against


class Measures(lightning.Callback):
    """Looks at what the criterion is called with and logs, by its kind, at the steps that are logged:

    - two views: proxy-task accuracy (how many queries find their key before every negative; with MoCHi also with the
      mixed ones), alignment and uniformity;
    - values: the rank correlation of similarity with nearness of values;
    - two towers: the modality gap;
    - Metrix, each time that retrieval is judged: utilization, the squared distance of validation embeddings to the
      nearest training embedding, and to the nearest of these and as many mixtures of them.

    Looking changes no training: random state and queue stay as they are.

    Args:
        judge: whose validation embeddings utilization is measured on; None: it is not measured.
    """

    def __init__(self, judge: RetrievalCallback | None) -> None:
        self.judge = judge
        self._kept: list[tuple[Tensor, Tensor]] = []
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
        kind = called_with(criterion)
        if kind == LABELS and self.judge is not None and find(criterion, Metrix) is not None:
            self._kept.append((inputs[0].detach().float(), inputs[1]))
            while sum(len(rows) for rows, _ in self._kept[1:]) >= KEPT_ROWS:
                del self._kept[0]
        if not at_a_log_step(trainer):
            return
        with torch.no_grad(), isolate_rng():
            found = measures_of(criterion, tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs))
        module.log_dict(found)

    def on_train_epoch_end(self, trainer, module) -> None:
        if self.judge is None or not self._kept or self.judge.judged_in != trainer.current_epoch:
            return
        if not trainer.is_global_zero:
            return
        queries = unit(self.judge.embeddings)
        rows = unit(torch.cat([rows for rows, _ in self._kept])).cpu()
        labels = torch.cat([labels for _, labels in self._kept]).cpu()
        generator = torch.Generator().manual_seed(trainer.current_epoch)
        other = torch.randperm(len(rows), generator=generator)
        share = torch.rand(len(rows), 1, generator=generator)
        mixed = unit(share * rows + (1 - share) * rows[other])[labels != labels[other]]
        module.log("utilization", float(utilization(queries, rows)), rank_zero_only=True)
        module.log("utilization mixed", float(utilization(queries, torch.cat([rows, mixed]))), rank_zero_only=True)


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
