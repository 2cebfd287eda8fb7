"""What the page shows, against plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixcontrast.report.findings import auc, curve_of, histogram, map_of, queries_to_show, worst_confusions
from mixcontrast.retrieval import Neighbours, evaluate

floats = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


@given(floats, floats)
def test_auc_is_the_chance_of_a_pair_of_pairs(positives, negatives):
    wins = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert np.isclose(auc(np.array(positives), np.array(negatives)), np.mean(wins))


def test_histograms_count_every_pair():
    found = histogram(np.array([0.9, 0.8, 1.0]), np.array([-0.2, 0.1]), bins=5)
    assert np.isclose(found.positives.sum(), 1) and np.isclose(found.negatives.sum(), 1)
    assert (found.edges[0], found.edges[-1]) == (-0.2, 1.0) and found.auc == 1


def test_confusions_are_counted_by_class():
    labels = np.array([1, 1, 1, 2, 2, 3])
    first = np.array([2, 2, 1, 1, -1, 2])
    found = worst_confusions(np.arange(10, 16), labels, first)
    assert [(c.of, c.taken_for, c.count, c.num_queries, c.example) for c in found] == [
        (1, 2, 2, 3, 10), (2, 1, 1, 2, 13), (3, 2, 1, 1, 15)
    ]  # fmt: skip


def test_the_curve_is_the_evaluations():
    table = np.random.default_rng(0).normal(size=(40, 5))
    result = evaluate(table, np.arange(40) // 4, ks=(1, 3, 9))
    curve = curve_of("recall", result)
    assert curve.ks.tolist() == [1, 3, 9]
    assert curve.mean.tolist() == [result.mean(f"recall@{k}") for k in (1, 3, 9)]
    assert (curve.low <= curve.mean).all() and (curve.mean <= curve.high).all()


def test_the_surest_misses_come_first():
    found = Neighbours(
        np.zeros((4, 1), int), np.array([[0.2], [0.9], [0.5], [-np.inf]]), np.array([[True]] * 3 + [[False]])
    )
    gains = np.array([[False], [False], [True], [False]])
    (_, drawn), (_, misses) = queries_to_show(gains, found, 2)
    assert misses.tolist() == [1, 0] and len(drawn) == 2


def test_a_map_keeps_neighbours():
    groups = np.repeat(np.eye(3) * 10, 10, axis=0) + np.random.default_rng(0).normal(size=(30, 3)) * 0.1
    points = map_of(groups)
    nearest = np.linalg.norm(points[:, None] - points[None], axis=-1).argsort(axis=1)[:, 1]
    assert (nearest // 10 == np.arange(30) // 10).all()
