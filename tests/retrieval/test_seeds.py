"""Means over seeds and classes, against plain computations and against the truth that was put in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from mixcontrast.retrieval import Evaluation, SeededRuns, holm, mean_of_seeds, seeds_that_tell


def test_seeds_alone_are_a_t_test_over_seeds():
    of_seeds = np.array([0.3, -0.1, 0.4, 0.2, 0.35])
    found = mean_of_seeds(np.repeat(of_seeds[:, None], 12, axis=1), np.arange(12) // 3)
    expected = ttest_1samp(of_seeds, 0)
    low, high = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(expected.pvalue) and found.of_groups == 0


def test_one_seed_is_a_t_test_over_queries():
    values = np.random.default_rng(0).normal(0.2, 1, 40)
    found = mean_of_seeds(values[None], np.arange(40))
    expected = ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(expected.pvalue) and found.of_seeds == 0
    assert found.interval.low == pytest.approx(expected.confidence_interval(0.95).low)


def test_both_variances_are_those_of_plain_loops():
    rng = np.random.default_rng(1)
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    values = rng.normal(size=(4, 10)) + rng.normal(size=(4, 1))
    found = mean_of_seeds(values, groups)
    seeds = [sum(row) / 10 for row in values.tolist()]
    mean = sum(seeds) / 4
    of_seeds = sum((seed - mean) ** 2 for seed in seeds) / 3 / 4
    total = 0.0
    for group in range(4):
        columns = [q for q in range(10) if groups[q] == group]
        total += sum(values[s, q] / 4 - mean / 4 for s in range(4) for q in columns) ** 2
    of_groups = 4 / 3 * total / 10**2
    assert (found.of_seeds, found.of_groups) == pytest.approx((of_seeds, of_groups))
    freedom = (of_seeds + of_groups) ** 2 / (of_seeds**2 / 3 + of_groups**2 / 3)
    error = (of_seeds + of_groups) ** 0.5
    assert found.interval.high - mean == pytest.approx(t.ppf(0.975, freedom) * error)
    assert found.p_value == pytest.approx(2 * t.sf(abs(mean) / error, freedom))


def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_say():
    rng, groups = np.random.default_rng(0), np.arange(160) // 4
    held, wrong = 0, 0
    for _ in range(400):
        values = rng.normal(size=(4, 1)) + rng.normal(size=40)[groups] + rng.normal(size=(4, 160))
        found = mean_of_seeds(values, groups)
        held += found.interval.low <= 0 <= found.interval.high
        wrong += found.p_value < 0.05
    assert 365 <= held <= 396 and wrong == 400 - held  # 95% of 400 is 380, and five deviations of 4.4 each way


def test_a_difference_that_never_varies_is_sure():
    found = mean_of_seeds(np.full((3, 8), 0.25), np.arange(8) // 2)
    assert (found.interval.low, found.interval.high, found.p_value) == (0.25, 0.25, 0.0)
    assert mean_of_seeds(np.zeros((3, 8)), np.arange(8)).p_value == 1.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_holm_rejects_as_the_procedure_says(count):
    """Steps from the smallest, each against the level divided by how many are left, and stops at the first miss."""
    for p_values in itertools.product([0.004, 0.012, 0.02, 0.03, 0.2], repeat=count):
        corrected = holm(p_values)
        for level in (0.01, 0.05, 0.1):
            rejected = set()
            for left, place in zip(range(count, 0, -1), np.argsort(p_values, kind="stable"), strict=True):
                if p_values[place] > level / left:
                    break
                rejected.add(place)
            assert {place for place in range(count) if corrected[place] <= level + 1e-12} == rejected


def test_so_many_seeds_tell_a_difference_four_times_in_five():
    rng, groups = np.random.default_rng(3), np.arange(30)
    pilot = mean_of_seeds(np.array([[0.4], [1.0], [-0.2], [0.9], [0.3]]) * np.ones(30), groups)
    needed = seeds_that_tell(pilot)
    spread = (pilot.of_seeds * 5) ** 0.5
    told = 0
    for _ in range(500):
        values = pilot.interval.mean + spread * rng.normal(size=(needed, 1)) * np.ones(30)
        told += mean_of_seeds(values, groups).p_value < 0.05
    assert 5 < needed < 40 and 370 <= told <= 440
    assert seeds_that_tell(pilot, significance=0.01) > needed


def test_no_number_of_seeds_tells_what_the_classes_hide():
    rng = np.random.default_rng(0)
    values = 0.01 + rng.normal(size=(1, 20)) + 0.001 * rng.normal(size=(5, 20))
    assert seeds_that_tell(mean_of_seeds(values, np.arange(20))) is None


@pytest.mark.parametrize(
    "values, groups, message",
    [
        (np.ones((2, 3)), np.zeros(3, int), "at least two groups of queries. Got 1"),
        (np.ones((2, 3)), np.arange(4), r"\(2, 3\), groups \(4,\)"),
        (np.full((2, 3), np.nan), np.arange(3), "must be finite"),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_line(values, groups, message):
    with pytest.raises(ValueError, match=message) as raised:
        mean_of_seeds(values, groups)
    assert "\n" not in str(raised.value)


def both_ways(folder, seeds: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of images and captions, of which groups have different numbers, saved; their values, groups, directions."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.repeat(np.arange(30), rng.integers(1, 4, 30)), np.repeat(np.arange(30), 7)])
    to_text = np.arange(len(groups)) < len(groups) - 210
    hard = rng.random(30)
    values = (rng.random((seeds, len(groups))) < 0.2 + 0.4 * hard[groups] + 0.3 * to_text).astype(float)
    told = np.where(to_text, "image to text, held-out", "text to image")
    for seed, row in enumerate(values):
        Evaluation({"R@1": row, "MedR": 1 / (1 + row)}, np.arange(len(row)), groups, 0, 0,
                   attributes={"retrieval": told}).save(folder / str(seed))  # fmt: skip
    return values, groups, to_text


def test_both_directions_count_alike_and_their_variance_is_that_of_a_mean_of_two_ratios(tmp_path):
    values, groups, to_text = both_ways(tmp_path)
    runs = SeededRuns.load([tmp_path / str(seed) for seed in range(3)]).by_direction()
    assert list(runs.values) == ["R@1", "image to text R@1", "text to image R@1"] and runs.shares == set(runs.values)
    first, second = values[:, to_text].mean(), values[:, ~to_text].mean()
    expected = {"R@1": [to_text, ~to_text], "image to text R@1": [to_text], "text to image R@1": [~to_text]}
    for name, parts in expected.items():
        found = mean_of_seeds(runs.values[name], runs.groups)
        mean = {"R@1": (first + second) / 2, "image to text R@1": first, "text to image R@1": second}[name]
        assert found.interval.mean == pytest.approx(mean)
        averaged, off = values.mean(axis=0), np.zeros(30)
        for query, group in enumerate(groups):
            for part in parts:
                if part[query]:
                    off[group] += (averaged[query] - averaged[part].mean()) / part.sum() / len(parts)
        assert found.of_groups == pytest.approx(30 / 29 * (off**2).sum())
        left_out = [  # the jackknife knows nothing of the formula
            np.mean([averaged[part & (groups != group)].mean() for part in parts]) for group in range(30)
        ]
        assert found.of_groups == pytest.approx(29 / 30 * np.square(left_out - np.mean(left_out)).sum(), rel=0.1)
        of_seeds = np.mean([values[:, part].mean(axis=1) for part in parts], axis=0).var(ddof=1) / 3
        assert found.of_seeds == pytest.approx(of_seeds)


def test_runs_of_one_direction_stay_as_they_are(tmp_path):
    Evaluation({"Recall@1": np.ones(2)}, np.arange(2), None, 0, 0).save(tmp_path)
    runs = SeededRuns.load([tmp_path])
    assert runs.by_direction() is runs and runs.shares == {"Recall@1"}


def test_seeds_of_other_queries_are_refused(tmp_path):
    for seed, queries in enumerate(([0, 1], [0, 2])):
        Evaluation({"Recall@1": np.ones(2)}, np.array(queries), None, 0, 0).save(tmp_path / str(seed))
    with pytest.raises(ValueError, match="judged on the same queries"):
        SeededRuns.load([tmp_path / "0", tmp_path / "1"])
