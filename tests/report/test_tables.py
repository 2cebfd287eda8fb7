"""Tables of a comparison hold what the evaluations say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixcontrast.report.tables import NAMES, compare, difference_table, results_table, time_table
from mixcontrast.retrieval import evaluate

LABELS = torch.arange(30) // 3


def judged(seed: int, noise: float):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(10)[LABELS]
    return evaluate(centres + noise * torch.randn(30, 10, generator=generator), LABELS, ks=(1, 2, 4, 8))


@pytest.fixture(scope="module")
def found():
    return compare(judged(0, 1.0), [judged(1, 0.6), judged(2, 0.6)], [judged(1, 0.3), judged(2, 0.3)])


def test_values_are_means_over_seeds_and_queries(found):
    plain = np.mean([judged(1, 0.6).mean("hit@1"), judged(2, 0.6).mean("hit@1")])
    mixed = np.mean([judged(1, 0.3).mean("hit@1"), judged(2, 0.3).mean("hit@1")])
    assert found["hit@1"]["plain"]["mean"] == pytest.approx(plain)
    assert found["hit@1"]["mixed - plain"]["mean"] == pytest.approx(mixed - plain)
    assert found["hit@1"]["mixed - plain, each seed"] == pytest.approx(
        [judged(s, 0.3).mean("hit@1") - judged(s, 0.6).mean("hit@1") for s in (1, 2)]
    )
    for row in found.values():
        for arm in ("raw", "plain", "mixed", "mixed - plain"):
            assert row[arm]["low"] <= row[arm]["mean"] <= row[arm]["high"]


def test_tables_show_them(found):
    titles = {"raw": "raw features", "plain": "supcon", "mixed": "supcon + metrix"}
    results = results_table(found, titles).splitlines()
    assert len(results) == 2 + 3 and all(name in results[0] for name in NAMES.values())
    assert f"{found['map@r']['mixed']['mean']:.3f}" in results[-1]
    differences = difference_table(found).splitlines()
    assert len(differences) == 2 + len(NAMES) and "2 of 2" in differences[2]
    assert "1.50" in time_table({"plain": 2.0, "mixed": 3.0}, titles)
