"""Recipes as files: what `mixcontrast fit` reads, of a point of a grid or as it was tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mixcontrast.files import write_whole


def write_recipe(path: Path, recipe: dict[str, Any], note: str = "") -> Path:
    """Writes a recipe whole, with the command that runs it, and perhaps a note, in its first lines."""
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    head = f"# mixcontrast fit --config {path}\n" + (f"# {note}\n" if note else "")
    write_whole(path, lambda temporary: temporary.write_text(head + text, encoding="utf-8"))
    return path
