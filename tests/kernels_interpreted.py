"""Kernels in Triton's interpreter, on a CPU, against plain code; `tests/test_kernels.py` runs this file on its own.

Triton reads TRITON_INTERPRET when it is first imported, so a process interprets all kernels or none.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixcontrast import Block, InfoNCE, KeyQueue, Linear, MoCHi, Pairs, kernels
from mixcontrast.losses.rowsums import log_sum_exp_and_total
from mixcontrast.mixers import base

TOLERANCE = {torch.float64: dict(rtol=1e-10, atol=1e-12), torch.float32: dict(rtol=2e-5, atol=2e-6)}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


@pytest.fixture(autouse=True)
def used(monkeypatch) -> list[str]:
    """Kernels read CPU tensors; which were launched is written down, so that plain code is not compared to itself."""
    from mixcontrast.kernels import gathers, row_sums

    torch.manual_seed(0)
    monkeypatch.setattr(kernels, "fused", lambda *tensors, half=False: True)
    launched: list[str] = []

    def watched(name, kernel):
        class Watched:
            def __getitem__(self, grid):
                launched.append(name)
                return kernel[grid]

        return Watched()

    for module, names in ((gathers, ["_row_dots", "_weighted_rows"]), (row_sums, ["_row_sums", "_row_gradients"])):
        for name in names:
            monkeypatch.setattr(module, name, watched(name, getattr(module, name)))
    monkeypatch.setattr(gathers, "_PROGRAMS", 8)  # so that several share a row, and each goes several steps
    monkeypatch.setattr(row_sums, "_PROGRAMS", 6)
    monkeypatch.setattr(row_sums, "_CELLS", 64)
    monkeypatch.setattr(row_sums, "_TALL", 8)
    return launched


def close(ours, theirs, dtype: torch.dtype) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        torch.testing.assert_close(one.double(), other.double(), **TOLERANCE[dtype])


# ---- log-sum-exp and marked total

CELLS = {
    "one": lambda rows, columns: 1.0,
    "number": lambda rows, columns: 0.3,
    "bool": lambda rows, columns: torch.rand(rows, columns) < 0.6,
    "bool-row": lambda rows, columns: torch.rand(1, columns) < 0.6,
    "float": lambda rows, columns: torch.rand(rows, columns) * (torch.rand(rows, columns) < 0.6),
    "float-column": lambda rows, columns: torch.rand(rows, 1).double(),
    "float-vector": lambda rows, columns: torch.rand(columns),
    "turned": lambda rows, columns: (torch.rand(columns, rows) < 0.6).mT,
}
SHAPES = {torch.float64: [(5, 37), (2, 200), (20, 40)], torch.float32: [(17, 9)]}
EDGES = [(1, 65), (40, 1), (3, 150)]  # taken with one kind of weights a number's type


def dense(cells, like: Tensor) -> Tensor:
    return torch.as_tensor(cells, dtype=torch.float64).expand(like.shape)


def plainly(similarities: list[Tensor], weights: list, marks: list, scale: Tensor):
    """By torch's own operations, in float64; an empty row is -inf, without gradient."""
    table = torch.cat([s.double() for s in similarities], dim=1)
    weight = torch.cat([dense(w, s) for w, s in zip(weights, similarities, strict=True)], dim=1)
    mark = torch.cat([dense(m, s) for m, s in zip(marks, similarities, strict=True)], dim=1)
    logits = table * scale.double() + torch.where(weight > 0, weight, 1.0).log()
    kept = (weight > 0).any(dim=1)
    logits = torch.where((weight > 0) | ~kept[:, None], logits, -torch.inf)
    return torch.where(kept, logits.logsumexp(dim=1), -torch.inf), (table * mark).sum(dim=1), mark.sum(dim=1)


def compare(similarities: list[Tensor], weights: list, marks: list, scale: Tensor) -> None:
    dtype = similarities[0].dtype
    leaves = [s.requires_grad_() for s in similarities] + [scale.requires_grad_()]
    found = []
    for function in (log_sum_exp_and_total, plainly):
        every, near, count = function(similarities, weights, marks, scale)
        pull = torch.linspace(-1, 2, len(every), dtype=every.dtype)
        loss = torch.where(every > -torch.inf, every, 0.0) @ pull + near @ pull.square()
        gradients = torch.autograd.grad(loss, leaves)
        found.append([every.detach(), near.detach(), count.detach(), *gradients])
    close(*found, dtype)


FEW = [("bool", True, torch.float64), ("float", True, torch.float64), ("turned", True, torch.float32),
       ("number", False, torch.float32), ("float-column", False, torch.float32)]  # fmt: skip
EACH = [(weighing, turned, dtype) for weighing in CELLS for turned in (False, True) for dtype in TOLERANCE]


@pytest.mark.parametrize("weighing, turned, dtype", [
    pytest.param(*each, marks=[] if each in FEW or each[1:] == (False, torch.float64) else pytest.mark.slow)
    for each in EACH
])  # fmt: skip
def test_log_sum_exp_of_any_weights(weighing: str, turned: bool, dtype: torch.dtype, used) -> None:
    marking = list(CELLS)[(list(CELLS).index(weighing) + 3) % len(CELLS)]
    edges = EDGES if weighing in ("bool", "float-column") else []
    for rows, columns in SHAPES[dtype] + edges:
        table = torch.randn(columns, rows, dtype=dtype).mT if turned else torch.randn(rows, columns, dtype=dtype)
        weight, mark = CELLS[weighing](rows, columns), CELLS[marking](rows, columns)
        if isinstance(weight, Tensor) and weight.shape == table.shape and rows > 2:
            weight[1] = 0  # an empty row
        compare([table.detach()], [weight], [mark], torch.tensor(3.0, dtype=dtype))
    assert set(used) == {"_row_sums", "_row_gradients"}


@each_dtype
def test_log_sum_exp_of_several_blocks(dtype: torch.dtype) -> None:
    tables = [torch.randn(9, columns, dtype=dtype) for columns in (50, 7, 130)]
    weights = [torch.rand(9, 50) < 0.5, 1.0, torch.rand(9, 130)]
    weights[0][3] = False
    compare(tables, weights, [torch.rand(9, 50) < 0.2, 0.0, 0.0], torch.tensor(-2.0, dtype=dtype))


def test_a_table_with_gaps_and_one_that_repeats() -> None:
    kept = torch.randn(9, 40, dtype=torch.float64)[:, ::3]
    compare([kept], [1.0], [0.0], torch.tensor(2.0).double())
    table = torch.randn(1, 14, dtype=torch.float64).expand(6, 14)
    every, *_ = log_sum_exp_and_total([table], [1.0], [0.0], 2.0)
    torch.testing.assert_close(every, (2 * table).logsumexp(dim=1))


@each_dtype
def test_logits_far_apart(dtype: torch.dtype) -> None:
    table = torch.randn(4, 300, dtype=dtype) * 100
    table[1] = -1e4
    table[2, :70] = -torch.inf
    table[3] = -torch.inf
    every, *_ = log_sum_exp_and_total([table], [1.0], [0.0], 50.0)
    torch.testing.assert_close(every, (50 * table.double()).logsumexp(dim=1).to(dtype))
    table[0, 5] = torch.nan
    assert bool(log_sum_exp_and_total([table], [1.0], [0.0], 50.0)[0][0].isnan())


def test_only_what_needs_a_gradient_gets_one() -> None:
    table, other = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (alone,) = torch.autograd.grad(log_sum_exp_and_total([table], [1.0], [0.0], scale)[0].sum(), scale)
    torch.testing.assert_close(alone, ((2 * table).softmax(dim=1) * table).sum())
    every, *_ = log_sum_exp_and_total([table.requires_grad_(), other], [1.0, 1.0], [0.0, 0.0], 2.0)
    (found,) = torch.autograd.grad(every.sum(), table)
    torch.testing.assert_close(found, 2 * (2 * torch.cat([table, other], dim=1)).softmax(dim=1)[:, :4])
    assert torch.autograd.gradcheck(lambda s: log_sum_exp_and_total([s], [1.0], [0.0], scale)[0], (table,))


def test_no_rows() -> None:
    every, near, count = log_sum_exp_and_total([torch.zeros(0, 4, requires_grad=True)], [1.0], [1.0], 2.0)
    assert every.shape == near.shape == count.shape == (0,)
    every.sum().backward()


# ---- gathered rows

GATHERS = [(3, 7, 20), (1, 1, 1), (5, 33, 128), (2, 300, 7), (4, 9, 200)]  # anchors, columns read, numbers a row


@each_dtype
@pytest.mark.parametrize("anchors, count, dim", GATHERS)
def test_products_of_rows(anchors: int, count: int, dim: int, dtype: torch.dtype, used) -> None:
    candidates = torch.randn(50, dim, dtype=dtype, requires_grad=True)
    vectors = torch.randn(dim, 30, dtype=dtype).mT
    first, second = torch.randint(30, (2, anchors, count))
    pull = torch.randn(anchors, count, dtype=dtype)
    for ours, other in (
        (base.row_products(candidates, first, second), candidates),
        (base.table_products(candidates, vectors, first, second), vectors),
    ):
        plain = (candidates[first].double() * other[second].double()).sum(dim=-1)
        gradients = [torch.autograd.grad((x * pull).sum(), candidates)[0] for x in (ours, plain)]
        close([ours, gradients[0]], [plain, gradients[1]], dtype)
    assert used == ["_row_dots", "_row_dots"]


def test_products_of_rows_that_are_numbered_with_gaps_or_again_and_again() -> None:
    candidates, vectors = torch.randn(50, 9), torch.randn(30, 9)
    both = torch.randint(30, (6, 14))
    for first, second in (
        (both[:, :7], both[:, 7:]),
        (both[:, ::2], torch.arange(6)[:, None].expand(6, 7)),
        (both.mT[:7, :6], torch.arange(6).expand(7, 6)),
    ):
        found = base.table_products(candidates, vectors, first, second)
        torch.testing.assert_close(found, (candidates[first] * vectors[second]).sum(dim=-1))


@each_dtype
@pytest.mark.parametrize("anchors, count, dim", GATHERS)
def test_reads_of_detached_candidates(anchors: int, count: int, dim: int, dtype: torch.dtype, used) -> None:
    embeddings = torch.randn(anchors, dim, dtype=dtype, requires_grad=True)
    keys = torch.randn(50, dim, dtype=dtype)
    block = Block(embeddings @ keys.mT, 0.0, 1.0, keys)
    columns = torch.randint(50, (anchors, count))
    ours = base.read_detached(Pairs(embeddings, (block,), None, None), block, columns)
    plain = (embeddings[:, None].double() * keys[columns].double()).sum(dim=-1)
    for pull in (torch.randn(anchors, count, dtype=dtype), torch.ones((), dtype=dtype).expand(anchors, count)):
        gradients = [torch.autograd.grad((x * pull).sum(), embeddings, retain_graph=True)[0] for x in (ours, plain)]
        close([ours, gradients[0]], [plain, gradients[1]], dtype)
    assert used == ["_weighted_rows", "_weighted_rows"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_summed_in_float32(dtype: torch.dtype) -> None:
    candidates = torch.randn(20, 40).to(dtype)
    first, second = torch.randint(20, (2, 3, 9))
    found = base.row_products(candidates, first, second)
    exact = (candidates[first].double() * candidates[second].double()).sum(dim=-1)
    torch.testing.assert_close(found, exact.to(dtype), rtol=1e-2, atol=1e-5)
    assert found.dtype == dtype


def test_nothing_to_gather() -> None:
    from mixcontrast.kernels.gathers import row_dots, weighted_rows

    none = torch.zeros(4, 0, dtype=torch.long)
    assert row_dots(torch.ones(2, 3), none, torch.ones(2, 3), none).shape == (4, 0)
    assert torch.equal(weighted_rows(torch.ones(2, 3), torch.zeros(4, 0).long(), torch.zeros(4, 0)), torch.zeros(4, 3))


# ---- a mixer whole


def test_mochi_of_a_queue(monkeypatch, used) -> None:
    """Loss and gradient of a step, as plain code gives them."""
    found = []
    for on in (True, False):
        monkeypatch.setattr(kernels, "fused", lambda *tensors, half=False, on=on: on)
        torch.manual_seed(1)
        queue = KeyQueue(60, 24)
        queue.enqueue(torch.randn(60, 24))
        mixer = MoCHi(InfoNCE(), queue=queue, num_hardest=8, num_pair_mixes=9, num_anchor_mixes=5,
                      interpolation=Linear()).double()  # fmt: skip
        query, key = torch.randn(2, 6, 24, dtype=torch.float64).unbind()
        loss = mixer(query.requires_grad_(), key)
        found.append([loss.detach(), *torch.autograd.grad(loss, query)])
    close(*found, torch.float64)
    assert set(used) == {"_row_dots", "_weighted_rows", "_row_sums", "_row_gradients"}
