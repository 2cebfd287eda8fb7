"""Retrieval evaluation against bare faiss, pytorch-metric-learning and a plain loop over captions.

    python eval/bench_retrieval.py            # all, writes eval/bench_retrieval.md
    python eval/bench_retrieval.py small      # some, prints only
    python eval/bench_retrieval.py disk 20000 40000     # galleries on disk of these sizes

Every contestant of a row runs in one process, in turn; a ratio is the median of the ratios turn by turn. `evaluate` is
timed with all its metrics; intervals are not part of it. faiss is given the same number of neighbours.

Galleries on disk are searched in processes of their own, whose peak memory is the kernel's count (VmHWM), the program
itself included; a process that loads the gallery and calls faiss.knn, loading not timed, is what they are set against.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from tabulate import tabulate

import mixcontrast
from mixcontrast.retrieval import StoredEmbeddings, evaluate, evaluate_pairs


def clustered(rows: int, dim: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around the centre of their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) // per_class
    table = rng.standard_normal((labels[-1] + 1, dim), np.float32)[labels]
    table += 2 * rng.standard_normal((rows, dim), np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True), labels


def classes(rows: int, dim: int, per_class: int, peer: bool) -> dict[str, Callable[[], float]]:
    table, labels = clustered(rows, dim, per_class)
    k = max(8, per_class - 1) + 2  # what evaluate asks for: R or the largest k, itself, and one to see a tie

    def bare() -> float:
        _, indices = faiss.knn(table, table, k, metric=faiss.METRIC_INNER_PRODUCT)
        return float((labels[indices[:, 1]] == labels).mean())

    contestants = {
        "faiss.knn alone": bare,
        "evaluate, 23 metrics a query": lambda: evaluate(table, labels).mean("hit@1"),
    }
    if peer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        calculator = AccuracyCalculator(
            include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
            k="max_bin_count",
            device=torch.device("cpu"),
        )
        tensors = torch.from_numpy(table), torch.from_numpy(labels)
        contestants["AccuracyCalculator, 3 metrics"] = lambda: calculator.get_accuracy(*tensors)["precision_at_1"]
    return contestants


def captions(images: int, each: int, dim: int) -> dict[str, Callable[[], float]]:
    """Image to text: R@1, 5 and 10 with several captions an image."""
    texts, image_of = clustered(images * each, dim, each)
    rng = np.random.default_rng(1)
    pictures = texts.reshape(images, each, dim).mean(axis=1) + 0.05 * rng.standard_normal((images, dim), np.float32)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    pairs = np.stack([image_of, np.arange(images * each)], axis=1)

    def bare() -> float:
        _, indices = faiss.knn(pictures, texts, 11, metric=faiss.METRIC_INNER_PRODUCT)
        return float((image_of[indices[:, 0]] == np.arange(images)).mean())

    def dense() -> float:
        """The table of all scores, ranked in full: how CLIP_benchmark counts, in blocks of queries."""
        hits = 0
        scores = torch.from_numpy(pictures) @ torch.from_numpy(texts).T
        for start in range(0, images, 500):
            order = scores[start : start + 500].argsort(dim=1, descending=True)[:, :10]
            found = torch.from_numpy(image_of)[order] == torch.arange(start, start + len(order))[:, None]
            hits += int(found[:, 0].sum())
        return hits / images

    return {
        "faiss.knn alone": bare,
        "evaluate_pairs, all metrics": lambda: evaluate_pairs(pictures, texts, pairs, ks=(1, 5, 10)).mean("hit@1"),
        "all scores sorted": dense,
    }


CASES: dict[str, tuple[str, Callable[[], dict[str, Callable[[], float]]], int]] = {
    "small": ("20,000 x 128 among themselves, 5 a class", lambda: classes(20_000, 128, 5, True), 5),
    "sop": ("60,000 x 512 among themselves, 5 a class", lambda: classes(60_000, 512, 5, False), 3),
    "captions": ("5,000 images x 25,000 captions, 512", lambda: captions(5_000, 5, 512), 5),
}


def rows_of(name: str) -> list[list[str]]:
    title, case, turns = CASES[name]
    contestants = case()
    seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    values = {}
    for turn in range(turns + 1):
        for contestant, run in contestants.items():
            start = time.perf_counter()
            values[contestant] = run()
            if turn:
                seconds[contestant].append(time.perf_counter() - start)
    if max(values.values()) - min(values.values()) > 1e-3:
        raise SystemExit(f"{title}: the first place is right in {values}")
    alone = next(iter(seconds.values()))
    return [
        [title, contestant, f"{statistics.median(times):.2f}",
         f"{statistics.median(a / b for a, b in zip(times, alone, strict=True)):.2f}"]
        for contestant, times in seconds.items()
    ]  # fmt: skip


SIZES = (250_000, 500_000, 1_000_000, 2_000_000)
TURNS = 3
LIMIT, DIM, NUM_QUERIES, PER_CLASS = 10**9, 128, 1000, 50


def write_gallery(path: Path, rows: int) -> None:
    """Rows of a class stand far apart, so that every block has some."""
    table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIM))
    num_classes = rows // PER_CLASS
    centres = np.random.default_rng(0).standard_normal((num_classes, DIM), np.float32)
    for start in range(0, rows, num_classes):
        part = table[start : start + num_classes]
        part[:] = centres[: len(part)] + np.random.default_rng(start + 1).standard_normal(part.shape, np.float32)
    table.flush()


def search_one(path: str, rows: int, how: str) -> None:
    """Runs in a process of its own and prints what it took."""
    labels = np.arange(rows) % (rows // PER_CLASS)
    rng = np.random.default_rng(7)
    asked = np.sort(rng.choice(rows, NUM_QUERIES, replace=False))
    stored = StoredEmbeddings(path)
    queries = np.concatenate([stored.read(row, row + 1) for row in asked.tolist()])
    queries += 0.5 * rng.standard_normal(queries.shape, np.float32)
    if how == "bare":
        gallery = np.load(path)
        gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        start = time.perf_counter()
        _, indices = faiss.knn(queries, gallery, PER_CLASS + 1, metric=faiss.METRIC_INNER_PRODUCT)
        value = float((labels[indices[:, 0]] == labels[asked]).mean())
    else:
        start = time.perf_counter()
        value = evaluate(queries, labels[asked], stored, labels, memory_limit=LIMIT).mean("hit@1")
    seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "value": value, "gigabytes": int(peak.split()[1]) * 1024 / 1e9}))


def on_disk(sizes: tuple[int, ...]) -> str:
    """The table of galleries on disk."""
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.npy"
        for size in sizes:
            write_gallery(path, size)
            turns: dict[str, list[dict[str, float]]] = {"bare": [], "limited": []}
            for _ in range(TURNS):
                for how, of_turns in turns.items():
                    command = [sys.executable, __file__, "one", str(path), str(size), how]
                    run = subprocess.run(command, capture_output=True, text=True, check=True)
                    of_turns.append(json.loads(run.stdout.splitlines()[-1]))
            pairs = zip(turns["limited"], turns["bare"], strict=True)
            ratio = statistics.median(mine["seconds"] / alone["seconds"] for mine, alone in pairs)
            bare, limited = (
                {"seconds": statistics.median(turn["seconds"] for turn in of_turns),
                 "gigabytes": max(turn["gigabytes"] for turn in of_turns), "value": of_turns[0]["value"]}
                for of_turns in turns.values()
            )  # fmt: skip
            if abs(bare["value"] - limited["value"]) > 1e-3:
                raise SystemExit(f"{size}: the first place is right in {turns}")
            if limited["gigabytes"] > LIMIT / 1e9:
                raise SystemExit(f"{size}: {limited['gigabytes']:.2f} GB were taken; the limit is {LIMIT / 1e9:.2f}")
            first = first or (size, limited["seconds"])
            rows.append([
                f"{size:,} x {DIM}", f"{size * DIM * 4 / 1e9:.2f}", f"{limited['gigabytes']:.2f}",
                f"{limited['seconds']:.1f}", f"{limited['seconds'] / first[1]:.2f} ({size / first[0]:.0f})",
                f"{ratio:.2f}", f"{bare['gigabytes']:.2f}",
            ])  # fmt: skip
    headers = [
        "gallery", "GB on disk", "peak GB, program included", "seconds", "times the first (its size)",
        "times faiss.knn in memory", "its peak GB",
    ]  # fmt: skip
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main(names: list[str]) -> None:
    if names[:1] == ["one"]:
        return search_one(names[1], int(names[2]), names[3])
    if names[:1] == ["disk"]:
        return print(on_disk(tuple(int(name) for name in names[1:]) or SIZES))
    rows = [row for name in names or CASES for row in rows_of(name)]
    table = tabulate(
        rows, ["what", "contestant", "seconds", "times faiss.knn alone"], tablefmt="github", disable_numparse=True
    )
    print(table)
    if not names:
        machine = (
            f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}; Python {platform.python_version()}, "
            f"torch {torch.__version__}, faiss {faiss.__version__}, mixcontrast {mixcontrast.__version__}."
        )
        of_disk = on_disk(SIZES)
        print(of_disk)
        page = Path(__file__).with_suffix(".md")
        page.with_suffix(".tmp").write_text(
            f"# What judging retrieval costs\n\nMade by `python eval/bench_retrieval.py`; median over the turns.\n\n"
            f"{machine}\n\n{table}\n\n"
            f"{NUM_QUERIES:,} queries in a gallery on disk, {PER_CLASS} rows a class, all metrics, "
            f"`memory_limit={LIMIT:,}`:\n\n"
            f"{of_disk}\n"
        )
        page.with_suffix(".tmp").replace(page)


if __name__ == "__main__":
    main(sys.argv[1:])
