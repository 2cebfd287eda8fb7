"""Graded relevance, exclusions, groups, names, files and comparisons of evaluations."""

import itertools
import math
from dataclasses import replace

import ir_measures
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcontrast.retrieval import (
    CLIP,
    DML,
    TREC,
    Evaluation,
    bootstrap_interval,
    compare,
    comparison_markdown,
    evaluate,
    evaluate_pairs,
    permutation_p_value,
    search,
)

RNG = np.random.default_rng(0)
LABELS = np.arange(60) // 4
TABLE = 3 * np.eye(15)[LABELS] + 0.9 * RNG.standard_normal((60, 15))
VENDORS = np.array(["a", "b", "c", "d"])[np.arange(60) % 4]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ir_measures_agrees(seed, graded):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.standard_normal((12, 5)), rng.standard_normal((40, 5))  # half of the cosines are negative
    grade = rng.integers(0, 4 if graded else 2, (12, 40)) * (rng.random((12, 40)) < 0.3)
    grade[0] = 0  # a query with nothing to find
    pairs = np.argwhere(grade > 0)
    grades = grade[tuple(pairs.T)] if graded else None
    found = evaluate_pairs(queries, gallery, pairs, grades, ks=(1, 5, 10, 60)).named(TREC)
    similarity = unit(queries) @ unit(gallery).T
    run = [ir_measures.ScoredDoc(str(q), str(g), float(similarity[q, g])) for q in range(12) for g in range(40)]
    qrels = [ir_measures.Qrel(str(q), str(g), int(grade[q, g])) for q, g in pairs]
    theirs = {}
    for k in (1, 5, 10):
        theirs |= {
            f"ndcg_cut_{k}": ir_measures.nDCG @ k,
            f"map_cut_{k}": ir_measures.AP @ k,
            f"recall_{k}": ir_measures.R @ k,
            f"P_{k}": ir_measures.P @ k,
            f"success_{k}": ir_measures.Success @ k,
        }
    theirs |= {"recip_rank": ir_measures.RR, "Rprec": ir_measures.Rprec}
    expected = ir_measures.calc_aggregate(list(theirs.values()), qrels, run)
    for name, measure in theirs.items():
        assert found.mean(name) == pytest.approx(expected[measure], abs=1e-6), name
    assert found.num_without_positive == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), kinds=st.integers(1, 4), many=st.booleans())
def test_exclusions_are_brute_force(seed, kinds, many):
    rng = np.random.default_rng(seed)
    size = 90 if many else 14
    table, labels = rng.standard_normal((size, 4)), rng.integers(0, 3, size)
    cameras, vendors = rng.integers(0, kinds, size), rng.integers(0, 5, size).astype(str)
    out = np.eye(size, dtype=bool) | (cameras[:, None] == cameras) | (vendors[:, None] == vendors)
    relevant = (labels[:, None] == labels) & ~out
    exclude = [(cameras, cameras), (vendors, vendors)]
    if not relevant.any():
        with pytest.raises(ValueError, match="something to find"):
            evaluate(table, labels, exclude=exclude)
        return
    found = evaluate(table, labels, exclude=exclude, ks=(1, 3), ranks=True)
    similarity = np.where(out, -np.inf, unit(table) @ unit(table).T)
    kept = np.flatnonzero(relevant.any(axis=1))
    assert found.queries.tolist() == kept.tolist()
    for row, query in enumerate(kept):
        order = np.argsort(-similarity[query])[: int((~out[query]).sum())]
        hits = relevant[query][order]
        assert found.values["recall@3"][row] == pytest.approx(hits[:3].sum() / relevant[query].sum())
        assert found.values["first_rank"][row] == hits.argmax() + 1
    ids = np.arange(size)
    listed = search(table, table, 3, query_ids=ids, gallery_ids=ids, exclude=exclude)
    assert not out[np.repeat(ids, listed.indices.shape[1]), listed.indices.ravel()][listed.valid.ravel()].any()


def test_first_rank_of_ties_is_expected_over_orders():
    same = np.ones((5, 2))  # one query, four tied, two of them relevant
    found = evaluate(same[:1], [0], same[1:], [0, 1, 0, 1], ks=(1,), ranks=True)
    every = [min(order.index(g) for g in (0, 2)) + 1 for order in itertools.permutations(range(4))]
    assert found.values["first_rank"][0] == pytest.approx(np.mean(every))
    for ties, rank in (("optimistic", 1), ("pessimistic", 3)):
        bound = evaluate(same[:1], [0], same[1:], [0, 1, 0, 1], ks=(1,), ranks=True, ties=ties)
        assert bound.values["first_rank"][0] == rank


def test_first_rank_far_behind_is_counted():
    angle = np.linspace(0, math.pi, 50)
    gallery = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.ones(50, int)
    labels[33] = 0
    found = evaluate(gallery[:1], [0], gallery, labels, ks=(1, 2), ranks=True)
    assert found.values["first_rank"].tolist() == [34] and found.values["mrr"][0] == 0


def test_groups_are_the_same_queries_apart():
    found = evaluate(TABLE, LABELS, attributes={"vendor": VENDORS})
    parts = found.per_group("vendor")
    assert list(parts) == ["a", "b", "c", "d"]
    assert np.mean([part.mean("map@r") for part in parts.values()]) == pytest.approx(found.mean("map@r"))
    page, table = found.to_markdown(), found.to_csv()
    assert f"| c | 15 | {parts['c'].mean('hit@1'):.4f}" in page and "vendor=c,hit@1," in table
    assert found.to_dict()["by"]["vendor"]["c"]["num_queries"] == 15
    with pytest.raises(KeyError, match="vendor"):
        found.per_group("seller")


def test_each_field_has_its_names():
    found = evaluate(TABLE, LABELS, ks=(1, 10), ranks=True)
    assert list(found.named(DML).values) == ["Recall@1", "Recall@10", "R-Precision", "MAP@R"]
    assert list(found.named(CLIP).values) == ["R@1", "R@10", "MedR"]
    assert {"success_10", "recall_10", "ndcg_cut_1", "recip_rank", "Rprec"} <= set(found.named(TREC).values)
    assert found.named(DML).mean("Recall@10") == found.mean("hit@10") != found.mean("recall@10")
    assert found.named(CLIP).interval("MedR").mean == np.median(found.values["first_rank"])


def test_what_is_saved_is_what_is_loaded(tmp_path):
    found = evaluate(TABLE, LABELS, attributes={"vendor": VENDORS, "year": np.arange(60)}, ranks=True)
    again = Evaluation.load(found.save(tmp_path / "run"))
    assert again.to_dict() == found.to_dict()
    assert not [file for file in (tmp_path / "run").iterdir() if file.name.startswith(".")]
    half = (tmp_path / "run" / "queries.csv").read_text().splitlines()[:30]
    (tmp_path / "run" / "queries.csv").write_text("\n".join(half))
    with pytest.raises(ValueError, match="results.json and queries.csv"):
        Evaluation.load(tmp_path / "run")
    with pytest.raises(ValueError, match="results.json and queries.csv"):
        Evaluation.load(tmp_path / "nothing")


def test_names_and_clusters_are_kept(tmp_path):
    names = np.array([f"{row:02d}" for row in range(60)])
    found = replace(evaluate(TABLE, LABELS), names=names, clustering={"nmi": 0.5, "ami": 0.25})
    again = Evaluation.load(found.save(tmp_path / "run"))
    assert again.names.tolist() == found.names.tolist() and again.clustering == found.clustering
    top = compare(replace(evaluate(-TABLE + 3, LABELS), names=found.names), again)["hit@1"]
    assert top.names.tolist() == [f"{row:02d}" for row in top.changed.tolist()]


def test_groups_that_look_like_numbers_are_texts(tmp_path):
    found = evaluate(TABLE, [f"{'0' * (label % 2)}{label // 2}" for label in LABELS], attributes={"lot": LABELS})
    again = Evaluation.load(found.save(tmp_path / "run"))
    assert again.groups.tolist() == found.groups.tolist() and len(set(again.groups.tolist())) == len(set(LABELS))


def test_comparison_is_query_by_query():
    worse = evaluate(TABLE + 2 * RNG.standard_normal(TABLE.shape), LABELS)
    better = evaluate(TABLE, LABELS)
    found = compare(worse, better)["map@r"]
    change = better.values["map@r"] - worse.values["map@r"]
    assert found.difference.mean == pytest.approx(change.mean())
    assert (found.num_won, found.num_lost) == ((change > 0).sum(), (change < 0).sum())
    assert found.num_won + found.num_lost + found.num_even == 60
    assert abs(found.changes[0]) == np.abs(change).max() and (np.diff(np.abs(found.changes)) <= 0).all()
    assert found.p_value < 0.05
    back = compare(better, worse)["map@r"]
    assert back.num_won == found.num_lost and back.p_value == pytest.approx(found.p_value, abs=0.01)
    assert compare(better, better)["map@r"].p_value == 1
    assert "| map@r |" in comparison_markdown(compare(worse, better))


def test_of_ranks_lower_is_better():
    a = evaluate(TABLE + 2 * RNG.standard_normal(TABLE.shape), LABELS, ranks=True)
    found = compare(a, evaluate(TABLE, LABELS, ranks=True))["first_rank"]
    assert found.difference.low <= found.difference.mean < 0 and found.num_won > found.num_lost
    assert (found.first, found.second) == (a.median("first_rank"), 1)
    assert found.difference.mean == found.second - found.first


@pytest.mark.parametrize("grouped", [False, True])
def test_the_p_value_is_that_of_all_signs(grouped):
    difference = np.array([0.3, -0.1, 0.4, 0.2, 0.0, 0.5, -0.2, 0.1])
    groups = np.arange(8) // 2 if grouped else None
    totals = np.bincount(groups, difference) if grouped else difference
    every = [np.dot(signs, totals) for signs in itertools.product((1, -1), repeat=len(totals))]
    expected = np.mean(np.abs(every) >= abs(totals.sum()) - 1e-12)
    assert permutation_p_value(difference, np.zeros(8), groups=groups) == pytest.approx(expected)


def test_p_values_of_no_difference_are_uniform():
    rng = np.random.default_rng(1)
    values = [
        permutation_p_value(rng.standard_normal(30), rng.standard_normal(30), num_resamples=199, seed=s)
        for s in range(200)
    ]
    assert 0.4 < np.mean(values) < 0.6 and np.mean(np.array(values) < 0.1) < 0.2


def test_the_median_has_an_interval():
    values = np.random.default_rng(0).exponential(size=400)
    found = bootstrap_interval(values, median=True)
    theirs = scipy.stats.bootstrap((values,), np.median, n_resamples=5000, method="percentile", rng=0)
    assert found.mean == np.median(values)
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)
    grouped = bootstrap_interval(np.repeat(values, 5), groups=np.arange(2000) // 5, median=True)
    assert grouped.high - grouped.low > 0.8 * (found.high - found.low)  # five copies tell no more than one
    assert bootstrap_interval(np.ones(9), median=True).low == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: evaluate(TABLE, LABELS, attributes={"vendor": VENDORS[:-1]}), "An attribute needs a value a query"),
        (lambda: evaluate(TABLE, LABELS, exclude=[(VENDORS, VENDORS[:-1])]), "of the gallery` must be one value"),
        (lambda: evaluate(TABLE, LABELS, exclude=[(VENDORS,)]), "`exclude` holds pairs"),
        (lambda: evaluate_pairs(TABLE, TABLE, [[0, 1], [0, 1]], [1, 2]), "A pair has one grade"),
        (lambda: evaluate_pairs(TABLE, TABLE, [[0, 1]], [-1]), "finite and >= 0"),
        (lambda: compare(evaluate(TABLE, LABELS), evaluate(TABLE[:40], LABELS[:40])), "Got 60 and 40, 40 in both"),
        (lambda: permutation_p_value([1.0], [0.0]), "at least two queries"),
    ],
    ids=["attribute", "exclude-length", "exclude-one", "two-grades", "negative-grade", "other-queries", "one-query"],
)
def test_bad_input_gets_its_line(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", range(2))
def test_several_captions_an_image_as_clip_benchmark_counts(seed):
    """There: of each query the share of its positives among the k best scores, and whether it is above 0."""
    rng = np.random.default_rng(seed)
    images, texts = rng.standard_normal((30, 6)), rng.standard_normal((150, 6))
    image_of = rng.permutation(np.arange(150) // 5)
    texts += images[image_of]
    positive = image_of == np.arange(30)[:, None]  # (30, 150)
    scores = unit(images) @ unit(texts).T
    for table, truth, queries, gallery in ((scores, positive, images, texts), (scores.T, positive.T, texts, images)):
        found = evaluate_pairs(queries, gallery, np.argwhere(truth), ks=(1, 5, 10), ranks=True)
        for k in (1, 5, 10):
            best = np.argsort(-table, axis=1)[:, :k]
            hits = np.take_along_axis(truth, best, axis=1).sum(axis=1)
            assert found.named(CLIP).mean(f"R@{k}") == pytest.approx((hits > 0).mean())
            assert found.mean(f"recall@{k}") == pytest.approx((hits / truth.sum(axis=1)).mean())
        ranked = np.take_along_axis(truth, np.argsort(-table, axis=1), axis=1)
        assert found.median("first_rank") == np.median(ranked.argmax(axis=1) + 1)
