"""Files that hold consecutive rows of embeddings, each read by slices through its format's own library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Part(ABC):
    """One file of embeddings, opened but not read.

    Attributes:
        path: the file.
        num_rows: its rows.
        dim: their width.
        dtype: of its embeddings, as numpy or torch names it.
        columns: names of what else it holds of each row.
    """

    path: Path
    num_rows: int
    dim: int
    dtype: str
    columns: tuple[str, ...] = ()

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, D) floats of these rows."""

    def column(self, name: str) -> np.ndarray:
        """(num_rows,) integers or texts."""
        raise KeyError(name)


class NumpyPart(Part):
    """A .npy file. Its rows are read and not mapped, so that the memory they take is known."""

    def __init__(self, path: Path) -> None:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"its shape is {table.shape} and not (rows, dimensions)")
        if not np.issubdtype(table.dtype, np.floating):
            raise ValueError(f"it holds {table.dtype} and not floats")
        self.path, (self.num_rows, self.dim), self.dtype = path, table.shape, str(table.dtype)
        self._type, self._offset, self._by_rows = table.dtype, table.offset, table.flags.c_contiguous

    def read(self, start: int, stop: int) -> np.ndarray:
        if not self._by_rows:
            return np.array(np.load(self.path, mmap_mode="r")[start:stop])
        offset = self._offset + start * self.dim * self._type.itemsize
        rows = np.fromfile(self.path, self._type, (stop - start) * self.dim, offset=offset)
        return rows.reshape(stop - start, self.dim)


class SafetensorsPart(Part):
    """A .safetensors file with one tensor, or one named "embeddings"."""

    def __init__(self, path: Path) -> None:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(
                "These files need safetensors. It is not installed; pip install 'mixcontrast[evaluate]'"
            ) from error
        self.path = path
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if len(names) != 1 and "embeddings" not in names:
                raise ValueError(f"it holds {', '.join(names)}; name one of them embeddings")
            self._name = names[0] if len(names) == 1 else "embeddings"
            shape = file.get_slice(self._name).get_shape()
            if len(shape) != 2 or 0 in shape:
                raise ValueError(f"its shape is {tuple(shape)} and not (rows, dimensions)")
            kind = file.get_slice(self._name)[:1].dtype
        if not kind.is_floating_point:
            raise ValueError(f"it holds {kind} and not floats")
        (self.num_rows, self.dim), self.dtype = shape, str(kind).removeprefix("torch.")

    def read(self, start: int, stop: int) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self._name)[start:stop].float().numpy()


class ArrowPart(Part):
    """A Parquet file, or an Arrow (Feather) file, with a column `embedding`: lists of one length."""

    def __init__(self, path: Path) -> None:
        self.path, self._parquet = path, path.suffix == ".parquet"
        self._cursor: tuple[int, Any, Iterator[Any]] | None = None
        schema, self._starts = self._open()
        self.num_rows = self._starts[-1]
        if "embedding" not in schema.names:
            raise ValueError(f"it has no column embedding; there are {', '.join(schema.names)}")
        kind = schema.field("embedding").type
        if not _is_list(kind):
            raise ValueError(f"its column embedding holds {kind} and not lists of floats")
        self.dtype = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind.value_type), "")
        if not self.dtype:
            raise ValueError(f"its column embedding holds lists of {kind.value_type} and not of floats")
        self.columns = tuple(name for name in schema.names if name != "embedding")
        self.dim = self.read(0, 1).shape[1] if self.num_rows else 0
        if not self.dim:
            raise ValueError(f"its shape is {(self.num_rows, self.dim)} and not (rows, dimensions)")

    def read(self, start: int, stop: int) -> np.ndarray:
        at, batch, batches = self._batch_of(start)
        self._cursor, found = None, []
        while True:
            low, high = max(start - at, 0), min(stop - at, batch.num_rows)
            if low < high:
                found.append(_rows_of(batch.column("embedding").slice(low, high - low), self.path))
            if at + batch.num_rows >= stop:
                break
            at, batch = at + batch.num_rows, next(batches)
        if self._parquet:  # an Arrow file is mapped, and the mapping should go
            self._cursor = at, batch, batches
        if len({rows.shape[1] for rows in found}) != 1:
            raise ValueError(f"{self.path} holds embeddings of several widths; embed it again with one encoder.")
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _batch_of(self, row: int) -> tuple[int, Any, Iterator[Any]]:
        """A batch, the number of its first row, and those after it; where the last reading stopped, it goes on there.

        A group of rows can only be read from its beginning, and may be large.
        """
        if self._cursor is not None:
            at, batch, _ = self._cursor
            if at <= row <= at + batch.num_rows:
                return self._cursor
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        batches = self._batches(range(group, len(self._starts) - 1), "embedding")
        return self._starts[group], next(batches), batches

    def column(self, name: str) -> np.ndarray:
        found = [batch.column(name) for batch in self._batches(range(len(self._starts) - 1), name)]
        if any(column.null_count for column in found):
            raise ValueError(f"{self.path} lacks values in its column {name}; fill them in.")
        kind = str(found[0].type)
        if not kind.startswith(("int", "uint", "string", "large_string", "bool", "dictionary")):
            raise ValueError(f"{self.path} holds {kind} in its column {name}; labels and ids are integers or texts.")
        values = [column.to_numpy(zero_copy_only=False) for column in found]
        joined = np.concatenate(values)
        return joined if joined.dtype != object else joined.astype(str)

    def _open(self) -> tuple[Any, list[int]]:
        """The schema, and the first row of each group of rows, with the number of rows at the end."""
        _pyarrow()
        if self._parquet:
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                return file.schema_arrow, [0, *np.cumsum(sizes).tolist()]
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as file:
            sizes = [file.get_batch(number).num_rows for number in range(file.num_record_batches)]
            return file.schema, [0, *np.cumsum(sizes).tolist()]

    def _batches(self, groups: range, column: str) -> Iterator[Any]:
        if self._parquet:
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 16) as file:  # not a whole group at once
                yield from file.iter_batches(1 << 14, row_groups=list(groups), columns=[column])
        else:
            import pyarrow as pa

            with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as file:
                yield from (file.get_batch(number) for number in groups)


def open_part(path: Path) -> Part:
    """Opens a file by its ending.

    Raises:
        ValueError: the file is not there, not whole, or of another kind.
        ImportError: its format needs a package that is not installed.
    """
    kinds = {
        ".npy": NumpyPart, ".safetensors": SafetensorsPart, ".parquet": ArrowPart, ".arrow": ArrowPart,
        ".feather": ArrowPart,
    }  # fmt: skip
    if path.suffix not in kinds:
        raise ValueError(
            f"Embeddings are .npy, .safetensors, .parquet, .arrow or .feather files, or a folder of them. Got {path}"
            f"{'; save them as one of these' if path.exists() else ', which is not there; is the name right?'}"
        )
    try:
        return kinds[path.suffix](path)
    except ImportError:
        raise
    except Exception as error:  # each format's reader has its own kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as embeddings: {reason}. Is it whole?") from None


def _rows_of(column: Any, path: Path) -> np.ndarray:
    """(n, D) of an Arrow column of lists."""
    if column.null_count:
        raise ValueError(f"{path} lacks {column.null_count} embeddings; drop those rows, or embed them.")
    values = column.flatten()
    width, rest = divmod(len(values), len(column))
    if rest or values.null_count:
        raise ValueError(f"{path} holds embeddings of several widths; embed it again with one encoder.")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow. It is not installed; pip install 'mixcontrast[evaluate]'"
        ) from error
