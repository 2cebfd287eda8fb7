"""Several processes that search one gallery together, each a part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's number, and how many there are: 0 and 1 without a process group."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


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
