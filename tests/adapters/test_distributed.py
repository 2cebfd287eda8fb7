"""Two real processes: their distributed wrappers around ours give what they give around theirs."""

from __future__ import annotations

import warnings

import pytest
import pytorch_metric_learning.losses as pml
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import NTXentLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from mixcontrast.adapters.lightly import from_lightly
from mixcontrast.adapters.pytorch_metric_learning import as_pml, from_pml

pytestmark = pytest.mark.slow  # each process imports both libraries

BATCH, WIDTH = 12, 6
LABELS = torch.arange(2 * BATCH) % 4


def theirs() -> dict[str, torch.nn.Module]:
    return {
        "MultiSimilarityLoss": pml.MultiSimilarityLoss(),
        "ContrastiveLoss": pml.ContrastiveLoss(),
        "NTXentLoss": pml.NTXentLoss(),
    }


def encoder() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(5, WIDTH).double()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, 2 * BATCH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    (grad,) = torch.autograd.grad(loss, model.weight)
    if dist.is_initialized():  # as DistributedDataParallel
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    return grad


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(rank * BATCH, (rank + 1) * BATCH)
    model, (first, second) = encoder(), inputs()
    found = {}
    for name, loss in theirs().items():
        for kind, one in {"ours": as_pml(from_pml(loss)), "theirs": loss}.items():
            for efficient in (False, True):
                wrapped = DistributedLossWrapper(one, efficient=efficient)
                value = wrapped(model(first[rows]), LABELS[rows])
                found[name, kind, efficient] = gradient(value, model)
        memory = pml.CrossBatchMemory(as_pml(from_pml(loss)), WIDTH, memory_size=64, miner=BatchHardMiner())
        other = pml.CrossBatchMemory(loss, WIDTH, memory_size=64, miner=BatchHardMiner())
        for kind, one in {"ours": memory.double(), "theirs": other.double()}.items():
            value = DistributedLossWrapper(one)(model(first[rows]), LABELS[rows])
            found[name, kind, "memory"] = gradient(value, model)
    lightly = NTXentLoss(temperature=0.3, gather_distributed=True)
    for kind, one in {"ours": from_lightly(lightly), "theirs": lightly}.items():
        value = one(model(first[rows]), model(second[rows]))
        found["lightly", kind] = gradient(value, model)
        mean = value.detach().clone()
        dist.all_reduce(mean)
        found["lightly", kind, "value"] = mean / 2
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", list(theirs()))
def test_distributed_loss_wrapper(found, name):
    model, (first, _) = encoder(), inputs()
    whole = gradient(as_pml(from_pml(theirs()[name]))(model(first), LABELS), model)
    torch.testing.assert_close(found[name, "ours", False], whole)
    for how in (False, True, "memory"):
        torch.testing.assert_close(found[name, "ours", how], found[name, "theirs", how], rtol=1e-5, atol=1e-8)


def test_lightly_gathers(found):
    torch.testing.assert_close(found["lightly", "ours", "value"], found["lightly", "theirs", "value"])
    torch.testing.assert_close(found["lightly", "ours"], found["lightly", "theirs"])
