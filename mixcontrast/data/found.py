"""What data are read from: files, folders, packages and columns, and what is said where they are not there."""

from __future__ import annotations

import csv
import difflib
import importlib.metadata
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def existing(path: Path, what: str, remedy: str) -> Path:
    """The path, where it is.

    Args:
        path: a file or folder.
        what: it holds, for the message.
        remedy: how to get it.

    Raises:
        ValueError: it is not there; the message says what is near it.
    """
    if path.exists():
        return path
    missing, parent = path, path.parent
    while not parent.exists() and parent != parent.parent:
        missing, parent = parent, parent.parent
    there = sorted(entry.name for entry in parent.iterdir() if entry.name[0] != ".") if parent.is_dir() else []
    near = difflib.get_close_matches(missing.name, there, 3, 0.5) or there[:3]
    raise ValueError(
        f"{what} must be at {path}. It is not there; {parent} holds {', '.join(near) or 'nothing'}. {remedy}"
    )


def one_of(name: str, names: Iterable[str], what: str) -> str:
    """The name, where it is one of `names`.

    Raises:
        ValueError: it is none; the message names the nearest.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 3, 0.5)
    listed = ", ".join(near or names[:8]) + (", ..." if len(near or names[:8]) < len(names) else "")
    raise ValueError(
        f"{what} must be one that is there{', near it' if near else ''}: {listed}. Got {name!r}; take one."
    )


def packaged(package: str, file: str, what: str, remedy: str) -> Path:
    """A file or folder that comes with an installed package, which is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: it lacks the file.
    """
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"{what} comes with the package {package}. It is not installed; {remedy}") from None
    return existing(Path(str(found.locate_file(file))), what, f"Install the package anew: {remedy}")


def csv_columns(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a CSV file with a header, as texts.

    Raises:
        ValueError: no file, or one that cannot be read; no rows, a column that is not there, a row that is cut off.
    """
    existing(path, "A CSV file", "Name one that is.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8. It cannot be read so: {error}; mend it.") from None
    for name in names:
        one_of(name, header, f"A column of {path}")
    if not rows:
        raise ValueError(f"{path} must hold rows under its header. Got none; write a row an example.")
    for number, row in enumerate(rows, 2):
        if any(row[name] is None for name in names):
            raise ValueError(
                f"{path} line {number} must have every column. Got {sum(value is not None for value in row.values())} "
                f"of {len(header)}; mend it."
            )
    return {name: [row[name] for row in rows] for name in names}


def cache_folder() -> Path:
    """Where features are kept: $MIXCONTRAST_CACHE, or `mixcontrast` in the user's cache folder."""
    if "MIXCONTRAST_CACHE" in os.environ:
        return Path(os.environ["MIXCONTRAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixcontrast"
