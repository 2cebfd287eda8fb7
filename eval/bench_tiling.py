"""Time and peak memory of a big batch read in tiles of rows, forward and backward, against the whole table.

    python eval/bench_tiling.py                 # all, writes eval/bench_tiling.md
    python eval/bench_tiling.py clip            # one, prints only

Both contestants of a row run in one process, in turn; a figure is the median over the turns and a ratio the median of
the ratios turn by turn. Drawing is included. Peak memory is what a fresh process's resident size gains over the inputs
(Linux). Their values are checked to be the same where nothing is drawn.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_mixers import Step, machine, resident_size, step_of
from tabulate import tabulate

import mixcontrast as mc

DIM, CLASS = 512, 4


def clip(batch: int, rows: int | None) -> Step:
    image, text = F.normalize(torch.randn(2, batch, DIM), dim=-1)
    return step_of(wrapped(mc.ClipLoss(), rows), image, text, torch.tensor(50.0))


def supcon(batch: int, rows: int | None) -> Step:
    return step_of(wrapped(mc.SupConLoss(), rows), torch.randn(batch, DIM), torch.arange(batch) // CLASS)


def metrix(batch: int, rows: int | None) -> Step:
    criterion = wrapped(mc.Metrix(mc.SupConLoss()), rows)
    return step_of(criterion, torch.randn(batch, DIM), torch.arange(batch) // CLASS)


def m3(batch: int, rows: int | None) -> Step:
    image, text = F.normalize(torch.randn(2, batch, DIM), dim=-1)
    return step_of(wrapped(mc.GeodesicMixup(mc.ClipLoss()), rows), image, text, torch.tensor(50.0))


def wrapped(criterion, rows: int | None):
    return criterion if rows is None else mc.Tiled(criterion, rows=rows)


# what, how it is made, rows of a tile, batches timed, batch whose peak memory is measured
CASES: dict[str, tuple[str, Callable[[int, int | None], Step], int, tuple[int, ...], int]] = {
    "clip": ("ClipLoss", clip, 1024, (4096, 8192), 16384),
    "supcon": ("SupConLoss, 4 a class", supcon, 1024, (4096, 8192), 16384),
    "metrix": ("Metrix(SupConLoss), 4 a class, all positive x negative", metrix, 64, (2048, 4096), 16384),
    "m3": ("GeodesicMixup(ClipLoss), all terms", m3, 512, (2048, 4096), 16384),
}
TURNS = 7


def time_of(name: str, batch: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn."""
    _, make, rows, _, _ = CASES[name]
    contestants = {}
    for contestant, tile in (("whole", None), ("tiled", rows)):
        torch.manual_seed(0)
        contestants[contestant] = make(batch, tile)
    values = [float(step()) for step in contestants.values()]
    if abs(values[0] - values[1]) > (1e-4 if name in ("clip", "supcon") else 0.05) * abs(values[0]):
        raise SystemExit(f"{name}: whole and tiled give {values}")
    seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(TURNS):
        for contestant, step in contestants.items():
            gc.collect()
            start = time.perf_counter()
            step()
            seconds[contestant].append(time.perf_counter() - start)
    return seconds


def peak_of(name: str, batch: int) -> tuple[int, float]:
    """Bytes that the resident size gains at its peak in tiles, and the seconds of the step."""
    _, make, rows, _, _ = CASES[name]
    torch.manual_seed(0)
    make(256, rows)()  # loads code
    step = make(batch, rows)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    before, start = resident_size("VmRSS"), time.perf_counter()
    step()
    return resident_size("VmHWM") - before, time.perf_counter() - start


def child(*arguments: str):
    environment = dict(os.environ)
    if arguments[0] == "--peak":
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments], env=environment, text=True, capture_output=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(names: list[str]) -> str:
    lines = []
    for name in names:
        what, _, rows, batches, largest = CASES[name]
        for batch in batches:
            print(f"{what}, batch {batch}", file=sys.stderr)
            seconds = child("--time", name, str(batch))
            ratio = statistics.median(t / w for t, w in zip(seconds["tiled"], seconds["whole"], strict=True))
            times = [f"{statistics.median(seconds[contestant]):.2f}" for contestant in ("whole", "tiled")]
            lines.append([what, batch, rows, *times, f"{ratio:.2f}", ""])
        print(f"{what}, batch {largest}", file=sys.stderr)
        peak, took = child("--peak", name, str(largest))
        lines.append([what, largest, rows, "", f"{took:.2f}", "", f"{peak / 2**20:.0f}"])
    headers = ["what, D 512", "batch", "rows a tile", "whole, s", "tiled, s", "times the whole", "peak MB, tiled"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--time"]:
        print(json.dumps(time_of(arguments[1], int(arguments[2]))))
    elif arguments[:1] == ["--peak"]:
        print(json.dumps(peak_of(arguments[1], int(arguments[2]))))
    else:
        written = table(arguments or list(CASES))
        print(written)
        if not arguments:
            page = Path(__file__).with_suffix(".md")
            text = (
                "# A big batch in tiles of rows\n\nMade by `python eval/bench_tiling.py`: forward and backward, "
                f"drawing included; median of {TURNS} turns, ratios turn by turn; peak memory over the inputs, of a "
                f"fresh process.\n\n{machine()}\n\n{written}\n"
            )
            page.with_suffix(".tmp").write_text(text)
            page.with_suffix(".tmp").replace(page)


if __name__ == "__main__":
    main(sys.argv[1:])
