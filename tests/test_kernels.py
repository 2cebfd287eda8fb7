"""When kernels are used, and that those that are equal plain code: in Triton's interpreter, which needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from mixcontrast import kernels
from tests.accelerator import PretendedGPU


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_equal_plain_code_in_the_interpreter(marked: str) -> None:
    if find_spec("triton") is None:
        pytest.skip("Triton is not here; it comes with torch for Linux")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked,
         "tests/kernels_interpreted.py"],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


class Elsewhere:
    """A tensor's device and type, of a GPU that is not here."""

    def __init__(self, dtype=torch.float32, device="cuda:0") -> None:
        self.dtype, self.device, self.is_cuda = dtype, torch.device(device), device != "cpu"


def test_which_tensors_are_read_by_kernels(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "_works", lambda device: True)
    monkeypatch.setattr(kernels, "Tensor", Elsewhere)
    x = Elsewhere()
    assert kernels.fused(x) and kernels.fused(x, x) and kernels.fused(Elsewhere(torch.float64))
    assert kernels.fused(Elsewhere(torch.bfloat16), half=True) and not kernels.fused(Elsewhere(torch.bfloat16))
    assert not kernels.fused(Elsewhere(torch.long), half=True)
    assert not kernels.fused(x, Elsewhere(torch.float64)) and not kernels.fused(x, Elsewhere(device="cuda:1"))
    assert not kernels.fused(Elsewhere(device="cpu"))
    monkeypatch.setenv("MIXCONTRAST_KERNELS", "0")
    assert not kernels.fused(x)
    monkeypatch.delenv("MIXCONTRAST_KERNELS")
    monkeypatch.setattr(kernels, "_works", lambda device: False)
    assert not kernels.fused(x)


def test_neither_a_cpu_nor_a_pretended_gpu_is_read_by_kernels(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "_works", lambda device: True)
    assert not kernels.fused(torch.ones(2)) and not kernels.fused(nn.Parameter(torch.ones(2)))
    pretended = PretendedGPU().to(torch.ones(2))
    assert pretended.is_cuda and not kernels.fused(pretended)


def test_a_triton_that_cannot_start_is_said_and_not_used(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("torch.version.hip", None)

    def fails(*_, **__):
        raise RuntimeError("Failed to find C compiler.\nPlease specify it.")

    monkeypatch.setattr(torch, "ones", fails)
    with pytest.warns(UserWarning, match="slower code is used: Failed to find C compiler. A C compiler"):
        assert not kernels._works.__wrapped__(torch.device("cuda", 0))
    monkeypatch.setitem(sys.modules, "mixcontrast.kernels.gathers", None)  # an ImportError
    assert not kernels._works.__wrapped__(torch.device("cuda", 0))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert not kernels._works.__wrapped__(torch.device("cuda", 0))


def _compiled(kernel, pointers: dict[str, str], constants: dict[str, object], of_one: tuple[str, ...] = ()) -> bytes:
    """A kernel's code for compute capability 9.0, made without a card; numbers are i32, or the constant 1."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = constants | dict.fromkeys(of_one, 1)
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    return compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not here; it comes with torch for Linux")
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_kernels_compile_for_a_card_that_is_not_here(dtype: str) -> None:
    import triton.language as tl

    from mixcontrast.kernels import gathers, row_sums

    of = "*" + dtype
    sizes = {"SUMS": tl.float64 if dtype == "fp64" else tl.float32, "HEIGHT": 32, "WIDTH": 128}
    rows = {"left_rows": of, "right_rows": of, "left": "*i64", "right": "*i64", "out": of}
    for of_one in ((), ("left_across", "right_across", "left_number", "right_number")):
        assert _compiled(gathers._row_dots, rows, sizes, of_one)
    assert _compiled(gathers._weighted_rows, {"rows": of, "columns": "*i64", "weights": of, "out": of}, sizes)
    tile = {"TALL": 4, "WIDE": 256}
    for weighing, marking in ((0, 1), (1, 2), (2, 0)):
        cells = {name: "*i1" if kind == 1 else of for name, kind in (("weight", weighing), ("mark", marking))}
        kinds = {"WEIGHING": weighing, "MARKING": marking} | tile
        tables = dict.fromkeys(["similarity", "scale", "every", "near", "count"], of) | cells
        assert _compiled(row_sums._row_sums, tables, kinds | {"LEAST": -3e38})
        tables = dict.fromkeys(["similarity", "scale", "every", "of_every", "of_near", "table", "moved"], of) | cells
        for of_table, of_scale in ((True, True), (True, False), (False, True)):
            wanted = kinds | {"OF_TABLE": of_table, "OF_SCALE": of_scale}
            assert _compiled(row_sums._row_gradients, tables, wanted, ("similarity_column", "of_every_row"))
    joined = dict.fromkeys(["every", "near", "count", "to_every", "to_near", "to_count"], of)
    assert _compiled(row_sums._join, joined, {"LEAST": -3e38, "TALL": 32})
