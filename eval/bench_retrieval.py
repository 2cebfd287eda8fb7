"""Retrieval evaluation against bare faiss, pytorch-metric-learning and a plain loop over captions.

    python eval/bench_retrieval.py            # all, writes eval/bench_retrieval.md
    python eval/bench_retrieval.py small      # some, prints only

Every contestant of a row runs in one process, in turn; a ratio is the median of the ratios turn by turn. `evaluate` is
timed with all its metrics; intervals are not part of it. faiss is given the same number of neighbours.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from tabulate import tabulate

import mixcontrast
from mixcontrast.retrieval import evaluate, evaluate_pairs


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


def main(names: list[str]) -> None:
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
        page = Path(__file__).with_suffix(".md")
        page.with_suffix(".tmp").write_text(
            f"# What judging retrieval costs\n\nMade by `python eval/bench_retrieval.py`; median over the turns.\n\n"
            f"{machine}\n\n{table}\n"
        )
        page.with_suffix(".tmp").replace(page)


if __name__ == "__main__":
    main(sys.argv[1:])
