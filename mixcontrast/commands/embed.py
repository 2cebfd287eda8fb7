"""The command `mixcontrast embed`: an encoder over images or texts, into a folder of embeddings."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from mixcontrast import __version__
from mixcontrast.data.items import Items, open_items
from mixcontrast.environment import there
from mixcontrast.models.encoders import Encoder, open_encoder
from mixcontrast.retrieval.shards import ShardWriter


def embed_command(
    data: str,
    encoder: str | None = None,
    out: Path | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    columns: str = "",
    part: Literal["corpus", "queries"] | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    rows_per_shard: int = 10_000,
    num_workers: int = 0,
    device: str = "auto",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    normalize: bool = False,
    skip_broken: bool = False,
) -> None:
    """Embeds images or texts into a folder that evaluate reads; the same command again goes on where it stopped.

    Under torchrun, processes take the parts in turn.

    Args:
        data: a folder of images (subfolders are classes), a .csv file, WebDataset tars (shards/{000..009}.tar), or a
            folder in BEIR's layout.
        encoder: timm:NAME, timm:NAME@WEIGHTS, open_clip:NAME/TAG_OR_FILE, open_clip:local-dir:FOLDER,
            sentence-transformers:FOLDER_OR_NAME, checkpoint:FILE (of mixcontrast fit or demo) or efficientnet-lite0.
        out: the folder.
        image_column: of a CSV file, the column of image paths.
        text_column: of a CSV file, the column of texts to embed; of a WebDataset, txt.
        id_column: of a CSV file, the column of ids; row numbers where it is left out.
        columns: of a CSV file, further columns to keep, joined by commas (label,vendor).
        part: of a BEIR folder, corpus or queries.
        image_size: pixels a side, where the encoder takes another than its own.
        batch_size: items at once.
        rows_per_shard: rows of one Parquet part; what a kill can cost.
        num_workers: processes that open images.
        device: cpu, cuda, mps, or auto for the fastest there is.
        precision: of the network's arithmetic (autocast); embeddings are stored as float32.
        normalize: store unit vectors instead of what the encoder gives.
        skip_broken: leave out broken images and empty texts instead of stopping at the first.
    """
    if encoder is None or out is None:
        raise ValueError(
            "Embedding needs an encoder and a folder. Got not both; write mixcontrast embed photos/ --encoder "
            "timm:resnet50 --out runs/photos."
        )
    for name, number in (("batch_size", batch_size), ("rows_per_shard", rows_per_shard)):
        if number < 1:
            raise ValueError(f"--{name} must be at least 1. Got {number}; leave it out for the default.")
    with _processes() as (rank, world):
        device = _device(device, rank)
        items = open_items(
            data, image_column=image_column, text_column=text_column, id_column=id_column,
            columns=[name for name in columns.split(",") if name], part=part,
        )  # fmt: skip
        digest = hashlib.sha256("\n".join(items.ids).encode()).hexdigest()[:16]
        plan = {
            "encoder": encoder, "kind": items.kind, "items": digest, "columns": sorted(items.columns),
            "image_size": image_size, "batch_size": batch_size, "precision": precision, "normalize": normalize,
            "skip_broken": skip_broken,
        }  # fmt: skip
        if rank == 0:
            ShardWriter(out, plan, num_rows=len(items), rows_per_shard=rows_per_shard)  # the plan is there for all
        _wait()
        writer = ShardWriter(out, plan, num_rows=len(items), rows_per_shard=rows_per_shard)
        console = Console(quiet=rank > 0)
        missing = writer.missing()
        _wait()  # all know what is missing before any part is written
        if writer.finished and not missing:
            note = f"{out} is finished: {len(items):,} rows by {encoder}. Nothing to do."
            console.print(note, highlight=False, soft_wrap=True)
            return
        network = open_encoder(encoder, image_size=image_size)
        if items.kind not in network.reads:
            raise ValueError(
                f"{encoder} embeds {' and '.join(network.reads)}s. Got {items.kind}s; name an encoder that reads them."
            )
        network.network.to(device)
        mine = missing[rank::world]
        done, skipped, seconds = _embed_parts(
            writer, mine, items, network, console, device=device, batch_size=batch_size, num_workers=num_workers,
            precision=precision, normalize=normalize, skip_broken=skip_broken,
        )  # fmt: skip
        _wait()
        if rank == 0:
            manifest = writer.finish(
                {
                    "encoder": encoder, "data": data, "device": device, "precision": precision,
                    "batch_size": batch_size, "normalize": normalize, **network.settings,
                    "versions": {"mixcontrast": __version__, "torch": torch.__version__,
                                 "python": platform.python_version()},
                }
            )  # fmt: skip
            for line in skipped[:5]:
                console.print(f"left out: {line}", highlight=False, markup=False, soft_wrap=True)
            left_out = len(items) - manifest["num_rows"]
            note = f", {left_out:,} left out as broken" if left_out else ""
            kept = writer.num_parts - len(missing)
            note += f"; {kept} of {writer.num_parts} parts were there" if kept else ""
            console.print(
                f"{manifest['num_rows']:,} rows of {manifest['dim']} in {out}{note}; "
                f"{done / max(seconds, 1e-9):,.0f} rows a second{' a process' if world > 1 else ''}.",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip


class _Prepared(Dataset):
    """Items as the network takes them; a broken one as its error."""

    def __init__(self, items: Items, encoder: Encoder, rows: range) -> None:
        self.items, self.encoder, self.rows = items, encoder, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any, str | None]:
        row = self.rows[index]
        try:
            return row, self.encoder.prepare(self.items.load(row)), None
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises the last for some broken files
            return row, None, f"{self.items.where(row)}: {' '.join(str(error).split())}"


def _embed_parts(
    writer: ShardWriter,
    parts: list[int],
    items: Items,
    encoder: Encoder,
    console: Console,
    *,
    device: str,
    batch_size: int,
    num_workers: int,
    precision: str,
    normalize: bool,
    skip_broken: bool,
) -> tuple[int, list[str], float]:
    """Embeds and writes parts; how many rows, which were left out, and the seconds."""
    skipped: list[str] = []
    done, start = 0, time.perf_counter()
    autocast = torch.autocast(device.partition(":")[0], getattr(torch, precision), enabled=precision != "float32")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip
    with bar, torch.inference_mode(), autocast:
        task = bar.add_task("embedding", total=sum(len(writer.rows(part)) for part in parts))
        for part in parts:
            tables, kept = [], []
            loader = DataLoader(
                _Prepared(items, encoder, writer.rows(part)), batch_size=batch_size, num_workers=num_workers,
                collate_fn=list,
            )  # fmt: skip
            for batch in loader:
                whole = [(row, item) for row, item, error in batch if error is None]
                broken = [error for _, _, error in batch if error is not None]
                if broken and not skip_broken:
                    raise ValueError(f"{broken[0]}. Mend it, or leave such items out by --skip_broken true.")
                skipped += broken
                if whole:
                    inputs = [item for _, item in whole]
                    found = encoder.embed(inputs if isinstance(inputs[0], str) else torch.stack(inputs), device)
                    found = found.float()
                    if not bool(torch.isfinite(found).all()):
                        row = whole[int((~torch.isfinite(found).all(dim=1)).nonzero()[0])][0]
                        raise ValueError(
                            f"An embedding must be finite. Got NaN or infinity for {items.where(row)}; look at the "
                            "item, or take --precision float32."
                        )
                    if normalize:
                        found = torch.nn.functional.normalize(found, dim=1)
                    tables.append(found.cpu().numpy())
                    kept += [row for row, _ in whole]
                bar.advance(task, len(batch))
            if not kept:
                raise ValueError(
                    f"No item of rows {writer.rows(part).start} to {writer.rows(part).stop - 1} can be read, first "
                    f"{skipped[-1]}. Look at the data, or take larger parts."
                )
            columns = {"id": [items.ids[row] for row in kept]}
            columns |= {name: [values[row] for row in kept] for name, values in items.columns.items()}
            writer.write(part, np.concatenate(tables), columns)
            done += len(kept)
    return done, skipped, time.perf_counter() - start


@contextlib.contextmanager
def _processes():
    """This process's rank and how many there are, as torchrun says; gloo, for nothing but waiting."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _device(name: str, rank: int) -> str:
    name = there(name)
    if name == "cuda" and dist.is_initialized():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"
    return name
