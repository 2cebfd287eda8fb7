"""What `mixcontrast evaluate` reads: embeddings, and of each row a label, an id or the like."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mixcontrast.retrieval import StoredEmbeddings
from mixcontrast.retrieval.checks import as_integers, shared_codes

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def read_of_rows(option: str, where: str, rows: StoredEmbeddings, *, may_lack: bool = False) -> np.ndarray:
    """(N,) a value a row: of a file, or else of a column that is stored with the embeddings.

    Args:
        option: the option that names it, in errors.
        where: a .npy file, a text file with one a line, `file.csv:column`, or, where no such file is, the column.
        rows: the embeddings it belongs to.
        may_lack: whether rows may be without; empty texts then.

    Returns:
        Integers where all are, else texts.

    Raises:
        ValueError: it is neither, not one a row, or rows are without.
    """
    own = is_column(where, rows)
    values = rows.column(where) if own else read_column(where, rows)
    if values.shape != (len(rows),):
        taken = f"the column {where} of {rows.path}" if own else f"the file {where}"
        raise ValueError(
            f"--{option} needs one value a row of {rows.path}. Got {len(values)} in {taken} for {len(rows)} rows; "
            "give one each."
        )
    if values.dtype.kind not in "iubU":
        raise ValueError(
            f"--{option} takes integers or texts. Got {values.dtype} in {where}; a float is no name: save integers."
        )
    if values.dtype.kind == "U" and not may_lack and (lacking := np.char.strip(values) == "").any():
        raise ValueError(
            f"--{option} needs a value in each row. {where} has none for {int(lacking.sum())} of {len(values)} rows, "
            f"first row {int(np.argmax(lacking))} (from 0); fill them in, or drop those embeddings."
        )
    return values


def is_column(where: str, rows: StoredEmbeddings) -> bool:
    """Whether it names a column stored with the embeddings; a file of that name comes first."""
    return where in rows.columns and not Path(where).is_file()


def read_column(where: str, rows: StoredEmbeddings | None = None) -> np.ndarray:
    """(N,) values of a file, integers where all are, else texts.

    Args:
        where: a .npy file, a text file with one a line, or `file.csv:column`.
        rows: embeddings whose columns an error names too.

    Raises:
        ValueError: the file or the column is not there.
    """
    try:
        if where.endswith(".npy"):
            return np.load(where, allow_pickle=False)
        if ".csv:" in where:
            name, column = where.rsplit(":", 1)
            with open(name, newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))
            if not lines or column not in lines[0]:
                raise ValueError(f"no column {column!r}; there are {', '.join(lines[0]) if lines else 'no rows'}")
            values = [line[column] or "" for line in lines]  # a row that is too short has None
        else:
            values = Path(where).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        columns = ""
        if rows is not None and rows.columns:
            columns = f", or a column of {rows.path}: {', '.join(rows.columns)}"
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where} cannot be read: {reason}; give a .npy, a text file, or file.csv:column{columns}."
        ) from None
    return as_integers(values)


def as_codes(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers for two columns, texts numbered alike in both."""
    if np.issubdtype(mine.dtype, np.integer) and np.issubdtype(theirs.dtype, np.integer):
        return mine, theirs
    return shared_codes(mine, theirs)[:2]


def read_ks(ks: str | list[int] | None) -> list[int]:
    """Cut-offs such as 1,5,10 or [1, 5, 10]; none where none are given.

    >>> read_ks("1,5,10")
    [1, 5, 10]

    Raises:
        ValueError: they are not whole numbers.
    """
    if not isinstance(ks, str):
        return list(ks or ())
    try:
        return [int(k) for k in ks.strip("[] ").split(",")]
    except ValueError:
        raise ValueError(f"--ks are whole numbers joined by commas. Got {ks!r}; 1,5,10.") from None


def read_bytes(size: str) -> int:
    """A number of bytes such as 1GB, 512MiB or 800000000.

    >>> read_bytes("1.5GB")
    1500000000

    Raises:
        ValueError: it is none.
    """
    text = size.strip().upper()
    number = text.rstrip("BKMGI")
    try:
        return round(float(number) * UNITS[text[len(number) :].strip() or "B"])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"--memory_limit is a number of bytes. Got {size!r}; 1GB, 512MiB or 800000000.") from None
