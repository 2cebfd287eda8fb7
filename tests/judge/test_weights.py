"""Weights between two checkpoints, against plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixcontrast.judge.weights import integer_names, interpolate


def network(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    found = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found(torch.randn(5 + seed, 3))
    return {**found.state_dict(), "steps": torch.tensor(seed)}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_between(alpha: float) -> None:
    first, second = network(1), network(2)
    found = interpolate(first, second, alpha)
    assert list(found) == list(first)
    for name, value in found.items():
        if name in ("steps", "1.num_batches_tracked"):
            assert torch.equal(value, second[name])
            continue
        wanted = (1 - alpha) * first[name].double() + alpha * second[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
        if alpha in (0.0, 1.0):
            assert torch.equal(value, (first, second)[int(alpha)][name])
    assert integer_names(first) == ["1.num_batches_tracked", "steps"]


def test_half_precision_is_computed_in_float32() -> None:
    first, second = torch.tensor([1.0, 2049.0]).half(), torch.tensor([3.0, 1e-4]).half()
    found = interpolate({"w": first}, {"w": second}, 0.25)["w"]
    assert found.dtype == torch.float16
    assert torch.equal(found, (0.75 * first.float() + 0.25 * second.float()).half())
    mixed = interpolate({"w": first}, {"w": second.float()}, 0.0)["w"]
    assert mixed.dtype == torch.float32 and torch.equal(mixed, first.float())


def test_other_architectures_are_refused_by_name() -> None:
    first, second = network(1), network(2)
    lacking = {name: value for name, value in second.items() if not name.startswith("0.")}
    with pytest.raises(ValueError, match=r"the second lacks 2 tensors of the other \(0.bias, 0.weight\)") as raised:
        interpolate(first, lacking, 0.5)
    assert "\n" not in str(raised.value) and "the first lacks" not in str(raised.value)
    with pytest.raises(ValueError, match=r"other shapes of 1 tensors .* 0.weight \(4, 3\) and \(4, 2\)"):
        interpolate(first, {**second, "0.weight": torch.zeros(4, 2)}, 0.5)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\].*Got 1.5"):
        interpolate(first, second, 1.5)
    with pytest.raises(ValueError, match="Got NaN or infinity in 0.bias"):
        interpolate(first, {**second, "0.bias": torch.full((4,), torch.nan)}, 0.0)
