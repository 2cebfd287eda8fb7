"""A large batch through a network with the memory of one chunk: embeddings first, the graph chunk by chunk after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Model = Callable[..., Tensor | Sequence[Tensor]]


def cached_backward(
    models: Model | Sequence[Model],
    chunks: Iterable[Any],
    criterion: Callable[..., Tensor],
    *,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`criterion(model(batch)).backward()` of a batch that comes in chunks, whose activations never live together.

    The chunks are embedded without a graph; the criterion reads all embeddings at once and is differentiated by them;
    then each chunk is embedded again, with a graph and the same random numbers (dropout), and takes its part of the
    gradient. The gradients in `.grad` are those of the whole batch, the criterion's own parameters' too, to rounding. A
    mixer draws once; the criterion may be `Tiled` or `Gathered`.

    Args:
        models: a network, or one a tower, `(image_tower, text_tower)`; for two views of one network, `(encoder,
            encoder)`. Each returns embeddings, (examples of the chunk, D), or several tensors in a tuple; numbers among
            them (0-dimensional, a logit_scale) must be the same in every chunk.
        chunks: of a network, what it takes: a tensor, a tuple of arguments or a dictionary of named ones; of several,
            a tuple with one for each. `images.split(64)`, or `zip(images.split(64), texts.split(64))`.
        criterion: takes the embeddings of all chunks, in the order of models, and returns a loss, 0-dimensional.
        scale: of mixed precision, `scaler.scale`: what is differentiated is `scale(loss)`.

    Returns:
        The loss, detached, not scaled.

    Raises:
        ValueError: no chunks; a chunk without one input a tower; a loss that does not depend on the embeddings.

    DistributedDataParallel exchanges gradients once, with the last chunk. Batch norm in training normalises each chunk
    by itself, so that it is the batch norm of a batch of that size, and the equality is to embedding the chunks one by
    one; its running averages count each chunk once. Random numbers that a network draws from elsewhere than torch's own
    generators are not repeated.

    Cost: a second forward pass.

    Source: Gao et al., RepL4NLP 2021, arXiv 2101.06983.

    >>> from mixcontrast import SupConLoss
    >>> encoder, images, labels = nn.Linear(8, 4), torch.randn(12, 8), torch.arange(12) // 3
    >>> loss = cached_backward(encoder, images.split(4), lambda embeddings: SupConLoss()(embeddings, labels))
    >>> tuple(encoder.weight.grad.shape)
    (4, 8)
    """
    towers = list(models) if isinstance(models, Sequence) else [models]
    inputs = [_one_each(towers, chunk, isinstance(models, Sequence)) for chunk in chunks]
    if not inputs:
        raise ValueError("A batch needs a chunk. Got none; split it, as images.split(64) does.")
    devices = _devices(towers, inputs)
    states, outputs = [], []
    with torch.no_grad():
        for chunk in inputs:
            for tower, given in zip(towers, chunk, strict=True):
                states.append(_random_state(devices))
                outputs.append(_called(tower, given))
    parts = [[outputs[i] for i in range(t, len(outputs), len(towers))] for t in range(len(towers))]  # tower, chunk
    leaves = [[_joined(column) for column in zip(*tower, strict=True)] for tower in parts]
    with torch.enable_grad():
        loss = criterion(*(leaf for tower in leaves for leaf in tower))
        if not loss.requires_grad:
            raise ValueError(
                "The loss must depend on the embeddings. Got one without gradient; "
                "call the criterion on what cached_backward hands it."
            )
        with _no_autocast(devices):
            (loss if scale is None else scale(loss)).backward()
    del outputs
    buffers = [(b, b.clone()) for tower in towers if isinstance(tower, nn.Module) for b in tower.buffers()]
    grads = [[_cut(leaf, [chunk[i] for chunk in parts[t]]) for i, leaf in enumerate(tower)]
             for t, tower in enumerate(leaves)]  # fmt: skip
    del parts
    used = [t for t, tower in enumerate(leaves) if any(leaf.grad is not None for leaf in tower)]
    ends = {id(towers[t]): t for t in used}  # the last pass of a network that is there twice
    for number, chunk in enumerate(inputs):
        for t in used:
            last = number == len(inputs) - 1 and ends[id(towers[t])] == t
            mine = [column[number] for column in grads[t]]
            _again(towers[t], chunk[t], mine, states[number * len(towers) + t], devices, last)
    with torch.no_grad():
        for buffer, after_one_pass in buffers:
            buffer.copy_(after_one_pass)
    return loss.detach()


def _one_each(towers: list[Model], chunk: Any, several: bool) -> tuple:
    """The input of each tower."""
    if not several:
        return (chunk,)
    if not isinstance(chunk, Sequence) or len(chunk) != len(towers):
        got = f"{len(chunk)} inputs" if isinstance(chunk, Sequence) else type(chunk).__name__
        raise ValueError(
            f"A chunk must hold one input for each of {len(towers)} towers. Got {got}; "
            "pass zip(images.split(64), texts.split(64))."
        )
    return tuple(chunk)


def _called(tower: Model, given: Any) -> tuple[Tensor, ...]:
    if isinstance(given, Mapping):
        out = tower(**given)
    elif isinstance(given, tuple | list):
        out = tower(*given)
    else:
        out = tower(given)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _joined(chunks: Sequence[Tensor]) -> Tensor:
    """A leaf of all chunks; a number is that of the first."""
    return (torch.cat(list(chunks)) if chunks[0].ndim else chunks[0].clone()).detach().requires_grad_()


def _cut(leaf: Tensor, chunks: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of each chunk; a number's goes to the last, the others get 0."""
    if leaf.grad is None:
        return [None] * len(chunks)
    if leaf.ndim:
        return list(leaf.grad.split([len(chunk) for chunk in chunks]))
    return [*(torch.zeros_like(leaf) for _ in chunks[1:]), leaf.grad]


def _again(
    tower: Model, given: Any, grads: list[Tensor | None], state: list[Tensor], devices: list[torch.device], last: bool
) -> None:
    """A forward pass with a graph and the random numbers of the first, and its backward pass."""
    frozen = isinstance(tower, nn.Module) and not any(p.requires_grad for p in tower.parameters())
    if frozen and not any(x.requires_grad for x in _tensors(given)):
        return
    with ExitStack() as stack:
        if isinstance(tower, DistributedDataParallel) and not last:
            stack.enter_context(tower.no_sync())
        with torch.random.fork_rng(devices=[device.index for device in devices]), torch.enable_grad():
            torch.set_rng_state(state[0])
            for device, of_device in zip(devices, state[1:], strict=True):
                torch.cuda.set_rng_state(of_device, device)
            outputs = _called(tower, given)
        both = [(x, g) for x, g in zip(outputs, grads, strict=True) if x.requires_grad and g is not None]
        with _no_autocast(devices):
            if both:
                torch.autograd.backward(*map(list, zip(*both, strict=True)))


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, Mapping | tuple | list):
        for part in given.values() if isinstance(given, Mapping) else given:
            yield from _tensors(part)


def _devices(towers: list[Model], inputs: list[tuple]) -> list[torch.device]:
    """The CUDA devices whose random numbers a pass may draw."""
    of_towers = {p.device for tower in towers if isinstance(tower, nn.Module) for p in tower.parameters()}
    every = of_towers | {x.device for x in _tensors(inputs)}
    return sorted((device for device in every if device.type == "cuda"), key=lambda device: device.index)


def _random_state(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@contextmanager
def _no_autocast(devices: list[torch.device]) -> Iterator[None]:
    """A backward pass runs outside of the autocast of its forward pass."""
    with ExitStack() as stack:
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
