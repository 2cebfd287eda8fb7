"""Frozen dataclasses with some fields changed."""

from __future__ import annotations

from typing import Any, TypeVar

Record = TypeVar("Record")


def changed(record: Record, **fields: Any) -> Record:
    """As `dataclasses.replace`, which torch.compile does not read in torch 2.6.

    Args:
        record: a dataclass of which every field may be given by its place.
        fields: their new values.

    Raises:
        TypeError: it has no such field.
    """
    kind = type(record)
    unknown = [name for name in fields if name not in kind.__match_args__]
    if unknown:
        raise TypeError(f"{kind.__name__} has the fields {', '.join(kind.__match_args__)}. Got {', '.join(unknown)}.")
    return kind(**{name: fields[name] if name in fields else getattr(record, name) for name in kind.__match_args__})
