"""`mixcontrast fit` by two processes gives the weights of one with the whole batch."""

from __future__ import annotations

import csv
import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mixcontrast import Tiled
from mixcontrast.cli import main
from mixcontrast.mixers import Mixer
from mixcontrast.retrieval import Evaluation
from mixcontrast.training.shuffling import encode_shuffled
from tests.fitting import TOWERS, of, recipe

SGD = of("torch.optim.SGD", lr=0.5, momentum=0.9)
MODELS = {
    "metric learning": of(
        "mixcontrast.training.MetricLearning", encoder=of("tests.fitting.Plain"), optimizer=SGD, proxy_factor=2.0,
        criterion=of("mixcontrast.ProxyAnchorLoss", num_classes=8, embedding_dim=8, alpha=4.0),
    ),
    "moco": of(
        "mixcontrast.training.SelfSupervised", encoder=of("tests.fitting.Plain"), optimizer=SGD, momentum=0.9,
        criterion=of("mixcontrast.InfoNCE", temperature=0.2, queue=of("mixcontrast.KeyQueue", size=40, dim=8)),
    ),
    "metric learning, tiled": of(
        "mixcontrast.training.MetricLearning", encoder=of("tests.fitting.Plain"), optimizer=SGD,
        criterion=of("mixcontrast.Tiled", criterion=of("mixcontrast.MultiSimilarityLoss"), rows=4),
    ),
    "metric learning, in chunks": of(
        "mixcontrast.training.MetricLearning", encoder=of("tests.fitting.Plain"), optimizer=SGD, chunk_size=2,
        criterion=of("mixcontrast.MultiSimilarityLoss"),
    ),
    "moco, without momentum, mixed": of(
        "mixcontrast.training.SelfSupervised", encoder=of("tests.fitting.Plain"), optimizer=SGD,
        criterion=of("mixcontrast.SynCo", loss=of("mixcontrast.InfoNCE", temperature=0.2), num_hardest=8,
                     num_interpolated=4, num_extrapolated=4, num_pairs=4, num_noised=2, num_gradient=2, num_sign=2),
    ),
    "image text": of(
        "mixcontrast.training.ImageText", encoder=TOWERS, optimizer=SGD, criterion=of("mixcontrast.ClipLoss")
    ),
    "image text, in chunks": of(
        "mixcontrast.training.ImageText", encoder=TOWERS, optimizer=SGD, criterion=of("mixcontrast.ClipLoss"),
        chunk_size=3,
    ),
    "image text, mixed": of(
        "mixcontrast.training.ImageText", encoder=TOWERS, optimizer=SGD,
        criterion=of("mixcontrast.GeodesicMixup", loss=of("mixcontrast.ClipLoss")),
    ),
    "direct regression": of(
        "mixcontrast.training.DirectRegression", encoder=of("tests.fitting.Plain"), embedding_dim=8, optimizer=SGD,
    ),
}  # fmt: skip


VIEWS, TOWERS_OF = {"alignment", "uniformity", "proxy task"}, {"alignment", "uniformity", "modality gap"}
MEASURED = {
    "metric learning": set(), "metric learning, tiled": set(), "metric learning, in chunks": set(), "moco": VIEWS,
    "moco, without momentum, mixed": VIEWS, "image text": TOWERS_OF, "image text, in chunks": TOWERS_OF,
    "image text, mixed": TOWERS_OF, "direct regression": set(),
}  # fmt: skip


def logged(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_logged_alike(one: Path, two: Path, measured: set[str]) -> None:
    """The same columns; of the batch of all processes where they are measures of a batch."""
    first, second = logged(one), logged(two)
    assert set(first[0]) == set(second[0]) and measured <= set(first[0])
    of_all = set() if "modality gap" in measured else {"positives", "negatives"} & set(first[0])  # ImageText: a share
    own = set() if one.name == "direct regression" else {"loss"}  # its loss is of a share
    for name in own | measured | of_all:
        numbers = [[float(row[name]) for row in rows if row[name]] for rows in (first, second)]
        assert numbers[0] and numbers[1] == pytest.approx(numbers[0], rel=1e-3, abs=1e-4), name


def run(recipes: Path, out: Path, *arguments: str) -> None:
    for name, model in MODELS.items():
        file = recipe(name.partition(",")[0], recipes, model=model)
        main(["fit", "--config", str(file), "--out", str(out / name), "--trainer.max_epochs=2", *arguments])


def work(rank: int, port: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_RANK": str(rank)}  # fmt: skip
    out = Path(folder)
    run(out / f"recipes {rank}", out / "two", "--trainer.devices=2", "--trainer.strategy=ddp")
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    rows = torch.arange(24.0).reshape(8, 3).square()[rank * 4 : rank * 4 + 4]
    torch.save((rows, encode_shuffled(lambda x: x + rank, rows), encode_shuffled(norm, rows)), out / f"dealt{rank}.pt")
    dist.barrier()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    # what a mixer draws on two ranks is what `Tiled` draws in one process with tiles of their shares
    for part, rows in (("image_text", 8), ("self_supervised", 16)):
        monkeypatch.setattr(
            f"mixcontrast.training.{part}.Gathered",
            lambda criterion, rows=rows: Tiled(criterion, rows=rows) if isinstance(criterion, Mixer) else criterion,
        )
    run(tmp_path / "recipes", tmp_path / "one")
    for name in MODELS:
        one, two = (torch.load(tmp_path / n / name / "last.ckpt", weights_only=True) for n in ("one", "two"))
        assert one["global_step"] == two["global_step"] >= 6
        assert one["state_dict"].keys() == two["state_dict"].keys()
        for key, tensor in one["state_dict"].items():
            where = f"{name}, {key}: "
            torch.testing.assert_close(
                two["state_dict"][key], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, where=where: where + m
            )
        first, second = (Evaluation.load(tmp_path / n / name) for n in ("one", "two"))
        for metric in first.values:
            assert first.mean(metric) == pytest.approx(second.mean(metric), abs=1e-3)
        assert_logged_alike(*(tmp_path / n / name for n in ("one", "two")), MEASURED[name])
    (rows0, plus0, normed0), (_, plus1, normed1) = (torch.load(tmp_path / f"dealt{r}.pt") for r in (0, 1))
    shift = torch.cat([plus0, plus1]) - torch.arange(24.0).reshape(8, 3).square()
    assert set(shift.flatten().tolist()) == {0.0, 1.0}  # some rows went to the other rank, all came back in order
    alone = nn.BatchNorm1d(3)(rows0)
    assert normed0.shape == (4, 3) and not torch.allclose(normed0, alone)
