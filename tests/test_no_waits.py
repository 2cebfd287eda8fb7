"""No step of training makes a GPU's host wait: shown on a pretended GPU, which any machine has."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    CyClipLoss,
    DeepMetrix,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Linear,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
    Tiled,
)
from tests.accelerator import PretendedGPU, Waits, backward, can_pretend
from tests.losses.cases import CASES as LOSSES
from tests.mixers.cases import CASES as MIXERS

pytestmark = pytest.mark.skipif(not can_pretend(), reason="this torch has no shapes of all random numbers")
CLASSES = torch.arange(12) // 3


def step_on(criterion: nn.Module, *inputs) -> int:
    """How many leaves a step gives gradients; with a queue a second one, which finds the keys that the first left."""
    gpu = PretendedGPU()
    criterion, inputs = gpu.moved(criterion.train()), gpu.to(inputs)
    for _ in range(1 + any(isinstance(part, KeyQueue) for part in criterion.modules())):
        gradients = gpu.step(criterion, *inputs)
        assert all(gradient.shape == leaf.shape for leaf, gradient in gradients.items())
    return len(gradients)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_of_a_loss(case) -> None:
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(torch.float32)]
    criterion = case.make().float()
    no_gradient = case.name in ("clip", "clip_more_columns", "cyclip", "hard_negatives_clip")  # of a bias
    no_gradient += case.name == "info_nce_queue"  # of a key
    expected = sum(x.is_floating_point() for x in inputs) + len(list(criterion.parameters())) - no_gradient
    assert step_on(criterion, *inputs) == expected


@pytest.mark.parametrize("case", MIXERS, ids=lambda case: case.name)
def test_of_a_mixer(case) -> None:
    detach = sum(map(ord, case.name)) % 2 == 0  # half of them
    mixer = case.make(Linear(), detach)
    if isinstance(mixer, Metrix) and mixer.num_mixtures is None:
        mixer.max_positives = 4
    assert step_on(mixer, *case.call(case.inputs()))


FEW = dict(num_hardest=4, num_pair_mixes=5, num_anchor_mixes=3)
OTHERS = {
    "rank-n-contrast": (RankNContrastLoss, (torch.rand(12),)),
    "over-all-pairs": (lambda: ContrastiveLoss(per_anchor=False, only_violated=True), (CLASSES,)),
    "many-blocks": (lambda: Metrix(MoCHi(SupConLoss(), **FEW), num_mixtures=6), (CLASSES,)),
    "supremix-mochi": (lambda: SupReMix(MoCHi(SupConLoss(), **FEW)), (torch.rand(12),)),
    "long-queue": (lambda: MoCHi(InfoNCE(queue=KeyQueue(5, 8)), **FEW), (torch.randn(12, 8),)),
    "stacked-towers": (lambda: GeodesicMixup(MoCHi(ClipLoss(), **FEW)), (torch.randn(12, 8), torch.tensor(9.0))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_others(name) -> None:
    make, second = OTHERS[name]
    assert step_on(make(), torch.randn(12, 8, requires_grad=True), *second)


TILED = {
    "sup-con": (SupConLoss, (CLASSES,)),
    "over-all-pairs": (lambda: ContrastiveLoss(per_anchor=False, only_violated=True), (CLASSES,)),
    "cyclip": (lambda: CyClipLoss(ClipLoss()), (torch.randn(12, 8, requires_grad=True), torch.tensor(9.0))),
    "m3-clip": (lambda: GeodesicMixup(ClipLoss()), (torch.randn(12, 8), torch.tensor(9.0, requires_grad=True))),
    "siglip": (SigLipLoss, (torch.randn(12, 8), torch.tensor(9.0), torch.tensor(-3.0))),
    "mochi-queue": (lambda: MoCHi(InfoNCE(queue=KeyQueue(30, 8)), **FEW), (torch.randn(12, 8),)),
    "metrix-drawn": (lambda: Metrix(ProxyNCALoss(4, 8), num_mixtures=6), (CLASSES,)),
    "supremix": (lambda: SupReMix(SupConLoss()), (torch.rand(12),)),
}


@pytest.mark.parametrize("name", TILED)
def test_of_tiles(name, monkeypatch) -> None:
    monkeypatch.setattr("torch.random.fork_rng", lambda devices: nullcontext())  # asks for the driver
    make, second = TILED[name]
    leaves = 1 + sum(x.requires_grad for x in second) + (name == "metrix-drawn")
    assert step_on(Tiled(make(), rows=5), torch.randn(12, 8, requires_grad=True), *second) == leaves


@pytest.mark.parametrize("layer", [None, "1"])
@pytest.mark.parametrize("num_mixtures", [None, 7])
def test_of_deep_mixing(layer, num_mixtures) -> None:
    encoder = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    gpu = PretendedGPU()
    encoder = gpu.moved(encoder.train())
    criterion = DeepMetrix(MultiSimilarityLoss(), layer=layer, num_mixtures=num_mixtures)
    assert len(gpu.step(criterion, encoder, *gpu.to((torch.randn(12, 8), CLASSES)))) == 6


def test_counting_positives_waits_unless_told_how_many() -> None:
    inputs = torch.randn(12, 8, requires_grad=True), CLASSES
    with pytest.raises(AssertionError, match="_local_scalar_dense.default reads a value of the device"):
        step_on(Metrix(MultiSimilarityLoss()), *inputs)
    assert step_on(Metrix(MultiSimilarityLoss(), max_positives=2), *inputs) == 1


def test_a_mean_that_is_read_would_be_found(monkeypatch) -> None:
    monkeypatch.setattr("mixcontrast.losses.base.reads_values", lambda tensor: True)
    with pytest.raises(AssertionError, match="reads a value of the device"):
        step_on(SupConLoss(), torch.randn(12, 8, requires_grad=True), CLASSES)


READS = {
    "item": lambda x, cpu: x.sum().item(),
    "bool": lambda x, cpu: bool((x > 0).any()),
    "mask": lambda x, cpu: x[x > 0],
    "assigned by a mask": lambda x, cpu: x.__setitem__(x > 0, 1.0),
    "unique": lambda x, cpu: x.unique(),
    "repeated": lambda x, cpu: torch.repeat_interleave(x.long()),
    "to the host": lambda x, cpu: x.cpu(),
    "a new tensor": lambda x, cpu: x.new_tensor(2.0),
    "to the device": lambda x, cpu: cpu.to(x.device),
    "copied": lambda x, cpu: x.copy_(cpu),
    "an index of the host": lambda x, cpu: x[cpu.long()],
}
WITHOUT = {
    "arithmetic": lambda x, cpu: (x * 2 + 1).exp().sum(),
    "filled": lambda x, cpu: x.new_full((3,), 2.0),
    "a number of the host": lambda x, cpu: x * torch.ones(()),
    "largest": lambda x, cpu: x.topk(2).indices,
    "an index": lambda x, cpu: x[torch.arange(2, device=x.device)],
    "drawn": lambda x, cpu: torch.rand(3, device=x.device),
    "a seed of the host": lambda x, cpu: torch.manual_seed(int(torch.randint(9, (1,)))),
}


@pytest.mark.parametrize("name", [*READS, *WITHOUT])
def test_what_waits_is_found(name) -> None:
    gpu = PretendedGPU()
    x = gpu.to(torch.zeros(4))
    with gpu.mode:
        cpu = torch.zeros(4)
    with gpu.mode, Waits():
        if name in READS:
            with pytest.raises(AssertionError):
                READS[name](x, cpu)
        else:
            WITHOUT[name](x, cpu)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_gradients_of_the_walked_graph_are_those_of_torch(case) -> None:
    criterion = case.make().double()
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(torch.float64)]
    found = backward(criterion(*inputs))
    for leaf, wanted in zip(found, torch.autograd.grad(criterion(*inputs), list(found)), strict=True):
        torch.testing.assert_close(found[leaf], wanted)
