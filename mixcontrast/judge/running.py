"""How towers are run when they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixcontrast.environment import there


@dataclass(frozen=True)
class Running:
    """How towers are run; each is an option of `mixcontrast judge` and `mixcontrast ensemble`.

    Attributes:
        batch_size: items at once.
        num_workers: processes that open images.
        device: cpu, cuda, mps, or auto for the fastest there is.
        precision: of the towers' arithmetic (autocast).

    Raises:
        ValueError: a batch below 1, a device that is not there.
    """

    batch_size: int = 64
    num_workers: int = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1. Got {self.batch_size}; leave it out for the default.")
        object.__setattr__(self, "device", there(self.device))
