"""What the training modules share: groups of parameters, warm-up and cosine, and the first epochs of a head alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from mixcontrast.training.sharding import is_share

OptimizerCallable = Callable[[Iterable], Optimizer]

WARMUP_FROM = 0.01  # the share of the learning rate at the first step of the warm-up


def adamw(parameters: Iterable) -> Optimizer:
    """AdamW with what suits a head on frozen features."""
    return torch.optim.AdamW(parameters, lr=3e-4, weight_decay=1e-4)


def optimizer_of(
    trained: Iterable[nn.Module], proxies: Iterable[nn.Parameter], make: OptimizerCallable, proxy_factor: float
) -> Optimizer:
    """An optimizer of three groups: weights; biases and norms, which do not decay; proxies at their own rate.

    Where parameters are shards, what is whole of the second is a group of its own, as torch steps groups at once.

    Args:
        trained: the networks.
        proxies: parameters of the criterion.
        make: parameter groups to an optimizer.
        proxy_factor: the proxies' learning rate, in those of the networks.
    """
    parameters = [p for part in trained for p in part.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        *({"params": alike, "weight_decay": 0.0} for alike in _alike([p for p in parameters if p.ndim <= 1])),
        {"params": list(proxies)},
    ]
    optimizer = make([group for group in groups if group["params"]])
    if groups[-1]["params"]:
        optimizer.param_groups[-1]["lr"] *= proxy_factor
    return optimizer


def _alike(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Shards, and what is whole."""
    return [[p for p in parameters if is_share(p)], [p for p in parameters if not is_share(p)]]


def with_schedule(
    module: lightning.LightningModule, optimizer: Optimizer, *, warmup_epochs: float, cosine: bool
) -> dict[str, Any]:
    """What `configure_optimizers` returns: the rate rises linearly, then stays or falls to zero by a cosine, by steps.

    Raises:
        ValueError: a cosine without an end, or a warm-up as long as the run.
    """
    if not warmup_epochs and not cosine:
        return {"optimizer": optimizer}
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError(
            "A cosine or a warm-up needs a run with an end. Got neither max_epochs nor max_steps; set "
            "trainer.max_epochs, or cosine: false and warmup_epochs: 0."
        )
    if module.trainer.max_epochs and module.trainer.max_epochs > 0:
        warmup = round(warmup_epochs * steps / module.trainer.max_epochs)
    elif warmup_epochs:
        module.trainer.fit_loop.setup_data()  # else there is no number of batches yet
        batches = module.trainer.num_training_batches / module.trainer.accumulate_grad_batches
        warmup = round(min(warmup_epochs * batches, steps))
    else:
        warmup = 0
    if warmup >= steps and warmup_epochs:
        raise ValueError(
            f"A warm-up must be shorter than the run. Got {warmup_epochs:g} epochs, {warmup} of {steps:.0f} steps; "
            "take fewer warmup_epochs."
        )
    parts: list[LRScheduler] = []
    if warmup:
        parts.append(LinearLR(optimizer, WARMUP_FROM, 1.0, warmup))
    if cosine:
        parts.append(CosineAnnealingLR(optimizer, max(int(steps) - warmup, 1)))
    schedule = parts[0] if len(parts) == 1 else SequentialLR(optimizer, parts, [warmup])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_head(encoder: nn.Module, head_only_epochs: int, *others: nn.Module) -> None:
    """One line where the head alone is to be trained first and there is none.

    Args:
        encoder: with a part `head`, or without.
        head_only_epochs: for so many epochs.
        others: parts behind the encoder that are trained with its head.

    Raises:
        ValueError: so it is, or a number below 0.
    """
    trained = [p for part in (*_head(encoder), *others) for p in part.parameters()]
    if head_only_epochs < 0:
        raise ValueError(f"`head_only_epochs` must be at least 0. Got {head_only_epochs}; 0 trains all from the start.")
    if head_only_epochs and not trained:
        raise ValueError(
            f"`head_only_epochs` needs an encoder whose part `head` has weights. Got {type(encoder).__name__} with "
            f"{', '.join(name for name, _ in encoder.named_children()) or 'no parts'}; give it an embedding_dim, or "
            "set head_only_epochs: 0."
        )


def _head(encoder: nn.Module) -> list[nn.Module]:
    """The part `head` of an encoder, where it has one."""
    return [part for name, part in encoder.named_children() if name == "head"]


@contextmanager
def resting(encoder: nn.Module, rests: bool) -> Iterator[None]:
    """While the head alone is trained, the rest of the encoder is passed with batch norm in eval mode.

    Its statistics stay, so that what is trained next begins from the network as it was given.
    """
    head = {part for found in _head(encoder) for part in found.modules()}
    norms = [part for part in encoder.modules() if isinstance(part, _BatchNorm) and part.training and part not in head]
    norms = norms if rests else []
    for part in norms:
        part.eval()
    try:
        yield
    finally:
        for part in norms:
            part.train()


def drop_gradients_but_of_head(encoder: nn.Module) -> None:
    """What has no gradient is not stepped nor decayed.

    Gradients are dropped, rather than never made, as DistributedDataParallel must be told once and for all which
    parameters get one.
    """
    mine = {id(p) for part in _head(encoder) for p in part.parameters()}
    for parameter in encoder.parameters():
        if id(parameter) not in mine:
            parameter.grad = None
