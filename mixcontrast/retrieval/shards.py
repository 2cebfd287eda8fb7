"""Embeddings written in parts, so that a run that is killed goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"
PLAN = "plan.json"


class ShardWriter:
    """A folder of Parquet parts of consecutive rows, with a manifest that is written when all are there.

    Part `n` holds the rows `n * rows_per_shard` to `(n + 1) * rows_per_shard` of the plan, less those left out, in the
    columns `embedding` (a fixed-size list of floats), `id`, and what else is given. Each part is written under a
    temporary name and renamed, so a part is whole or not there. Several processes may write different parts.

    Args:
        folder: made where it is not there.
        plan: what is embedded by what; anything JSON holds. It tells one run from another.
        num_rows: of the whole.
        rows_per_shard: of a part, but for the last.

    Raises:
        ValueError: the folder holds the parts of another plan.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: str | Path, plan: Mapping[str, Any], *, num_rows: int, rows_per_shard: int) -> None:
        _pyarrow()
        if num_rows < 1 or rows_per_shard < 1:
            raise ValueError(
                f"A folder of embeddings needs rows. Got num_rows={num_rows}, rows_per_shard={rows_per_shard}; "
                "give at least 1 of each."
            )
        self.folder, self.num_rows, self.rows_per_shard = Path(folder), num_rows, rows_per_shard
        self.plan = json.loads(json.dumps({**plan, "num_rows": num_rows, "rows_per_shard": rows_per_shard}))
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / PLAN
        if file.exists():
            self._check_same(json.loads(file.read_text(encoding="utf-8")))
        elif any(self.folder.glob("part-*.parquet")) or (self.folder / MANIFEST).exists():
            raise ValueError(f"{self.folder} holds embeddings without a {PLAN}. Write to another folder.")
        else:
            _write(file, json.dumps(self.plan, indent=2) + "\n")

    @property
    def finished(self) -> bool:
        """Whether the manifest is there, so that all parts are."""
        return (self.folder / MANIFEST).exists()

    @property
    def num_parts(self) -> int:
        """How many parts the whole has."""
        return -(-self.num_rows // self.rows_per_shard)

    def rows(self, part: int) -> range:
        """The rows of the plan that a part holds."""
        start = part * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_rows))

    def missing(self) -> list[int]:
        """The parts that are not there, or that cannot be read."""
        return [part for part in range(self.num_parts) if self._num_rows(part) is None]

    def write(self, part: int, embeddings: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> None:
        """Writes a part.

        Args:
            part: its number.
            embeddings: (n, D) float32 or float16; fewer rows than planned where some were left out.
            columns: `id`, and what else is known, n values each: integers or texts.

        Raises:
            ValueError: more rows than planned, or columns of another length.
        """
        pyarrow = _pyarrow()
        planned = len(self.rows(part))
        lengths = {name: len(values) for name, values in columns.items()}
        if embeddings.ndim != 2 or len(embeddings) > planned or set(lengths.values()) != {len(embeddings)}:
            raise ValueError(
                f"Part {part} holds up to {planned} rows, one value a row in each column. "
                f"Got embeddings {embeddings.shape}, columns {lengths}; give one each."
            )
        flat = pyarrow.array(np.ascontiguousarray(embeddings).reshape(-1))
        cells = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        table = pyarrow.table({"embedding": cells} | {name: pyarrow.array(values) for name, values in columns.items()})
        table = table.replace_schema_metadata({"planned": str(planned)})
        path = self._path(part)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            pyarrow.parquet.write_table(table, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the manifest.

        Args:
            settings: how the rows were embedded, for the record.

        Returns:
            The manifest.

        Raises:
            ValueError: a part is missing, or parts differ in width or columns.
        """
        missing = self.missing()
        if missing:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {self.num_parts} parts, first {self._path(missing[0]).name}; "
                "run the same command again."
            )
        pyarrow = _pyarrow()
        schemas = [pyarrow.parquet.read_schema(self._path(part)) for part in range(self.num_parts)]
        for part, schema in enumerate(schemas):
            if not schema.equals(schemas[0]):
                raise ValueError(
                    f"The parts of {self.folder} must hold the same columns. Got {_columns(schemas[0])} in the first, "
                    f"{_columns(schema)} in {self._path(part).name}; write to another folder."
                )
        cells = schemas[0].field("embedding").type
        counts = [self._num_rows(part) for part in range(self.num_parts)]
        manifest = {
            "format": "mixcontrast embeddings",
            "version": 1,
            "dim": cells.list_size,
            "dtype": {"float": "float32", "halffloat": "float16"}.get(str(cells.value_type), str(cells.value_type)),
            "num_rows": sum(counts),
            "columns": [name for name in schemas[0].names if name != "embedding"],
            "parts": [{"file": self._path(part).name, "num_rows": rows} for part, rows in enumerate(counts)],
            "settings": dict(settings),
        }
        _write(self.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        return manifest

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"

    def _num_rows(self, part: int) -> int | None:
        """How many rows a part holds; None where it is not there, not whole, or was planned with others."""
        pyarrow = _pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(self._path(part)) as file:
                planned = (file.schema_arrow.metadata or {}).get(b"planned", b"").decode()
                return file.metadata.num_rows if planned == str(len(self.rows(part))) else None
        except (OSError, pyarrow.ArrowException):
            return None

    def _check_same(self, found: dict[str, Any]) -> None:
        for name in sorted({*found, *self.plan}):
            if found.get(name) != self.plan.get(name):
                raise ValueError(
                    f"{self.folder} holds another run: its {name} is {found.get(name)!r}. Got {self.plan.get(name)!r}; "
                    "write to another folder, or repeat that command."
                )


def _columns(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Writing embeddings needs pyarrow. It is not installed; pip install 'mixcontrast[embed]'"
        ) from error
    return pyarrow
