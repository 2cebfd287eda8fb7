"""A training step on a pretended GPU: which of its operations a host would have to wait for.

Tensors are torch's fake ones: they have shapes, types and a device, and no numbers. Reading one raises, so a step that
goes through reads none; what moves numbers between devices, and what a GPU does by asking how many there are, is found
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
_BY_INDEX = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


def can_pretend() -> bool:
    """Whether this torch knows the shape of every random number that is drawn (2.11 does not of gammas)."""
    try:
        with FakeTensorMode():
            torch._standard_gamma(torch.ones(2))
    except NotImplementedError:
        return False
    return True


class Waits(TorchDispatchMode):
    """Raises where an operation makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "cpu":
            return 0  # the host's own numbers (a seed) are read for free
        try:
            out = func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise AssertionError(f"{func} reads a value of the device") from error
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        kinds = {x.device.type for x in [*tensors, *(x for x in tree_leaves(out) if isinstance(x, Tensor))]}
        if func.overloadpacket in _COPIES and len(kinds) > 1:
            raise AssertionError(f"{func} copies between {' and '.join(sorted(kinds))}")
        if func.overloadpacket in _BY_INDEX and (
            len(kinds) > 1 or any(x.dtype == torch.bool for x in tensors[1:])
        ):
            raise AssertionError(f"{func} takes an index of another device, or a mask whose cells are counted")
        return out


def backward(*outputs: Tensor, of: Sequence[Tensor | None] | None = None) -> dict[Tensor, Tensor]:
    """The gradients of the leaves of a loss. Torch's own engine asks for a real device, so the graph is walked here.

    Args:
        outputs: a loss, or what a gradient `of` each is given.
    """
    order, seen, stack = [], set(), [(output.grad_fn, False) for output in outputs]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(after, False) for after, _ in node.next_functions if after is not None]
    waiting: dict[Any, dict[int, Tensor]] = {}
    leaves = {}
    with torch.no_grad():
        for output, gradient in zip(outputs, of or [torch.ones_like(output) for output in outputs], strict=True):
            waiting.setdefault(output.grad_fn, {})[output.output_nr] = gradient
        for node in reversed(order):
            given = waiting.pop(node, {})
            if hasattr(node, "variable"):
                leaves[node.variable] = given[0]
                continue
            targets = node.next_functions
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                gradients = [given.get(place, _zeros(of)) for place, of in enumerate(node._input_metadata)]
                found = _tuple(node.apply(*gradients))
                found = [g for g, needed in zip(found, node.needs_input_grad, strict=True) if needed]
                targets = [target for target in targets if target[0] is not None]
            else:
                found = _tuple(node(*(given.get(place) for place in range(len(node._input_metadata)))))
            for (after, place), gradient in zip(targets, found, strict=True):
                if after is not None and gradient is not None:
                    gradient = gradient.sum_to_size(after._input_metadata[place].shape)  # of what was broadcast
                    sums = waiting.setdefault(after, {})
                    sums[place] = sums[place] + gradient if place in sums else gradient
    return leaves


def _zeros(of: Any) -> Tensor:
    return torch.zeros(of.shape, dtype=of.dtype, device=of.device)


def _tuple(found: Any) -> tuple:
    return found if isinstance(found, tuple) else (found,)


class PretendedGPU:
    """Where fake tensors live: `to` moves tensors and modules, `step` runs and refuses to wait."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def _tensor(self, tensor: Tensor) -> FakeTensor:
        with self.mode:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            return made.requires_grad_(tensor.requires_grad)

    def to(self, inputs: Any) -> Any:
        """Inputs with every tensor that has a dimension moved, and numbers too."""
        return tree_map(lambda x: self._tensor(x) if isinstance(x, Tensor) else x, inputs)

    def moved(self, module: nn.Module) -> nn.Module:
        """The module, its parameters and buffers moved in place."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    with self.mode:
                        part._parameters[name] = nn.Parameter(self._tensor(parameter))
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self._tensor(buffer)
        return module

    def step(self, criterion: Callable[..., Tensor], *inputs: Any) -> dict[Tensor, Tensor]:
        """Forward and backward pass, and those inside them; the gradients of the leaves."""
        with self.mode, Waits(), patch("torch.autograd.grad", _grad):
            return backward(criterion(*inputs))


def _grad(outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], grads=None, **_: bool) -> tuple:
    found = backward(*([outputs] if isinstance(outputs, Tensor) else outputs), of=grads)
    return tuple(found.get(leaf) for leaf in inputs)
