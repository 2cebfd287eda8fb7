"""Small examples, networks and recipes for the tests of `mixcontrast fit`."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from torch import Tensor, nn

from mixcontrast.data import Captioned, Examples

WIDTH = 12


class Vectors(Examples):
    """Noisy points around one centre a class."""

    def __init__(self, *, num_classes: int = 20, per_class: int = 6, noise: float = 0.6) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(num_classes).repeat(per_class)
        self.names = tuple(f"class {number}" for number in range(num_classes))
        centres = rng.normal(size=(num_classes, WIDTH))
        self.rows = (centres[self.labels] + noise * rng.normal(size=(len(self.labels), WIDTH))).astype(np.float32)

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(self.rows[row])


class Measured(Examples):
    """Points whose value is the length of a part of them."""

    names = ()

    def __init__(self, *, num_rows: int = 120) -> None:
        rng = np.random.default_rng(0)
        self.rows = rng.normal(size=(num_rows, WIDTH)).astype(np.float32)
        self.labels = (10 * np.linalg.norm(self.rows[:, :3], axis=1) + 30).astype(np.float32)

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(self.rows[row])


class CaptionedVectors(Captioned):
    """Noisy points around one centre a class, in two spaces, two captions and three images a class."""

    def __init__(self, *, num_classes: int = 40, noise: float = 0.4) -> None:
        rng = np.random.default_rng(0)
        self.groups = np.arange(num_classes).repeat(3)
        texts = np.arange(num_classes).repeat(2)
        self.captions = tuple(f"caption {number} of {label}" for number, label in enumerate(texts))
        self.pairs = np.array([(i, t) for i, a in enumerate(self.groups) for t, b in enumerate(texts) if a == b])
        self.image_names = tuple(f"image {row}" for row in range(len(self.groups)))
        self.domains = np.array(["north", "south", "west"] * num_classes)
        centres = rng.normal(size=(num_classes, WIDTH))
        turned = centres @ rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
        self.image_rows, self.text_rows = (
            torch.from_numpy((table[labels] + noise * rng.normal(size=(len(labels), WIDTH))).astype(np.float32))
            for table, labels in ((centres, self.groups), (turned, texts))
        )

    def image(self, row: int) -> Tensor:
        return self.image_rows[row]

    def caption(self, row: int) -> Tensor:
        return self.text_rows[row]


class Network(nn.Module):
    """A network that draws (dropout), counts (batch norm) and has a head."""

    def __init__(self, embedding_dim: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, embedding_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))


class Plain(nn.Linear):
    """A network that draws nothing and counts nothing."""

    def __init__(self, embedding_dim: int = 8) -> None:
        super().__init__(WIDTH, embedding_dim)


class Deep(nn.Sequential):
    """Several layers that draw nothing and count nothing."""

    def __init__(self, embedding_dim: int = 8) -> None:
        super().__init__(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, embedding_dim))


class Killed(RuntimeError):
    pass


class Kill(lightning.Callback):
    """Ends the run behind a step, as a machine does that goes down; only where the environment says so."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        how, _, step = os.environ.get("KILL_AT", "").partition(":")
        if how and trainer.fit_loop.total_batch_idx + 1 == int(step):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed


class Poison(lightning.Callback):
    """Makes an input NaN in one batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.step:
            with torch.no_grad():
                module.encoder.bias.fill_(torch.inf)


def of(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


TRAINER = {
    "max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "enable_progress_bar": False,
    "callbacks": [of("tests.fitting.Kill")],
}  # fmt: skip
OPTIMIZER = of("torch.optim.AdamW", lr=1e-2, weight_decay=1e-2)
NOISE = of("mixcontrast.data.VectorNoise")
MOCHI = of(
    "mixcontrast.MoCHi",
    loss=of("mixcontrast.InfoNCE", temperature=0.2),
    queue=of("mixcontrast.KeyQueue", size=40, dim=6),
    num_hardest=6, num_pair_mixes=5, num_anchor_mixes=3, warmup_steps=2,
)  # fmt: skip

TOWERS = of("mixcontrast.models.FeatureTowers", embedding_dim=8, image_features=WIDTH, text_features=WIDTH)
QUEUES = dict(
    image_queue=of("mixcontrast.KeyQueue", size=24, dim=8, labels=True),
    text_queue=of("mixcontrast.KeyQueue", size=24, dim=8, labels=True),
)  # fmt: skip
PAIRS = of("mixcontrast.data.PairData", pairs=of("tests.fitting.CaptionedVectors"), batch_size=16, held_out=["west"])

RECIPES: dict[str, dict[str, Any]] = {
    "metric learning": {
        "trainer": TRAINER,
        "model": of(
            "mixcontrast.training.MetricLearning",
            encoder=of("tests.fitting.Network"),
            criterion=of("mixcontrast.Metrix", num_mixtures=3, loss=of("mixcontrast.ProxyAnchorLoss", num_classes=8,
                                                                       embedding_dim=8)),
            optimizer=OPTIMIZER, warmup_epochs=1, head_only_epochs=1,
        ),
        "data": of("mixcontrast.data.ClassData", examples=of("tests.fitting.Vectors"), classes_per_batch=2, per_class=3,
                   augment=NOISE),
    },
    "moco": {
        "trainer": TRAINER,
        "model": of(
            "mixcontrast.training.SelfSupervised",
            encoder=of("tests.fitting.Network"), criterion=MOCHI, momentum=0.9, cosine_momentum=True,
            projector=of("mixcontrast.models.ProjectionHead", num_features=8, embedding_dim=6), optimizer=OPTIMIZER,
        ),
        "data": of("mixcontrast.data.ViewsData", examples=of("tests.fitting.Vectors", num_classes=5, per_class=24),
                   batch_size=16, augment=NOISE),
    },
    "simclr": {
        "trainer": {**TRAINER, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
        "model": of(
            "mixcontrast.training.SelfSupervised",
            encoder=of("tests.fitting.Network"), criterion=of("mixcontrast.InfoNCE", temperature=0.5),
            optimizer=of("torch.optim.SGD", lr=0.1, momentum=0.9), warmup_epochs=0.5,
        ),
        "data": of("mixcontrast.data.ViewsData", examples=of("tests.fitting.Vectors"), batch_size=16, augment=NOISE,
                   disjoint_classes=True),
    },
    "regression": {
        "trainer": TRAINER,
        "model": of(
            "mixcontrast.training.Regression",
            encoder=of("tests.fitting.Network"),
            criterion=of("mixcontrast.SupReMix", loss=of("mixcontrast.SupConLoss", temperature=0.3)),
            optimizer=OPTIMIZER,
        ),
        "data": of("mixcontrast.data.ValuesData", examples=of("tests.fitting.Measured"), batch_size=16, augment=NOISE),
    },
    "regression by bins": {
        "trainer": TRAINER,
        "model": of(
            "mixcontrast.training.Regression",
            encoder=of("tests.fitting.Network"), criterion=of("mixcontrast.SupConLoss"), bins=4, optimizer=OPTIMIZER,
        ),
        "data": of("mixcontrast.data.ValuesData", examples=of("tests.fitting.Measured"), batch_size=16, augment=NOISE),
    },
    "image text": {
        "trainer": TRAINER,
        "model": of(
            "mixcontrast.training.ImageText",
            encoder=TOWERS, optimizer=OPTIMIZER, warmup_epochs=1, head_only_steps=2,
            criterion=of("mixcontrast.MoCHi", loss=of("mixcontrast.ClipLoss", **QUEUES), num_hardest=6,
                         num_pair_mixes=5, num_anchor_mixes=3),
        ),
        "data": PAIRS,
    },
    "direct regression": {
        "trainer": TRAINER,
        "model": of(
            "mixcontrast.training.DirectRegression",
            encoder=of("tests.fitting.Network"), embedding_dim=8, optimizer=OPTIMIZER,
        ),
        "data": of("mixcontrast.data.ValuesData", examples=of("tests.fitting.Measured"), batch_size=16, views=1,
                   augment=NOISE),
    },
}  # fmt: skip


def recipe(name: str, folder: Path, **changes: Any) -> Path:
    """A recipe's file, some of its keys (a.b.c, of init_args too) changed."""
    config = copy.deepcopy(RECIPES[name])
    for key, value in changes.items():
        *path, last = key.split("__")
        part = config
        for word in path:
            part = part[word]
        part[last] = value
    file = folder / f"{name.replace(' ', '_')}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    return file
