"""A table read in tiles has the value and gradients of the whole table, and nothing of its size is made."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    CyClipLoss,
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
    RankNContrastLoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
    SynCo,
    Tiled,
    TripletLoss,
)

from .losses.cases import CASES as LOSSES
from .mixers.cases import CASES as MIXERS
from .mixers.cases import DIM, UNEVEN, Case, embeddings, filled, leaves
from .mixers.test_memory import Largest

ROWS = [1, 3, 50]
FEW = dict(num_hardest=5, num_pair_mixes=9, num_anchor_mixes=4)


def same(value: Tensor, expected: Tensor, of: list[Tensor], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    for got, wanted in zip(*(torch.autograd.grad(x, of, retain_graph=True, materialize_grads=True)
                             for x in (3 * value, 3 * expected)), strict=True):  # fmt: skip
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# Losses


def more_losses() -> dict:
    values = torch.arange(8) / 2
    x = torch.randn(8, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 1, 1, 7, 3, 3, 9, 1])
    pairs, scale = dict(per_anchor=False), torch.tensor(5.0, dtype=torch.float64)
    return {
        "rank-n-contrast": (RankNContrastLoss, (x, values.double())),
        "contrastive-pairs": (lambda: ContrastiveLoss(**pairs), (x, labels)),
        "contrastive-violated": (lambda: ContrastiveLoss(**pairs, only_violated=True), (x, labels)),
        "triplets": (lambda: TripletLoss(**pairs, margin=0.3, only_violated=True), (x, labels)),
        "semi-hard": (lambda: TripletLoss(**pairs, margin=0.3, semi_hard=True), (x, labels)),
        "supcon-pairs": (lambda: SupConLoss(**pairs), (x, labels)),
        "nt-xent": (lambda: SupConLoss(**pairs, positives_in_denominator=False), (x, labels)),
        "clip-labels": (ClipLoss, (x, x.flip(0).clone(), scale, None, False, labels)),
        "siglip-captions": (
            lambda: SigLipLoss(same_modality=True),
            (x, x.flip(0).clone(), scale, None, False, torch.stack([labels, torch.arange(8) // 2], dim=1)),
        ),
        "cyclip-siglip": (lambda: CyClipLoss(SigLipLoss()), (x, x.flip(0).clone(), scale)),
    }


MORE = more_losses()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", [*map(str, LOSSES), *MORE])
def test_a_loss_in_tiles_is_the_loss(name: str, rows: int) -> None:
    case = next((case for case in LOSSES if case.name == name), None)
    make, inputs = (case.make, case.inputs(torch.float64)) if case else MORE[name]
    criterion = make().double()
    inputs = tuple(
        x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() and x.ndim != 1 else x
        for x in inputs
    )
    tiled = Tiled(criterion, rows=rows)
    same(tiled(*inputs), criterion(*inputs), leaves(inputs, criterion))
    with torch.no_grad():
        torch.testing.assert_close(tiled(*inputs), criterion(*inputs), rtol=1e-9, atol=1e-9)


def test_tiles_are_small_and_the_last_may_be_smaller() -> None:
    sizes = []

    class Seen(SupConLoss):
        def rows(self, pairs):
            sizes.append(tuple(pairs.shape))
            return super().rows(pairs)

    Tiled(Seen(), rows=4)(torch.randn(10, 3), torch.arange(10) // 2)
    assert sizes == [(4, 10), (4, 10), (2, 10)]


# Mixers


def padded(tensors: list[Tensor], fill: float) -> Tensor:
    """Tiles of one tensor under each other; columns that a tile does not have are filled."""
    width = max(t.shape[1] for t in tensors)
    return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])


def joined(draws: list, order: Tensor, columns: int):
    """The draw of a whole table, from those of its tiles."""
    if isinstance(draws[0], tuple):
        return tuple(parents(list(kind), order, columns) for kind in zip(*draws, strict=True))
    whole = {}
    for field in fields(draws[0]):
        parts = [getattr(draw, field.name) for draw in draws]
        if not isinstance(parts[0], Tensor) or not parts[0].ndim or field.name == "noise":  # shared by all tiles
            assert all(p is parts[0] or torch.equal(torch.as_tensor(p), torch.as_tensor(parts[0])) for p in parts)
            whole[field.name] = parts[0]
        else:
            whole[field.name] = padded(parts, 0)[order.argsort()]
    return type(draws[0])(**whole)


def parents(kind: list, order: Tensor, columns: int):
    """Metrix's, of one kind: every left parent with every column, unless a number of them was drawn."""
    first = kind[0]
    back = order.argsort()
    right = None if first.right is None else padded([k.right for k in kind], 0)[back]
    left = None if first.left is None else padded([k.left for k in kind], 0)[back]
    lam = first.lam
    if lam.ndim:
        lam = padded([k.lam for k in kind], 0.5)[back]
    else:
        assert len({float(k.lam) for k in kind}) == 1
    return replace(first, left=left, right=right, lam=lam, keep=padded([k.keep for k in kind], False)[back])


def recorded(mixer) -> dict:
    """What a mixer mixes in each tile: its draws, one a table."""
    seen: dict[tuple, list] = {}
    plainly = mixer._mix if isinstance(mixer, GeodesicMixup) else mixer.mix

    def mix(pairs, draw, *more, **named):
        if pairs.tile is not None:
            seen.setdefault(tuple(pairs.tile.rows.tolist()), []).append(draw)
        return plainly(pairs, draw, *more, **named)

    setattr(mixer, "_mix" if isinstance(mixer, GeodesicMixup) else "mix", mix)
    return seen


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("interpolation, detach", [(Linear(), False), (Geodesic(), True)], ids=["linear", "geodesic"])
@pytest.mark.parametrize("case", MIXERS, ids=lambda case: case.name)
def test_a_mixer_in_tiles_is_the_mixer_under_the_same_draw(case: Case, interpolation, detach: bool, rows: int) -> None:
    mixer, inputs = case.make(interpolation, detach).eval(), case.inputs()
    seen, once, plainly = recorded(mixer), [], mixer.draw
    mixer.draw = lambda pairs: once.append(plainly(pairs)) or once[-1]
    value = Tiled(mixer, rows=rows)(*case.call(inputs))
    tables = case.tables(mixer, inputs)
    if not seen:  # a pass of its own
        assert case.name in ("v", "l") and len(once) == 1
        return same(value, mixer.loss_of_towers(tables, once[0]), leaves(inputs, mixer))
    order = torch.tensor([row for tile in seen for row in tile])
    assert order.sort().values.tolist() == list(range(len(tables[0].anchors)))
    assert max(map(len, seen)) <= max(rows, 2 if isinstance(mixer, GeodesicMixup) else 1)
    draws = []
    for number in range(len(tables)):
        of_tiles = [seen[tile][-len(tables) :][number] for tile in seen]
        draws.append(joined(of_tiles, order, tables[0].shape[1]))
    if isinstance(mixer, GeodesicMixup):
        assert draws[0] == draws[1]
        expected = mixer.loss_of_towers(tables, draws[0])
    elif case.towers:
        expected = mixer.loss.reduce_tables([mixer.mix(p, d) for p, d in zip(tables, draws, strict=True)])
    else:
        expected = mixer.loss_of(tables[0], draws[0])
    same(value, expected, leaves(inputs, mixer), 3e-6 if isinstance(interpolation, Geodesic) else 1e-9)


def test_the_draw_is_of_the_seed() -> None:
    z = embeddings(11)
    tiled, values = Tiled(Metrix(SupConLoss()), rows=4), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(tiled(z, UNEVEN).item())
    with torch.no_grad():
        torch.manual_seed(2)
        values.append(tiled(z, UNEVEN).item())
    assert values[0] == values[1] != values[2] and values[3] == pytest.approx(values[2])


def test_tiles_draw_apart() -> None:
    """Two tiles whose rows are alike do not get one draw."""
    mixer = Metrix(SupConLoss(), num_mixtures=6)
    seen = recorded(mixer)
    Tiled(mixer, rows=4)(embeddings(8), torch.arange(8) // 4)
    (one,), (other,) = seen.values()
    assert not torch.equal(one[0].lam, other[0].lam)


def test_a_stack_counts_a_step_and_enqueues_once() -> None:
    stack = MoCHi(InfoNCE(), queue=filled(20), warmup_steps=2, **FEW)
    inner = Metrix(MoCHi(MultiSimilarityLoss(), warmup_steps=1, **FEW))
    for step in range(3):
        before = stack.queue.pointer
        Tiled(stack, rows=2)(embeddings(7, 2 * step), embeddings(7, 2 * step + 1)).backward()
        Tiled(inner, rows=3)(embeddings(11), UNEVEN)
        assert (stack.queue.pointer - before) % 20 == 7
        assert stack.step == inner.loss.step == step + 1
    stack.eval(), inner.eval()
    Tiled(stack, rows=2)(embeddings(7, 8), embeddings(7, 9))
    assert stack.step == 3 and stack.queue.pointer == 21 % 20


def test_a_queue_in_tiles_goes_on_as_without() -> None:
    queues = [KeyQueue(13, DIM).double(), KeyQueue(13, DIM).double()]
    plain, tiled = InfoNCE(queue=queues[0]), Tiled(InfoNCE(queue=queues[1]), rows=2)
    for step in range(4):
        query, key = embeddings(5, 2 * step), embeddings(5, 2 * step + 1)
        same(tiled(query, key), plain(query, key), [query])
        assert torch.equal(queues[0].keys, queues[1].keys) and queues[0].pointer == queues[1].pointer


def test_stacks() -> None:
    """Draws apart, a stack that mixes nothing at random is the same in tiles."""
    z = embeddings(11)
    warm = dict(FEW, warmup_steps=1)
    for make in (lambda: MoCHi(MoCHi(SupConLoss(), **warm), **warm), lambda: MoCHi(SupConLoss(), **warm)):
        same(Tiled(make(), rows=4)(z, UNEVEN), make()(z, UNEVEN), [z])
    torch.manual_seed(0)
    stack = MoCHi(Metrix(MultiSimilarityLoss()), **FEW)
    value = Tiled(stack, rows=4)(z, UNEVEN)
    value.backward()
    assert bool(torch.isfinite(value)) and bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("rows", [2, 3])
def test_stacks_of_towers(rows: int) -> None:
    """With one lambda, GeodesicMixup around or inside a MoCHi that warms up is itself."""
    raw = embeddings(14)
    image, text = torch.nn.functional.normalize(raw, dim=1).chunk(2)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    terms = dict(m2=MixTerm(0.3, temperature=0.3), v=MixTerm(0.4), l=MixTerm(0.9), vl=MixTerm(0.2))
    warm = dict(FEW, warmup_steps=1)
    for make in (
        lambda: MoCHi(GeodesicMixup(ClipLoss(), **terms), **warm),
        lambda: GeodesicMixup(MoCHi(CyClipLoss(ClipLoss()), **warm), **terms),
    ):
        tiled, whole = make(), make()
        lam = GeodesicMixup(ClipLoss(), **terms).draw(ClipLoss().tables(image, text, 1.0)[0])
        for module in (*tiled.modules(), *whole.modules()):
            if isinstance(module, GeodesicMixup):
                module.draw = lambda pairs, lam=lam: lam
        same(Tiled(tiled, rows=rows)(image, text, scale), whole(image, text, scale), [raw, scale])


# How it is called


def test_called_by_name_as_the_criterion_is() -> None:
    image, text = torch.nn.functional.normalize(embeddings(16), dim=1).detach().chunk(2)
    labels = torch.arange(8) // 2
    for criterion in (ClipLoss(), GeodesicMixup(ClipLoss(), m2=None, v=None, l=None, vl=MixTerm(1e-12))):
        named = dict(image_features=image, text_features=text, logit_scale=5.0, labels=labels, output_dict=True)
        got = Tiled(criterion, rows=3)(**named)
        assert list(got) == ["contrastive_loss"]
        torch.testing.assert_close(got["contrastive_loss"], criterion(**named)["contrastive_loss"])
    z = embeddings(11).detach()
    assert torch.equal(Tiled(SupConLoss())(z, labels=UNEVEN), Tiled(SupConLoss())(z, UNEVEN))
    mochi = MoCHi(ClipLoss(), warmup_steps=9, **FEW)
    tiled = Tiled(mochi, rows=3)
    torch.testing.assert_close(tiled(image, text, 5.0, labels=labels), mochi(image, text, 5.0, labels=labels))
    with pytest.raises(TypeError, match="SupConLoss is called with .*embeddings.* by name: .*") as error:
        Tiled(SupConLoss())(z, UNEVEN, logit_scale=3)
    assert "\n" not in str(error.value)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="Tiled wraps a mixcontrast loss or mixer. Got Linear; "):
        Tiled(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`rows` must be at least 1. Got 0; "):
        Tiled(SupConLoss(), rows=0)
    loss = ProxyAnchorLoss(3, 2)
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 3\)"):
        Tiled(loss)(torch.randn(2, 2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="SupConLoss needs at least one anchor with a positive. Got none among 6 anch"):
        views = embeddings(6).detach()
        Tiled(SupReMix(SupConLoss(), window=0.1), rows=2)(views, torch.arange(6.0).double())


def test_half_precision_and_autocast() -> None:
    labels = torch.arange(12) // 3
    x = torch.randn(12, 8)
    expected = x.clone().requires_grad_()
    SupConLoss()(expected, labels).backward()
    half = x.bfloat16().requires_grad_()
    loss = Tiled(SupConLoss(), rows=5)(half, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    wide = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Tiled(SupConLoss(), rows=5)(wide, labels).backward()
    torch.testing.assert_close(wide.grad, expected.grad)


# Memory


def largest(criterion, *inputs) -> int:
    leaf = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2 else x
            for x in inputs]  # fmt: skip
    with Largest() as seen:
        criterion(*leaf).backward()
    return seen.numbers


SIZE = 512
BIG = torch.arange(SIZE) // 4
MANY = dict(num_hardest=16, num_pair_mixes=16, num_anchor_mixes=8)
SIX = dict(num_hardest=16, num_interpolated=4, num_extrapolated=4, num_pairs=4, num_noised=4, num_gradient=4,
           num_sign=4)  # fmt: skip
MEMORY = {
    "supcon": (SupConLoss, (BIG,), 1),
    "triplet": (TripletLoss, (BIG,), 2),
    "clip": (ClipLoss, (None, 10.0), 1),
    "clip-captions": (ClipLoss, (None, 10.0, None, False, torch.stack([BIG, BIG.flip(0)], 1)), 1),
    "cyclip": (lambda: CyClipLoss(ClipLoss(same_modality=True)), (None, 10.0), 1),
    "siglip": (SigLipLoss, (None, 10.0, -5.0), 1),
    "metrix": (lambda: Metrix(SupConLoss()), (BIG,), 3),
    "metrix-drawn": (lambda: Metrix(MultiSimilarityLoss(), num_mixtures=64), (BIG,), 1),
    "mochi": (lambda: MoCHi(SupConLoss(), **MANY), (BIG,), 1),
    "synco": (lambda: SynCo(SupConLoss(), **SIX), (BIG,), 1),
    "supremix": (lambda: SupReMix(SupConLoss(), max_positive_mixes=64), (BIG.float(),), 1),
    "m3": (lambda: GeodesicMixup(ClipLoss()), (None, 10.0), 1),
}


@pytest.mark.parametrize("name", MEMORY)
def test_nothing_larger_than_a_tile_is_made(name: str) -> None:
    make, more, columns = MEMORY[name]
    x, y = torch.nn.functional.normalize(torch.randn(2, SIZE, 8), dim=-1)
    inputs = (x, *(y if m is None and i == 0 else m for i, m in enumerate(more)))
    rows = 16
    allowed = max(columns * rows * SIZE * 2, 1 << 14)
    assert allowed * 4 < SIZE * SIZE and largest(make(), *inputs) >= SIZE * SIZE  # the test can tell
    assert largest(Tiled(make(), rows=rows), *inputs) <= allowed
