"""No mixture is ever built: nothing that a mixer makes holds D numbers for each mixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixcontrast import (
    ClipLoss,
    Geodesic,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Linear,
    Metrix,
    MixTerm,
    MoCHi,
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SupConLoss,
    SupReMix,
    SynCo,
)
from mixcontrast.mixers import base

DIM = 1024
CLASSES = torch.arange(24) // 4


class Largest(TorchDispatchMode):
    """Records how many numbers the largest new tensor holds, and how many matrix products there are."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.made_by, self.products = 0, "", 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                held = tensor.untyped_storage().nbytes() // tensor.element_size()  # an expanded view holds fewer
                if min(held, tensor.numel()) > self.numbers:
                    self.numbers, self.made_by = min(held, tensor.numel()), str(func)
        return out


def mixtures(mixer, pairs, draw) -> int:
    """How many mixtures a draw makes, those that do not count included."""
    mixed = mixer.mix(pairs, draw)
    return sum(b.similarity.numel() for b in mixed.blocks if all(b is not known for known in pairs.blocks)
               and b.candidates is None)  # fmt: skip


def queue() -> KeyQueue:
    keys = KeyQueue(128, DIM)
    keys.enqueue(torch.randn(128, DIM))
    return keys


MANY = dict(num_hardest=64, num_pair_mixes=80, num_anchor_mixes=40)
SIX = dict(num_hardest=64, num_interpolated=20, num_extrapolated=20, num_pairs=20, num_noised=20, num_gradient=20,
           num_sign=20)  # fmt: skip
KINDS = dict(anchor_negative=True, negative_negative=True)
ROWS = {
    "mochi-queue": (lambda **k: MoCHi(InfoNCE(), queue=queue(), **MANY, **k), (None,)),
    "mochi": (lambda **k: MoCHi(SupConLoss(), **{**MANY, "num_hardest": 16}, **k), (CLASSES,)),
    "synco-queue": (lambda **k: SynCo(InfoNCE(), queue=queue(), **SIX, **k), (None,)),
    "synco": (lambda **k: SynCo(SupConLoss(), **{**SIX, "num_hardest": 16}, **k), (CLASSES,)),
    "metrix": (lambda **k: Metrix(MultiSimilarityLoss(), anchor_negative=True, **k), (CLASSES,)),
    "metrix-all-kinds": (lambda **k: Metrix(MultiSimilarityLoss(), **KINDS, **k), (CLASSES,)),
    "metrix-drawn": (lambda **k: Metrix(SupConLoss(), num_mixtures=60, **KINDS, **k), (CLASSES,)),
    "metrix-proxies": (lambda **k: Metrix(ProxyNCALoss(40, DIM), **KINDS, **k), (CLASSES,)),
    "metrix-proxies-drawn": (lambda **k: Metrix(ProxyNCALoss(40, DIM), num_mixtures=90, **k), (CLASSES,)),
    "metrix-proxy-anchors": (lambda **k: Metrix(ProxyAnchorLoss(40, DIM), **k), (CLASSES,)),
    "supremix": (lambda **k: SupReMix(SupConLoss(), **k), (torch.arange(24.0) / 2,)),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("interpolation", [Linear(), Geodesic()], ids=["linear", "geodesic"])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_no_mixture_is_built(name: str, interpolation, detach: bool, monkeypatch) -> None:
    monkeypatch.setattr(base, "_CHUNK", 1 << 15)  # the chunks of gathered rows, which are bounded, are let through
    torch.manual_seed(0)
    make, second = ROWS[name]
    mixer = make(interpolation=interpolation, detach=detach).eval()
    x = torch.randn(24, DIM, requires_grad=True)
    inputs = (x, *second) if second[0] is not None else (x, torch.randn(24, DIM))
    (pairs,) = mixer.tables(*inputs)
    draw = mixer.draw(pairs)
    count = mixtures(mixer, pairs, draw)
    with Largest() as largest:
        mixer.loss_of(*mixer.tables(*inputs), draw).backward()
    table = pairs.similarity.numel()
    allowed = max(pairs.anchors.numel(), pairs.candidates.numel(), table, 4 * count, 1 << 15)
    assert allowed * 4 < count * DIM  # the test can tell
    if name.startswith("metrix-prox") and interpolation and "drawn" not in name:
        kinds = [k.left.numel() for k in draw if k.left is not None]
        allowed = max(allowed, *(n * DIM for n in kinds))  # the left parents, once each, not once a mixture
        assert allowed < count * DIM / 10
    assert largest.numbers <= allowed, (largest.made_by, largest.numbers, count)


def test_the_recorder_sees_mixtures_that_are_built() -> None:
    x = torch.randn(24, DIM, requires_grad=True)
    with Largest() as largest:
        (x[:, None] + x[None]).square().sum().backward()
    assert largest.numbers == 24 * 24 * DIM


def test_combined_towers_take_no_matrix_product() -> None:
    """V-, L- and VL-Mix are read off the table that the CLIP loss has; m2-Mix takes one product a tower."""
    image, text = torch.nn.functional.normalize(torch.randn(2, 16, 32), dim=-1)
    image.requires_grad_(), text.requires_grad_()

    def products(criterion) -> tuple[int, int]:
        with Largest() as forward:
            loss = criterion(image, text, 10.0)
        with Largest() as backward:
            loss.backward()
        return forward.products, backward.products

    off, m2 = dict(m2=None), dict(v=None, l=None, vl=None)
    assert products(ClipLoss()) == products(GeodesicMixup(ClipLoss(), **off))
    plainly, mixed = products(ClipLoss())[0], products(GeodesicMixup(ClipLoss(), m2=MixTerm(0.1), **m2))[0]
    assert mixed == plainly + 2
