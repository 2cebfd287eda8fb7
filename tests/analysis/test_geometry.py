"""Measures of embeddings against plain loops, scipy and sklearn, and what they do to odd input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixcontrast.analysis import alignment, blocks, modality_gap, rank_correlation, uniformity, utilization


def embeddings(rows: int, seed: int, dim: int = 5, dtype=torch.float64) -> torch.Tensor:
    return 3 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(x: torch.Tensor) -> np.ndarray:
    x = x.double().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=[1 << 22, 50], ids=["one block", "many blocks"])
def cells(request, monkeypatch):
    monkeypatch.setattr(blocks, "_CELLS", request.param)


@pytest.mark.parametrize("t", [2.0, 0.3, 500.0])
def test_uniformity_is_scipys(cells, t):
    x = embeddings(31, 0)
    expected = np.logaddexp.reduce(-t * pdist(unit(x), "sqeuclidean")) - math.log(31 * 30 / 2)
    assert uniformity(x, t=t).item() == pytest.approx(expected, rel=1e-12)
    assert uniformity(x.float(), t=t).item() == pytest.approx(expected, rel=1e-4)


def test_uniformity_of_one_point_and_of_two_opposite_ones():
    assert uniformity(torch.ones(5, 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0], [-2, 0]])).item() == -8


def test_uniformity_of_a_wide_sphere_is_minus_2t():
    assert uniformity(embeddings(2000, 1, dim=2048, dtype=torch.float32)).item() == pytest.approx(-4, abs=0.05)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_a_loop(alpha):
    x, y = embeddings(9, 1), embeddings(9, 2)
    expected = np.mean([np.linalg.norm(a - b) ** alpha for a, b in zip(unit(x), unit(y), strict=True)])
    assert alignment(x, y, alpha=alpha).item() == pytest.approx(expected, rel=1e-12)
    assert alignment(x, 7 * x, alpha=alpha).item() == pytest.approx(0, abs=1e-12)


def test_modality_gap_is_a_loop_and_moves_with_a_shift():
    x, y = embeddings(9, 1), embeddings(14, 2)
    assert modality_gap(x, y).item() == pytest.approx(np.linalg.norm(unit(x).mean(0) - unit(y).mean(0)), rel=1e-12)
    assert modality_gap(x, x).item() == 0
    shift = torch.tensor([20.0, 0, 0, 0, 0])
    assert modality_gap(x + shift, y - shift) > modality_gap(x + 5 * shift / 20, y - 5 * shift / 20)


def test_utilization_is_sklearns(cells):
    queries, examples = embeddings(23, 1), embeddings(41, 2)
    distance, _ = NearestNeighbors(n_neighbors=1).fit(unit(examples)).kneighbors(unit(queries))
    expected = np.mean(distance**2)
    assert utilization(queries, examples).item() == pytest.approx(expected, rel=1e-12)
    assert utilization(queries.float(), examples.float()).item() == pytest.approx(expected, rel=1e-5)
    assert utilization(examples[:7].float(), examples.float()).item() == 0  # itself: exactly 0
    more = torch.cat([examples, embeddings(50, 3)])
    assert utilization(queries, more) < utilization(queries, examples)


class Largest(TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


@pytest.mark.parametrize(
    "measure",
    [
        lambda x: utilization(x, x),
        lambda x: uniformity(x),
        lambda x: rank_correlation(x, x[:, 0]),
    ],
    ids=["utilization", "uniformity", "rank_correlation"],
)
def test_no_table_of_all_pairs(monkeypatch, measure):
    monkeypatch.setattr(blocks, "_CELLS", 1 << 15)
    with Largest() as largest:
        measure(embeddings(1500, 1, dim=4, dtype=torch.float32))
    assert 1500 < largest.numbers <= 1 << 15


def plain_rank_correlation(x, values):
    z, v = unit(x), values.double().numpy().reshape(len(x), -1)
    far, found = cdist(v, v), []
    for i in range(len(z)):
        others = np.arange(len(z)) != i
        if np.ptp(far[i, others]) > 0:
            cosine = z[others] @ z[i]
            found.append(spearmanr(cosine, -far[i, others]).statistic if np.ptp(cosine) > 0 else 0.0)
    return np.mean(found)


@pytest.mark.parametrize(
    "values",
    [embeddings(19, 5, dim=1).flatten(), torch.randint(0, 4, (19,)).double(), embeddings(19, 5, dim=3)],
    ids=["all different", "many equal", "poses"],
)
def test_rank_correlation_is_scipys(cells, values):
    x = embeddings(19, 4)
    assert rank_correlation(x, values).item() == pytest.approx(plain_rank_correlation(x, values), abs=1e-12)


def test_rank_correlation_of_a_half_circle_is_1_and_backwards_is_not():
    angle = torch.linspace(0, 3, 40)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert rank_correlation(x, angle).item() == pytest.approx(1, abs=1e-3)
    assert rank_correlation(x, angle[torch.randperm(40, generator=torch.Generator().manual_seed(0))]).abs() < 0.3
    assert rank_correlation(torch.tensor([[1.0, 0]] * 40), angle) == 0  # a collapsed encoder orders nothing


def test_rank_correlation_leaves_out_anchors_without_an_order():
    x = embeddings(4, 4)
    values = torch.tensor([0.0, 1, -1, 1])  # the first is equally far from all
    assert rank_correlation(x, values).item() == pytest.approx(plain_rank_correlation(x, values), abs=1e-12)


def test_low_precision_and_no_gradient():
    x, y = embeddings(12, 1).half().requires_grad_(), embeddings(12, 2).bfloat16()
    for value in (uniformity(x), alignment(x, x), modality_gap(x, x), utilization(x, x)):
        assert value.dtype == torch.float32 and not value.requires_grad
    assert rank_correlation(y, torch.arange(12.0)).isfinite()


X = embeddings(6, 1)
REFUSED = {
    "one": (lambda: uniformity(X[:1]), ValueError, "(1, 5)", "at least two"),
    "t": (lambda: uniformity(X, t=0), ValueError, "t=0", "paper"),
    "nan": (lambda: uniformity(X * torch.nan), ValueError, "6 of 6", "finite"),
    "zero": (lambda: utilization(X * 0, X), ValueError, "6 of 6", "queries"),
    "flat": (lambda: utilization(X, X[0]), ValueError, "(5,)", "examples"),
    "utilization-width": (lambda: utilization(X, X[:, :3]), ValueError, "(6, 3)", "same encoder"),
    "gap-width": (lambda: modality_gap(X, X[:, :3]), ValueError, "(6, 3)", "same encoder"),
    "views": (lambda: alignment(X, X[:4]), ValueError, "(4, 5)", "row i"),
    "alpha": (lambda: alignment(X, X, alpha=-1), ValueError, "alpha=-1", "paper"),
    "list": (lambda: alignment([[1.0]], X), TypeError, "list", "as_tensor"),
    "classes": (lambda: rank_correlation(X, torch.arange(6)), TypeError, "int64", "values.float()"),
    "few-values": (lambda: rank_correlation(X, torch.rand(5)), ValueError, "(5,)", "one value"),
    "two": (lambda: rank_correlation(X[:2], torch.rand(2)), ValueError, "(2, 5)", "three"),
    "constant": (lambda: rank_correlation(X, torch.ones(6)), ValueError, "6 values", "different"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(case):
    call, error, *words = case
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value
