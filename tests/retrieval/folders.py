"""Embeddings written as each kind that is read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import torch
from safetensors.torch import save_file


def arrow_table(table, **columns):
    kind = pa.list_(pa.from_numpy_dtype(table.dtype), table.shape[1])
    rows = pa.FixedSizeListArray.from_arrays(pa.array(table.ravel()), type=kind)
    return pa.table({"embedding": rows} | {name: pa.array(values) for name, values in columns.items()})


def write_folder(folder: Path, table, part_rows=17, settings=None, **columns) -> Path:
    """The folder that `mixcontrast embed` writes."""
    folder.mkdir(parents=True)
    columns = {"id": [f"r{row}" for row in range(len(table))]} | columns
    parts = []
    for start in range(0, len(table), part_rows):
        rows = slice(start, start + part_rows)
        part = arrow_table(table[rows], **{name: values[rows] for name, values in columns.items()})
        parts.append({"file": f"part-{len(parts):05d}.parquet", "num_rows": part.num_rows})
        pa.parquet.write_table(part, folder / parts[-1]["file"], row_group_size=5)
    manifest = {
        "format": "mixcontrast embeddings", "version": 1, "dim": table.shape[1], "dtype": str(table.dtype),
        "num_rows": len(table), "columns": list(columns), "parts": parts, "settings": settings or {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_every_kind(folder: Path, table) -> list[Path]:
    np.save(folder / "a.npy", table)
    np.save(folder / "by-columns.npy", np.asfortranarray(table))
    save_file({"embeddings": torch.from_numpy(table), "other": torch.zeros(2)}, folder / "a.safetensors")
    pa.parquet.write_table(arrow_table(table), folder / "a.parquet", row_group_size=11)
    lists = pa.table({"embedding": pa.array(table.tolist(), pa.list_(pa.float32()))})
    pa.parquet.write_table(lists, folder / "lists.parquet")
    pa.feather.write_feather(arrow_table(table), folder / "a.feather", chunksize=13)
    with pa.ipc.new_file(folder / "a.arrow", arrow_table(table).schema) as file:
        file.write_table(arrow_table(table), max_chunksize=7)
    write_folder(folder / "embedded", table)
    (folder / "shards").mkdir()
    for number, rows in enumerate(np.array_split(table, 3)):
        np.save(folder / "shards" / f"{number:03d}.npy", rows)
    names = "a.npy by-columns.npy a.safetensors a.parquet lists.parquet a.feather a.arrow embedded shards".split()
    return [folder / name for name in names]
