"""One pass over a table read both ways equals reading its tables one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mixcontrast.losses.both_ways as both_ways
import mixcontrast.losses.mixed_negatives as mixed_negatives
from mixcontrast import ClipLoss, GeodesicMixup, Linear, MixTerm, Pairs
from mixcontrast.losses.base import value_of
from mixcontrast.losses.mixed_negatives import mixed_negatives_both_ways
from mixcontrast.mixers.geodesic import GeodesicDraw

LAM = torch.tensor(0.3, dtype=torch.float64)


def criterion_of(terms: tuple[str, ...], **options) -> ClipLoss | GeodesicMixup:
    if not terms:
        return ClipLoss()
    temperature = {"l": 0.5, "m2": 0.2}
    chosen = {name: MixTerm(0.7, temperature=temperature.get(name)) for name in terms}
    return GeodesicMixup(ClipLoss(), **(dict.fromkeys(("m2", "v", "l", "vl")) | chosen), **options)


def one_by_one(criterion, tables, draw):
    """The same loss read from whole tables."""
    loss = ClipLoss()
    total = torch.stack([loss.reduce(table) for table in tables]).mean()
    return total if draw is None else total + value_of(criterion._terms_of(tables, draw))


def results(criterion, size: int, dtype, scale: float, one_pass: bool):
    torch.manual_seed(0)
    features = F.normalize(torch.randn(2, size, 16, dtype=torch.float64), dim=-1)
    image, text = (x.to(dtype).requires_grad_() for x in features)
    logit_scale = torch.tensor(scale, dtype=dtype, requires_grad=True)
    tables = Pairs.from_towers(image, text, logit_scale)
    draw = None
    if isinstance(criterion, GeodesicMixup):
        lams = [LAM.to(dtype) if name in criterion.terms else None for name in ("m2", "v", "l", "vl")]
        draw = GeodesicDraw(*lams)
    if not one_pass:
        loss = one_by_one(criterion, tables, draw)
    else:
        loss = criterion.reduce_tables(tables) if draw is None else criterion.loss_of_towers(tables, draw)
    return loss, *torch.autograd.grad(loss, (image, text, logit_scale))


@pytest.mark.parametrize("size", [2, 7, 12, 600])
@pytest.mark.parametrize("terms", [(), ("m2",), ("v",), ("l",), ("vl",), ("m2", "v", "l", "vl")])
def test_equals_reading_table_by_table(size, terms):
    criterion = criterion_of(terms)
    for one, other in zip(
        results(criterion, size, torch.float64, 30.0, True), results(criterion, size, torch.float64, 30.0, False),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("interpolation", [Linear(normalize=True), Linear(normalize=False)])
def test_any_interpolation(interpolation):
    criterion = criterion_of(("m2", "v", "l", "vl"), interpolation=interpolation)
    for one, other in zip(
        results(criterion, 12, torch.float64, 30.0, True), results(criterion, 12, torch.float64, 30.0, False),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_it_is_one_pass_where_it_can_be(monkeypatch):
    passes = []
    kept = both_ways._BothWays.apply
    monkeypatch.setattr(both_ways._BothWays, "apply", lambda *inputs: passes.append(len(inputs[5])) or kept(*inputs))
    results(criterion_of(("v", "vl")), 12, torch.float32, 30.0, True)
    assert passes == [3]  # the real table and two mixed from it
    results(criterion_of(("v", "vl")), 7, torch.float32, 30.0, True)  # an odd one's middle row is its own reverse
    assert passes == [3, 1]


def test_similarities_far_apart_are_read_exactly():
    """At scale 1,000 a column's sum about the table's maximum is 0 in float32."""
    criterion = criterion_of(("v",))
    far = results(criterion, 64, torch.float32, 1000.0, True)
    exact = results(criterion, 64, torch.float64, 1000.0, False)
    for one, other in zip(far, exact, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-2)


def test_other_positives_than_the_diagonal_are_kept():
    """Two captions of one image: the table says so, and the one pass, which reads the diagonal alone, is not taken."""
    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(2, 6, 8, dtype=torch.float64), dim=-1)
    one, _ = Pairs.from_towers(image, text, 10.0)
    target = torch.eye(6, dtype=torch.bool)
    target[0, 1] = target[1, 0] = True
    (block,) = one.blocks
    soft = Pairs(one.anchors, (type(block)(block.similarity, target, 1.0, block.candidates),), None, None, 10.0)
    found = ClipLoss().reduce_tables((soft, soft.transpose()))
    logits, share = 10 * image @ text.T, target / target.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2
    torch.testing.assert_close(found, expected)


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    similarity = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    first, second = torch.rand(2, 6, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(similarity, first, second, scale):
        mixtures = [
            both_ways.ReverseMix((first, second), None, LAM, scale, 0.5),
            both_ways.ReverseMix(None, (second, first), LAM, 2.0, 0.7),
            both_ways.ReverseMix((first, second), (first, second), LAM, scale, 0.9),
        ]
        return both_ways.cross_entropy_both_ways(similarity, scale, mixtures)

    assert torch.autograd.gradcheck(loss, (similarity, *torch.unbind(torch.stack([first, second])), scale))


def test_gradients_of_mixed_negatives_by_finite_differences(monkeypatch):
    monkeypatch.setattr(mixed_negatives, "_CHUNK", 12)  # two rows of six, so that there are several chunks
    torch.manual_seed(0)
    image, text, similarity, shares = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 6), torch.rand(4, 6)
    inputs = [x.double().requires_grad_() for x in (image, text, similarity, torch.tensor(3.0), *shares)]

    def loss(image, text, similarity, scale, a1, a2, b1, b2):
        return mixed_negatives_both_ways(image, text, similarity, scale, (a1, a2), (b1, b2))

    assert torch.autograd.gradcheck(loss, inputs)


def test_mixed_negatives_are_never_whole(monkeypatch):
    """No table but the gradient of the real one is made, whatever the batch."""
    monkeypatch.setattr(mixed_negatives, "_CHUNK", 1 << 10)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= 128 * 128 * 4:
                largest.append((str(func), out.untyped_storage().data_ptr()))
            return out

    image, text = F.normalize(torch.randn(2, 128, 16), dim=-1)
    similarity = (image @ text.T).requires_grad_()
    shares = torch.rand(4, 128)
    with Watch():
        mixed_negatives_both_ways(image, text, similarity, 10.0, shares[:2], shares[2:]).backward()
    tables = {pointer for _, pointer in largest} - {similarity.untyped_storage().data_ptr()}
    assert len(tables) == 1, largest
