"""A pass of a network in which mixtures of the batch's examples join behind a layer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class DeepDraw:
    """Which examples are mixed, and in which share.

    Attributes:
        first: (M,) rows of the batch.
        second: (M,) rows of another class than `first`.
        lam: (M,) share of `first`.
    """

    first: Tensor
    second: Tensor
    lam: Tensor


class Joined:
    """One pass of an encoder in which mixtures join the batch after a layer, by forward hooks.

    Args:
        layer: after which they join; None: they have joined the inputs.
        rows: B, how many examples go in.
        draw: what is mixed.
    """

    def __init__(self, layer: str | None, rows: int, draw: DeepDraw) -> None:
        self.layer, self.rows, self.draw = layer, rows, draw
        self.active = layer is None
        self.calls = 0
        self.waiting: list[Tensor] = []

    @contextmanager
    def hooks(self, encoder: nn.Module) -> Iterator[None]:
        modules = dict(encoder.named_modules())
        if self.layer is not None and self.layer not in modules:
            near = difflib.get_close_matches(self.layer, modules, n=3, cutoff=0.5)
            near = near or [name for name, _ in encoder.named_children()][:8]
            raise ValueError(
                f"`layer` must name a module of the encoder. Got {self.layer!r}; "
                f"it has {', '.join(map(repr, near))} (all: encoder.named_modules())."
            )
        handles = []
        try:
            for module in modules.values():
                if isinstance(module, _BatchNorm):
                    handles.append(module.register_forward_pre_hook(self._before_norm))
                    handles.append(module.register_forward_hook(self._after_norm))
            if self.layer is not None:
                handles.append(modules[self.layer].register_forward_hook(self._after_layer))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def join(self, features: Tensor) -> Tensor:
        """(B + M, ...): the features of the examples, then of the mixtures."""
        first, second = features[self.draw.first], features[self.draw.second]
        lam = self.draw.lam.to(features.dtype).view(-1, *[1] * (features.ndim - 1))
        return torch.cat([features, torch.lerp(second, first, lam)])

    def check_used(self) -> None:
        """One line where the layer was never called."""
        if self.layer is not None and self.calls == 0:
            raise ValueError(
                f"`layer` must be used in the encoder's pass. Got {self.layer!r}, which was not called; "
                "choose another layer (a compiled encoder calls no hooks: give the one before torch.compile)."
            )

    def cannot_go_on(self, seen: str) -> str:
        """One line for an encoder that does not take further rows."""
        more = self.rows + len(self.draw.first)
        where = "its inputs" if self.layer is None else f"the output of {self.layer!r}"
        return (
            f"The encoder must take as many rows as it is given: {self.rows} examples and their mixtures, {more}, at "
            f"{where}. Got {seen}; mix at the end of a whole block, not inside a residual connection."
        )

    def _after_layer(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ValueError(
                f"`layer` must be used once in a pass. Got {self.layer!r}, which is called again; "
                "choose a module that is not shared."
            )
        if not isinstance(output, Tensor) or not output.is_floating_point():
            seen = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise TypeError(
                f"The output of `layer` must be one tensor of floats. Got {seen} from {self.layer!r}; "
                "choose a layer inside it or after it that gives a tensor."
            )
        if output.ndim < 2 or len(output) != self.rows:
            raise ValueError(
                f"The output of `layer` must have a row for each of {self.rows} examples. "
                f"Got {tuple(output.shape)} from {self.layer!r}; choose a layer whose first axis is the batch."
            )
        self.active = True
        return self.join(output)

    def _before_norm(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not self.active or not (module.training or module.running_mean is None):
            return None
        (both,) = inputs
        real = len(both) * self.rows // (self.rows + len(self.draw.first))  # tokens may have become rows
        self.waiting.append(both[real:])
        return (both[:real],)

    def _after_norm(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not self.waiting:
            return None
        return torch.cat([output, _without_tracking(module, self.waiting.pop())])


def _without_tracking(module: nn.Module, features: Tensor) -> Tensor:
    """Batch norm by the features' own statistics, the running ones left as they are."""
    momentum, counter = module.momentum, module.num_batches_tracked
    count = None if counter is None else counter.clone()
    module.momentum = 0.0
    try:
        return module.forward(features)
    finally:
        module.momentum = momentum
        if counter is not None:
            counter.copy_(count)
