"""What every loss must do; a new loss joins by a row in cases.py."""

from __future__ import annotations

import sys

import pytest
import torch

from mixcontrast import (
    BinomialDevianceLoss,
    Block,
    ClipLoss,
    ContrastiveLoss,
    InfoNCE,
    MultiSimilarityLoss,
    NCALoss,
    Pairs,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SupConLoss,
    TripletLoss,
)
from mixcontrast.losses import rowsums
from tests.losses.cases import CASES, DIM, plain_loss, plain_rows

A, C = 6, 9
SCALE, BIAS = 4.0, -1.5

every = pytest.mark.parametrize("case", CASES, ids=str)
BACKWARD_COMPILED = {  # a loss of each kind of reduction and constructor, with its backward pass
    "contrastive", "multi_similarity", "info_nce", "sup_con_negatives_below", "debiased", "triplet_semi_hard", "clip",
    "siglip_more_columns", "cyclip", "proxy_anchor", "proxy_nca",
}  # fmt: skip
soft = pytest.mark.parametrize("case", [case for case in CASES if case.make().soft_targets], ids=str)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def hand_made(case):
    """Similarities, targets and weights that a loss may get: soft and weighted where it reads that; one row empty."""
    similarity = torch.rand(A, C).double() * 1.8 - 0.9
    target = (torch.rand(A, C) < 0.4).double()
    weight = (torch.rand(A, C) < 0.8).double()
    target[:, 0], target[:, 1], weight[:, :2] = 1, 0, 1  # each row has both kinds
    if case.make().soft_targets:
        target = torch.where(torch.rand(A, C) < 0.4, torch.rand(A, C).double(), target)
        weight = weight * (0.2 + 2 * torch.rand(A, C).double())
    return similarity, target, weight


def table(*blocks, scale=SCALE, dtype=torch.float64):
    """A hand-made table of (similarity, target, weight) blocks, real columns all."""
    made = tuple(Block(s, t, w, torch.zeros(s.shape[1], DIM, dtype=dtype)) for s, t, w in blocks)
    return Pairs(torch.zeros(len(blocks[0][0]), DIM, dtype=dtype), made, None, None, scale, BIAS)


def scale_for(case):
    """A logit_scale replaces a loss's temperature, so only CLIP losses get one here."""
    return SCALE if case.scaled else None


def value_and_gradients(loss, tensors):
    return [loss.detach(), *torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)]


def assert_all_close(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# ---- from what users have


@every
def test_equals_a_plain_loop_over_pairs(case):
    criterion = case.make().double()
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(torch.float64)]
    leaves = [x for x in inputs if x.is_floating_point()] + list(criterion.parameters())
    ours = value_and_gradients(criterion(*inputs), leaves)
    plain = value_and_gradients(plain_loss(case, criterion, *inputs), leaves)
    assert_all_close(ours, plain, rtol=1e-9, atol=1e-11)


@every
def test_gradcheck(case):
    criterion = case.make().double()
    inputs = case.inputs(torch.float64)
    floats = [i for i, x in enumerate(inputs) if x.is_floating_point()]

    def loss(*leaves):
        called = list(inputs)
        for i, leaf in zip(floats, leaves, strict=True):
            called[i] = leaf
        if case.name == "info_nce_queue":
            called[1] = called[1].detach()
        return criterion(*called)

    leaves = [inputs[i].clone().requires_grad_(not (case.name == "info_nce_queue" and i == 1)) for i in floats]
    assert torch.autograd.gradcheck(loss, leaves)


@every
def test_permuting_the_batch_keeps_the_loss(case):
    criterion = case.make().double()
    inputs = case.inputs(torch.float64)
    order = torch.randperm(len(inputs[0]))
    permuted = [x[order] if x.ndim else x for x in inputs]
    torch.testing.assert_close(criterion(*permuted), criterion(*inputs))


@every
def test_forward_compiles_in_one_graph(case):
    torch._dynamo.reset()
    criterion = case.make().double()
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(torch.float64)]
    leaves = [x for x in inputs if x.is_floating_point()] + list(criterion.parameters())
    a_constructor_each = case.name in ("contrastive", "info_nce", "clip", "proxy_anchor")
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager" if a_constructor_each else "eager")
    assert_all_close(value_and_gradients(compiled(*inputs), leaves), value_and_gradients(criterion(*inputs), leaves))


def degenerate(kind, dtype=torch.float32):
    e = torch.randn(8, DIM, dtype=dtype)
    if kind == "identical":
        return e[:1].repeat(8, 1)
    if kind == "opposite":
        return torch.cat([e[:1].repeat(4, 1), -e[:1].repeat(4, 1)])[torch.randperm(8)]
    return e[:4].repeat(2, 1)  # duplicates


@every
@pytest.mark.parametrize("kind", ["identical", "opposite", "duplicate"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_finite_and_equals_float32(case, kind, dtype):
    criterion = case.make().float()
    inputs = list(case.inputs(torch.float32))
    made = degenerate(kind)
    made = made / made.norm(dim=1, keepdim=True) if case.scaled else made
    inputs[0] = made if len(inputs[0]) == 8 else made[:4]
    if len(inputs[0]) == 4:
        inputs[1] = made[4:]
    leaf = inputs[0].requires_grad_()
    plain = value_and_gradients(criterion(*inputs), [leaf])
    with torch.autocast("cpu", dtype=dtype):
        loss = criterion(*inputs)
    mixed = value_and_gradients(loss, [leaf])
    assert all(bool(torch.isfinite(x).all()) for x in mixed)
    assert mixed[0].dtype == torch.float32
    assert_all_close(mixed, plain, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_embeddings_give_the_float32_value_of_the_same_numbers(case, dtype):
    criterion = case.make().float()
    half = [x.to(dtype) if x.is_floating_point() else x for x in case.inputs(torch.float32)]
    full = [x.float() if x.is_floating_point() else x for x in half]
    ours = criterion(*half)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, criterion(*full))


@pytest.mark.parametrize("make", [InfoNCE, SupConLoss, NCALoss], ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_embeddings_at_a_temperature_of_a_hundredth(make, dtype):
    e = torch.nn.functional.normalize(torch.randn(64, 32)).to(dtype)
    second = (e[:32], e[32:]) if make is InfoNCE else (e, torch.arange(16).repeat(4))
    wide = [x.double() if x.is_floating_point() else x for x in second]
    ours, exact = make(temperature=0.01)(*second), make(temperature=0.01)(*wide)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


# ---- from a table made by hand


@every
def test_rows_equal_a_plain_loop(case):
    similarity, target, weight = hand_made(case)
    similarity.requires_grad_()
    criterion = case.make().double()
    pairs = table((similarity, target, weight), scale=scale_for(case))
    pull = torch.rand(A).double()  # rows are told apart
    ours = value_and_gradients(criterion.rows(pairs) @ pull, [similarity])
    plain = value_and_gradients(plain_rows(case, similarity, target, weight, SCALE) @ pull, [similarity])
    assert_all_close(ours, plain, rtol=1e-9, atol=1e-11)


@soft
def test_a_soft_target_is_a_positive_and_a_negative(case):
    """One column of target t and weight w counts as two columns, w * t positive and w * (1 - t) negative."""
    if case.name in ("sup_con", "clip", "clip_more_columns", "cyclip", "nca", "proxy_nca"):
        pytest.skip("its denominator holds each pair once, so two columns are the same as one only in sum")
    similarity, target, weight = hand_made(case)
    criterion = case.make().double()
    one = criterion.rows(table((similarity, target, weight), scale=scale_for(case)))
    two = table((similarity, 1.0, weight * target), (similarity, 0.0, weight * (1 - target)), scale=scale_for(case))
    torch.testing.assert_close(criterion.rows(two), one)


@soft
def test_a_weight_of_two_is_the_pair_twice(case):
    similarity, target, weight = hand_made(case)
    criterion = case.make().double()
    doubled = criterion.rows(table((similarity, target, 2 * weight), scale=scale_for(case)))
    block = (similarity, target, weight)
    torch.testing.assert_close(criterion.rows(table(block, block, scale=scale_for(case))), doubled)


@every
@pytest.mark.parametrize("of_bool", [True, False], ids=["bool", "float"])
@pytest.mark.parametrize("value", [0.9, 50.0, -1e4, 1e30, -1e30])
def test_pairs_of_weight_0_never_matter(case, value, of_bool):
    similarity, target, weight = hand_made(case)
    if of_bool:
        weight = weight > 0
    out = weight == 0
    assert out.any(dim=1).sum() > 1
    criterion = case.make().double()
    before = similarity.clone().requires_grad_()
    after = similarity.masked_fill(out, value).requires_grad_()
    scale = torch.tensor(SCALE).double().requires_grad_()
    leaves = [scale] if case.scaled and abs(value) < 1e3 else []
    results = []
    for leaf in (before, after):
        rows = criterion.rows(table((leaf, target, weight), scale=scale if case.scaled else None))
        results.append([rows.detach(), *value_and_gradients(rows.sum(), [leaf, *leaves])])
    assert_all_close(results[1], results[0], rtol=1e-9, atol=1e-11)
    assert results[1][2][out].abs().max() == 0


@every
def test_a_row_of_weight_0_gives_no_nan(case):
    similarity, target, weight = hand_made(case)
    weight[2] = 0
    for made in (weight, weight > 0):
        leaf = similarity.clone().requires_grad_()
        scale = torch.tensor(SCALE).double().requires_grad_() if case.scaled else None
        pairs = table((leaf, target, made), scale=scale)
        criterion = case.make().double()
        rows = criterion.rows(pairs)
        leaves = [leaf] if scale is None else [leaf, scale]
        _, gradient, *of_scale = value_and_gradients(rows.sum(), leaves)
        assert torch.isfinite(rows).all() and torch.isfinite(gradient).all()
        assert all(torch.isfinite(x).all() for x in of_scale)
        assert not gradient[2].any()
        assert pairs.has_positive().tolist() == [True, True, False, True, True, True]


@every
def test_rows_without_positives_are_left_out_of_the_mean(case):
    similarity, target, weight = hand_made(case)
    target[[1, 4]] = 0
    criterion = case.make().double()
    pairs = table((similarity, target, weight), scale=scale_for(case))
    rows = plain_rows(case, similarity, target, weight, SCALE)
    kept = rows if case.keeps_all else rows[[0, 2, 3, 5]]
    torch.testing.assert_close(criterion.reduce(pairs), kept.mean())


def _plain_pair(loss):
    """What one pair of each kind costs: `(of a positive, of a negative)`, given the row's plain cells."""
    if isinstance(loss, ContrastiveLoss):
        near, far = loss.positive_margin, loss.negative_margin
        return lambda s, *_: (near - s).clamp(min=0), lambda s, *_: (s - far).clamp(min=0)
    t = loss.temperature

    def of(s, cells, target, weight):
        below = weight if loss.positives_in_denominator else weight * (1 - target)
        rest = (below * (cells / t).exp()).sum()
        top = (s / t).exp()
        return -(top / (rest if loss.positives_in_denominator else rest + top)).log()

    return of, None


@pytest.mark.parametrize(
    "loss",
    [
        ContrastiveLoss(per_anchor=False),
        ContrastiveLoss(per_anchor=False, only_violated=True, positive_margin=0.2, negative_margin=-0.1),
        SupConLoss(per_anchor=False, temperature=0.3),
        SupConLoss(per_anchor=False, temperature=0.3, positives_in_denominator=False),
    ],
    ids=str,
)
def test_over_all_pairs_of_the_batch(loss):
    similarity, target, weight = hand_made(CASES[0])
    target[1], weight[3] = 0, 0  # a row of negatives alone, and one of nothing
    similarity.requires_grad_()
    total = 0
    for kind, of in zip((target, 1 - target), _plain_pair(loss), strict=True):
        if of is None:
            continue
        cells = [
            (weight[i, j] * kind[i, j], of(similarity[i, j], similarity[i], target[i], weight[i]))
            for i in range(A)
            for j in range(C)
            if weight[i, j] * kind[i, j] > 0
        ]
        if isinstance(loss, ContrastiveLoss) and loss.only_violated:
            cells = [cell for cell in cells if cell[1] > 0]
        total = total + sum(w * value for w, value in cells) / sum(w for w, _ in cells)
    ours = loss.reduce(table((similarity, target, weight), scale=None))
    assert_all_close(value_and_gradients(ours, [similarity]), value_and_gradients(total, [similarity]))


@pytest.mark.parametrize("only_violated", [False, True])
def test_over_all_triplets_of_the_batch(only_violated):
    similarity, target, weight = hand_made(next(case for case in CASES if case.name == "triplet"))
    target[1], target[2], weight[3] = 0, 1, 0
    similarity.requires_grad_()
    hinges = [
        (0.3 + row[n] - row[p]).clamp(min=0)
        for row, t, w in zip(similarity, target, weight, strict=True)
        for p in range(C)
        for n in range(C)
        if w[p] and w[n] and t[p] == 1 and t[n] == 0
    ]
    hinges = torch.stack([hinge for hinge in hinges if hinge > 0 or not only_violated])
    loss = TripletLoss(margin=0.3, per_anchor=False, only_violated=only_violated)
    ours = loss.reduce(table((similarity, target, weight), scale=None))
    assert_all_close(value_and_gradients(ours, [similarity]), value_and_gradients(hinges.mean(), [similarity]))


@every
def test_a_table_without_positives_is_refused(case):
    if case.keeps_all:
        pytest.skip("a proxy without examples still pushes")
    similarity, target, weight = hand_made(case)
    name = type(case.make()).__name__
    with pytest.raises(ValueError, match=f"^{name} needs at least one anchor with a positive. Got none among 6") as e:
        case.make().reduce(table((similarity, torch.zeros_like(target), weight), scale=scale_for(case)))
    assert "\n" not in str(e.value)


@every
def test_permuting_anchors_permutes_rows(case):
    similarity, target, weight = hand_made(case)
    order = torch.randperm(A)
    criterion = case.make().double()
    rows = criterion.rows(table((similarity, target, weight), scale=scale_for(case)))
    permuted = table((similarity[order], target[order], weight[order]), scale=scale_for(case))
    torch.testing.assert_close(criterion.rows(permuted), rows[order])


@every
@pytest.mark.parametrize("cuts", [(4,), (2, 5), (0, 3), (C,)], ids=str)
def test_columns_may_come_in_any_number_of_blocks(case, cuts):
    similarity, target, weight = hand_made(case)
    similarity.requires_grad_()
    criterion = case.make().double()
    edges = [0, *cuts, C]
    whole = table((similarity, target, weight), scale=scale_for(case))
    parts = table(
        *[(similarity[:, a:b], target[:, a:b], weight[:, a:b]) for a, b in zip(edges, edges[1:], strict=False)],
        scale=scale_for(case),
    )
    pull = torch.rand(A).double()
    one = value_and_gradients(criterion.rows(whole) @ pull, [similarity])
    assert_all_close(value_and_gradients(criterion.rows(parts) @ pull, [similarity]), one)
    assert parts.shape == whole.shape
    assert torch.equal(parts.has_positive(), whole.has_positive())


@every
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_constants_of_a_block_equal_full_tables(case, target, weight):
    if not case.make().soft_targets and target == 0.3:
        pytest.skip("reads targets of 0 and 1 only")
    similarity, *first = hand_made(case)
    similarity.requires_grad_()
    more = (torch.rand(A, 4).double() - 0.5).requires_grad_()
    criterion = case.make().double()
    results = []
    for cells in (
        (target, weight),
        (torch.full((A, 4), target, dtype=torch.float64), torch.full((A, 4), weight, dtype=torch.float64)),
        (torch.full((1, 4), target, dtype=torch.float64), torch.full((A, 1), weight, dtype=torch.float64)),
    ):
        pairs = table((similarity, *first), (more, *cells), scale=scale_for(case))
        rows = criterion.rows(pairs)
        gradients = value_and_gradients(rows.sum(), [similarity, more])
        results.append([rows.detach(), *gradients, pairs.target, pairs.weight])
    assert_all_close(results[0], results[1], check_dtype=False)
    assert_all_close(results[0], results[2], check_dtype=False)


@every
def test_bools_equal_floats(case):
    similarity, target, weight = hand_made(case)
    target, weight = target > 0.5, weight > 0
    criterion = case.make().double()
    rows = [
        criterion.rows(table((similarity, t, w), scale=scale_for(case)))
        for t in (target, target.float(), target.double(), target.long())
        for w in (weight, weight.float(), weight.double())
    ]
    for other in rows[1:]:
        torch.testing.assert_close(other, rows[0])


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c.name in BACKWARD_COMPILED else pytest.mark.slow, id=c.name) for c in CASES],
)
def test_rows_compile_in_one_graph(case):
    """Mixed columns, an empty row and a scale of the model included."""
    torch._dynamo.reset()
    similarity, target, weight = hand_made(case)
    weight[2] = 0
    more = torch.rand(A, 4).double() - 0.5
    criterion = case.make().double()
    constant = 0.3 if criterion.soft_targets else 0.0

    def rows(first, second, scale):
        scale = scale if case.scaled else None
        return criterion.rows(table((first, target, weight), (second, constant, 0.7), scale=scale))

    leaves = [similarity.requires_grad_(), more.requires_grad_()]
    scale = torch.tensor(SCALE).double().requires_grad_(case.scaled)
    pull = torch.rand(A).double()
    pull[2] = 0 if case.name == "proxy_anchor" else pull[2]
    leaves += [scale] if case.scaled else []
    eager = value_and_gradients(rows(similarity, more, scale) @ pull, leaves)
    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    assert_all_close(value_and_gradients(compiled(similarity, more, scale) @ pull, leaves), eager)


@pytest.mark.parametrize("case", [case for case in CASES if case.scaled], ids=str)
def test_gradient_of_logit_scale(case):
    similarity, target, weight = hand_made(case)
    scale = torch.tensor(SCALE).double().requires_grad_()
    criterion = case.make().double()
    pull = torch.rand(A).double()
    ours = criterion.rows(table((similarity[:, :4], target[:, :4], weight[:, :4]),
                                (similarity[:, 4:], target[:, 4:], weight[:, 4:]), scale=scale)) @ pull
    plain = plain_rows(case, similarity, target, weight, scale) @ pull
    assert_all_close(value_and_gradients(ours, [scale]), value_and_gradients(plain, [scale]))


@pytest.mark.parametrize("make", [InfoNCE, SupConLoss, NCALoss], ids=lambda make: make.__name__)
def test_a_logit_scale_of_the_table_replaces_the_temperature(make):
    similarity, target, weight = torch.rand(A, C), (torch.rand(A, C) < 0.5).float(), torch.ones(A, C)
    own = make(temperature=0.25).rows(table((similarity, target, weight), scale=None, dtype=torch.float32))
    given = make(temperature=9.0).rows(table((similarity, target, weight), scale=4.0, dtype=torch.float32))
    torch.testing.assert_close(own, given)


@every
def test_a_mean_without_rows_is_nan_where_reading_is_not_free(case, monkeypatch):
    monkeypatch.setattr("mixcontrast.losses.base.reads_values", lambda tensor: False)
    if case.keeps_all:
        pytest.skip("a proxy without examples still pushes")
    similarity, target, weight = hand_made(case)
    loss = case.make().reduce(table((similarity, 0 * target, weight), scale=scale_for(case)))
    assert loss.isnan()


# ---- the row sums beneath


@pytest.mark.parametrize("shape", [(900, 600), (2, 300_000), (300_000, 2)], ids=str)
@pytest.mark.parametrize("weighing", ["none", "bool", "float", "row", "column"])
def test_large_tables_equal_torch_logsumexp(shape, weighing):
    assert shape[0] * shape[1] > rowsums._CHUNK
    similarity = torch.randn(shape, dtype=torch.float64).requires_grad_()
    weight = {
        "none": 1.0,
        "bool": torch.rand(shape) < 0.7,
        "float": torch.rand(shape).double() * (torch.rand(shape) < 0.7),
        "row": torch.rand(1, shape[1]).double(),
        "column": torch.rand(shape[0], 1).double(),
    }[weighing]
    scale = torch.tensor(3.0).double().requires_grad_()
    ours = rowsums.log_sum_exp([similarity], [weight], scale)
    log_weight = torch.as_tensor(weight).double().log()
    logits = similarity * scale + log_weight
    kept = (logits > -torch.inf).any(dim=1)  # torch's own gradient of an empty row is NaN
    assert torch.equal(ours > -torch.inf, kept)
    pull = torch.rand(shape[0]).double()
    ours, theirs = torch.where(kept, ours, 0.0) @ pull, torch.logsumexp(logits[kept], dim=1) @ pull[kept]
    assert_all_close(value_and_gradients(ours, [similarity, scale]), value_and_gradients(theirs, [similarity, scale]))


def test_large_logits_do_not_overflow():
    similarity = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]])
    sums = rowsums.log_sum_exp([similarity], [torch.tensor([[1.0, 3.0, 1.0]])], 1.0)
    torch.testing.assert_close(sums, torch.tensor([1e4, -1e4]) + torch.tensor([4.0, 5.0]).log())


def test_large_transposed_tables_equal_torch_logsumexp():
    similarity = torch.randn(600, 900, dtype=torch.float64).requires_grad_()
    ours = rowsums.log_sum_exp([similarity.mT], [1.0], 2.0).sum()
    theirs = torch.logsumexp(2 * similarity.mT, dim=1).sum()
    assert_all_close(value_and_gradients(ours, [similarity]), value_and_gradients(theirs, [similarity]))


# ---- bad hyper-parameters, bad tables


@pytest.mark.parametrize("bad", [0.0, -0.1, float("nan")])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: InfoNCE(temperature=x), "temperature"),
        (lambda x: SupConLoss(temperature=x), "temperature"),
        (lambda x: NCALoss(temperature=x), "temperature"),
        (lambda x: RankNContrastLoss(temperature=x), "temperature"),
        (lambda x: ProxyNCALoss(3, 4, temperature=x), "temperature"),
        (lambda x: ProxyAnchorLoss(3, 4, alpha=x), "alpha"),
        (lambda x: MultiSimilarityLoss(alpha=x), "alpha"),
        (lambda x: MultiSimilarityLoss(beta=x), "beta"),
        (lambda x: BinomialDevianceLoss(beta=x), "beta"),
        (lambda x: BinomialDevianceLoss(gamma=x), "gamma"),
        (lambda x: TripletLoss(margin=x), "margin"),
    ],
)
def test_bad_hyper_parameters_are_refused_in_one_line(make, name, bad):
    with pytest.raises(ValueError, match=f"^`{name}` must be positive. Got {name}={bad}; ") as e:
        make(bad)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("make", [ProxyNCALoss, ProxyAnchorLoss])
@pytest.mark.parametrize(("sizes", "name"), [((0, 4), "num_classes"), ((4, 0), "embedding_dim")])
def test_proxies_need_sizes(make, sizes, name):
    with pytest.raises(ValueError, match=f"^`{name}` must be positive. Got {name}=0; "):
        make(*sizes)


def test_a_clip_loss_without_a_scale_is_refused():
    features = torch.nn.functional.normalize(torch.randn(4, DIM))
    with pytest.raises(TypeError, match="^A CLIP loss needs the model's logit_scale, which multiplies. Got none; "):
        ClipLoss()(features, features, None)


def test_views_called_with_labels_are_refused():
    e = torch.randn(4, DIM)
    with pytest.raises(TypeError, match=r"^InfoNCE compares two views.*Got torch.int64 \(4,\) as the second; "):
        InfoNCE()(e, torch.arange(4))
    with pytest.raises(TypeError, match="^InfoNCE reads labels only with a queue"):
        InfoNCE()(e, e, torch.arange(4))


def test_a_regression_loss_needs_a_table_of_values():
    pairs = Pairs.from_labels(torch.randn(4, DIM), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(TypeError, match="^A regression loss needs real values. Got a table without; "):
        RankNContrastLoss().rows(pairs)


def test_clip_losses_can_answer_in_a_dictionary_as_open_clip_does():
    features = torch.nn.functional.normalize(torch.randn(4, DIM))
    loss = ClipLoss()(features, features, 10.0)
    assert ClipLoss()(features, features, 10.0, output_dict=True) == {"contrastive_loss": loss}


@pytest.mark.parametrize("of", ["one", "all"])
@every
def test_embeddings_without_a_number_are_seen_where_none_is_read(case, of, monkeypatch) -> None:
    """As on a GPU: where the inputs are not looked at, the loss tells."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mixcontrast.") and hasattr(module, "reads_values"):
            monkeypatch.setattr(module, "reads_values", lambda tensor: False)
    first, *others = case.inputs(torch.float64)
    first = first.detach().clone()
    first[1 if of == "one" else slice(None)] = torch.nan
    assert case.make().double()(first, *others).isnan()
