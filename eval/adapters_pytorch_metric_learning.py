"""pytorch-metric-learning's trainer, miner and sampler on emoji: its loss, ours in its place, and ours with mixing.

    python eval/adapters_pytorch_metric_learning.py            # writes eval/adapters_pytorch_metric_learning.md
    python eval/adapters_pytorch_metric_learning.py 2 1        # epochs, seeds: prints only

Needs `pip install '.[test]'`. About seven minutes on one core, once the frozen features are computed. Learning rates
are those that eval/recipes.py chose on validation classes, 3e-4 for the plain loss and 1e-4 with Metrix.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from paired import changes, means, ran_on
from pytorch_metric_learning import losses, miners, samplers, trainers
from torch.utils.data import TensorDataset

from mixcontrast import Metrix
from mixcontrast.adapters.pytorch_metric_learning import as_pml, from_pml
from mixcontrast.data import EmojiFeatures
from mixcontrast.files import write_whole
from mixcontrast.models import FeatureHead
from mixcontrast.retrieval import Evaluation, evaluate

BATCH, PER_CLASS = 128, 4
METRICS = {"hit@1": "Recall@1", "map@r": "MAP@R"}


def theirs() -> losses.MultiSimilarityLoss:
    return losses.MultiSimilarityLoss(alpha=18, beta=75, base=0.77)


ARMS = {
    "theirs": (theirs, 3e-4),
    "ours in its place": (lambda: as_pml(from_pml(theirs())), 3e-4),
    "ours with Metrix": (lambda: as_pml(Metrix(from_pml(theirs()))), 1e-4),
}


def main() -> None:
    epochs, seeds = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (20, 3)
    logging.disable(logging.INFO)
    emoji = EmojiFeatures(image_size=64)
    labels = np.asarray(emoji.labels)
    classes = np.random.default_rng(0).permutation(labels.max() + 1)
    test = np.isin(labels, classes[: len(classes) // 2])
    features = torch.stack([emoji[row] for row in range(len(emoji))])
    groups = None
    found, seconds = {"frozen features": []}, {arm: [] for arm in ARMS}
    for seed in range(seeds):
        found["frozen features"].append(judged(features[test], labels[test]).values)
        for arm, (criterion, rate) in ARMS.items():
            began = time.perf_counter()
            head = trained(criterion(), rate, features[~test], labels[~test], epochs, seed)
            seconds[arm].append(time.perf_counter() - began)
            with torch.no_grad():
                result = judged(head(features[test]), labels[test])
            groups = result.groups
            found.setdefault(arm, []).append(result.values)
            print(f"seed {seed}, {arm}: Recall@1 {result.mean('hit@1'):.4f}", flush=True)
    median = {arm: float(np.median(of)) for arm, of in seconds.items()}
    pairs = [("ours in its place", "theirs"), ("ours with Metrix", "theirs")]
    text = (
        "# In pytorch-metric-learning's trainer: emoji that were never seen\n\n"
        "Made by `python eval/adapters_pytorch_metric_learning.py`.\n\n"
        f"A head of two layers on frozen EfficientNet-lite0 features (64 pixels) of emoji drawn by seven vendors, "
        f"{epochs} epochs of `MetricLossOnly` with `MPerClassSampler` ({BATCH} a batch, {PER_CLASS} a class) and "
        f"`MultiSimilarityMiner`; {test.sum():,} drawings of {len(classes) // 2} classes are judged, which were not "
        f"trained on. Mean of {seeds} seeds, the same weights at the start and the same batches; 95% intervals over "
        "classes. Theirs is `MultiSimilarityLoss(alpha=18, beta=75, base=0.77)`, ours in its place "
        "`as_pml(from_pml(theirs))`, with Metrix `as_pml(Metrix(from_pml(theirs)))`.\n\n"
        f"{means(found, METRICS, groups, median)}\n\n{changes(found, pairs, METRICS, groups)}\n\n"
        f"{ran_on('pytorch-metric-learning')}\n"
    )
    print(text)
    if len(sys.argv) == 1:
        write_whole(Path(__file__).with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))


def trained(
    criterion: losses.BaseMetricLossFunction, rate: float, features: torch.Tensor, labels: np.ndarray, epochs: int,
    seed: int,
) -> torch.nn.Module:  # fmt: skip
    """A head after some epochs of the library's trainer."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # the library's sampler draws from it
    head = FeatureHead(features.shape[1], 512)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=1e-4)
    sampler = samplers.MPerClassSampler(labels, PER_CLASS, batch_size=BATCH, length_before_new_iter=len(labels))
    trainer = trainers.MetricLossOnly(
        models={"trunk": head},
        optimizers={"trunk_optimizer": optimizer},
        batch_size=BATCH,
        loss_funcs={"metric_loss": criterion},
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        dataset=TensorDataset(features, torch.from_numpy(labels)),
        sampler=sampler,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    trainer.train(num_epochs=epochs)
    return head.eval()


def judged(embeddings: torch.Tensor, labels: np.ndarray) -> Evaluation:
    return evaluate(embeddings, labels, ks=(1,))


if __name__ == "__main__":
    main()
