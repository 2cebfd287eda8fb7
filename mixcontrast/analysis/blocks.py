"""Tables that are read block by block, and the checks that measures share."""

from __future__ import annotations

from torch import Tensor

_CELLS = 1 << 22  # of a table that is alive at once: sixteen megabytes of float32


def row_blocks(rows: int, columns: int) -> list[slice]:
    """Slices of rows whose tables of `columns` cells a row stay small: room for a dozen of them."""
    step = max(1, _CELLS // 16 // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def square_blocks(rows: int) -> list[slice]:
    """Slices of rows such that a table of one slice against another stays small."""
    step = int(_CELLS**0.5)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def check_same_width(name1: str, first: Tensor, name2: str, second: Tensor) -> None:
    """One line where two sets of embeddings do not lie in one space."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"`{name1}` and `{name2}` must be equally wide. Got {name1} {tuple(first.shape)}, "
            f"{name2} {tuple(second.shape)}; embed both with the same encoder."
        )


def check_positive(**numbers: float) -> None:
    """One line where a number that must be positive is not."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"`{name}` must be positive. Got {name}={number}; leave it out for the paper's.")
