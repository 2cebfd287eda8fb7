"""What retrieval asks of its inputs, each refusal in one line."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def as_array(value: Any) -> np.ndarray:
    """A torch tensor (of any device and float width), list or array as a numpy array."""
    detach = getattr(value, "detach", None)
    if detach is not None:
        value = detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return np.asarray(value)


def check_table(name: str, table: Any, normalize: bool, first: int = 0) -> np.ndarray:
    """(N, D) contiguous float32, divided by its rows' lengths where `normalize` is set; rows count from `first`."""
    table = as_array(table)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"`{name}` must have shape (rows, dimensions), neither of them 0. Got {table.shape}; "
            "give one vector a row."
        )
    if not np.issubdtype(table.dtype, np.floating):
        raise TypeError(f"`{name}` must be floats. Got {table.dtype}; are embeddings and labels swapped?")
    with np.errstate(over="ignore"):
        table = np.ascontiguousarray(table, np.float32)
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite. Got NaN or infinity in {int((~finite).sum())} of {len(table)} rows, first in "
            f"row {first + int(np.argmin(finite))}; drop those rows, or look at the encoder."
        )
    if not normalize:
        return table
    with np.errstate(over="ignore", under="ignore"):
        length = np.linalg.norm(table, axis=1, keepdims=True)
    odd = np.flatnonzero(~((length > 0) & np.isfinite(length)))
    if len(odd) == 0:
        return table / length
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
    return unit


def check_k(k: Any) -> int:
    """A whole number of at least 1."""
    try:
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"`k` must be a whole number. Got {k!r}; the number of neighbours.") from None
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Got {k}; recall@1 is the least there is.")
    return k


def check_integers(name: str, values: Any, length: int) -> np.ndarray:
    """(length,) int64, compared as integers and never as floats."""
    values = as_array(values)
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise TypeError(f"`{name}` must be integers. Got {values.dtype}; floats above 2**24 merge classes.")
    if values.shape != (length,):
        raise ValueError(f"`{name}` must be one integer a row. Got {values.shape} for {length} rows; give one each.")
    return values.astype(np.int64)


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
        mine, theirs = as_array(rule[0]), as_array(rule[1])
        for name, values, length in (("query", mine, num_queries), ("gallery", theirs, num_gallery)):
            if values.shape != (length,) or np.issubdtype(values.dtype, np.floating):
                raise ValueError(
                    f"`exclude` needs an integer or a text for each {name} row. "
                    f"Got {values.dtype} {values.shape} for {length} rows; give one each."
                )
        inverse = np.unique(np.concatenate([mine, theirs]), return_inverse=True)[1].astype(np.int64)
        rules.append((inverse[:num_queries], inverse[num_queries:]))
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
    return (
        check_integers("query_ids", query_ids, num_queries),
        check_integers("gallery_ids", gallery_ids, num_gallery),
    )
