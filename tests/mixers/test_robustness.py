"""Left-out pairs, order of the anchors, derivatives, low precision and compilation, over every mixer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    Geodesic,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Linear,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    Pairs,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
    SynCo,
)
from mixcontrast.mixers.metrix import Parents

from . import plain
from .cases import CASES, DIM, INTERPOLATIONS, METRIX, MOCHI, TABLE_CASES, Case, embeddings, leaves

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_table_case = pytest.mark.parametrize("case", TABLE_CASES, ids=lambda case: case.name)
each_detach = pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Left-out pairs


def left_out(pairs: Pairs) -> tuple[int, Tensor]:
    """The block that mixers read, and its cells of weight 0."""
    (place,) = (i for i, block in enumerate(pairs.blocks) if block is pairs.real[0])
    block = pairs.blocks[place]
    return place, (torch.as_tensor(block.weight).expand_as(block.similarity) == 0)


def shifted(pairs: Pairs, value: float) -> Pairs:
    """The table with another similarity in the cells of weight 0."""
    place, hidden = left_out(pairs)
    blocks = list(pairs.blocks)
    blocks[place] = replace(blocks[place], similarity=blocks[place].similarity.masked_fill(hidden, value))
    return replace(pairs, blocks=tuple(blocks))


WITH_LEFT_OUT = [c for c in TABLE_CASES if "proxy" not in c.name and c.name not in ("mochi-queue", "synco-queue")]


@pytest.mark.parametrize("case", WITH_LEFT_OUT, ids=lambda case: case.name)
@each_detach
@pytest.mark.parametrize("value", [1e6, -1e6])
def test_left_out_pairs_change_nothing(case: Case, detach: bool, value: float) -> None:
    mixer, inputs = case.make(Linear(normalize=False), detach), case.inputs()  # reads no similarity of parents
    (pairs,) = case.tables(mixer, inputs)
    assert bool(left_out(pairs)[1].any())
    values, grads = [], []
    for table in (pairs, shifted(pairs, value)):
        values.append(mixer.loss_of(table, mixer.draw(table, seeded())))
        grads.append(torch.autograd.grad(values[-1], inputs[0], retain_graph=True)[0])
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-9)


def hiding(pairs: Pairs, columns: list[int]) -> Pairs:
    """The table with some columns (padding, say) left out."""
    (block,) = pairs.blocks
    hidden = torch.zeros(block.similarity.shape[1], dtype=torch.bool)
    hidden[columns] = True
    return replace(pairs, blocks=(replace(block, weight=block.weight & ~hidden),))


@pytest.mark.parametrize(
    "mixer, labels",
    [
        (MoCHi(SupConLoss(), num_hardest=4, num_pair_mixes=50, num_anchor_mixes=50), torch.arange(10) // 2),
        (Metrix(MultiSimilarityLoss(), anchor_negative=True, negative_negative=True), torch.arange(10) // 2),
        (
            Metrix(SupConLoss(), anchor_negative=True, negative_negative=True, num_mixtures=50),
            torch.arange(10) // 2,
        ),
        (SupReMix(SupConLoss()), torch.arange(10, dtype=torch.float64) // 2),
        (SupReMix(SupConLoss(), magnify_power=None), torch.arange(10, dtype=torch.float64) // 2),
    ],
    ids=["mochi", "metrix", "metrix-drawn", "supremix", "supremix-unweighted"],
)
@pytest.mark.parametrize("gone", [torch.nan, 1e6])
def test_hidden_columns_are_never_a_parent(mixer, labels: Tensor, gone: float) -> None:
    """Columns of weight 0, whatever they hold, leave no trace in the mixtures that count."""
    build = Pairs.from_values if labels.is_floating_point() else Pairs.from_labels
    pairs = hiding(build(embeddings(10).detach(), labels), [8, 9])
    (block,) = pairs.blocks
    similarity = block.similarity.clone()
    similarity[:, 8:] = gone
    poisoned = replace(pairs, blocks=(replace(block, similarity=similarity),))
    before, after = (mixer.mix(table, mixer.draw(table, seeded())) for table in (pairs, poisoned))
    assert torch.equal(before.weight, after.weight) and torch.equal(before.target, after.target)
    counts = (before.weight > 0)[:8]
    assert bool(counts.any())
    torch.testing.assert_close(after.similarity[:8][counts], before.similarity[:8][counts], rtol=0, atol=0)


# Order


def reordered(case: Case, mixer, draw, order: Tensor, num_columns: int, *, queue: bool):
    """The same draw for anchors (and, in a batch, columns) in another order."""
    new = torch.arange(num_columns) if queue else order.argsort()  # new place of each column

    def columns(index: Tensor) -> Tensor:
        return new[index[order]]

    def cells(table: Tensor) -> Tensor:
        return table[order] if queue else table[order][:, order]

    if isinstance(mixer, MoCHi):
        usable = draw.usable[order] if isinstance(draw.usable, Tensor) else draw.usable
        return replace(draw, first=columns(draw.first), second=columns(draw.second), alpha=draw.alpha[order],
                       negative=columns(draw.negative), beta=draw.beta[order], usable=usable)  # fmt: skip
    if isinstance(mixer, SynCo):
        usable = draw.usable[order] if isinstance(draw.usable, Tensor) else draw.usable
        moved = {name: columns(getattr(draw, name)) for name in ("interpolated", "extrapolated", "first", "second",
                                                                 "noised", "towards", "by_sign")}  # fmt: skip
        shares = {name: getattr(draw, name)[order] for name in ("alpha", "beta", "gamma")}
        return replace(draw, usable=usable, **moved, **shares)
    if isinstance(mixer, SupReMix):
        return replace(
            draw,
            lam=None if draw.lam is None else cells(draw.lam),
            **{name: None if draw.below is None else columns(getattr(draw, name)) for name in ("below", "above")},
            **{name: None if draw.below is None else getattr(draw, name)[order] for name in ("share", "keep")},
        )

    def kind(parents: Parents) -> Parents:
        left = None if parents.left is None else columns(parents.left)
        if parents.right is not None:
            lam = parents.lam if parents.lam.ndim == 0 else parents.lam[order]
            return replace(parents, left=left, right=columns(parents.right), lam=lam, keep=parents.keep[order])

        def blocks(table: Tensor) -> Tensor:
            split = table[order].unflatten(1, (-1, num_columns))
            return (split if queue else split[:, :, order]).flatten(1)

        lam = parents.lam if parents.lam.ndim == 0 else blocks(parents.lam)
        return replace(parents, left=left, lam=lam, keep=blocks(parents.keep))

    return tuple(kind(parents) for parents in draw)


@each_table_case
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_permuting_anchors_permutes_rows(case: Case, interpolation: str) -> None:
    mixer, inputs = case.make(INTERPOLATIONS[interpolation], True), case.inputs()
    (pairs,) = case.tables(mixer, inputs)
    num_anchors, num_columns = pairs.real[0].similarity.shape
    order = torch.randperm(len(inputs[0]), generator=seeded(5))
    moved = tuple(x[order] if isinstance(x, Tensor) and len(x) == len(order) else x for x in inputs)
    (other,) = case.tables(mixer, moved)
    draw = mixer.draw(pairs, seeded())
    rows = mixer.loss.rows(mixer.mix(pairs, draw))
    if "proxy-anchor" in case.name:  # the anchors are proxies, and stay; the columns move
        new = order.argsort()

        def kind(p: Parents) -> Parents:
            left = None if p.left is None else new[p.left]
            if p.right is not None:
                return replace(p, left=left, right=new[p.right])
            lam, keep = (t.unflatten(1, (-1, num_columns))[:, :, order].flatten(1) for t in (p.lam, p.keep))
            return replace(p, left=left, lam=lam, keep=keep)

        draw, expected = tuple(kind(p) for p in draw), rows
    else:
        apart = case.name.endswith(("o-queue", "i-queue", "class-oracle")) or "proxy" in case.name
        rows_order = torch.cat([order, order + len(order)]) if case.name.endswith("two-views") else order
        draw = reordered(case, mixer, draw, rows_order, num_columns, queue=apart)
        expected = rows[rows_order]
    torch.testing.assert_close(mixer.loss.rows(mixer.mix(other, draw)), expected, rtol=1e-9, atol=1e-11)


# Derivatives


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name in ("mochi-labels", "mochi-queue", "synco-labels", "synco-queue",
                                    "mochi-siglip-own-captions", "synco-clip-labels", "metrix-drawn",
                                    "metrix-all-kinds",
                                    "metrix-proxy-nca-drawn", "metrix-proxy-anchor", "supremix", "m3-clip",
                                    "m3-siglip")],
    ids=lambda case: case.name,
)  # fmt: skip
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_gradcheck(case: Case, interpolation: str) -> None:
    """With everything attached the derivative is the loss's own; embeddings are of any length."""
    mixer, inputs = case.make(INTERPOLATIONS[interpolation], False), case.inputs()
    draw = mixer.draw(case.tables(mixer, inputs)[0], seeded())
    parameters = list(mixer.parameters())
    of = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if case.name in ("mochi-queue", "synco-queue"):
        of = of[:1]  # keys are detached
    if case.towers and "clip" in case.name and not isinstance(mixer, GeodesicMixup):
        of = [x for x in of if x is not inputs[3]]  # a bias leaves cross-entropy as it is

    def loss(*changed: Tensor) -> Tensor:
        given = iter(changed)
        args = tuple(next(given) if any(x is y for y in of) else x for x in inputs)
        return case.value(mixer, case.tables(mixer, args), draw)

    assert torch.autograd.gradcheck(loss, of, fast_mode=True, atol=1e-5)
    for parameter in parameters:
        assert torch.autograd.grad(loss(*of), parameter)[0].abs().sum() > 0


@each_table_case
def test_detached_parents_get_no_gradient(case: Case) -> None:
    """Of an anchor's mixed similarities alone, only that anchor has a gradient."""
    mixer, inputs = case.make(Geodesic(), True), case.inputs()
    (pairs,) = case.tables(mixer, inputs)
    own, place = (pairs.candidates, None) if "proxy-anchor" in case.name else (pairs.anchors, 2)
    if place is None:
        return
    mixed = mixer.mix(pairs, mixer.draw(pairs, seeded()))
    new = [b for b in mixed.blocks if b.candidates is None and all(b is not c for c in pairs.blocks)]
    total = sum((b.similarity[place] * torch.as_tensor(b.weight).expand_as(b.similarity)[place]).sum() for b in new)
    (grad,) = torch.autograd.grad(total, own)
    assert bool(grad[place].abs().sum() > 0)
    grad[place] = 0
    assert float(grad.abs().max()) == 0


# Low precision


def degenerate(kind: str, size: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(size, DIM)
    if kind == "identical":
        x = x[:1].expand(size, -1)
    elif kind == "opposite":
        x = torch.cat([x[: size // 2], -x[: size // 2]])
    elif kind == "one-line":  # the same direction or its opposite
        x = x[:1] * torch.where(torch.arange(size) % 3 == 0, -1.0, 1.0)[:, None]
    elif kind == "duplicate":
        x = x[: size // 2].repeat_interleave(2, dim=0)
    return x.to(dtype).clone().requires_grad_()


CLASSES = torch.arange(12) // 3
NUMBERS = torch.tensor([0.0, 1, 2, 3, 4, 5]).repeat(2)


def criteria(interpolation) -> dict:
    kinds = dict(anchor_negative=True, negative_negative=True, interpolation=interpolation)
    few = dict(num_hardest=4, num_pair_mixes=9, num_anchor_mixes=9, interpolation=interpolation)
    six = dict(num_hardest=4, num_interpolated=5, num_extrapolated=5, num_pairs=5, num_noised=3, num_gradient=3,
               num_sign=3, interpolation=interpolation)  # fmt: skip
    return {
        "mochi": (MoCHi(SupConLoss(temperature=0.05), **few), CLASSES),
        "mochi-attached": (MoCHi(SupConLoss(temperature=0.05), detach=False, **few), CLASSES),
        "mochi-queue": (MoCHi(InfoNCE(temperature=0.05), queue=KeyQueue(30, DIM), **few), None),
        "synco": (SynCo(SupConLoss(temperature=0.05), **six), CLASSES),
        "synco-attached": (SynCo(SupConLoss(temperature=0.05), detach=False, **six), CLASSES),
        "synco-clip": (SynCo(ClipLoss(same_modality=True), same_modality=True, detach=False, **six), "towers"),
        "synco-siglip": (SynCo(SigLipLoss(), **six), "towers"),
        "metrix": (Metrix(MultiSimilarityLoss(), **kinds), CLASSES),
        "metrix-drawn": (Metrix(ContrastiveLoss(euclidean=True), num_mixtures=20, **kinds), CLASSES),
        "metrix-proxy": (Metrix(ProxyNCALoss(6, DIM), **kinds), CLASSES),
        "metrix-proxy-anchor": (Metrix(ProxyAnchorLoss(6, DIM), num_mixtures=9, **kinds), CLASSES),
        "supremix": (SupReMix(SupConLoss(), interpolation=interpolation, detach=False), NUMBERS),
        "clip": (GeodesicMixup(ClipLoss(), interpolation=interpolation), "towers"),
        "siglip": (GeodesicMixup(SigLipLoss(), interpolation=interpolation), "towers"),
    }


def called(criterion, x: Tensor, second) -> Tensor:
    if isinstance(second, Tensor):
        return criterion(x, second)
    if second is None:
        return criterion(x, x.flip(0))
    x = F.normalize(x.float(), dim=1).to(x.dtype)
    bias = (torch.tensor(-10.0),) if isinstance(criterion.loss, SigLipLoss) else ()
    return criterion(x, x.roll(1, 0), torch.tensor(100.0), *bias)


@pytest.mark.parametrize("name", criteria(Linear()))
@pytest.mark.parametrize("kind", ["identical", "opposite", "one-line", "duplicate"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_low_precision_stays_finite(name: str, kind: str, interpolation: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        torch.manual_seed(1)
        criterion, second = criteria(INTERPOLATIONS[interpolation])[name]
        x = degenerate(kind, 12, dtype)
        if name == "mochi-queue":
            criterion.queue.enqueue(torch.cat([x.detach(), -x.detach()]))
        with torch.autocast("cpu", dtype=dtype):
            loss = called(criterion, x, second)
        assert loss.dtype == torch.float32 and bool(torch.isfinite(loss))
        loss.backward()
        assert x.grad.dtype == dtype and bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("name", criteria(Linear()))
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_autocast_changes_nothing(name: str, interpolation: str) -> None:
    """All arithmetic is in float32, whatever autocast says; inputs in half precision are read as they are."""
    values, grads = [], []
    for on in (False, True):
        torch.manual_seed(1)
        criterion, second = criteria(INTERPOLATIONS[interpolation])[name]
        x = degenerate("", 12, torch.float32)
        if name == "mochi-queue":
            criterion.queue.enqueue(torch.randn(30, DIM))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            loss = called(criterion, x, second)
        loss.backward()
        values.append(loss.detach())
        grads.append(x.grad)
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", criteria(Linear()))
def test_half_inputs_are_read_as_float32(name: str) -> None:
    values = []
    for widen in (False, True):
        torch.manual_seed(1)
        criterion, second = criteria(Linear())[name]
        x = degenerate("", 12, torch.float16).detach()
        if name.endswith("clip"):
            x, bias = F.normalize(x.float(), dim=1).half(), ()
        elif name.endswith("siglip"):
            x, bias = F.normalize(x.float(), dim=1).half(), (torch.tensor(-10.0),)
        if second == "towers":
            x = x.float() if widen else x
            values.append(criterion(x, x.roll(1, 0), torch.tensor(100.0), *bias))
        else:
            values.append(called(criterion, x.float() if widen else x, second))
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-6)


# Compilation


COMPILED = {  # whether detached, and a case of it
    (True, "mochi-queue"), (False, "mochi-labels"), (True, "synco-queue"), (True, "metrix-all-kinds"),
    (True, "supremix"),
}  # fmt: skip


@pytest.mark.parametrize("detach, name", [
    *sorted(COMPILED),
    pytest.param(False, "m3-clip", marks=pytest.mark.slow),  # its forward pass is compiled below
    pytest.param(False, "synco-clip-labels", marks=pytest.mark.slow),
    pytest.param(False, "metrix-proxy-nca-drawn", marks=pytest.mark.slow),
])  # fmt: skip
def test_mix_compiles_in_one_graph(detach: bool, name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    torch._dynamo.reset()
    mixer, inputs = case.make(Linear(), detach).eval(), case.inputs()
    draw = mixer.draw(case.tables(mixer, inputs)[0], seeded())

    def total(*args: Tensor) -> Tensor:
        (pairs, *_) = mixer.tables(*case.call(args))
        mixed = mixer.mix(pairs, draw)
        if isinstance(mixed, dict):
            return sum(mixer.loss.rows(table).sum() for table in mixed.values())
        rows = mixer.loss.rows(mixed)
        return torch.where(mixed.has_positive(), rows, 0.0).sum()

    of = leaves(inputs, mixer)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    results = []
    for function in (total, compiled):
        value = function(*inputs)
        results.append((value, *torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["mochi-class-oracle", "synco-two-views", "mochi-siglip-own-captions",
                                  "metrix-max-positives", "metrix-proxy-anchor-drawn", "supremix-capped",
                                  "m3-clip"])  # fmt: skip
def test_a_whole_criterion_compiles_in_one_graph(name: str) -> None:
    """The draw included, which torch's own generator makes in the order of the plain call."""
    (case,) = (case for case in CASES if case.name == name)
    torch._dynamo.reset()
    mixer, inputs = case.make(Linear(), False).eval(), case.inputs()  # eval: a queue then stays as it is

    def whole(*args: Tensor) -> Tensor:
        return mixer(*case.call(args))

    results, of = [], leaves(inputs, mixer)
    for function in (whole, torch.compile(whole, fullgraph=True, backend="eager")):
        torch.manual_seed(4)
        value = function(*inputs)
        results.append((value, *torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_training_compiles_once_not_once_a_step() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    mixer = MoCHi(SupConLoss(), num_hardest=4, num_pair_mixes=9, num_anchor_mixes=2)
    compiled = torch.compile(mixer, fullgraph=True, backend="eager")
    for _ in range(3):
        compiled(embeddings(12), CLASSES)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "allow_unspec_int_on_nn_module"), reason="this torch has no such setting"
)
@torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True)
def test_a_step_with_a_queue_compiles_as_its_docstring_says() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    few = dict(num_hardest=4, num_pair_mixes=5, num_anchor_mixes=2)
    plainly, other = (MoCHi(InfoNCE(), queue=KeyQueue(20, DIM).double(), **few) for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    for step in range(14):
        query, key = embeddings(8, 2 * step), embeddings(8, 2 * step + 1)
        values = []
        for criterion in (plainly, compiled):
            torch.manual_seed(step)
            values.append(criterion(query, key))
            values += torch.autograd.grad(values[-1], query)
        torch.testing.assert_close(values[2:], values[:2], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(other.queue.keys, plainly.queue.keys)
    assert other.queue.pointer == plainly.queue.pointer
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


# Batches that nobody would think of


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5).filter(lambda s: max(s) > 1),
    seed=st.integers(0, 10_000),
    interpolation=st.sampled_from([Linear(), Linear(normalize=False)]),
    detach=st.booleans(),
    number=st.sampled_from([None, 1, 4]),
    hardest=st.integers(1, 9),
)
def test_any_class_balance(sizes, seed: int, interpolation, detach: bool, number: int | None, hardest: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    common = dict(interpolation=interpolation, detach=detach)
    loss = MultiSimilarityLoss(beta=10.0)
    mixers = [
        (METRIX[2], Metrix(loss, num_mixtures=number, anchor_negative=True, negative_negative=True, **common)),
        (MOCHI[5], MoCHi(loss, num_hardest=hardest, num_pair_mixes=number or 0, num_anchor_mixes=2, **common)),
    ]
    for case, mixer in mixers:
        z = embeddings(len(labels), seed)
        (pairs,) = mixer.tables(z, labels)
        draw = mixer.draw(pairs, seeded(seed))
        if isinstance(mixer, Metrix):
            expected = case.reference(mixer, (z, labels), draw)
        else:
            expected = plain.mochi_batch(plain.multi_similarity(2, 10, 0.5), mixer, z, labels, draw)
        value = mixer.loss_of(pairs, draw)
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (value, expected)), rtol=1e-7, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    values=st.lists(st.integers(0, 9), min_size=3, max_size=9),
    seed=st.integers(0, 10_000),
    power=st.sampled_from([None, 1, 2]),
    window=st.sampled_from([1.0, 3.0, 100.0]),
    detach=st.booleans(),
)
def test_any_values(values, seed: int, power: int | None, window: float, detach: bool) -> None:
    values = torch.tensor([*values, values[0], values[0] + 1], dtype=torch.float64)
    mixer = SupReMix(SupConLoss(temperature=0.3), magnify_power=power, window=window, detach=detach)
    z = embeddings(len(values), seed)
    (pairs,) = mixer.tables(z, values)
    draw = mixer.draw(pairs, seeded(seed))
    value, expected = mixer.loss_of(pairs, draw), plain.supremix(plain.sup_con(0.3), mixer, z, values, draw)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (value, expected)), rtol=1e-7, atol=1e-9)
