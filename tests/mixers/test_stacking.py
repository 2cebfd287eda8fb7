"""Mixers around mixers, warm-up, queues and checkpoints."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixcontrast import (
    ClipLoss,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Linear,
    Metrix,
    MixTerm,
    MoCHi,
    MultiSimilarityLoss,
    Pairs,
    SigLipLoss,
    SupConLoss,
    SupReMix,
)

from . import plain
from .cases import AGES, DIM, UNEVEN, embeddings

FEW = dict(num_hardest=5, num_pair_mixes=9, num_anchor_mixes=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fixed(mixer, seed: int = 0) -> list:
    """Makes a mixer draw from one seed, and keeps its draws."""
    draws, plainly = [], mixer.draw

    def draw(pairs: Pairs, generator=None):
        draws.append(plainly(pairs, seeded(seed)))
        return draws[-1]

    mixer.draw = draw
    return draws


def equal(value: Tensor, expected: Tensor, of: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    grads = [torch.autograd.grad(x, of, retain_graph=True)[0] for x in (value, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_mochi_around_metrix_adds_metrix_to_mochi() -> None:
    z = embeddings(11)
    loss = MultiSimilarityLoss(beta=10.0)
    metrix, mochi, alone = Metrix(loss, weight=0.7), MoCHi(loss, **FEW), MoCHi(loss, **FEW)
    mochi.loss = metrix
    kept = [fixed(m) for m in (metrix, mochi, alone)]
    value, with_negatives = mochi(z, UNEVEN), alone(z, UNEVEN)
    assert [len(d) for d in kept] == [1, 1, 1]
    (pairs,) = loss.tables(z, UNEVEN)
    expected = with_negatives + 0.7 * loss.reduce(metrix.mix(pairs, kept[0][0]))
    equal(value, expected, z)
    # and on embeddings
    unit = plain.unit(z)
    plainly = plain.multi_similarity(2, 10, 0.5)
    negatives = plain.mochi_batch(plainly, mochi, z, UNEVEN, kept[1][0])
    same, others = UNEVEN[:, None] == UNEVEN, plain.others(11)
    both = plain.metrix(plainly, unit, unit, same, others, metrix, kept[0][0])
    equal(value, negatives + both - plainly(plain.rows_of(unit @ unit.T, same, others)), z)


def test_metrix_around_mochi_is_the_same() -> None:
    z = embeddings(11)
    loss = MultiSimilarityLoss(beta=10.0)
    values = []
    for outer_is_metrix in (True, False):
        if outer_is_metrix:
            stack = Metrix(MoCHi(loss, **FEW))
        else:
            stack = MoCHi(Metrix(loss), **FEW)
        fixed(stack), fixed(stack.loss)
        values.append(stack(z, UNEVEN))
    equal(*values, z)


TERMS = dict(m2=MixTerm(0.3, temperature=0.3), v=MixTerm(0.4), l=MixTerm(0.9), vl=MixTerm(0.2))


@pytest.mark.parametrize("terms", [TERMS, {**TERMS, "l": None}], ids=["all", "no-l"])
@pytest.mark.parametrize("bottom", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("inside", [True, False], ids=["mochi-outside", "mochi-inside"])
def test_geodesic_mixup_keeps_its_terms_in_a_stack(terms: dict, bottom, inside: bool) -> None:
    """One draw for both directions, and V-Mix mixes images in both."""
    raw = embeddings(16)
    image, text = plain.unit(raw).chunk(2)
    call = (image, text, torch.tensor(9.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64))
    stack = MoCHi(GeodesicMixup(bottom(), **terms), **FEW) if inside else GeodesicMixup(MoCHi(bottom(), **FEW), **terms)
    mochi, geodesic = (stack, stack.loss) if inside else (stack.loss, stack)
    draws, mixed = fixed(geodesic), fixed(mochi)
    value = stack(*call)
    assert len(draws) == 1 and len(mixed) == 2
    alone, negatives, loss = GeodesicMixup(bottom(), **terms), MoCHi(bottom(), **FEW), bottom()
    fixed(alone), fixed(negatives)
    equal(value, alone(*call) + negatives(*call) - loss(*call), raw)


@pytest.mark.parametrize("loss", [ClipLoss(), SigLipLoss(), ClipLoss(label_smoothing=0.1)], ids=["one", "sigmoid", "2"])
def test_one_weight_multiplies_all_terms(loss) -> None:
    image, text = torch.nn.functional.normalize(torch.randn(2, 9, 6, generator=seeded(), dtype=torch.float64), dim=-1)
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-5.0, dtype=torch.float64)

    def total(criterion) -> float:
        torch.manual_seed(0)
        return criterion(image, text, scale, bias).item()

    plainly, once, times = (total(c) for c in (loss, GeodesicMixup(loss), GeodesicMixup(loss, weight=3.5)))
    assert once > plainly and times - plainly == pytest.approx(3.5 * (once - plainly))


def test_mochi_and_supremix() -> None:
    z = embeddings(len(AGES))
    for stack in (MoCHi(SupReMix(SupConLoss()), **FEW), SupReMix(MoCHi(SupConLoss(), **FEW))):
        fixed(stack), fixed(stack.loss)
        mochi, supremix = (stack, stack.loss) if isinstance(stack, MoCHi) else (stack.loss, stack)
        (pairs,) = stack.tables(z, AGES)
        both = supremix.mix(mochi.mix(pairs, mochi.draw(pairs)), supremix.draw(pairs))
        assert both.shape[1] > pairs.shape[1] + 13
        if isinstance(stack, MoCHi):
            equal(stack(z, AGES), SupConLoss().reduce(both), z)
        else:
            assert bool(torch.isfinite(stack(z, AGES)))


def test_a_mixer_does_not_change_its_table() -> None:
    z = embeddings(11)
    (pairs,) = SupConLoss().tables(z, UNEVEN)
    before = [copy.deepcopy(x.detach()) for x in (pairs.similarity, pairs.weight, pairs.target)]
    for mixer in (MoCHi(SupConLoss(), **FEW), Metrix(SupConLoss())):
        mixer.mix(pairs, mixer.draw(pairs))
    (values,) = SupReMix(SupConLoss()).tables(z, AGES)
    weight = values.weight.clone()
    SupReMix(SupConLoss()).mix(values, SupReMix(SupConLoss()).draw(values))
    assert torch.equal(values.weight, weight)
    for now, then in zip((pairs.similarity, pairs.weight, pairs.target), before, strict=True):
        assert torch.equal(now, then)


def test_soft_targets_are_mixed_by_share() -> None:
    """A half positive mixed at share lam with a negative is a positive by half of lam."""
    z = embeddings(5)
    target = torch.tensor([[1, 0.5, 0, 1, 0]]).repeat(5, 1)
    pairs = Pairs.from_targets(z, target)
    for mixer in (Metrix(SupConLoss(), anchor_negative=True), Metrix(SupConLoss(), num_mixtures=20)):
        draw = mixer.draw(pairs, seeded())
        mixed = mixer.mix(pairs, draw)
        for kind, block in zip(draw, mixed.blocks, strict=True):
            if kind.left is None:
                continue
            left = target.gather(1, kind.left)
            left = left.repeat_interleave(5, dim=1) if kind.right is None else left
            keep = kind.keep.expand_as(block.similarity)
            assert set(left[keep].tolist()) == {0.5, 1.0}
            torch.testing.assert_close(block.target[keep], (kind.lam * left)[keep])


# Warm-up


def stacks(warmup: int) -> dict:
    return {
        "mochi": MoCHi(MultiSimilarityLoss(), warmup_steps=warmup, **FEW),
        "mochi-outside": MoCHi(Metrix(MultiSimilarityLoss()), warmup_steps=warmup, **FEW),
        "mochi-inside": Metrix(MoCHi(MultiSimilarityLoss(), warmup_steps=warmup, **FEW)),
    }


@pytest.mark.parametrize("name", stacks(0))
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_warm_up_ends(name: str, warmup: int) -> None:
    stack, z = stacks(warmup)[name], embeddings(11)
    mochi = stack if isinstance(stack, MoCHi) else stack.loss
    draws = fixed(mochi)
    for step in range(5):
        stack(z, UNEVEN)
        assert mochi.step == step + 1 and len(draws) == max(step + 1 - warmup, 0)
    stack.eval()
    stack(z, UNEVEN)
    assert mochi.step == 5  # only training counts


def test_warm_up_is_counted_by_call_not_by_table() -> None:
    image, text = plain.unit(embeddings(16)).detach().chunk(2)
    for stack in (MoCHi(ClipLoss(), warmup_steps=2, **FEW), GeodesicMixup(MoCHi(ClipLoss(), warmup_steps=2, **FEW))):
        mochi = stack if isinstance(stack, MoCHi) else stack.loss
        draws = fixed(mochi)
        for step in range(4):
            stack(image, text, 10.0)
            assert mochi.step == step + 1 and len(draws) == 2 * max(step - 1, 0)


def test_warm_up_gives_the_loss_alone() -> None:
    z = embeddings(11)
    assert torch.equal(MoCHi(SupConLoss(), warmup_steps=1, **FEW)(z, UNEVEN), SupConLoss()(z, UNEVEN))
    assert not torch.equal(MoCHi(SupConLoss(), warmup_steps=0, **FEW)(z, UNEVEN), SupConLoss()(z, UNEVEN))


# Queues and checkpoints


def criterion(labels: bool, where: str = "mochi"):
    queue = KeyQueue(13, DIM, labels=labels)
    few = dict(FEW, warmup_steps=2)
    if where == "mochi":
        return MoCHi(InfoNCE(temperature=0.2), queue=queue, **few)
    return MoCHi(InfoNCE(temperature=0.2, queue=queue), **few)


def batch(step: int, labels: bool) -> tuple:
    query, key = (embeddings(5, 10 * step + i).detach().float() for i in range(2))
    return (query.requires_grad_(), key) + ((torch.arange(5) % 3,) if labels else ())


def run(mixer, steps: range, labels: bool) -> list:
    seen = []
    for step in steps:
        torch.manual_seed(step)
        inputs = batch(step, labels)
        loss = mixer(*inputs)
        loss.backward()
        seen.append((loss.detach(), inputs[0].grad))
    return seen


@pytest.mark.parametrize("labels", [False, True], ids=["keys", "keys-and-labels"])
@pytest.mark.parametrize("where", ["mochi", "info-nce"])
@pytest.mark.parametrize("stop", [0, 1, 2, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(labels: bool, where: str, stop: int, tmp_path) -> None:
    whole = criterion(labels, where)
    expected = run(whole, range(7), labels)
    first = criterion(labels, where)
    run(first, range(stop), labels)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = criterion(labels, where)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for got, wanted in zip(run(resumed, range(stop, 7), labels), expected[stop:], strict=True):
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_step_and_queue_are_in_the_state_dict() -> None:
    mixer = criterion(False)
    run(mixer, range(3), False)
    other = criterion(False)
    other.load_state_dict(mixer.state_dict())
    assert (other.step, other.queue.fill, other.queue.pointer) == (3, 13, 2)
    assert torch.equal(other.queue.keys, mixer.queue.keys)


def test_this_steps_keys_are_positives_not_negatives() -> None:
    """A query sees its own key once, and the queue as it was before."""
    mixer = MoCHi(InfoNCE(), queue=KeyQueue(20, DIM), num_hardest=20, num_pair_mixes=400, num_anchor_mixes=400)
    mixer.queue.enqueue(embeddings(8, 3).detach())
    (pairs,) = mixer.tables(*batch(0, False))
    assert pairs.shape == (5, 9)
    draw = mixer.draw(pairs)
    assert int(draw.first.max()) == int(draw.negative.max()) == 7
    assert mixer.queue.fill == 13
    mixer.eval()
    mixer.tables(*batch(1, False))
    assert mixer.queue.fill == 13  # evaluation enqueues nothing


def test_interpolation_and_numbers_can_be_read() -> None:
    assert "(5, 9, 4)" in repr(MoCHi(SupConLoss(), **FEW)) and "Metrix" in repr(Metrix(SupConLoss()))
    assert replace(Linear(), normalize=False) == Linear(normalize=False)
