"""Search and evaluation against brute force and pytorch-metric-learning, and on what goes wrong in practice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcontrast.retrieval import bootstrap_interval, evaluate, evaluate_pairs, paired_difference, search

RNG = np.random.default_rng(0)


def brute(queries, gallery, relevant, excluded, k):
    """hit, recall, precision at k, MAP@R and reciprocal rank of rankings without ties."""
    queries, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    rows = []
    for q in range(len(queries)):
        order = [g for g in np.argsort(-(gallery @ queries[q]), kind="stable") if not excluded[q, g]]
        hits = [bool(relevant[q, g]) for g in order]
        total = sum(hits)
        if total:
            precisions = [sum(hits[: i + 1]) / (i + 1) * hits[i] for i in range(len(hits))]
            found = sum(hits[:k])
            rows.append((float(found > 0), found / total, found / k, sum(precisions[:total]) / total))
    return np.array(rows)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.lists(st.integers(0, 4), min_size=3, max_size=30),
    k=st.integers(1, 12),
    seed=st.integers(0, 100),
    split=st.booleans(),
)
def test_evaluate_is_brute_force(classes, k, seed, split):
    labels = np.array(classes)
    table = np.random.default_rng(seed).standard_normal((len(labels), 6))
    half = len(labels) // 2 if split else len(labels)
    queries, mine = table[:half], labels[:half]
    gallery, theirs = (table[half:], labels[half:]) if split else (table, labels)
    relevant = mine[:, None] == theirs
    excluded = np.zeros(relevant.shape, bool) if split else np.eye(len(labels), dtype=bool)
    if not (relevant & ~excluded).any():
        with pytest.raises(ValueError, match="something to find"):
            evaluate(queries, mine, *((gallery, theirs) if split else ()), ks=(k,))
        return
    found = evaluate(queries, mine, *((gallery, theirs) if split else ()), ks=(k,))
    expected = brute(queries, gallery, relevant, excluded, k)
    for column, name in enumerate((f"hit@{k}", f"recall@{k}", f"precision@{k}", "map@r")):
        np.testing.assert_allclose(found.values[name], expected[:, column], atol=1e-6, err_msg=name)
    assert found.num_without_positive == half - len(expected)
    pairs = np.argwhere(relevant)
    ids = {} if split else {"query_ids": np.arange(half), "gallery_ids": np.arange(half)}
    by_pairs = evaluate_pairs(queries, gallery, pairs, ks=(k,), **ids)
    for name, values in by_pairs.values.items():
        np.testing.assert_allclose(values, found.values[name], atol=1e-9, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("split", [False, True])
def test_pytorch_metric_learning_agrees(seed, split):
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rng = np.random.default_rng(seed)
    table = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((200, 16))).float())
    labels = torch.from_numpy(rng.integers(0, 20, 200))
    given_ = (table[:60], labels[:60], table[60:], labels[60:]) if split else (table, labels)
    theirs = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k=None if split else "max_bin_count",
    ).get_accuracy(*given_)
    found = evaluate(*given_, ks=(1, 200))
    if split:  # there k of None ranks the whole gallery
        assert found.mean("mrr") == pytest.approx(theirs["mean_reciprocal_rank"], abs=1e-6)
    assert found.mean("hit@1") == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert found.mean("r_precision") == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert found.mean("map@r") == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_a_collapsed_encoder_scores_chance_whatever_the_order():
    labels = np.arange(40) // 2
    for order in (np.arange(40), RNG.permutation(40)):
        found = evaluate(np.ones((40, 4)), labels[order], ks=(1, 5))
        assert found.mean("hit@1") == pytest.approx(1 / 39)
        assert found.mean("recall@5") == pytest.approx(5 / 39)
        assert found.num_tied == 40


def test_ties_that_reach_far_past_what_was_searched():
    table = np.concatenate([np.tile([[1.0, 0.0]], (30, 1)), RNG.standard_normal((30, 2)) * [0.1, 1] - [1.0, 0]])
    labels = np.concatenate([np.arange(30) // 3, 100 + np.arange(30) // 3])
    found = evaluate(table, labels, ks=(1, 2))
    assert found.values["hit@1"][:30] == pytest.approx(np.full(30, 2 / 29))
    assert found.values["hit@2"][:30] == pytest.approx(np.full(30, 1 - 27 * 26 / (29 * 28)))
    best = evaluate(table, labels, ks=(1,), ties="optimistic").values["hit@1"][:30]
    worst = evaluate(table, labels, ks=(1,), ties="pessimistic").values["hit@1"][:30]
    assert (best == 1).all() and (worst == 0).all()


def test_the_order_of_the_gallery_does_not_matter():
    table = np.repeat(RNG.standard_normal((20, 8)), 3, axis=0)
    labels = RNG.integers(0, 10, 60)
    order = RNG.permutation(60)
    one, other = evaluate(table, labels), evaluate(table[order], labels[order])
    for name in one.values:
        np.testing.assert_allclose(one.values[name][order], other.values[name], atol=1e-12, err_msg=name)


def test_oneself_is_left_out_by_identity_not_by_rank():
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # an exact duplicate of the query ranks beside it
    found = search(gallery, gallery, 2, query_ids=[7, 8, 9], gallery_ids=[7, 8, 9])
    assert found.indices.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_ids_and_labels_are_compared_as_integers():
    table = RNG.standard_normal((4, 3))
    near = [2**62, 2**62 + 1, 2**24, 2**24 + 1]
    with pytest.raises(ValueError, match="something to find"):
        evaluate(table, near)
    found = search(table, table, 4, query_ids=near, gallery_ids=near)
    assert all(q not in row for q, row in enumerate(found.indices))


def test_texts_name_as_well_as_integers():
    table, labels = RNG.standard_normal((40, 5)), np.arange(40) // 4
    words = [f"c{label}" for label in labels]
    one, other = evaluate(table, labels), evaluate(table, np.array(words, object))
    for name, values in one.values.items():
        assert np.array_equal(values, other.values[name]), name
    assert one.interval("hit@1") == other.interval("hit@1")
    ids = [f"r{row:03d}" for row in range(40)]
    by_id = evaluate(table, words, table, words, query_ids=ids, gallery_ids=ids)
    assert np.array_equal(by_id.values["map@r"], one.values["map@r"])


def test_signed_and_unsigned_integers_do_not_meet_as_floats():
    table, near = RNG.standard_normal((4, 3)), [2**63 + 8, 2**63 + 9, 2**53, 2**53 + 1]
    mine, theirs = np.array(near, np.uint64), np.array([1, 2, 2**53 + 1, 2**53 + 2])
    found = search(table, table, 4, query_ids=mine, gallery_ids=theirs)
    assert found.valid.sum(axis=1).tolist() == [4, 4, 4, 3] and 2 not in found.indices[3][found.valid[3]]
    again = search(table, table, 4, exclude=[(mine, theirs)])
    assert np.array_equal(again.valid, found.valid)
    judged = evaluate(table, mine, table, theirs, ks=(1, 4))
    assert judged.queries.tolist() == [3] and judged.values["recall@4"].tolist() == [1]


def test_no_query_changes_the_value_of_another():
    """A class of many rows needs more places; the others are judged as without it."""
    table = RNG.standard_normal((100, 3))
    labels = np.where(np.arange(100) < 40, np.arange(100) % 20, 99)
    found = evaluate(table[:40], labels[:40], table, labels, ks=(1, 5), query_ids=range(40), gallery_ids=range(100))
    wide = evaluate(table, labels, ks=(1, 5))
    for name, values in found.values.items():
        assert np.array_equal(values, wide.values[name][:40]), name
    assert (found.values["mrr"] * (found.values["hit@5"] == 0) == 0).all()


def test_fewer_candidates_than_k_and_no_padding():
    found = search(RNG.standard_normal((2, 3)), RNG.standard_normal((4, 3)), 10)
    assert found.indices.shape == (2, 4) and found.valid.all() and found.indices.min() >= 0
    left = search(np.eye(2), np.eye(2), 5, query_ids=[1, 9], gallery_ids=[1, 1])
    assert left.valid.tolist() == [[False, False], [True, True]]
    assert np.isneginf(left.similarity[0]).all() and left.indices.min() >= 0


def test_several_crops_of_one_identity():
    table = RNG.standard_normal((12, 4))
    ids, labels = np.repeat(np.arange(6), 2), np.repeat(np.arange(3), 4)
    found = evaluate(table, labels, table, labels, ks=(1,), query_ids=ids, gallery_ids=ids)
    relevant = (labels[:, None] == labels) & (ids[:, None] != ids)
    np.testing.assert_allclose(found.values["hit@1"], brute(table, table, relevant, ids[:, None] == ids, 1)[:, 0])


def test_captions_are_several_positives():
    images = RNG.standard_normal((10, 8))
    texts = np.repeat(images, 5, axis=0) + 0.05 * RNG.standard_normal((50, 8))
    found = evaluate_pairs(images, texts, np.stack([np.arange(50) // 5, np.arange(50)], 1), ks=(1, 5))
    assert found.mean("hit@1") == 1 and found.mean("recall@1") == pytest.approx(0.2)
    assert found.mean("recall@5") == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float(dtype):
    table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], dtype=dtype, requires_grad=True)
    assert evaluate(table, torch.tensor([0, 0, 1, 1])).mean("hit@1") == 1


def test_intervals_cover():
    inside = 0
    for seed in range(100):
        values = np.random.default_rng(seed).random(60) < 0.4
        found = bootstrap_interval(values, num_resamples=400, seed=seed)
        inside += found.low <= 0.4 <= found.high
    assert 85 <= inside <= 100


def test_intervals_over_classes_are_wider():
    groups = np.repeat(np.arange(20), 10)
    values = np.repeat(RNG.random(20), 10)  # queries of a class agree: 20 numbers, not 200
    alone, by_class = bootstrap_interval(values), bootstrap_interval(values, groups=groups)
    assert by_class.high - by_class.low > 2 * (alone.high - alone.low)
    assert alone.mean == pytest.approx(by_class.mean)


def test_paired_difference_sees_what_unpaired_does_not():
    first = RNG.random(300)
    found = paired_difference(first + 0.01, first)
    assert found.mean == pytest.approx(0.01) and found.low > 0


def test_result_is_written():
    found = evaluate(RNG.standard_normal((12, 4)), np.arange(12) // 3)
    page, numbers = found.to_markdown(), found.to_dict()
    assert "| hit@1 |" in page and numbers["num_queries"] == 12
    assert numbers["metrics"]["hit@1"]["mean"] == pytest.approx(found.mean("hit@1"))
    with pytest.raises(KeyError, match="hit@1"):
        found.mean("hit@3")


GOOD = np.eye(4)
LABELS = [0, 0, 1, 1]


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: evaluate(np.where(GOOD == 1, np.nan, 0.0), LABELS), ValueError, "must be finite. Got NaN"),
        (lambda: evaluate(np.zeros((4, 4)), LABELS), ValueError, "rows of zeros. Got 4 of 4"),
        (lambda: evaluate(GOOD, [0.0, 0.0, 1.0, 1.0]), TypeError, "`labels` must be integers"),
        (lambda: evaluate(GOOD, [0, 0, 1]), ValueError, r"Got \(3,\) for 4 rows"),
        (lambda: evaluate(GOOD, [0, 1, 2, 3]), ValueError, "none with a positive"),
        (lambda: evaluate(GOOD, LABELS, ks=(0,)), ValueError, "`k` must be at least 1. Got 0"),
        (lambda: evaluate(GOOD, LABELS, ks=()), ValueError, "at least one k"),
        (lambda: evaluate(GOOD, LABELS, np.ones((4, 3)), LABELS), ValueError, "of one width"),
        (lambda: evaluate(GOOD, LABELS, GOOD), ValueError, "needs its labels"),
        (lambda: evaluate(GOOD, LABELS, gallery_labels=LABELS), ValueError, "need the gallery"),
        (lambda: evaluate(GOOD.astype(int), LABELS), TypeError, "swapped"),
        (lambda: evaluate(GOOD, np.array(["a", None, "a", "b"], object)), TypeError, "Got object; .* a missing value"),
        (lambda: evaluate(GOOD * 1e30, LABELS, similarity="l2"), ValueError, "shorter than 9e.18 a row.*Got row 0"),
        (lambda: search(GOOD * 1e30, GOOD, 1, similarity="inner product"), ValueError, "`queries` must be shorter"),
        (lambda: search(GOOD, np.zeros((0, 4)), 1), ValueError, "neither of them 0"),
        (lambda: search(GOOD, GOOD, 1, query_ids=LABELS), ValueError, "needs both ids"),
        (lambda: search(GOOD, GOOD, 1, query_ids=[0.5] * 4, gallery_ids=LABELS), TypeError, "must be integers"),
        (lambda: evaluate_pairs(GOOD, GOOD, [[0, 9]]), ValueError, "rows of the tables"),
        (lambda: evaluate_pairs(GOOD, GOOD, [0, 1]), ValueError, r"must be \(pairs, 2\)"),
        (lambda: bootstrap_interval([]), ValueError, "one a query"),
        (lambda: bootstrap_interval([1.0, 0.0], confidence=1.0), ValueError, r"in \(0, 1\)"),
        (lambda: bootstrap_interval([1.0, 0.0], groups=[1]), ValueError, "one length"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), ValueError, "same queries"),
    ],
)
def test_bad_input_gets_one_line(call, kind, message):
    with pytest.raises(kind, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
