"""Metrics against plain loops, against enumeration of every order of a tie, and against ir-measures."""

import itertools

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Rprec, nDCG

from mixcontrast.retrieval import (
    RankedRelevance,
    hit_at_k,
    map_at_r,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
)


def plain(gains, num_relevant, ideal, k):
    """Every metric of one ranking without ties, by its definition."""
    relevant = [g > 0 for g in gains]
    first = next((i + 1 for i, r in enumerate(relevant) if r), None)
    precisions = [sum(relevant[: i + 1]) / (i + 1) for i in range(len(gains))]
    dcg = sum(g / np.log2(i + 2) for i, g in enumerate(gains[:k]))
    best = sum(g / np.log2(i + 2) for i, g in enumerate(ideal[:k]))
    return {
        "hit": float(any(relevant[:k])),
        "recall": sum(relevant[:k]) / num_relevant,
        "precision": sum(relevant[:k]) / k,
        "r_precision": sum(relevant[:num_relevant]) / num_relevant,
        "map_at_r": sum(p for p, r in zip(precisions[:num_relevant], relevant, strict=False) if r) / num_relevant,
        "rr": 1 / first if first else 0.0,
        "ndcg": dcg / best,
    }


def ours(ranked, k):
    return {
        "hit": hit_at_k(ranked, k)[0],
        "recall": recall_at_k(ranked, k)[0],
        "precision": precision_at_k(ranked, k)[0],
        "r_precision": r_precision(ranked)[0],
        "map_at_r": map_at_r(ranked)[0],
        "rr": reciprocal_rank(ranked)[0],
        "ndcg": ndcg_at_k(ranked, k)[0],
    }


@pytest.mark.parametrize("graded", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ties_are_the_mean_over_all_orders(graded, data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    gains = data.draw(st.lists(st.integers(0, 3 if graded else 1), min_size=sum(sizes), max_size=sum(sizes)))
    k = data.draw(st.integers(1, sum(sizes)))
    if not any(gains):
        gains[0] = 1
    groups = np.repeat(np.arange(len(sizes)), sizes)
    num_relevant, ideal = sum(g > 0 for g in gains), sorted(gains, reverse=True)
    members = [np.flatnonzero(groups == g) for g in range(len(sizes))]
    orders = [
        [gains[i] for part in order for i in part]
        for order in itertools.product(*(itertools.permutations(items) for items in members))
    ]
    expected = [plain(order, num_relevant, ideal, k) for order in orders]
    found = ours(RankedRelevance.from_lists([gains], [-0.1 * groups]), k)
    for name, value in found.items():
        assert value == pytest.approx(np.mean([e[name] for e in expected]), abs=1e-12), name
    for ties, of in (("optimistic", max), ("pessimistic", min)):
        bound = ours(RankedRelevance.from_lists([gains], [-0.1 * groups], ties=ties), k)
        for name, value in bound.items():
            assert value == pytest.approx(of(e[name] for e in expected), abs=1e-12), (ties, name)


@pytest.mark.parametrize("graded", [False, True])
def test_ir_measures_agrees(graded):
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((30, 25))  # negative ones too
    gains = rng.integers(0, 4, similarity.shape) if graded else (rng.random(similarity.shape) < 0.3).astype(int)
    gains[:, 0] = 1
    order = np.argsort(-similarity, axis=1)
    ranked = RankedRelevance.from_lists(np.take_along_axis(gains, order, 1), np.take_along_axis(similarity, order, 1))
    qrels = [
        ir_measures.Qrel(str(q), str(d), int(gains[q, d])) for q in range(len(gains)) for d in range(gains.shape[1])
    ]
    run = [
        ir_measures.ScoredDoc(str(q), str(d), float(similarity[q, d]))
        for q in range(len(gains))
        for d in range(gains.shape[1])
    ]
    pairs = {
        P @ 5: precision_at_k(ranked, 5),
        R @ 5: recall_at_k(ranked, 5),
        Rprec: r_precision(ranked),
        RR: reciprocal_rank(ranked),
        nDCG @ 7: ndcg_at_k(ranked, 7),
        nDCG: ndcg_at_k(ranked, 25),
    }
    measured = {(m.measure, m.query_id): m.value for m in ir_measures.iter_calc(list(pairs), qrels, run)}
    for measure, values in pairs.items():
        for query, value in enumerate(values):
            assert value == pytest.approx(measured[measure, str(query)], abs=1e-6), measure
    assert AP not in pairs  # MAP@R is not trec_eval's AP


def test_a_constant_scorer_scores_chance():
    gains = np.zeros((1, 20))
    gains[0, [3, 7]] = 1
    ranked = RankedRelevance.from_lists(gains, np.full((1, 20), 0.5))
    assert hit_at_k(ranked, 1)[0] == pytest.approx(0.1)
    assert precision_at_k(ranked, 5)[0] == pytest.approx(0.1)
    assert recall_at_k(ranked, 5)[0] == pytest.approx(0.25)


def test_a_list_shorter_than_k():
    ranked = RankedRelevance.from_lists([[1, 0]], num_relevant=[1])
    assert hit_at_k(ranked, 10)[0] == 1 and precision_at_k(ranked, 10)[0] == 0.1 and ndcg_at_k(ranked, 10)[0] == 1


@pytest.mark.parametrize("k, kind", [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_k(k, kind):
    with pytest.raises(kind, match="`k` must be"):
        hit_at_k(RankedRelevance.from_lists([[1]]), k)


def test_bad_lists():
    with pytest.raises(ValueError, match="must not rise"):
        RankedRelevance.from_lists([[1, 0]], [[0.1, 0.2]])
    with pytest.raises(ValueError, match="one shape"):
        RankedRelevance.from_lists([[1, 0]], [[0.1]])
    with pytest.raises(ValueError, match="must be one of expected"):
        RankedRelevance.from_lists([[1, 0]], ties="random")
    with pytest.raises(ValueError, match="R up to 3"):
        map_at_r(RankedRelevance.from_lists([[1, 0]], num_relevant=[3]))
