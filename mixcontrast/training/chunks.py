"""A batch through a network in chunks, of whose activations those of one chunk live at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@torch.compiler.disable(recursive=False)  # a graph has no context_fn; `embed` is compiled
def in_chunks(embed: Callable[[Tensor], Tensor], inputs: Tensor, chunk_size: int | None, network: nn.Module) -> Tensor:
    """`embed(inputs)`, by chunks that are computed again, one after the other, when their gradient is known.

    It is GradCache as a part of autograd's graph: whatever is done with the embeddings, `backward()` gives the
    gradients of the whole batch. Both passes of a chunk draw the same random numbers and have the same autocast; the
    second leaves buffers (running statistics) as the first did, but begins with those behind the last chunk: a layer
    that in training computes with what it changes there (spectral_norm) has other gradients.

    Args:
        embed: (B, ...) to (B, D), each row by itself.
        inputs: (N, ...).
        chunk_size: rows of a chunk at most, in chunks as equal as can be; None: all at once.
        network: whose buffers `embed` may change.

    Returns:
        (N, D).

    Cost: a second forward pass, where there is more than one chunk and a gradient.

    Source: Gao et al., RepL4NLP 2021, arXiv 2101.06983.
    """
    if chunk_size is None or len(inputs) <= chunk_size:
        return embed(inputs)
    chunks = inputs.tensor_split(-(-len(inputs) // chunk_size))
    if not torch.is_grad_enabled():
        return torch.cat([embed(chunk) for chunk in chunks])
    passes = lambda: (nullcontext(), _KeptBuffers(network))  # noqa: E731
    return torch.cat([checkpoint(embed, chunk, use_reentrant=False, context_fn=passes) for chunk in chunks])


class _KeptBuffers:
    """What is done to buffers while it is entered is undone; entered again by a second backward pass."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __enter__(self) -> None:
        self._before = [(buffer, buffer.clone()) for buffer in self._network.buffers()]

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for buffer, kept in self._before:
            buffer.copy_(kept)
        del self._before


def check_chunk_size(chunk_size: int | None) -> None:
    """One line where a chunk has no rows.

    Raises:
        ValueError: so it is.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, or None for all at once. Got {chunk_size}.")


def warn_of_batch_norm(network: nn.Module, chunk_size: int) -> None:
    """One line where batch norm in training makes what is trained depend on the size of a chunk."""
    found = [name for name, part in network.named_modules() if isinstance(part, _BatchNorm) and part.training]
    if found:
        warnings.warn(
            f"Batch norm normalises each chunk by itself, so that `chunk_size` changes what is trained. Got chunk_size "
            f"{chunk_size} and {len(found)} of it in training ({found[0]}); freeze it (frozen_batch_norm: true), or "
            "keep one chunk_size in all runs that are compared.",
            stacklevel=2,
        )
