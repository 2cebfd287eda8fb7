"""A batch in chunks has the gradients of the batch at once, and never its activations."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from mixcontrast import (
    ClipLoss,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Metrix,
    MoCHi,
    ProxyAnchorLoss,
    SupConLoss,
    Tiled,
    cached_backward,
)

LABELS = torch.arange(14) // 2 % 5


def network(width: int = 6, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, width)).double()


def images(seed: int = 0) -> Tensor:
    return torch.randn(14, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad for module in modules for p in module.parameters()]


def equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


CRITERIA = {
    "supcon": SupConLoss,
    "metrix": lambda: Metrix(SupConLoss()),
    "metrix-tiled": lambda: Tiled(Metrix(SupConLoss()), rows=5),
    "proxies": lambda: Metrix(ProxyAnchorLoss(5, 6).double()),
}


@pytest.mark.parametrize("size", [1, 4, 14, 20])
@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_equals_the_batch_at_once(name: str, size: int, dropout: float) -> None:
    plain, cached = network(dropout=dropout), network(dropout=dropout)
    torch.manual_seed(1)
    criterion = CRITERIA[name]()
    other = copy.deepcopy(criterion)
    torch.manual_seed(2)
    expected = criterion(torch.cat([plain(chunk) for chunk in images().split(size)]), LABELS)
    expected.backward()
    after = torch.rand(3)
    torch.manual_seed(2)
    loss = cached_backward(cached, images().split(size), lambda z: other(z, LABELS))
    assert torch.equal(torch.rand(3), after)  # random numbers go on as if it had been one pass
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())
    equal(gradients(cached, other), gradients(plain, criterion))


def test_two_towers_and_their_scale() -> None:
    towers = [network(), network(), nn.ParameterDict({"scale": torch.tensor(2.0, dtype=torch.float64)})]
    others = copy.deepcopy(towers)
    unit = nn.functional.normalize
    criterion = GeodesicMixup(ClipLoss())

    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return criterion(unit(image, dim=-1), unit(text, dim=-1), scale.exp())

    torch.manual_seed(1)
    expected = loss(towers[0](images(1)), towers[1](images(2)), towers[2]["scale"])
    expected.backward()
    torch.manual_seed(1)
    chunks = zip(images(1).split(4), images(2).split(4), strict=True)
    found = cached_backward(others[:2], chunks, lambda i, t: loss(i, t, others[2]["scale"]))
    torch.testing.assert_close(found, expected.detach())
    equal(gradients(*others), gradients(*towers))


class Clip(nn.Module):
    """Both towers and the scale in one module, as open_clip has it."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = network(), network()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        unit = nn.functional.normalize
        return unit(self.image(image), dim=-1), unit(self.text(text), dim=-1), self.scale.exp()


@pytest.mark.parametrize("named", [False, True])
def test_a_model_of_several_outputs(named: bool) -> None:
    plain, cached = Clip(), Clip()
    expected = ClipLoss()(*plain(images(1), images(2)))
    expected.backward()
    chunks = zip(images(1).split(3), images(2).split(3), strict=True)
    chunks = [dict(zip(("image", "text"), chunk, strict=True)) if named else chunk for chunk in chunks]
    torch.testing.assert_close(cached_backward(cached, chunks, ClipLoss()), expected.detach())
    equal(gradients(cached), gradients(plain))


def test_momentum_encoder_and_queue() -> None:
    """Two views: one network for both; or a second one that gets no gradient, and its keys join the queue once."""
    plain, cached = network(), network()
    expected = InfoNCE()(plain(images(1)), plain(images(2)))
    expected.backward()
    chunks = list(zip(images(1).split(4), images(2).split(4), strict=True))
    torch.testing.assert_close(cached_backward((cached, cached), chunks, InfoNCE()), expected.detach())
    equal(gradients(cached), gradients(plain))
    encoder, momentum = network(), network().requires_grad_(False)
    criterion = MoCHi(InfoNCE(), queue=KeyQueue(40, 6), num_hardest=4, num_pair_mixes=4, num_anchor_mixes=2)
    for step in range(2):
        cached_backward((encoder, momentum), chunks, criterion)
        assert criterion.queue.fill == 14 * (step + 1)
    assert all(p.grad is None for p in momentum.parameters()) and encoder[0].weight.grad is not None


def test_scaled_loss() -> None:
    plain, cached = network(), network()
    loss = SupConLoss()(plain(images()), LABELS)
    (8 * loss).backward()
    found = cached_backward(cached, images().split(5), lambda z: SupConLoss()(z, LABELS), scale=lambda loss: 8 * loss)
    torch.testing.assert_close(found, loss.detach())
    equal(gradients(cached), gradients(plain))
    cached_backward(cached, images().split(5), lambda z: SupConLoss()(z, LABELS), scale=lambda loss: 8 * loss)
    equal(gradients(cached), [2 * grad for grad in gradients(plain)])  # gradients accumulate


def test_autocast_ends_before_the_backward_pass() -> None:
    plain, cached = network().float(), network().float()
    x = images().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SupConLoss()(plain(x), LABELS)
    loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cached_backward(cached, x.split(14), lambda z: SupConLoss()(z, LABELS))
    assert torch.equal(found, loss.detach())
    equal(gradients(cached), gradients(plain))


def test_batch_norm_is_that_of_the_chunks() -> None:
    make = lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).double()  # noqa: E731
    torch.manual_seed(0)
    plain = make()
    cached = copy.deepcopy(plain)
    SupConLoss()(torch.cat([plain(chunk) for chunk in images().split(7)]), LABELS).backward()
    cached_backward(cached, images().split(7), lambda z: SupConLoss()(z, LABELS))
    equal(gradients(cached), gradients(plain))
    for one, other in zip(cached.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other)


class Alive:
    """How many numbers a graph keeps for its backward pass, at most at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> list[Tensor]:
        class Held(list):
            pass

        held = Held([tensor])
        self.now += tensor.numel()
        self.most = max(self.most, self.now)
        weakref.finalize(held, self.release, tensor.numel())
        return held

    def release(self, count: int) -> None:
        self.now -= count


def test_activations_of_one_chunk_are_alive() -> None:
    labels = torch.arange(256) // 4
    x = torch.randn(256, 64)
    wide = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    alive = []
    for size in (256, 16):
        counter = Alive()
        with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda held: held[0]):
            cached_backward(wide, x.split(size), lambda z: Tiled(SupConLoss(), rows=16)(z, labels))
        assert counter.now == 0
        alive.append(counter.most)
    parameters = sum(p.numel() for p in wide.parameters())
    assert alive[0] > 256 * 512 * 2 and alive[1] <= parameters + 16 * 512 * 6


def test_refusals() -> None:
    with pytest.raises(ValueError, match="A batch needs a chunk. Got none; "):
        cached_backward(network(), [], SupConLoss())
    with pytest.raises(ValueError, match="one input for each of 2 towers. Got Tensor; pass zip"):
        cached_backward((network(), network()), images().split(3), InfoNCE())
    with pytest.raises(ValueError, match="The loss must depend on the embeddings. Got one without gradient"):
        cached_backward(network(), images().split(3), lambda z: torch.tensor(0.0))
