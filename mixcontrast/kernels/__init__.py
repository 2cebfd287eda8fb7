"""Kernels for an NVIDIA GPU, in Triton, that do in one pass what several operations of torch would.

Each equals plain code elsewhere in the library, which runs wherever these do not: on a CPU, where Triton cannot be
imported or cannot compile, while torch.compile compiles, and where the environment says `MIXCONTRAST_KERNELS=0`.
Triton comes with torch for Linux; it is imported when a kernel is first used.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn

_WIDE = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)


def fused(*tensors: Tensor, half: bool = False) -> bool:
    """Whether a kernel reads these tensors: all on one NVIDIA GPU of compute capability 8.0 or later, of one dtype.

    Args:
        tensors: at least one; float32 or float64. Subclasses of tensors are read by torch's own operations.
        half: float16 and bfloat16 too.
    """
    if torch.compiler.is_compiling():
        return False
    first = tensors[0]
    return (
        first.is_cuda
        and first.dtype in (_WIDE + _HALF if half else _WIDE)
        and all(type(x) in (Tensor, nn.Parameter) and x.dtype == first.dtype for x in tensors)
        and all(x.device == first.device for x in tensors)
        and os.environ.get("MIXCONTRAST_KERNELS") != "0"
        and _works(first.device)
    )


@lru_cache
def _works(device: torch.device) -> bool:
    """Whether a kernel compiles and starts, tried once: Triton needs a C compiler, which a machine may lack."""
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from mixcontrast.kernels.gathers import row_dots

        one, place = torch.ones(1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
        row_dots(one, place, one, place)
    except ImportError:
        return False
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"Triton is installed and cannot start a kernel, so mixcontrast's slower code is used: {reason} "
            "A C compiler (gcc) is what mostly lacks; MIXCONTRAST_KERNELS=0 silences this.",
            stacklevel=3,
        )
        return False
    return True
