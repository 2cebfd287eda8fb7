"""MoCo as lightly's examples build it, on Fashion-MNIST: its loss and memory bank, ours in their place, and MoCHi.

    python eval/adapters_lightly.py            # writes eval/adapters_lightly.md
    python eval/adapters_lightly.py 1 1        # epochs, seeds: prints only

Needs `pip install '.[test]'` and Debian's package dataset-fashion-mnist. About ten minutes on one core. Nothing was
tuned: rate, temperature and augmentation are the same for all arms, and MoCHi begins after a tenth of the steps.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from paired import changes, means, ran_on
from torch import Tensor, nn

from mixcontrast import InfoNCE, KeyQueue, MoCHi
from mixcontrast.adapters.lightly import from_lightly
from mixcontrast.data import FashionMNIST, ViewOfImage
from mixcontrast.files import write_whole
from mixcontrast.retrieval import search

BATCH, BANK, WIDTH, TEMPERATURE, RATE, MOMENTUM = 128, 2048, 64, 0.2, 1e-3, 0.99
NUM_TRAIN, NUM_TEST, NEIGHBOURS = 6000, 4000, 20
MEAN, STD = (0.286,), (0.353,)


def arms(steps: int) -> dict[str, object]:
    few = dict(num_hardest=128, num_pair_mixes=128, num_anchor_mixes=32, warmup_steps=steps // 10)
    return {
        "lightly's": lambda: NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(BANK, WIDTH)),
        "ours in its place": lambda: from_lightly(NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(BANK, WIDTH))),
        "ours with MoCHi": lambda: MoCHi(InfoNCE(temperature=TEMPERATURE), queue=KeyQueue(BANK, WIDTH), **few),
    }


def main() -> None:
    epochs, seeds = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (5, 3)
    clothes = FashionMNIST(max_train=NUM_TRAIN, max_test=NUM_TEST)
    steps = epochs * (NUM_TRAIN // BATCH)
    found, seconds = {}, {}
    for seed in range(seeds):
        for arm, criterion in arms(steps).items():
            began = time.perf_counter()
            torch.manual_seed(seed)
            backbone = trained(criterion(), clothes, epochs, seed)
            seconds.setdefault(arm, []).append(time.perf_counter() - began)
            found.setdefault(arm, []).append({"accuracy": told_right(backbone, clothes)})
            print(f"seed {seed}, {arm}: {found[arm][-1]['accuracy'].mean():.4f}", flush=True)
    median = {arm: float(np.median(of)) for arm, of in seconds.items()}
    metric = {"accuracy": f"accuracy of {NEIGHBOURS} neighbours"}
    pairs = [("ours in its place", "lightly's"), ("ours with MoCHi", "ours in its place")]
    text = (
        "# In lightly's MoCo: Fashion-MNIST without labels\n\n"
        "Made by `python eval/adapters_lightly.py`.\n\n"
        f"timm's test_resnet and lightly's `MoCoProjectionHead`, {NUM_TRAIN:,} photographs, {epochs} epochs, batches "
        f"of {BATCH}, a bank of {BANK:,} keys, temperature {TEMPERATURE}, AdamW {RATE:g}, momentum {MOMENTUM}. Judged: "
        f"{NEIGHBOURS} neighbours among the training photographs vote on {NUM_TEST:,} test photographs of ten classes. "
        f"Mean of {seeds} seeds, the same weights at the start and the same views; 95% intervals over photographs. "
        "lightly's bank starts with random keys and writes them in after the loss as ours does; `from_lightly` takes "
        "them over.\n\n"
        f"{means(found, metric, None, median)}\n\n{changes(found, pairs, metric, None)}\n\n"
        f"{ran_on('lightly', 'timm')}\n"
    )
    print(text)
    if len(sys.argv) == 1:
        write_whole(Path(__file__).with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))


def trained(criterion: nn.Module, clothes: FashionMNIST, epochs: int, seed: int) -> nn.Module:
    """The backbone after some epochs, its weights and views drawn by the seed alone."""
    torch.manual_seed(seed)
    backbone = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    head = MoCoProjectionHead(backbone.num_features, backbone.num_features, WIDTH)
    slow_backbone, slow_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(slow_backbone)
    deactivate_requires_grad(slow_head)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=RATE, weight_decay=1e-4)
    views = ViewOfImage(28, scale=(0.4, 1.0), saturation=0, hue=0, grey=0, blur=0, mean=MEAN, std=STD)
    criterion.train()
    for epoch in range(epochs):
        torch.manual_seed(1000 * seed + epoch)  # whatever the criterion drew
        rows = torch.randperm(NUM_TRAIN)[: NUM_TRAIN // BATCH * BATCH].view(-1, BATCH)
        state = torch.get_rng_state()
        for batch in rows:
            torch.set_rng_state(state)
            view1, view2 = (torch.stack([views(clothes[int(row)]) for row in batch]) for _ in range(2))
            state = torch.get_rng_state()
            update_momentum(backbone, slow_backbone, m=MOMENTUM)
            update_momentum(head, slow_head, m=MOMENTUM)
            with torch.no_grad():
                key = slow_head(slow_backbone(view2))
            loss = criterion(head(backbone(view1)), key)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return backbone.eval()


@torch.no_grad()
def told_right(backbone: nn.Module, clothes: FashionMNIST) -> np.ndarray:
    """(NUM_TEST,) 1 where the neighbours' vote, each by e^(cosine / 0.07), is the class."""
    embeddings = torch.cat([backbone(pixels) for pixels in as_they_are(clothes).split(500)])
    near = search(embeddings[NUM_TRAIN:], embeddings[:NUM_TRAIN], k=NEIGHBOURS)
    votes = np.zeros((NUM_TEST, 10))
    for row, label in enumerate(clothes.labels[:NUM_TRAIN][near.indices].T):
        np.add.at(votes, (np.arange(NUM_TEST), label), np.exp(near.similarity[:, row] / 0.07))
    return (votes.argmax(axis=1) == clothes.labels[NUM_TRAIN:]).astype(np.float64)


def as_they_are(clothes: FashionMNIST) -> Tensor:
    """(N, 1, 28, 28)"""
    return (torch.from_numpy(clothes.images)[:, None].float() / 255 - MEAN[0]) / STD[0]


if __name__ == "__main__":
    main()
