"""The callback in real fits: what is logged, kept, put back, resumed and shared between processes."""

from __future__ import annotations

import os
import socket
import warnings

import lightning
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, TensorDataset

from mixcontrast import SupConLoss
from mixcontrast.retrieval import RetrievalEvaluator, evaluate
from mixcontrast.training import MetricLearning
from mixcontrast.training.callbacks import RetrievalCallback, shared
from mixcontrast.training.watch import embed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*to determine which device is supported"),
]

LABELS = torch.arange(30) // 3
INPUTS = 2 * torch.eye(10)[LABELS] + torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, LABELS)


def adamw(rate: float) -> dict:
    return {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=rate), "cosine": False}


def module(seed: int = 0) -> MetricLearning:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return MetricLearning(encoder, SupConLoss(temperature=0.1), **adamw(1e-2))


def trainer(callbacks, folder, epochs=2, **options):
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, default_root_dir=folder, log_every_n_steps=1,
        **{"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), **options},
    )  # fmt: skip


def loader(batch_size: int = 10, **options) -> DataLoader:
    return DataLoader(DATA, batch_size, **options)


class WithValidation(MetricLearning):
    """A module with a validation loop of its own."""

    def validation_step(self, batch, index, dataloader_idx=0):
        self.log("val/loss", self.criterion(self.encoder(batch[0]), batch[1]))


def test_logged_numbers_are_those_of_the_module_as_it_is(tmp_path):
    model, judge = module(), RetrievalCallback(RetrievalEvaluator(ks=(1, 2)), queries=loader(7))
    fit = trainer([judge], tmp_path)
    fit.fit(model, loader())
    expected = evaluate(embed(model, INPUTS), LABELS, ks=(1, 2))
    assert judge.history[-1]["Recall@2"] == expected.mean("hit@2")
    assert float(fit.callback_metrics["val/Recall@2"]) == pytest.approx(expected.mean("hit@2"))
    low = expected.interval("hit@1").low
    assert float(fit.callback_metrics["val/Recall@1 low"]) == pytest.approx(low)
    assert "val/Recall@1" in fit.progress_bar_metrics and "val/Recall@1 low" not in fit.progress_bar_metrics
    assert [(row["epoch"], row["step"]) for row in judge.history] == [(1, 3), (2, 6)]
    np.testing.assert_array_equal(judge.evaluator.last.values["hit@1"], expected.values["hit@1"])


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # a frozen part, on purpose
def test_looking_changes_no_training(tmp_path):
    plain, watched = module(), module()
    for model, callbacks in ((plain, []), (watched, [RetrievalCallback(RetrievalEvaluator(), queries=loader(4))])):
        model.encoder[2].eval()  # a frozen part
        torch.manual_seed(1)
        trainer(callbacks, tmp_path).fit(model, loader(shuffle=True))
        assert model.training and not model.encoder[2].training
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


def test_the_trainers_validation_loader_and_monitors(tmp_path):
    torch.manual_seed(0)
    model = WithValidation(nn.Linear(10, 4), SupConLoss(), **adamw(0.0))
    judge = RetrievalCallback(RetrievalEvaluator())
    keep = ModelCheckpoint(tmp_path, "best", monitor="val/Recall@1", mode="max")
    stop = EarlyStopping("val/Recall@1", mode="max", patience=2)
    fit = trainer([stop, keep, judge], tmp_path, epochs=9)
    fit.fit(model, loader(), loader(6))
    assert len(judge.history) == 3  # a learning rate of 0 improves nothing
    assert float(keep.best_model_score) == pytest.approx(judge.history[0]["Recall@1"])
    assert float(fit.validate(model, loader(6), verbose=False)[0]["val/Recall@1"]) == pytest.approx(
        judge.history[-1]["Recall@1"]
    )
    assert len(judge.history) == 3


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # the killed run's own
def test_a_resumed_run_continues_the_history(tmp_path):
    def run(epochs, folder, checkpoint=None):
        lightning.seed_everything(0, verbose=False)
        judge = RetrievalCallback(RetrievalEvaluator(), queries=loader(), every_n_epochs=2)
        keep = ModelCheckpoint(folder, "last", monitor="val/Recall@1", mode="max", every_n_epochs=2, save_top_k=-1)
        deterministic = MetricLearning(nn.Linear(10, 4), SupConLoss(), **adamw(1e-2))
        trainer([judge, keep], folder, epochs).fit(deterministic, loader(), ckpt_path=checkpoint, weights_only=True)
        return judge.history

    whole = run(6, tmp_path / "whole")
    assert [row["epoch"] for row in whole] == [2, 4, 6]
    run(4, tmp_path / "killed")
    (checkpoint,) = (tmp_path / "killed").glob("last-v1.ckpt")
    assert run(6, tmp_path / "killed", checkpoint) == whole


def test_a_gallery_of_its_own_and_batches_of_another_kind(tmp_path):
    class Named(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, row):
            return {"picture": INPUTS[row], "class": LABELS[row]}

    judge = RetrievalCallback(
        RetrievalEvaluator(preset=None),
        queries=DataLoader(Named(), 8),
        gallery=DataLoader(Named(), 9),
        prefix="gallery/",
        split=lambda batch: (batch["picture"], batch["class"]),
    )
    fit = trainer([judge], tmp_path, epochs=1)
    fit.fit(module(), loader())
    assert judge.history[0]["hit@1"] == 1.0  # each query finds itself in the gallery
    assert float(fit.callback_metrics["gallery/hit@1"]) == 1.0


def fit_in_two(rank: int, port: int, folder: str, rows: int) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_RANK": str(rank)}  # fmt: skip
    torch.manual_seed(0)
    model = WithValidation(nn.Linear(10, 4), SupConLoss(), **adamw(1e-2))
    data = TensorDataset(INPUTS[:rows], LABELS[:rows])
    one = RetrievalCallback(RetrievalEvaluator())  # the trainer's loader, which Lightning shares
    two = RetrievalCallback(RetrievalEvaluator(), queries=DataLoader(data, 5), prefix="own/")
    fit = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[one, two], default_root_dir=folder,
    )  # fmt: skip
    fit.fit(model, DataLoader(data, 15), DataLoader(data, 8))
    torch.save((one.history, two.history, model.state_dict()), f"{folder}/rank{rank}.pt")


def test_two_processes_judge_each_row_once(tmp_path):
    rows = 29  # one is repeated to fill up
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(fit_in_two, (port, str(tmp_path), rows), nprocs=2)
    (one, two, weights), other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one == two == other[0] == other[1] and len(one) == 1
    model = WithValidation(nn.Linear(10, 4), SupConLoss(), **adamw(0.0))
    model.load_state_dict(weights)
    expected = RetrievalEvaluator()(embed(model, INPUTS[:rows]), LABELS[:rows])
    assert {name: value for name, value in one[0].items() if name not in ("epoch", "step")} == expected


def test_rows_of_a_rank():
    assert torch.cat([batch[1] for batch in shared(loader(4), 3, 4)]).tolist() == LABELS[[*range(3, 30, 4), 1]].tolist()
    own = loader(sampler=DistributedSampler(DATA, 4, 0))
    assert shared(own, 0, 4) is own


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda folder: RetrievalCallback(RetrievalEvaluator(), every_n_epochs=0), "at least 1. Got 0"),
        (lambda folder: trainer([RetrievalCallback(RetrievalEvaluator())], folder).fit(module(), loader()),
         "Got none; pass queries="),
        (lambda folder: trainer([RetrievalCallback(RetrievalEvaluator())], folder).fit(
            WithValidation(nn.Linear(10, 4), SupConLoss(), **adamw(0.1)), loader(), [loader(), loader()]),
         "Got list of 2; pass queries="),
        (lambda folder: shared(loader(sampler=RandomSampler(DATA)), 0, 2), "Got RandomSampler"),
        (lambda folder: trainer(
            [RetrievalCallback(RetrievalEvaluator(), queries=DataLoader(TensorDataset(INPUTS[::3], LABELS[::3]), 4))],
            folder).fit(module(), loader()), "none with a positive"),
    ],
    ids=["epochs", "none", "several", "shuffled", "positives"],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call(tmp_path)
    assert "\n" not in str(raised.value)
