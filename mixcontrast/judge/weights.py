"""Weights between two checkpoints of one architecture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`(1 - alpha) * first + alpha * second` of two state dicts of one architecture.

    Products and sums are in float32 (in float64 where a tensor is) and the result has the wider of both types. Integers
    (counters, position ids) cannot lie between and are those of `second`; running statistics of batch norm are
    interpolated like any other weight. At 0 and 1 the result is one of the two, to the last bit.

    Args:
        first: say, the zero-shot model's.
        second: say, the fine-tuned one's.
        alpha: in [0, 1].

    Raises:
        ValueError: `alpha` outside [0, 1]; keys or shapes that differ; NaN or infinity.

    Source: Wortsman et al., CVPR 2022, arXiv 2109.01903 (WiSE-FT), equation 1.

    >>> interpolate({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, 0.25)
    {'w': tensor([1.5000])}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in [0, 1], 0 the first and 1 the second. Got {alpha:g}.")
    check_alike(first, second)
    return {name: _between(name, first[name], second[name], alpha) for name in first}


def integer_names(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that cannot lie between two."""
    return [name for name, value in state.items() if not value.is_floating_point()]


def check_alike(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: tuple[str, str] = ("the first", "the second")
) -> None:
    """One line where two state dicts are of different architectures.

    Args:
        first: a state dict.
        second: another.
        names: what they are called, such as their files.

    Raises:
        ValueError: keys or shapes that differ; the first three of each are named.
    """
    lacks = [sorted(set(one) - set(other)) for one, other in ((second, first), (first, second))]
    if any(lacks):
        told = [
            f"{name} lacks {len(keys)} tensors of the other ({_some(keys)})"
            for name, keys in zip(names, lacks, strict=True)
            if keys
        ]
        raise ValueError(
            f"Weights between two checkpoints need one architecture. Got other tensors: {'; '.join(told)}; take two of "
            "one model."
        )
    other = [name for name in first if first[name].shape != second[name].shape]
    if other:
        told = [f"{name} {tuple(first[name].shape)} and {tuple(second[name].shape)}" for name in other]
        raise ValueError(
            "Weights between two checkpoints need one architecture. "
            f"Got other shapes of {len(other)} tensors in {names[0]} and {names[1]}: {_some(told)}; take two of one "
            "model."
        )


def _between(name: str, first: Tensor, second: Tensor, alpha: float) -> Tensor:
    if not first.is_floating_point() or not second.is_floating_point():
        return second.clone()
    wider = torch.promote_types(first.dtype, second.dtype)
    exact = torch.promote_types(wider, torch.float32)
    one, two = first.to(exact), second.to(exact)
    if not bool(torch.isfinite(one).all() and torch.isfinite(two).all()):
        raise ValueError(f"Weights must be finite. Got NaN or infinity in {name}; take another checkpoint.")
    return ((1 - alpha) * one + alpha * two).to(wider)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
