"""Why: what the negatives and mixtures of a trained run are like, and how its embeddings lie."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mixcontrast.analysis import alignment, modality_gap, rank_correlation, uniformity, utilization
from mixcontrast.commands.explain import explained_batch, load_weights
from mixcontrast.commands.fit import fit_parser
from mixcontrast.commands.fit_errors import build, parse
from mixcontrast.data.pair_data import PairData, PairPart
from mixcontrast.explanation import Explanation
from mixcontrast.training.callbacks import embed_loader
from mixcontrast.training.image_text import ImageText
from mixcontrast.training.measures import TRAINING_ROWS

BINS = 80
EDGES = np.linspace(-1, 1, BINS + 1)
SAMPLE = 2000  # test rows that uniformity, alignment and utilization are measured on


def reasons_of(recipe: Path, run: Path, seed: int) -> dict[str, Any]:
    """Measures of a finished run, from its best checkpoint.

    Args:
        recipe: that it was trained by.
        run: its folder.
        seed: of the run.

    Returns:
        `similarities` (counts in 80 bins from -1 to 1 of positives, negatives and mixtures of one batch of training),
        `kinds` of mixtures, what they carry of loss and gradient, and `uniformity`, `alignment` and `utilization` of
        test embeddings; of two towers their `modality gap` and the `temperature` too; what does not apply is left out.
    """
    parser = fit_parser()
    config = parse(parser, ["--config", str(recipe), "--seed", str(seed), "--trainer.enable_progress_bar=false"])
    lightning.seed_everything(seed, verbose=False)
    ready = build(parser, config)
    module, data = ready.model, ready.data
    module.prepare(data)
    checkpoint = run / "best.ckpt"
    load_weights(module, checkpoint if checkpoint.exists() else run / "last.ckpt")
    found: dict[str, Any] = {"curve": curve_of(run)}
    found |= _of_towers(module, data) if isinstance(module, ImageText) else _of_embeddings(module, data)
    if module.criterion is not None:
        try:
            found |= _of_batch(explained_batch(module, data, seed=seed, trainer=ready.trainer.as_dict()))
        except (ValueError, TypeError) as error:  # TypeError: a mixer that it does not know
            found["not explained"] = str(error)
    return found


def curve_of(run: Path) -> list[tuple[int, float]]:
    """(epoch, value) of each look at the validation part, from the run's logs."""
    monitor = json.loads((run / "results.json").read_text(encoding="utf-8"))["settings"]["fit"]["monitor"]
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [
            (int(row["epoch"]) + 1, float(row[monitor])) for row in csv.DictReader(file) if monitor and row.get(monitor)
        ]


def _of_embeddings(module: lightning.LightningModule, data: lightning.LightningDataModule) -> dict[str, float]:
    loaders = data.test_dataloader()
    test, labels = embed_loader(module.encoder, loaders[0] if isinstance(loaders, list | tuple) else loaders)
    loader = data.probe_dataloader()
    some = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[:TRAINING_ROWS]
    train, _ = embed_loader(module.encoder, DataLoader(Subset(loader.dataset, some.tolist()), loader.batch_size))
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:SAMPLE]
    test, labels = test[rows], labels[rows]
    found = {"uniformity": float(uniformity(test)), "utilization": float(utilization(test, train))}
    first, second = _pairs(labels)
    if len(first):
        found["alignment"] = float(alignment(test[first], test[second]))
    if labels.is_floating_point():
        found["rank correlation"] = float(rank_correlation(test, labels))
    return found


def _of_towers(module: ImageText, data: PairData) -> dict[str, float]:
    """Of some tested images and their captions; what is of one tower is the mean of both."""
    test = _some(data, data.test.images, SAMPLE)
    encoders = module.encoder.encode_image, module.encoder.encode_text
    of_test, of_train = (
        [
            embed_loader(module, loader, encode=encode)[0]
            for loader, encode in zip(data.loaders(part), encoders, strict=True)
        ]
        for part in (test, _some(data, data.train_rows, TRAINING_ROWS))
    )
    images, texts = of_test
    return {
        "uniformity": float(uniformity(images) + uniformity(texts)) / 2,
        "utilization": sum(float(utilization(*rows)) for rows in zip(of_test, of_train, strict=True)) / 2,
        "alignment": float(alignment(images[test.pairs[:, 0]], texts[test.pairs[:, 1]])),
        "modality gap": float(modality_gap(images, texts)),
        "temperature": float(1 / module.encoder.logit_scale.detach().exp()),
    }


def _some(data: PairData, rows: np.ndarray, count: int) -> PairPart:
    """At most so many images, with their captions."""
    return data.part(np.sort(np.random.default_rng(0).permutation(rows)[:count]))


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that belong together: of one class, each with the next of it; of values, each with the nearest."""
    if labels.is_floating_point():
        values = labels.reshape(len(labels), -1)
        far = torch.cdist(values, values).fill_diagonal_(torch.inf)
        return torch.arange(len(values)), far.argmin(dim=1)
    order = labels.argsort(stable=True)
    same = (labels[order][1:] == labels[order][:-1]) & (labels[order][1:] >= 0)
    return order[:-1][same], order[1:][same]


def _of_batch(found: Explanation) -> dict[str, Any]:
    parts = {"positives": found.hardness.positive, "negatives": found.hardness.negative}
    if found.kinds:
        parts["mixtures"] = found.hardness.mixtures
    kinds = []
    for kind, share in zip(found.kinds, found.gradients, strict=True):
        counts = kind.weight > 0
        false = found.false_negatives(kind)
        entry: dict[str, Any] = {"kind": kind.kind, "share of the gradient": float(share.sum())}
        if bool(counts.any()):
            entry |= {"an anchor": int(counts.sum()) / len(counts), "similarity": float(kind.similarity[counts].mean())}
            harder = found.harder(kind)
            if harder is not None:
                entry["harder than the hardest"] = harder
        if false is not None:
            entry["false negatives"] = false.any
        kinds.append(entry)
    counted = {name: np.histogram(part.numpy().clip(-1, 1), EDGES)[0].tolist() for name, part in parts.items()}
    return {
        "similarities": counted,
        "means": {name: float(part.mean()) for name, part in parts.items() if len(part)},
        "kinds": kinds,
        "share of the loss": found.of_loss if found.of_loss == found.of_loss else None,
        "share of the gradient": found.of_gradient,
    }

