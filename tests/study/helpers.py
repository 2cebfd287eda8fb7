"""Small data with a known answer, and a way to kill one run of a study."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from torch import Tensor

from mixcontrast.data import Captioned, Examples
from tests.fitting import TOWERS, WIDTH, Killed, of


class Hidden(Examples):
    """Classes that differ in four numbers of twelve; the others are louder noise, which training learns to leave out.

    Args:
        shuffled: the labels say nothing.
    """

    def __init__(self, *, num_classes: int = 60, per_class: int = 6, shuffled: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(num_classes).repeat(per_class)
        self.names = tuple(f"class {number}" for number in range(num_classes))
        centres = np.zeros((num_classes, WIDTH))
        centres[:, :4] = rng.normal(size=(num_classes, 4))
        noise = rng.normal(size=(len(self.labels), WIDTH)) * np.r_[[0.3] * 4, [1.5] * (WIDTH - 4)]
        self.rows = (centres[self.labels] + noise).astype(np.float32)
        if shuffled:
            self.labels = rng.permutation(self.labels)

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(self.rows[row])


class HiddenPairs(Captioned):
    """Two images and two captions a class, which agree in six numbers of twelve, turned; the others are noise.

    Args:
        shuffled: the captions belong to other images, each to one.
    """

    domains = None

    def __init__(self, *, num_classes: int = 120, shuffled: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.groups = texts = np.arange(num_classes).repeat(2)
        self.captions = tuple(f"caption {number}" for number in range(len(texts)))
        self.image_names = tuple(f"image {number}" for number in range(len(texts)))
        self.pairs = np.array([(2 * k + i, 2 * k + t) for k in range(num_classes) for i in (0, 1) for t in (0, 1)])
        centres = rng.normal(size=(num_classes, 6))
        self.tables = []
        for turned in (np.eye(6), np.linalg.qr(rng.normal(size=(6, 6)))[0]):
            rows = 0.7 * rng.normal(size=(len(texts), WIDTH))
            rows[:, :6] = (centres @ turned)[texts] + 0.2 * rng.normal(size=(len(texts), 6))
            self.tables.append(torch.from_numpy(rows.astype(np.float32)))
        if shuffled:
            self.tables[1] = self.tables[1][torch.from_numpy(rng.permutation(len(texts)))]

    def image(self, row: int) -> Tensor:
        return self.tables[0][row]

    def caption(self, row: int) -> Tensor:
        return self.tables[1][row]


class KillAt(lightning.Callback):
    """Ends a run of which the folder's path ends as $KILL_RUN says, behind the batch that it says: `seed1:3`."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        where, _, step = os.environ.get("KILL_RUN", "").rpartition(":")
        if where and trainer.default_root_dir.endswith(where) and trainer.fit_loop.total_batch_idx + 1 == int(step):
            raise Killed


def recipe(**data: Any) -> dict[str, Any]:
    """A recipe of metric learning without a criterion."""
    return {
        "trainer": {
            "max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 5,
            "callbacks": [of("tests.study.helpers.KillAt")],
        },
        "model": of(
            "mixcontrast.training.MetricLearning", encoder=of("tests.fitting.Plain"), cosine=False,
            optimizer=of("torch.optim.AdamW", lr=1e-2, weight_decay=1e-4),
        ),
        "data": of(
            "mixcontrast.data.ClassData", examples=of("tests.study.helpers.Hidden", **data), classes_per_batch=6,
            per_class=4,
        ),
    }  # fmt: skip


def towers(**data: Any) -> dict[str, Any]:
    """A recipe of two towers without a criterion."""
    return recipe() | {
        "model": of("mixcontrast.training.ImageText", encoder=copy.deepcopy(TOWERS), temperature=0.1,
                    max_logit_scale=50.0, optimizer=of("torch.optim.AdamW", lr=1e-2, weight_decay=1e-4)),
        "data": of("mixcontrast.data.PairData", pairs=of("tests.study.helpers.HiddenPairs", **data), batch_size=16),
    }  # fmt: skip


def config(file: Path, **changes: Any) -> Path:
    """A study's file: the same loss at a good and at a useless learning rate, unless something else is said."""
    plain = {
        "criteria": [
            {"name": "useless", "criterion": of("mixcontrast.SupConLoss", temperature=0.2),
             "grid": {"learning_rate": [1e-7]}},
            {"name": "useful", "criterion": of("mixcontrast.SupConLoss", temperature=0.2),
             "grid": {"learning_rate": [1e-2]}},
        ],
        "grid": {}, "seeds": 3, "recipe": recipe(), "costs": False,
    } | changes  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(plain))
    return file
