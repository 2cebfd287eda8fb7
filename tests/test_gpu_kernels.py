"""Kernels on a GPU equal plain code; in the interpreter, `tests/kernels_interpreted.py` shows more of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixcontrast import kernels
from mixcontrast.losses.rowsums import log_sum_exp_and_total
from mixcontrast.mixers import base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")]
GPU = "cuda"
SUMS = {  # rows, columns, turned, weight, mark
    "shared-rows": (3, 1_000_003, False, "bool", "none"),
    "queue": (257, 65_537, False, "one", "bool"),
    "aligned": (512, 16_384, False, "float", "bool"),
    "turned": (4_096, 3_072, True, "bool", "bool"),
    "turned-odd": (1_025, 4_099, True, "number", "float"),
    "turned-few": (5, 70_001, True, "float", "one"),
    "short": (70_001, 33, False, "bool-row", "one"),
    "one-column": (1_003, 1, False, "float", "bool"),
    "one-row": (1, 1_001, False, "one", "float"),
}


def cells(kind: str, rows: int, columns: int) -> Any:
    if kind in ("one", "number", "none"):
        return {"one": 1.0, "number": 0.3, "none": 0.0}[kind]
    table = torch.rand(1 if kind == "bool-row" else rows, columns, device=GPU)
    return table.clamp(min=0.3) - 0.3 if kind == "float" else table > 0.4


def assert_kernels_equal_plain_code(function: Callable[[], list[Tensor]], exactly: Callable, digits: float) -> None:
    """Ours, by kernels, within some digits of plain code in float64; twice the same."""
    found, again = function(), function()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MIXCONTRAST_KERNELS", "0")
        wanted = exactly()
    for one, other, exact in zip(found, again, wanted, strict=True):
        assert torch.equal(one, other)
        finite = torch.where(exact.isfinite(), exact, 0).abs()
        torch.testing.assert_close(one.double(), exact, rtol=min(100 * digits, 1e-2), atol=digits * float(finite.max()))


@pytest.mark.parametrize("dtype, digits", [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SUMS)
def test_row_sums_by_kernels(name: str, dtype: torch.dtype, digits: float) -> None:
    torch.manual_seed(0)
    rows, columns, turned, weighing, marking = SUMS[name]
    table = torch.randn(columns, rows, device=GPU).mT if turned else torch.randn(rows, columns, device=GPU)
    weight, mark = cells(weighing, rows, columns), cells(marking, rows, columns)
    if isinstance(weight, Tensor) and len(weight) > 2:
        weight[1] = 0  # an empty row
    pull = torch.randn(rows, device=GPU)

    def results(dtype: torch.dtype) -> list[Tensor]:
        similarity = table.detach().to(dtype).requires_grad_()
        scale = torch.tensor(3.0, dtype=dtype, device=GPU, requires_grad=True)
        every, near, count = log_sum_exp_and_total([similarity], [weight], [mark], scale)
        loss = torch.where(every > -torch.inf, every, 0.0) @ pull.to(dtype) + 1e-3 * near @ pull.to(dtype)
        gradient, of_scale = torch.autograd.grad(loss, (similarity, scale))
        assert gradient.stride() == similarity.stride()
        return [every.detach(), near.detach(), count, gradient, of_scale]

    assert kernels.fused(table.to(dtype))
    assert_kernels_equal_plain_code(lambda: results(dtype), lambda: results(torch.float64), digits)


@pytest.mark.parametrize(
    "dtype, digits", [(torch.float32, 2e-6), (torch.float64, 1e-13), (torch.bfloat16, 8e-3)], ids=str
)
@pytest.mark.parametrize("anchors, count, dim", [(256, 1024, 128), (33, 2177, 129), (700, 3, 20), (1, 9001, 768)])
def test_gathers_by_kernels(anchors: int, count: int, dim: int, dtype: torch.dtype, digits: float) -> None:
    torch.manual_seed(0)
    keys = F.normalize(torch.randn(5003, dim, device=GPU), dim=1).to(dtype)
    vectors = torch.randn(dim, 900, device=GPU).to(dtype).mT
    first, second = torch.randint(900, (2, anchors, count), device=GPU)
    grad = torch.randn(anchors, count, device=GPU)

    def results(dtype: torch.dtype) -> list[Tensor]:
        candidates = keys.to(dtype)
        embeddings = torch.zeros(anchors, dim, dtype=dtype, device=GPU, requires_grad=True)
        cells = base._Read.apply(torch.zeros(anchors, 900, device=GPU, dtype=dtype), embeddings, candidates, first)
        return [
            base.row_products(candidates, first, second),
            base.table_products(candidates, vectors.to(dtype), first, second),
            *torch.autograd.grad((cells * grad.to(dtype)).sum(), embeddings),
        ]

    assert kernels.fused(keys, half=True)
    assert_kernels_equal_plain_code(lambda: results(dtype), lambda: results(torch.float64), digits)
