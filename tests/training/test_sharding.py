"""Encoders that a subclass puts in shards of its own (`fully_shard`): two processes give the weights of one."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mixcontrast import InfoNCE, KeyQueue, MultiSimilarityLoss, ProxyAnchorLoss
from mixcontrast.data import ClassData, ViewsData
from mixcontrast.training import MetricLearning, SelfSupervised, Shards
from mixcontrast.training.safety import quieten
from tests.fitting import WIDTH, Vectors


class ShardedMetricLearning(MetricLearning):
    def configure_model(self) -> None:
        fully_shard(self.encoder, mesh=self.device_mesh["data_parallel"])


class ShardedSelfSupervised(SelfSupervised):
    def configure_model(self) -> None:
        for part in (self.encoder, self.momentum_encoder):
            fully_shard(part[0], mesh=self.device_mesh["data_parallel"])
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=1e-2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 8))


def made(name: str, sharded: bool) -> tuple[lightning.LightningModule, lightning.LightningDataModule]:
    if name == "metric learning":
        kind = ShardedMetricLearning if sharded else MetricLearning
        module = kind(network(), ProxyAnchorLoss(8, 8, alpha=4.0), optimizer=sgd, proxy_factor=2.0)
        return module, ClassData(Vectors(), classes_per_batch=4, per_class=3)
    kind = ShardedSelfSupervised if sharded else SelfSupervised
    criterion = InfoNCE(temperature=0.2, queue=KeyQueue(40, 8))
    module = kind(network(), criterion, optimizer=sgd, momentum=0.9)
    return module, ViewsData(Vectors(num_classes=5, per_class=24), batch_size=16)


def trained(name: str, **options) -> dict[str, Tensor]:
    """The state dict behind two epochs, whole."""
    sharded = "strategy" in options
    lightning.seed_everything(0, verbose=False)
    module, data = made(name, sharded)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    state = module.state_dict()
    assert isinstance(state["encoder.0.weight"], DTensor) == sharded
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}


def work(rank: int, port: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    quieten()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_RANK": str(rank)}  # fmt: skip
    for name in ("metric learning", "moco"):
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        torch.save(trained(name, devices=2, strategy=strategy), Path(folder) / f"{name}{rank}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's, as in `mixcontrast fit`
def test_two_processes_with_shards_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    for name in ("metric learning", "moco"):
        wanted = trained(name, devices=1)
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}{rank}", weights_only=True)
            assert found.keys() == wanted.keys()
            for key, tensor in wanted.items():
                where = f"{name}, {key}: "
                torch.testing.assert_close(found[key], tensor, msg=lambda m, where=where: where + m)


def test_a_checkpoint_of_other_groups_is_refused_in_one_line() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    written = torch.optim.SGD([first, second], lr=0.1).state_dict()
    strategy = Shards()
    strategy.optimizers = [torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=0.1)]
    seen = r"Got groups of \[2\] parameters in the checkpoint, and \[1, 1\]; go on"
    with pytest.raises(ValueError, match=seen) as told:
        strategy.load_optimizer_state_dict({"optimizer_states": [written]})
    assert "\n" not in str(told.value)


def test_flat_shards_are_refused_in_one_line() -> None:
    module = MetricLearning(network(), MultiSimilarityLoss())
    module._trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ValueError, match="Got the strategy FSDPStrategy.*; take ") as raised:
        module.setup("fit")
    assert "\n" not in str(raised.value)
