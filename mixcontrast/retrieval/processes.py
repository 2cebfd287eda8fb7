"""Several processes that search one gallery together, each a part of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


@contextmanager
def shared_search() -> Iterator[None]:
    """Within it, every process of the group makes the same calls of retrieval, and each searches a part of the gallery.

    It is asked for, as in training often one process alone judges, and would wait for the others for ever. Without a
    group, the processes that torchrun started are joined over gloo for as long; of one process it changes nothing.

    >>> with shared_search():
    ...     place()
    (0, 1)
    """
    import torch.distributed as dist

    alone = not (dist.is_available() and dist.is_initialized())
    joins = alone and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if joins:
        dist.init_process_group("gloo")
    asked = _SHARED.set(joins or not alone)
    try:
        yield
    finally:
        _SHARED.reset(asked)
        if joins:
            dist.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's number, and how many share the search: 0 and 1 outside of `shared_search`."""
    if not _SHARED.get():
        return 0, 1
    import torch.distributed as dist

    return dist.get_rank(), dist.get_world_size()


def own_device(device: str) -> str:
    """Of "cuda" under torchrun the GPU that is this process's."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def everyone(work: Callable[[], T]) -> list[T]:
    """What `work` gives in each process, in their order, in all of them.

    Raises:
        Exception: the first that a process raised, in all of them, so that none waits for ever.
    """
    _, count = place()
    if count == 1:
        return [work()]
    import torch.distributed as dist

    error: Exception | None = None
    value: T | None = None
    try:
        value = work()
    except Exception as raised:  # it is raised below, everywhere
        error = raised
    gathered: list[tuple[T | None, Exception | None]] = [(None, None)] * count
    dist.all_gather_object(gathered, (value, error))
    for _, raised in gathered:
        if raised is not None:
            raise raised
    return [value for value, _ in gathered]
