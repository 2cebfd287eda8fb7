"""The table of pairs: its constructors, what they refuse, and where gradients go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mixcontrast import (
    Block,
    InfoNCE,
    KeyQueue,
    MultiSimilarityLoss,
    Pairs,
    ProxyNCALoss,
    SupConLoss,
    TripletLoss,
)
from mixcontrast.mixers.base import self_similarity
from mixcontrast.similarity import unit

A, D = 6, 4
LABELS = torch.tensor([0, 0, 1, 1, 1, 2])
OTHERS = 1 - torch.eye(A)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def embed(n=A, dtype=torch.float32, grad=False):
    return torch.randn(n, D, dtype=dtype).requires_grad_(grad)


# ---- the constructors


def test_from_labels():
    e = embed()
    pairs = Pairs.from_labels(3 * e, LABELS)
    assert pairs.shape == (A, A)
    torch.testing.assert_close(pairs.anchors, normalize(e))
    assert pairs.candidates is pairs.anchors
    torch.testing.assert_close(pairs.similarity, normalize(e) @ normalize(e).T)
    assert torch.equal(pairs.target, (LABELS[:, None] == LABELS).float())
    assert torch.equal(pairs.weight, OTHERS)
    assert pairs.anchor_labels is LABELS and pairs.candidate_labels is LABELS
    assert pairs.has_positive().tolist() == [True] * 5 + [False]
    assert pairs.has_negative().all()


def test_classes_beyond_the_digits_of_a_float_are_different():
    labels = torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1])
    assert Pairs.from_labels(embed(4), labels).target.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2
    labels = labels + 2**53
    assert Pairs.from_labels(embed(4), labels).target.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2


def test_from_targets():
    e, target, weight = embed(), torch.rand(A, A), torch.rand(A, A)
    pairs = Pairs.from_targets(e, target, weight)
    torch.testing.assert_close(pairs.similarity, normalize(e) @ normalize(e).T)
    assert torch.equal(pairs.target, target)
    assert torch.equal(pairs.weight, weight * OTHERS)
    assert torch.equal(Pairs.from_targets(e, target).weight, OTHERS)
    assert pairs.anchor_labels is None
    same = LABELS[:, None] == LABELS
    by_labels = SupConLoss()(e, LABELS)
    for made in (same, same.float(), same.long()):
        torch.testing.assert_close(SupConLoss().reduce(Pairs.from_targets(e, made)), by_labels)


def test_targets_and_weights_carry_no_gradient():
    e = embed(grad=True)
    target, weight = torch.rand(A, A, requires_grad=True), torch.rand(A, A, requires_grad=True)
    MultiSimilarityLoss().reduce(Pairs.from_targets(e, target, weight)).backward()
    assert target.grad is None and weight.grad is None and e.grad.abs().sum() > 0


def test_from_views():
    one, other = embed(3), embed(3)
    pairs = Pairs.from_views(one, 5 * other)
    both = normalize(torch.cat([one, other]))
    assert pairs.shape == (6, 6)
    torch.testing.assert_close(pairs.similarity, both @ both.T)
    assert torch.equal(pairs.target * pairs.weight, torch.eye(6).roll(3, dims=0))
    assert torch.equal(pairs.weight, OTHERS)


def test_from_queue():
    query, key, queue = embed(3, grad=True), embed(3, grad=True), normalize(embed(5))
    pairs = Pairs.from_queue(query, key, queue)
    assert pairs.shape == (3, 6)
    torch.testing.assert_close(pairs.similarity[:, :5], normalize(query) @ queue.T)
    torch.testing.assert_close(pairs.similarity[:, 5], (normalize(query) * normalize(key)).sum(1))
    assert pairs.target.tolist() == [[0, 0, 0, 0, 0, 1]] * 3
    assert pairs.weight.eq(1).all()
    assert torch.equal(pairs.candidates, queue) and len(pairs.real) == 1
    pairs.similarity.sum().backward()
    assert query.grad.abs().sum() > 0 and key.grad is None


def test_a_queue_is_not_copied():
    queue = normalize(embed(50))
    pairs = Pairs.from_queue(embed(3), embed(3), queue)
    assert pairs.blocks[0].candidates.data_ptr() == queue.data_ptr()
    assert pairs.blocks[0].target == 0.0 and pairs.blocks[0].weight == 1.0


def test_from_towers():
    image, text = embed(3, grad=True), embed(3, grad=True)
    scale, bias = torch.tensor(7.0, requires_grad=True), torch.tensor(-2.0)
    to_text, to_image = Pairs.from_towers(image, text, scale, bias)
    torch.testing.assert_close(to_text.similarity, image @ text.T)  # as they are: open_clip's are unit vectors
    torch.testing.assert_close(to_image.similarity, text @ image.T)
    for pairs, anchors, candidates in ((to_text, image, text), (to_image, text, image)):
        assert pairs.anchors is anchors and pairs.candidates is candidates
        assert torch.equal(pairs.target, torch.eye(3)) and pairs.weight.eq(1).all()
        assert pairs.logit_scale is scale and pairs.logit_bias is bias
    to_text.similarity.square().sum().backward()
    assert image.grad.abs().sum() > 0 and text.grad.abs().sum() > 0


def test_from_proxies():
    e, proxies = embed(grad=True), embed(5, grad=True)
    pairs = Pairs.from_proxies(e, LABELS, proxies)
    assert pairs.shape == (A, 5)
    torch.testing.assert_close(pairs.similarity, normalize(e) @ normalize(proxies).T)
    assert torch.equal(pairs.target, torch.nn.functional.one_hot(LABELS, 5).float())
    assert pairs.weight.eq(1).all()
    assert pairs.candidate_labels.tolist() == [0, 1, 2, 3, 4]
    pairs.similarity.sum().backward()
    assert e.grad.abs().sum() > 0 and proxies.grad.abs().sum() > 0


def test_from_values():
    e, values = embed(), torch.tensor([1.0, 2, 1, 3, 2, 2])
    pairs = Pairs.from_values(e, values)
    assert torch.equal(pairs.target, (values[:, None] == values).float())
    assert torch.equal(pairs.weight, OTHERS)
    torch.testing.assert_close(pairs.similarity, normalize(e) @ normalize(e).T)
    torch.testing.assert_close(Pairs.from_values(e, values, normalize=False).similarity, e @ e.T)
    rows = torch.tensor([[1.0, 2], [1, 3], [1, 2], [2, 2], [1, 3], [0, 0]])
    assert torch.equal(Pairs.from_values(e, rows).target, (rows[:, None] == rows).all(-1).float())
    assert Pairs.from_values(0 * e, values, normalize=False).similarity.eq(0).all()


def test_gradient_of_a_batch_against_itself_is_that_of_both_sides():
    e = embed(dtype=torch.float64, grad=True)
    pull = torch.rand(A, A, dtype=torch.float64)
    (ours,) = torch.autograd.grad((Pairs.from_labels(e, LABELS).similarity * pull).sum(), e)
    (theirs,) = torch.autograd.grad((normalize(e) @ normalize(e).T * pull).sum(), e)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tables_are_of_float32_or_wider(dtype):
    e, wide = embed(dtype=dtype), torch.float64 if dtype == torch.float64 else torch.float32
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            made = [
                Pairs.from_labels(e, LABELS),
                Pairs.from_targets(e, torch.rand(A, A)),
                Pairs.from_views(e, e),
                Pairs.from_queue(e, e, embed()),
                *Pairs.from_towers(e, e),
                Pairs.from_proxies(e, LABELS, embed()),
                Pairs.from_values(e, torch.rand(A)),
            ]
        exact = normalize(e.double()) @ normalize(e.double()).T
        torch.testing.assert_close(made[0].similarity.double(), exact, rtol=1e-5, atol=1e-6)
        for pairs in made:
            assert {block.similarity.dtype for block in pairs} == {wide}
            assert pairs.anchors.dtype == wide and pairs.candidates.dtype == wide


# ---- what can be done with a table


def test_transpose():
    pairs = Pairs.from_proxies(embed(), LABELS, embed(5))
    back = pairs.transpose()
    assert back.shape == (5, A)
    assert torch.equal(back.similarity, pairs.similarity.T) and torch.equal(back.target, pairs.target.T)
    assert torch.equal(back.weight, pairs.weight.T)
    assert back.anchors is pairs.candidates and back.candidates is pairs.anchors
    assert back.anchor_labels is pairs.candidate_labels and back.candidate_labels is pairs.anchor_labels
    assert back.similarity.data_ptr() == pairs.similarity.data_ptr() or len(pairs.blocks) == 1
    assert torch.equal(back.transpose().similarity, pairs.similarity)


def test_append_copies_nothing_and_keeps_the_first_table():
    pairs = Pairs.from_labels(embed(), LABELS)
    mixed = Block(torch.rand(A, 2), 0.25, torch.rand(A, 1))
    more = pairs.append(mixed, mixed)
    assert (pairs.shape, more.shape) == ((A, A), (A, A + 4))
    assert more.blocks[0] is pairs.blocks[0] and more.blocks[1] is mixed
    assert more.real == pairs.real and more.candidates is pairs.candidates
    assert more.target[:, A:].eq(0.25).all()
    torch.testing.assert_close(more.weight[:, A:], mixed.weight.expand(A, 4))
    assert [block.similarity.shape[1] for block in more] == [A, 2, 2]
    assert more.has_positive().all()


def test_a_table_of_several_blocks_cannot_be_transposed():
    pairs = Pairs.from_labels(embed(), LABELS)
    line = "^Only a table of one block can be transposed. Got 2 blocks; transpose before mixing."
    with pytest.raises(ValueError, match=line):
        pairs.append(Block(torch.rand(A, 2), 0.0, 1.0)).transpose()


def test_a_block_knows_its_positives_and_negatives():
    block = Block(torch.rand(2, 2), torch.tensor([[1.0, 0.25], [0, 1]]), torch.tensor([[2.0, 4], [1, 0]]))
    assert block.positive.tolist() == [[2, 1], [0, 0]] and block.negative.tolist() == [[0, 3], [1, 0]]
    hard = Block(torch.rand(2, 2), torch.tensor([[True, False]] * 2), torch.tensor([[True], [False]]))
    assert hard.positive.tolist() == [[True, False], [False, False]]
    assert hard.negative.tolist() == [[False, True], [False, False]]


# ---- hypothesis: shapes, labels and class balances


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), min_size=1, max_size=12))
def test_any_labels(labels):
    """Either the table that a plain loop gives, or one of two lines."""
    e, given = torch.randn(len(labels), 3, dtype=torch.float64), torch.tensor(labels)
    if len(set(labels)) in (1, len(labels)):
        with pytest.raises(ValueError, match="^A batch needs"):
            Pairs.from_labels(e, given)
        return
    pairs = Pairs.from_labels(e, given)
    assert pairs.target.tolist() == [[float(a == b) for b in labels] for a in labels]
    assert pairs.has_positive().tolist() == [labels.count(label) > 1 for label in labels]
    assert pairs.has_negative().all()
    for criterion in (SupConLoss(), MultiSimilarityLoss()):
        loss = criterion(e, given)
        rows = criterion.rows(pairs)[pairs.has_positive()]
        torch.testing.assert_close(loss, rows.mean())
        assert loss.isfinite()


@settings(max_examples=30, deadline=None)
@given(anchors=st.integers(2, 9), width=st.integers(1, 6), columns=st.integers(1, 9), data=st.data())
def test_any_shape(anchors, width, columns, data):
    e, proxies = torch.randn(anchors, width).sign() + 0.5, torch.ones(columns, width)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, columns - 1), min_size=anchors, max_size=anchors)))
    assert Pairs.from_proxies(e, labels, proxies).shape == (anchors, columns)
    assert Pairs.from_queue(e, e, proxies).shape == (anchors, columns + 1)
    assert Pairs.from_views(e, e).shape == (2 * anchors, 2 * anchors)
    assert [pairs.shape for pairs in Pairs.from_towers(e, e)] == [(anchors, anchors)] * 2


# ---- bad input: one line that names the rule, what was seen, and the remedy

e6, nan, zero = torch.eye(6), torch.eye(6), torch.eye(6)
nan[4, 1], zero[2] = torch.nan, 0
SAME_LENGTH = r"`embeddings` and `labels` must have the same length. Got embeddings \(6, 6\), labels "


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda: Pairs.from_labels([1], LABELS), TypeError, "`embeddings` must be a tensor. Got list; "),
        (lambda: Pairs.from_labels(e6, [1]), TypeError, "`labels` must be a tensor. Got list; "),
        (lambda: Pairs.from_labels(e6[0], LABELS), ValueError, r"`embeddings` must have shape .* Got \(6,\); "),
        (lambda: Pairs.from_labels(e6[None], LABELS), ValueError, r"`embeddings` must .* Got \(1, 6, 6\); "),
        (lambda: Pairs.from_labels(e6[:0], LABELS[:0]), ValueError, r"`embeddings` must .* Got \(0, 6\); "),
        (lambda: Pairs.from_labels(e6[:, :0], LABELS), ValueError, r"`embeddings` must .* Got \(6, 0\); "),
        (lambda: Pairs.from_labels(e6.long(), LABELS), TypeError, "`embeddings` must be floats. Got torch.int64; are"),
        (lambda: Pairs.from_labels(e6, e6[0]), TypeError, r"`labels` of a class .* Got torch.float32 \(6,\); "),
        (lambda: Pairs.from_labels(e6, LABELS[:5]), ValueError, SAME_LENGTH + r"\(5,\); "),
        (lambda: Pairs.from_labels(e6, LABELS[:, None]), ValueError, SAME_LENGTH + r"\(6, 1\); "),
        (lambda: Pairs.from_labels(e6, LABELS[0]), ValueError, SAME_LENGTH + r"\(\); "),
        (
            lambda: Pairs.from_labels(nan, LABELS),
            ValueError,
            "`embeddings` must be finite. Got NaN or infinity in 1 of 6 rows, first in row 4; ",
        ),
        (lambda: Pairs.from_labels(e6 / 0, LABELS), ValueError, "`embeddings` must be finite. Got .* in 6 of 6 rows"),
        (
            lambda: Pairs.from_labels(zero, LABELS),
            ValueError,
            "`embeddings` must not be zero: .* Got 1 of 6 rows zero, first row 2; ",
        ),
        (
            lambda: Pairs.from_labels(e6, 0 * LABELS + 7),
            ValueError,
            "A batch needs examples of at least two classes, .* Got 6 labels, all 7; sample several classes",
        ),
        (
            lambda: Pairs.from_labels(e6, torch.arange(6)),
            ValueError,
            "A batch needs two examples of at least one class, .* Got 6 labels, all different; ",
        ),
        (lambda: Pairs.from_labels(e6[:1], LABELS[:1]), ValueError, "A batch needs examples of at least two classes"),
        (
            lambda: Pairs.from_targets(e6, torch.rand(6, 5)),
            ValueError,
            r"`target` must have a row and a column .* Got embeddings \(6, 6\), target \(6, 5\); make it \(6, 6\).",
        ),
        (
            lambda: Pairs.from_targets(e6, e6, torch.rand(6)),
            ValueError,
            r"`weight` must have a row and a column .* Got embeddings \(6, 6\), weight \(6,\); ",
        ),
        (lambda: Pairs.from_targets(e6, 3 * e6), ValueError, r"`target` must lie in \[0, 1\]. Got values from 0 to 3;"),
        (lambda: Pairs.from_targets(e6, -e6), ValueError, r"`target` must lie in \[0, 1\]. Got values from -1 to -?0;"),
        (lambda: Pairs.from_targets(e6, nan), ValueError, r"`target` must lie in \[0, 1\]. Got values from nan to nan"),
        (lambda: Pairs.from_targets(e6, e6, -e6), ValueError, "`weight` must be >= 0. Got a least of -1; clip it"),
        (lambda: Pairs.from_targets(e6, [[1]]), TypeError, "`target` must be a tensor. Got list; "),
        (
            lambda: Pairs.from_views(e6, e6[:5]),
            ValueError,
            r"`view1` and `view2` must have the same shape. Got view1 \(6, 6\), view2 \(5, 6\); ",
        ),
        (lambda: Pairs.from_views(e6[:1], e6[:1]), ValueError, r"Two views need at least two .* Got view1 \(1, 6\); "),
        (lambda: Pairs.from_views(e6, LABELS), ValueError, r"`view2` must have shape .* Got \(6,\); "),
        (lambda: Pairs.from_views(e6, zero), ValueError, "`view2` must not be zero: "),
        (lambda: Pairs.from_queue(e6, nan, e6), ValueError, "`key` must be finite. "),
        (lambda: Pairs.from_queue(e6, e6, e6[0]), ValueError, r"The queue's keys .* queue \(6,\); "),
        (
            lambda: Pairs.from_towers(e6, e6[:5]),
            ValueError,
            r"`image_features` and `text_features` must have the same shape. Got image_features \(6, 6\), text_fea",
        ),
        (lambda: Pairs.from_towers(e6[:1], e6[:1]), ValueError, "Image and text pairs need a batch of at least two"),
        (lambda: Pairs.from_towers(zero, e6), ValueError, "`image_features` must not be zero: "),
        (
            lambda: Pairs.from_proxies(e6, LABELS, torch.eye(3)),
            ValueError,
            r"Proxies must be as wide as the embeddings. Got embeddings \(6, 6\), proxies \(3, 3\); ",
        ),
        (
            lambda: Pairs.from_proxies(e6, LABELS, e6[:2]),
            ValueError,
            r"`labels` must lie in \[0, 2\), one proxy a class. Got labels from 0 to 2; ",
        ),
        (lambda: Pairs.from_proxies(e6, LABELS - 1, e6), ValueError, r"`labels` must lie .* Got labels from -1 to 1; "),
        (lambda: Pairs.from_proxies(e6, e6[0], e6), TypeError, "`labels` of a class loss must be integers. "),
        (lambda: Pairs.from_proxies(e6, LABELS, nan), ValueError, "`proxies` must be finite. "),
        (
            lambda: Pairs.from_values(e6, LABELS),
            TypeError,
            r"`values` of a regression must be floats. Got torch.int64 \(6,\); for class labels use a class loss",
        ),
        (lambda: Pairs.from_values(e6, [1.0]), TypeError, "`values` must be a tensor. Got list; "),
        (
            lambda: Pairs.from_values(e6, e6[0, :5]),
            ValueError,
            r"`embeddings` and `values` must have the same length. Got embeddings \(6, 6\), values \(5,\); ",
        ),
        (lambda: Pairs.from_values(e6, e6[None]), ValueError, r"`embeddings` and `values` .* values \(1, 6, 6\); "),
        (lambda: Pairs.from_values(e6, nan), ValueError, "`values` must be finite. Got NaN or infinity in 1 of 36; "),
        (
            lambda: Pairs.from_values(e6, torch.full((6,), 0.5)),
            ValueError,
            "A batch needs at least two different values, .* Got 6 values, all 0.5; ",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, error, line):
    with pytest.raises(error, match="^" + line) as e:
        call()
    assert "\n" not in str(e.value)


def test_values_are_not_read_where_that_costs_a_sync(monkeypatch):
    for module in ("checks", "cells", "plans"):
        monkeypatch.setattr(f"mixcontrast.{module}.reads_values", lambda tensor: False)
    assert Pairs.from_labels(nan, torch.arange(6)).shape == (6, 6)
    assert Pairs.from_proxies(zero, LABELS + 9, e6).shape == (6, 6)
    with pytest.raises(ValueError, match="must have the same length"):  # shapes are looked at everywhere
        Pairs.from_labels(e6, LABELS[:5])


# ---- devices


PLACES = {
    "labels": lambda x, meta: Pairs.from_labels(x, LABELS.to(meta)),
    "target": lambda x, meta: Pairs.from_targets(x, torch.ones(A, A, device=meta)),
    "weight": lambda x, meta: Pairs.from_targets(x, torch.ones(A, A), torch.ones(A, A, device=meta)),
    "view2": lambda x, meta: Pairs.from_views(x, x.to(meta)),
    "key": lambda x, meta: Pairs.from_queue(x, x.to(meta), x),
    "text_features": lambda x, meta: Pairs.from_towers(x, x.to(meta)),
    "labels of pairs": lambda x, meta: Pairs.from_towers(x, x, labels=LABELS.to(meta)),
    "values": lambda x, meta: Pairs.from_values(x, torch.arange(6.0, device=meta)),
    "proxies": lambda x, meta: ProxyNCALoss(3, D)(x.to(meta), LABELS.to(meta)),
    "queue": lambda x, meta: KeyQueue(4, D).enqueue(x.to(meta)),
}


@pytest.mark.parametrize("name", PLACES)
def test_tensors_on_two_devices_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=r"must be on the (same )?device.* meta.*; (pass|move)") as raised:
        PLACES[name](embed(), torch.device("meta"))
    assert "\n" not in str(raised.value)


# ---- what is known without reading a cell


def test_rows_that_are_paired_are_known_to_have_a_positive() -> None:
    x, y = torch.randn(2, 6, 4).unbind()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    known = [Pairs.from_views(x, y), Pairs.from_queue(x, y, x), *Pairs.from_towers(x, y, 2.0)]
    known += Pairs.from_towers(x, y, 2.0, labels=labels)
    for pairs in known:
        assert pairs.every_row_has_positive and bool((pairs.weight * pairs.target > 0).any(dim=1).all())
    unknown = [Pairs.from_labels(x, labels), Pairs.from_proxies(x, labels, torch.randn(3, 4))]
    assert not any(pairs.every_row_has_positive for pairs in unknown)


@pytest.mark.parametrize("loss", [InfoNCE(), SupConLoss(), MultiSimilarityLoss(), TripletLoss()], ids=str)
def test_what_was_known_of_a_table_is_forgotten_with_its_cells(loss) -> None:
    """Rows that somebody masks by hand are left out, whatever was known of the table that it was made of."""
    pairs = Pairs.from_views(*torch.randn(2, 6, 4).unbind())
    (block,) = pairs.blocks
    weight = block.weight.clone()
    weight[[0, 6]] = False  # a pair that pads the batch
    masked = replace(pairs, blocks=(replace(block, weight=weight),))
    alone = Pairs(pairs.anchors, masked.blocks)
    assert not masked.every_row_has_positive and masked.has_positive().tolist() == [i % 6 > 0 for i in range(12)]
    torch.testing.assert_close(loss.reduce(masked), loss.reduce(alone))
    assert replace(pairs, blocks=(replace(block, similarity=block.similarity * 2),)).every_row_has_positive
    there, back = Pairs.from_towers(*torch.randn(2, 6, 4).unbind())
    for table in (there, back, there.transpose()):
        (block,) = table.blocks
        assert table.every_row_has_positive
        assert not replace(table, blocks=(replace(block, weight=0.0),)).every_row_has_positive


def test_anchors_that_were_exchanged_are_not_taken_for_unit_rows() -> None:
    pairs = Pairs.from_labels(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert self_similarity(pairs, True).tolist() == [[1.0]] * 6
    longer = replace(pairs, anchors=2 * pairs.anchors)
    torch.testing.assert_close(self_similarity(longer, True), torch.full((6, 1), 4.0))


def test_a_block_that_is_positive_throughout_is_known_but_without_columns_it_is_none() -> None:
    x = torch.randn(3, 4)
    maybe, sure = Block(torch.zeros(3, 2), torch.zeros(3, 2), 1.0), Block(torch.zeros(3, 1), 0.5, 2.0)
    assert not Pairs(x, (maybe,)).every_row_has_positive
    assert Pairs(x, (maybe, sure)).every_row_has_positive and bool(Pairs(x, (maybe, sure)).has_positive().all())
    empty = Block(torch.zeros(3, 0), 1.0, 1.0)
    assert not Pairs(x, (maybe, empty)).every_row_has_positive
    assert not bool(Pairs(x, (maybe, empty)).has_positive().any()) and not bool(Pairs(x, (empty,)).has_positive().any())
    negative = Block(torch.zeros(3, 1), 0.0, 1.0)
    assert not Pairs(x, (negative,)).every_row_has_positive and bool(Pairs(x, (negative,)).has_negative().all())


def test_gradients_of_unit_rows_are_those_of_autograd() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(5, 7, dtype=torch.float64)
    ours, plain = unit(x), x / x.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(ours, plain)
    for wanted, got in zip(*(torch.autograd.grad(u, x, pull) for u in (plain, ours)), strict=True):
        torch.testing.assert_close(got, wanted)
    assert torch.autograd.gradcheck(unit, x) and torch.autograd.gradgradcheck(unit, x)
    none = torch.zeros(1, 3, requires_grad=True)
    assert bool(torch.autograd.grad(unit(none).sum(), none)[0].isfinite().all())


def test_what_is_said_to_be_of_unit_length_is() -> None:
    x, y, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    known = [
        Pairs.from_labels(x, labels), Pairs.from_targets(x, torch.eye(6)), Pairs.from_views(x, y),
        Pairs.from_queue(x, y, x), Pairs.from_proxies(x, labels, y), Pairs.from_values(x, labels.float()),
    ]  # fmt: skip
    known += [known[4].transpose(), Pairs.of(ProxyNCALoss(3, 4).plans(x, labels)[0])]
    for pairs in known:
        assert pairs.anchors_are_unit
        torch.testing.assert_close(pairs.anchors.norm(dim=1), torch.ones(len(pairs.anchors)))
    unknown = [Pairs.from_values(x, labels.float(), normalize=False), *Pairs.from_towers(x, y, 2.0)]
    assert not any(pairs.anchors_are_unit for pairs in unknown)
