"""What retrieval asks of its inputs, each refusal in one line."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

_LONGEST = 9e18  # of a row: its square, and that of a sum of two, is a float32


def as_array(value: Any) -> np.ndarray:
    """A torch tensor (of any device and float width), list or array as a numpy array."""
    detach = getattr(value, "detach", None)
    if detach is not None:
        value = detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return np.asarray(value)


def check_table(name: str, table: Any, normalize: bool, first: int = 0) -> tuple[np.ndarray, float]:
    """(N, D) contiguous float32, divided by its rows' lengths where `normalize` is set; and its longest row's length.

    Args:
        name: in errors.
        table: (N, D) floats.
        normalize: rows to unit length.
        first: what its first row is called.

    Returns:
        The rows, and a length that none exceeds: of unit rows 1, else the longest's with room for rounding.

    Raises:
        ValueError: a shape that does not fit, NaN, rows too long, or of zeros where they must be normalised.
        TypeError: no floats.
    """
    table = as_array(table)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"`{name}` must have shape (rows, dimensions), neither of them 0. Got {table.shape}; give one vector a row."
        )
    if not np.issubdtype(table.dtype, np.floating):
        raise TypeError(f"`{name}` must be floats. Got {table.dtype}; are embeddings and labels swapped?")
    with np.errstate(over="ignore"):
        table = np.ascontiguousarray(table, np.float32)
    with np.errstate(over="ignore", under="ignore"):
        size = np.linalg.norm(table, axis=1) if normalize else np.einsum("nd,nd->n", table, table)
    if not np.isfinite(size).all():  # else every number is
        finite = np.isfinite(table).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"`{name}` must be finite. Got NaN or infinity in {int((~finite).sum())} of {len(table)} rows, first "
                f"in row {first + int(np.argmin(finite))}; drop those rows, or look at the encoder."
            )
    if not normalize:
        if not (size <= _LONGEST**2).all():
            raise ValueError(
                f"`{name}` must be shorter than {_LONGEST:.0e} a row: float32 holds no larger similarity. Got row "
                f"{first + int(np.argmax(size))} and more; scale all by one number, or measure by cosine."
            )
        return table, float(np.sqrt(size.max())) * (1 + table.shape[1] * float(np.finfo(np.float32).eps))
    length = size[:, None]
    odd = np.flatnonzero(~((length > 0) & np.isfinite(length)))
    if len(odd) == 0:
        return table / length, 1.0
    wide = table[odd].astype(np.float64)  # squares that float32 cannot hold
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError(
            f"`{name}` under cosine must not hold rows of zeros. Got {int((lengths == 0).sum())} of {len(table)}, "
            f"first row {first + int(odd[np.argmin(lengths)])}; drop them, or measure without cosine."
        )
    length[odd] = 1
    unit = table / length
    unit[odd] = wide / lengths
    return unit, 1.0


def check_k(k: Any) -> int:
    """A whole number of at least 1."""
    try:
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"`k` must be a whole number. Got {k!r}; the number of neighbours.") from None
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Got {k}; recall@1 is the least there is.")
    return k


def check_values(name: str, values: Any, length: int) -> np.ndarray:
    """(length,) integers or texts, never compared as floats: int64 where they fit, else uint64, or texts."""
    values = as_array(values)
    if values.dtype == object and all(isinstance(value, str) for value in values.ravel()):
        values = values.astype(str)
    if values.dtype.kind not in "iubU":
        raise TypeError(
            f"`{name}` must be integers or texts. Got {values.dtype}; floats above 2**24 merge classes, and a missing "
            "value is none."
        )
    if values.shape != (length,):
        raise ValueError(f"`{name}` must be one value a row. Got {values.shape} for {length} rows; give one each.")
    if values.dtype.kind == "U" or (values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any()):
        return values
    return values.astype(np.int64)


def shared_codes(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Checked values numbered from 0, alike in both, and how many there are; a text and a number are equal as texts."""
    if mine.dtype.kind != theirs.dtype.kind:  # int64 and uint64 would meet as floats
        kind = str if "U" in (mine.dtype.kind, theirs.dtype.kind) else object
        mine, theirs = mine.astype(kind), theirs.astype(kind)
    values, inverse = np.unique(np.concatenate([mine, theirs]), return_inverse=True)
    inverse = inverse.astype(np.int64)
    return inverse[: len(mine)], inverse[len(mine) :], len(values)


def as_integers(values: Sequence[str]) -> np.ndarray:
    """(N,) int64 where all are written as such, else the texts: 007, 1_000 and what int64 cannot hold are texts."""
    try:
        numbers = np.array([int(value) for value in values], np.int64)
    except (ValueError, OverflowError):
        return np.array(values)
    return numbers if all(str(n) == v for n, v in zip(numbers.tolist(), values, strict=True)) else np.array(values)


def check_rules(
    query_ids: Any, gallery_ids: Any, exclude: Any, num_queries: int, num_gallery: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and other exclusions alike: pairs of (queries,) and (gallery,) integers that must differ."""
    rules = []
    ids = check_ids(query_ids, gallery_ids, num_queries, num_gallery)
    if ids is not None:
        rules.append(ids)
    for rule in exclude:
        if len(rule) != 2:
            raise ValueError(
                "`exclude` holds pairs (of each query, of each gallery row) of what must differ. "
                f"Got {len(rule)} entries; pass exclude=[(query_cameras, gallery_cameras)]."
            )
        mine = check_values("exclude, of the queries", rule[0], num_queries)
        theirs = check_values("exclude, of the gallery", rule[1], num_gallery)
        rules.append(shared_codes(mine, theirs)[:2])
    return rules


def check_ids(
    query_ids: Any, gallery_ids: Any, num_queries: int, num_gallery: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both kinds of ids, or neither."""
    if (query_ids is None) != (gallery_ids is None):
        given = "gallery_ids" if query_ids is None else "query_ids"
        raise ValueError(f"Leaving out a query's own entries needs both ids. Got only `{given}`; give both or neither.")
    if query_ids is None:
        return None
    mine = check_values("query_ids", query_ids, num_queries)
    theirs = check_values("gallery_ids", gallery_ids, num_gallery)
    return (mine, theirs) if mine.dtype == theirs.dtype == np.int64 else shared_codes(mine, theirs)[:2]
