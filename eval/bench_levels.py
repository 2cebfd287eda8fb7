"""What a training step costs when Metrix mixes embeddings, features or inputs, against the same step without mixing.

    python eval/bench_levels.py     # writes eval/bench_levels.md

A timm resnet18 at 64 pixels, batch 64 (4 a class), 128-d embeddings, MultiSimilarityLoss: forward, backward and the
step of SGD. Contestants take turns in one process; a time is the median over the turns and a ratio the median of the
ratios turn by turn. Activations are the numbers that autograd keeps for the backward pass, parameters left out.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from tabulate import tabulate
from torch import nn

import mixcontrast as mc

TURNS, BATCH, PIXELS = 9, 64, 64


def contestants() -> dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Each gives the loss of an encoder on a batch."""
    loss = mc.MultiSimilarityLoss(alpha=18, beta=75, base=0.77)

    def on_embeddings(criterion: nn.Module):
        return lambda encoder, images, labels: criterion(encoder(images), labels)

    return {
        "no mixing": on_embeddings(loss),
        "embeddings: Metrix(loss)": on_embeddings(mc.Metrix(loss)),
        'late feature: DeepMetrix(loss, layer="layer4")': mc.DeepMetrix(loss, layer="layer4"),
        'feature: DeepMetrix(loss, layer="layer3")': mc.DeepMetrix(loss, layer="layer3"),
        'early feature: DeepMetrix(loss, layer="layer1")': mc.DeepMetrix(loss, layer="layer1"),
        "inputs: DeepMetrix(loss, layer=None)": mc.DeepMetrix(loss, layer=None),
        'late feature, 16 mixtures: DeepMetrix(loss, layer="layer4", num_mixtures=16)': mc.DeepMetrix(
            loss, layer="layer4", num_mixtures=16
        ),
    }


def kept_megabytes(loss_of: Callable, encoder: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of the tensors that the backward pass reads, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(encoder, images, labels)
    return sum(storage.nbytes() for storage in kept.values()) / 2**20


def main() -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("resnet18", num_classes=128).train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-3)
    images, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.arange(BATCH) // 4
    entrants = contestants()
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    for turn in range(TURNS + 1):
        for name, loss_of in entrants.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            loss_of(encoder, images, labels).backward()
            optimizer.step()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    plain = seconds["no mixing"]
    memory = {name: kept_megabytes(loss_of, encoder, images, labels) for name, loss_of in entrants.items()}
    rows = [
        [
            name,
            1000 * statistics.median(times),
            statistics.median(t / p for t, p in zip(times, plain, strict=True)),
            memory[name],
            memory[name] / memory["no mixing"],
        ]
        for name, times in seconds.items()
    ]
    table = tabulate(
        rows,
        headers=["mixed at", "ms a step", "times no mixing", "activations MB", "times no mixing"],
        tablefmt="github",
        floatfmt=("", ".0f", ".2f", ".0f", ".2f"),
    )
    page = (
        "# What mixing deeper costs\n\n"
        f"Made by `python eval/bench_levels.py`: timm resnet18, {PIXELS} pixels, batch {BATCH} (4 a class), 128-d, "
        f"MultiSimilarityLoss; forward, backward and step; median of {TURNS} turns, ratios turn by turn. As many "
        "mixtures as examples where no number is given; Metrix on embeddings mixes every positive with every "
        "negative.\n\n"
        f"{os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, torch {torch.__version__} "
        f"with {torch.get_num_threads()} threads, timm {timm.__version__}, mixcontrast {mc.__version__}.\n\n"
        f"{table}\n"
    )
    target = Path(__file__).with_suffix(".md")
    target.with_suffix(".md.part").write_text(page)
    target.with_suffix(".md.part").replace(target)
    print(page)


if __name__ == "__main__":
    main()
