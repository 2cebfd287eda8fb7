"""Terms of a loss added up."""

from __future__ import annotations

import pytest
import torch

from mixcontrast.losses.base import Part, value_of


@pytest.mark.parametrize("count", [4.0, torch.tensor(4.0)], ids=["number", "tensor"])
def test_a_weight_of_0_leaves_a_term_out(count: float | torch.Tensor) -> None:
    of_one, of_none = torch.tensor(3.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    value = value_of([Part(of_one, count, count, 0.5), Part(of_none, count, count, 0.0)])
    value.backward()
    assert (value.item(), of_one.grad.item(), of_none.grad.item()) == (0.375, 0.125, 0.0)
