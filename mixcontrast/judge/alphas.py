"""Which alphas are asked for, and how the checkpoints of an ensemble are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from mixcontrast.models.weights import read_state_dict

FITTED = "encoder.model."  # what a checkpoint of `mixcontrast fit` puts before open_clip's names
_HEADS = "encoder."  # and before those of towers that are none of open_clip's


def read_alphas(alpha: str | list[float]) -> list[float]:
    """Alphas such as 0,0.5,1, or 0,0.1,...,1 with the steps between filled in; each once, rising.

    >>> read_alphas("0,0.25,...,1")
    [0.0, 0.25, 0.5, 0.75, 1.0]

    Raises:
        ValueError: they are no numbers in [0, 1], or dots without two numbers before and one behind.
    """
    refusal = f"--alpha are numbers in [0, 1] joined by commas. Got {alpha!r}; 0,0.5,1 or 0,0.1,...,1."
    parts = alpha.strip("[] ").split(",") if isinstance(alpha, str) else [str(value) for value in alpha]
    found: list[float] = []
    parts = [part.strip() for part in parts]
    for place, part in enumerate(parts):
        if part == "...":
            if place < 2 or place + 1 == len(parts) or "..." in parts[place - 2 : place]:
                raise ValueError(refusal)
            continue
        try:
            value = float(part)
        except ValueError:
            raise ValueError(refusal) from None
        if place and parts[place - 1] == "...":
            step = found[-1] - found[-2]
            if not step > 0:
                raise ValueError(refusal)
            found += [v for v in np.arange(found[-1] + step, value - step / 1e6, step).tolist()]
        found.append(value)
    if not found or not all(0 <= value <= 1 for value in found):
        raise ValueError(refusal)
    return sorted({round(value, 10) for value in found})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a model in a file: of open_clip, or a checkpoint or `model.pt` of `mixcontrast fit`.

    Raises:
        ValueError: it cannot be read, or holds LoRA adapters beside its weights.
    """
    state = read_state_dict(path)
    if any(".base_layer." in key for key in state):
        raise ValueError(f"{path} holds LoRA adapters beside its weights. Take model.pt of the same run.")
    for prefix in (FITTED, _HEADS):
        if any(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state
