"""The same encoder trained with a loss alone and with a mixer around it, over paired seeds, and judged."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mixcontrast.data.sampler import MPerClassBatchSampler
from mixcontrast.files import write_json, write_whole
from mixcontrast.models.features import head
from mixcontrast.retrieval import RetrievalEvaluator
from mixcontrast.training.callbacks import RetrievalCallback
from mixcontrast.training.criteria import criterion_of
from mixcontrast.training.metric_learning import MetricLearning
from mixcontrast.training.watch import Watch, embed


@dataclass(frozen=True)
class Recipe:
    """What both arms share, and the names of the two criteria.

    Attributes:
        loss: a name of `LOSSES`.
        mixer: a name of `MIXERS`.
        epochs: each meets every training class once a batch of its.
        classes_per_batch: with `per_class` images each.
        per_class: images a class.
        embedding_dim: of the head.
        learning_rate: of AdamW.
    """

    loss: str
    mixer: str
    epochs: int
    classes_per_batch: int
    per_class: int
    embedding_dim: int
    learning_rate: float


ARMS = ("plain", "mixed")


@dataclass(frozen=True)
class Trained:
    """One finished run: the embeddings of the test images, the curve, and the seconds of its steps."""

    embeddings: Tensor
    curve: list[dict[str, float]]
    seconds: list[float]


def steps_per_run(labels: np.ndarray, recipe: Recipe) -> int:
    """How many steps one run takes."""
    return len(_batches(labels, recipe, 0)) * recipe.epochs


def train(
    recipe: Recipe,
    arm: str,
    seed: int,
    inputs: Tensor,
    labels: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    device: str,
    folder: Path,
    advance: Callable[[int], None],
) -> Trained:
    """Trains one arm of one seed, or reads it where the folder holds it, finished, of the same recipe and data.

    Args:
        recipe: of the comparison.
        arm: "plain" or "mixed"; both start from the same weights and see the same batches.
        seed: of weights, batches and mixing.
        inputs: (N, F) features of all images.
        labels: (N,) classes.
        parts: rows of the training, validation and test images.
        device: "cpu", "cuda" or "mps".
        folder: gets `checkpoint.ckpt`, `curve.csv` and, last, `run.json`.
        advance: told how many steps are done.
    """
    what = {"recipe": asdict(recipe), "arm": arm, "seed": seed, "data": _fingerprint(inputs, labels, *parts)}
    if arm == "plain":
        del what["recipe"]["mixer"]
    train_rows, validation_rows, test_rows = parts
    classes, train_labels = np.unique(labels[train_rows], return_inverse=True)
    lightning.seed_everything(seed, verbose=False)
    encoder = head(inputs.shape[1], recipe.embedding_dim)
    criterion = criterion_of(
        recipe.loss, recipe.mixer if arm == "mixed" else None, len(classes), recipe.embedding_dim
    )
    module = MetricLearning(
        encoder,
        criterion,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=1e-4),
        cosine=False,
    )
    done = _finished(folder, what)
    if done is not None:
        saved = torch.load(folder / "checkpoint.ckpt", map_location="cpu", weights_only=True)
        module.load_state_dict(saved["state_dict"])
        advance(steps_per_run(train_labels, recipe))
        return Trained(embed(module, inputs[test_rows]), done["curve"], done["seconds"])
    validation = TensorDataset(inputs[validation_rows], torch.from_numpy(labels[validation_rows]))
    judge = RetrievalCallback(
        RetrievalEvaluator(ks=(1,), preset=None, intervals=False), queries=DataLoader(validation, batch_size=1024)
    )
    watch = Watch(judge, lambda: advance(1))
    data = TensorDataset(inputs[train_rows], torch.from_numpy(train_labels))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # features are in memory
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, of newer torch
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = lightning.Trainer(
            max_epochs=recipe.epochs,
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            callbacks=[judge, watch],
        )
        torch.manual_seed(seed)  # mixing draws from torch's own generator
        trainer.fit(module, DataLoader(data, batch_sampler=_batches(train_labels, recipe, seed)))
    write_whole(folder / "checkpoint.ckpt", lambda temporary: trainer.save_checkpoint(temporary))
    lines = ["epoch,loss,validation hit@1"] + [",".join(f"{v:.6g}" for v in row.values()) for row in watch.curve]
    write_whole(folder / "curve.csv", lambda temporary: temporary.write_text("\n".join(lines) + "\n"))
    write_json(folder / "run.json", {"what": what, "curve": watch.curve, "seconds": watch.seconds})
    module.cpu()
    return Trained(embed(module, inputs[test_rows]), watch.curve, watch.seconds)


def _fingerprint(inputs: Tensor, *arrays: np.ndarray) -> str:
    """One short name of all that a run reads, so that a run on other images, sizes or splits is another run."""
    digest = hashlib.sha256(str((inputs.dtype, inputs.shape)).encode())
    for array in (inputs.numpy(), *arrays):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _finished(folder: Path, what: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished run of exactly this recipe left, or None."""
    file = folder / "run.json"
    if not file.exists() or not (folder / "checkpoint.ckpt").exists():
        return None
    left = json.loads(file.read_text())
    return left if left["what"] == what else None


def _batches(labels: np.ndarray, recipe: Recipe, seed: int) -> MPerClassBatchSampler:
    return MPerClassBatchSampler(
        labels, classes_per_batch=recipe.classes_per_batch, per_class=recipe.per_class, seed=seed
    )
