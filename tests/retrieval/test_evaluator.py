"""The evaluator says what `evaluate` says, under the preset's names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixcontrast.retrieval import CLIP, DML, RetrievalEvaluator, evaluate

RNG = np.random.default_rng(0)
LABELS = torch.arange(40) // 4
TABLE = torch.from_numpy(2 * np.eye(10)[LABELS] + RNG.standard_normal((40, 10)))


def test_it_is_evaluate_under_the_names_of_a_field():
    evaluator = RetrievalEvaluator(ks=(1, 4))
    found, expected = evaluator(TABLE, LABELS), evaluate(TABLE, LABELS, ks=(1, 4)).named(DML)
    assert set(found) == {name + end for name in expected.values for end in ("", " low", " high")}
    for name in expected.values:
        interval = expected.interval(name)
        assert [found[name + end] for end in ("", " low", " high")] == [interval.mean, interval.low, interval.high]
    np.testing.assert_array_equal(evaluator.last.values["hit@4"], expected.values["Recall@4"])


def test_a_gallery_ranks_and_ties():
    queries = torch.ones(40, 3)
    gallery, theirs = torch.ones(20, 3), torch.arange(20) // 2
    found = RetrievalEvaluator(preset=CLIP, ties="pessimistic", intervals=False)(queries, LABELS, gallery, theirs)
    assert found == {"R@1": 0.0, "MedR": 19.0}
    assert RetrievalEvaluator(preset=CLIP)(queries, LABELS, gallery, theirs)["R@1"] == pytest.approx(0.1)


def test_inner_product_and_all_metrics():
    scaled = TABLE * torch.linspace(0.1, 9, 40)[:, None]
    found = RetrievalEvaluator(preset=None, similarity="inner product", intervals=False)(scaled, LABELS)
    expected = evaluate(scaled, LABELS, ks=(1,), similarity="inner product")
    assert found == {name: expected.mean(name) for name in expected.values}
    assert found != RetrievalEvaluator(preset=None, intervals=False)(scaled, LABELS)


def test_nothing_is_kept_before_the_first_call():
    assert RetrievalEvaluator().last is None


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: RetrievalEvaluator(ks=()), ValueError, "at least one k"),
        (lambda: RetrievalEvaluator(ks=(0,)), ValueError, "`k` must be at least 1. Got 0"),
        (lambda: RetrievalEvaluator(preset="dml"), TypeError, "Got 'dml'"),
        (lambda: RetrievalEvaluator(ties="random"), ValueError, "Got 'random'"),
        (lambda: RetrievalEvaluator()(TABLE, LABELS[:-1]), ValueError, r"Got \(39,\) for 40 rows"),
        (lambda: RetrievalEvaluator()(TABLE, LABELS, TABLE), ValueError, "needs its labels"),
    ],
)
def test_bad_input_gets_one_line(call, kind, message):
    with pytest.raises(kind, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
