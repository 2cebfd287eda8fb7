"""What a step launches, counted without a GPU."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mixcontrast import InfoNCE, KeyQueue, MoCHi

EVAL = Path(__file__).parent.parent / "eval"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not here; it comes with torch for Linux")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(EVAL))
    import bench_launches

    return bench_launches


def test_views_and_empty_tensors_are_free_and_backward_counts(bench) -> None:
    x = torch.ones(3, 4, requires_grad=True)

    def step() -> None:
        y = (x[:2].expand(5, 2, 4) * 2).exp()
        torch.empty(3), torch.zeros(0), y.detach().mT
        y.backward(torch.ones_like(y))  # 1; backward of two; the expanded summed; a zero table that takes the slice
        x.grad = None

    found = bench.launches(step)
    assert found == dict(mul=3, exp=1, ones_like=1, sum=1, slice_backward=2)


def test_a_filled_scalar_and_our_own_kernels_are_seen(bench) -> None:
    x = torch.ones(4)
    assert bench.launches(lambda: torch.where(x > 0, x, 0.0)) == dict(gt=1, scalar_tensor=1, where=1)
    queue = KeyQueue(40, 8)
    queue.enqueue(torch.randn(40, 8))
    mixer = MoCHi(InfoNCE(), queue=queue, num_hardest=4, num_pair_mixes=5, num_anchor_mixes=2).eval()
    query = torch.randn(6, 8, requires_grad=True)
    found = bench.launches(lambda: mixer(query, query.detach()).backward())
    ours = {name: number for name, number in found.items() if name.startswith("triton")}
    # two blocks of negatives, joined; lengths of pair mixes; the anchors' gradient by way of the cells that were read
    assert ours == {"triton _row_sums": 2, "triton _join": 1, "triton _row_gradients": 2, "triton _row_dots": 1,
                    "triton _weighted_rows": 1}  # fmt: skip


def test_the_table_is_printed() -> None:
    run = [sys.executable, "-W", "ignore", str(EVAL / "bench_launches.py"), "supremix"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| SupReMix")]
    assert [line.split("|")[2].strip() for line in lines] == ["loss alone", "mixed", "on embeddings"]
