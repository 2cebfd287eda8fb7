"""Coefficients of mixtures, and the random numbers that they are made with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixcontrast import Geodesic, Linear
from mixcontrast.mixing import anchor_side, needs_cosine, sample_beta

TURN = torch.linspace(0.02, math.pi - 0.06, 40, dtype=torch.float64)


def at_angle(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.stack([torch.ones_like(angle), torch.zeros_like(angle)], dim=-1)
    return one, torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.73, 1.0])
def test_geodesic_divides_the_angle(lam: float) -> None:
    x1, x2 = at_angle(TURN)
    c1, c2 = Geodesic().coefficients(torch.tensor(lam, dtype=torch.float64), TURN.cos())
    mixture = c1[:, None] * x1 + c2[:, None] * x2
    torch.testing.assert_close(torch.atan2(mixture[:, 1], mixture[:, 0]), (1 - lam) * TURN)
    torch.testing.assert_close(mixture.norm(dim=-1), torch.ones_like(TURN))


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.73, 1.0])
def test_linear_is_on_the_chord_and_of_unit_length(lam: float) -> None:
    x1, x2 = at_angle(TURN)
    share = torch.tensor(lam, dtype=torch.float64)
    chord = lam * x1 + (1 - lam) * x2
    for linear, expected in ((Linear(normalize=False), chord), (Linear(), chord / chord.norm(dim=-1, keepdim=True))):
        c1, c2 = linear.coefficients(share, TURN.cos())
        torch.testing.assert_close(c1.expand(40)[:, None] * x1 + c2.expand(40)[:, None] * x2, expected)


@pytest.mark.parametrize("interpolation", [Linear(), Linear(normalize=False), Geodesic()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cosine", [1.0 + 1e-6, 1.0, 1 - 1e-7, 0.0, -0.9995, -1.0, -1.0 - 1e-6])
def test_identical_and_opposite_parents_stay_finite(interpolation, dtype: torch.dtype, cosine: float) -> None:
    lam = torch.linspace(0, 1, 11, dtype=dtype)
    given_cosine = torch.full((11,), cosine, dtype=dtype, requires_grad=True)
    c1, c2 = interpolation.coefficients(lam, given_cosine)
    assert torch.isfinite(c1).all() and torch.isfinite(c2).all()
    if (c1 + c2).requires_grad:
        (grad,) = torch.autograd.grad((c1 + c2).sum(), given_cosine)
        assert torch.isfinite(grad).all()
    if cosine > 0.9:  # a mixture of one vector with itself is that vector
        torch.testing.assert_close(c1 + c2, torch.ones_like(lam), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("interpolation", [Linear(), Linear(normalize=False), Geodesic()])
def test_coefficients_may_be_narrower_than_similarities(interpolation) -> None:
    first, second, cosine = torch.rand(3, 2, 4, dtype=torch.float64).unbind()
    lam = torch.tensor([[0.25], [0.5]])
    wanted = interpolation.similarity(first, second, lam.double(), cosine)
    torch.testing.assert_close(interpolation.similarity(first, second, lam, cosine), wanted, rtol=1e-6, atol=1e-6)


def test_what_needs_the_cosine() -> None:
    assert needs_cosine(Linear()) and needs_cosine(Geodesic()) and not needs_cosine(Linear(normalize=False))
    lam = torch.tensor(0.25)
    assert Linear(normalize=False).coefficients(lam, None) == (lam, 1 - lam)


@pytest.mark.parametrize("alpha, beta", [(1, 1), (2, 2), (2.0, 8.0), (0.5, 0.5), (1, 2), (0.7, 0.7), (10, 3)])
def test_sample_beta_has_the_distribution(alpha: float, beta: float) -> None:
    generator = torch.Generator().manual_seed(4)
    drawn = sample_beta(alpha, beta, (40, 500), like=torch.zeros(1), generator=generator)
    assert drawn.shape == (40, 500) and drawn.dtype == torch.float32
    assert stats.kstest(drawn.flatten().double().numpy(), stats.beta(alpha, beta).cdf).pvalue > 0.01
    wrong = stats.beta(alpha * 1.1, beta).cdf
    assert stats.kstest(drawn.flatten().double().numpy(), wrong).pvalue < 0.01  # the test can tell


@settings(max_examples=40, deadline=None)
@given(
    alpha=st.floats(1e-3, 1e3),
    beta=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_sample_beta_stays_between_0_and_1(alpha: float, beta: float, seed: int, dtype: torch.dtype) -> None:
    drawn = sample_beta(
        alpha, beta, (64,), like=torch.zeros(1, dtype=dtype), generator=torch.Generator().manual_seed(seed)
    )
    assert drawn.dtype == dtype and bool(((drawn >= 0) & (drawn <= 1)).all())


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_uniforms_stay_between_0_and_1(alpha: float, dtype: torch.dtype, monkeypatch) -> None:
    """`torch.rand` gives 0 once in 2^24 float32 numbers, and a share below 0 has no logarithm."""
    ends = torch.tensor([0.0, torch.finfo(dtype).eps / 2, 1e-6, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends)
    drawn = sample_beta(alpha, alpha, (4,), like=ends)
    assert bool(((drawn >= 0) & (drawn <= 1)).all()), drawn.tolist()


def test_one_number_and_the_same_seed() -> None:
    for alpha, beta in ((1, 1), (2, 2), (2, 8)):
        first, second = (
            sample_beta(alpha, beta, (), like=torch.zeros(1), generator=torch.Generator().manual_seed(1))
            for _ in range(2)
        )
        assert first.shape == () and first == second


@pytest.mark.parametrize("alpha, beta", [(0, 1), (1, -2)])
def test_sample_beta_refuses(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match=r"needs both positive. Got alpha .*, beta .*; 1, 1 is uniform\.$"):
        sample_beta(alpha, beta, (), like=torch.zeros(1))


def test_anchor_side_is_the_product_with_detached_candidates() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 5, dtype=torch.float64)
    table = anchor_side(x @ x.mT, x, x)
    expected = x @ x.detach().mT
    torch.testing.assert_close(table, expected)
    (got,), (wanted,) = (torch.autograd.grad((t * weights).sum(), x) for t in (table, expected))
    torch.testing.assert_close(got, wanted)
