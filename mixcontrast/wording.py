"""What error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """` Did you mean a, b?` of the names that are near, else nothing."""
    near = difflib.get_close_matches(name, list(names), count, 0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""
