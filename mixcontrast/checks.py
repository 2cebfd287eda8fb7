"""Checks of what a table is built from: one line that says the rule, what was seen and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.similarity import wide


def reads_values(tensor: Tensor) -> bool:
    """Whether a check may read values: it is free on a CPU, costs a sync elsewhere and breaks a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_embeddings(name: str, embeddings: Tensor, *, zero_allowed: bool = False) -> None:
    """One line where `embeddings` is not a (N, D) table of usable floats."""
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"`{name}` must be a tensor. Got {type(embeddings).__name__}; pass torch.as_tensor({name}).")
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            f"`{name}` must have shape (examples, dimensions), neither of them 0. Got {shape_of(embeddings)}; "
            "flatten or pool to one vector an example."
        )
    if not embeddings.is_floating_point():
        raise TypeError(f"`{name}` must be floats. Got {embeddings.dtype}; are embeddings and labels swapped?")
    if reads_values(embeddings):
        length = torch.linalg.vector_norm(wide(embeddings.detach()), dim=1)
        if not bool(torch.isfinite(length).all()):
            row = int((~torch.isfinite(length)).nonzero()[0])
            raise ValueError(
                f"`{name}` must be finite. Got NaN or infinity in {int((~torch.isfinite(length)).sum())} of "
                f"{len(length)} rows, first in row {row}; look at the learning rate or at the step before."
            )
        if not zero_allowed and not bool((length > 0).all()):
            row = int((length == 0).nonzero()[0])
            raise ValueError(
                f"`{name}` must not be zero: a zero vector has no direction. Got {int((length == 0).sum())} of "
                f"{len(length)} rows zero, first row {row}; look at a dead ReLU or an empty input."
            )


def check_labels(labels: Tensor, embeddings: Tensor) -> None:
    """One line where `labels` are not one integer an embedding."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"`labels` must be a tensor. Got {type(labels).__name__}; pass torch.as_tensor(labels).")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"`labels` of a class loss must be integers. Got {labels.dtype} {shape_of(labels)}; for real values use "
            "SupReMix(SupConLoss()) or RankNContrastLoss(), for class labels pass labels.long()."
        )
    check_same_device("embeddings", embeddings, "labels", labels)
    if labels.ndim != 1 or len(labels) != len(embeddings):
        raise ValueError(
            "`embeddings` and `labels` must have the same length. "
            f"Got embeddings {shape_of(embeddings)}, labels {shape_of(labels)}; give one label an embedding."
        )


def check_values(values: Tensor, embeddings: Tensor) -> None:
    """One line where `values` are not one real value, or one row of them, an embedding."""
    if not isinstance(values, Tensor):
        raise TypeError(f"`values` must be a tensor. Got {type(values).__name__}; pass torch.as_tensor(values).")
    if not values.is_floating_point():
        raise TypeError(
            f"`values` of a regression must be floats. Got {values.dtype} {shape_of(values)}; for class labels use a "
            "class loss such as SupConLoss(), for whole numbers that mean quantities pass values.float()."
        )
    check_same_device("embeddings", embeddings, "values", values)
    if values.ndim not in (1, 2) or len(values) != len(embeddings):
        raise ValueError(
            "`embeddings` and `values` must have the same length. "
            f"Got embeddings {shape_of(embeddings)}, values {shape_of(values)}; give one value (or row) an embedding."
        )
    if reads_values(values) and not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"`values` must be finite. Got NaN or infinity in {int((~torch.isfinite(values)).sum())} of "
            f"{values.numel()}; drop those examples."
        )


def check_same_shape(name1: str, first: Tensor, name2: str, second: Tensor) -> None:
    """One line where two inputs that go together row by row have different shapes."""
    if first.shape != second.shape:
        raise ValueError(
            f"`{name1}` and `{name2}` must have the same shape. "
            f"Got {name1} {shape_of(first)}, {name2} {shape_of(second)}; row i of one goes with row i of the other."
        )
    check_same_device(name1, first, name2, second)


def check_same_device(name1: str, first: Tensor, name2: str, second: Tensor) -> None:
    """One line where two tensors that go together are on different devices."""
    if first.device != second.device:
        raise ValueError(
            f"`{name1}` and `{name2}` must be on the same device. "
            f"Got {name1} on {first.device}, {name2} on {second.device}; pass {name2}.to({str(first.device)!r})."
        )


def check_square(name: str, table: Tensor, embeddings: Tensor) -> None:
    if not isinstance(table, Tensor):
        raise TypeError(f"`{name}` must be a tensor. Got {type(table).__name__}; pass torch.as_tensor({name}).")
    if tuple(table.shape) != (len(embeddings), len(embeddings)):
        raise ValueError(
            f"`{name}` must have a row and a column for each embedding. "
            f"Got embeddings {shape_of(embeddings)}, {name} {shape_of(table)}; make it "
            f"({len(embeddings)}, {len(embeddings)})."
        )
    check_same_device("embeddings", embeddings, name, table)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
