"""Several processes that search one gallery together, each a part of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's number, and how many there are: 0 and 1 without a process group."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def process_group() -> Iterator[None]:
    """The processes that torchrun started, joined over gloo; a group that is there already is used and left."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or place()[1] > 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


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
