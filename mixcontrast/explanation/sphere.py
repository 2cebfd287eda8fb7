"""The unit sphere as an anchor sees it: true angles from the anchor, directions by principal components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.explanation.batch import Explanation, same_vectors

NEAREST = 150  # real columns that are shown, the nearest


@dataclass(frozen=True)
class Kind:
    """Points of one kind of mixture, and of their parents.

    Attributes:
        name: of the kind.
        mixtures: (M, 2).
        parents: (M, 2, 2) the two parents of each; NaN where one is no point (noise).
        similarity: (M,).
    """

    name: str
    mixtures: Tensor
    parents: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class View:
    """What lies around one anchor; the anchor is the origin, and a point's distance from it is its true angle.

    Attributes:
        anchor: which row.
        of: what it is: "anchor", or "image" or "text" where a loss is read both ways.
        label: its class, caption or value; None where unknown.
        positives: (P, 2).
        negatives: (N, 2) the nearest ones.
        kinds: the mixtures.
    """

    anchor: int
    of: str
    label: float | None
    positives: Tensor
    negatives: Tensor
    kinds: list[Kind]


def view_from(found: Explanation, anchor: int, most: int = 12, *, back: bool = False) -> View:
    """The sphere around an anchor, azimuthal and equidistant: radius `arccos(similarity)`, direction that of the
    tangent vector in the plane in which the mixtures' parents spread most (their first two principal components).

    Args:
        found: a batch explained.
        anchor: a row of its table.
        most: mixtures of each kind that are shown, those of the largest share of the gradient.
        back: the anchor is a text, and its candidates are images; else it is an anchor of the table as it is called.

    Raises:
        ValueError: a row that there is not, or a way back that there is not.
    """
    if back and found.back is None:
        raise ValueError(f"A loss that is read both ways has a way back. Got {found.criterion}; leave back out.")
    pairs = found.back if back else found.pairs
    if not 0 <= anchor < pairs.shape[0]:
        raise ValueError(f"`anchor` must be a row of the batch, 0 to {pairs.shape[0] - 1}. Got {anchor}.")
    chosen = []
    for kind, share in zip(found.kinds, found.gradients, strict=True):
        if not same_vectors(kind.anchors, pairs.anchors):
            continue  # anchors of another tower, mixtures themselves, or proxies
        counts = kind.weight[anchor] > 0
        order = torch.where(counts, share[anchor], -1.0).argsort(descending=True)[: min(most, int(counts.sum()))]
        chosen.append((kind, order))
    block = pairs.real[0]
    candidates = block.candidates.detach()
    target = torch.as_tensor(block.target).expand_as(block.similarity)[anchor]
    weight = torch.as_tensor(block.weight).expand_as(block.similarity)[anchor] > 0
    nearest = torch.where(weight, block.similarity[anchor].detach(), -torch.inf).argsort(descending=True)
    nearest = nearest[: int(weight.sum())]
    positives, negatives = nearest[target[nearest] == 1], nearest[target[nearest] != 1][:NEAREST]
    centre = pairs.anchors[anchor].detach()
    of_parents = [
        part.vectors[part.rows[anchor][order]]
        for kind, order in chosen
        for part in kind.parents
        if _is_point(part.name)
    ]
    plane = _plane(centre, torch.cat([candidates[positives], *(of_parents or [candidates[negatives]])]))

    def flat(vectors: Tensor) -> Tensor:
        return _project(centre, plane, vectors)

    kinds = []
    for kind, order in chosen:
        parents = torch.stack(
            [
                flat(part.vectors[part.rows[anchor][order]])
                if _is_point(part.name)
                else torch.full((len(order), 2), math.nan)
                for part in kind.parents
            ],
            dim=1,
        )
        mixtures = flat(torch.nn.functional.normalize(kind.vectors(anchor)[order], dim=1))
        kinds.append(Kind(kind.kind, mixtures, parents, kind.similarity[anchor][order]))
    label = None if pairs.anchor_labels is None else pairs.anchor_labels[anchor]
    if label is not None and label.ndim and not label.is_floating_point():
        label = label[-1]  # the caption
    value = float(label) if label is not None and label.ndim == 0 else None
    of = "anchor" if found.back is None else "text" if back else "image"
    return View(anchor, of, value, flat(candidates[positives]), flat(candidates[negatives]), kinds)


def views_of(found: Explanation, anchors: Sequence[int]) -> tuple[list[View], list[tuple[str, float]]]:
    """The spheres around up to two anchors, and what is on neither.

    Where a loss is read both ways and some mixtures have texts for anchors, one of the two is a text.

    Returns:
        The views, and of each kind of mixture that has other anchors its name and its share of the gradient.
    """
    if found.back is not None and any(same_vectors(kind.anchors, found.back.anchors) for kind in found.kinds):
        views = [view_from(found, anchors[0]), view_from(found, anchors[0], back=True)]
    else:
        views = [view_from(found, anchor) for anchor in anchors[:2]]
    shown = {kind.name for view in views for kind in view.kinds}
    left_out = [
        (kind.kind, float(share.sum()))
        for kind, share in zip(found.kinds, found.gradients, strict=True)
        if kind.kind not in shown
    ]
    return views, left_out


def most_moved(found: Explanation, count: int) -> list[int]:
    """The rows of the table whose mixtures carry the most of the gradient, most first."""
    rows, anchors = found.pairs.shape[0], found.pairs.anchors
    shares = [
        share.sum(dim=1)
        for kind, share in zip(found.kinds, found.gradients, strict=True)
        if same_vectors(kind.anchors, anchors)
    ]
    if not shares:
        return list(range(min(count, rows)))
    return torch.stack(shares).sum(dim=0).argsort(descending=True)[:count].tolist()


def _is_point(name: str) -> bool:
    """Whether a parent is an example, not a step."""
    return name not in ("noise", "gradient", "sign")


def _plane(centre: Tensor, vectors: Tensor) -> Tensor:
    """(D, 2) orthonormal, both at right angles to the centre."""
    tangents = _tangents(centre, vectors)
    tangents = tangents.double()
    _, _, basis = torch.linalg.svd(tangents - tangents.mean(dim=0), full_matrices=True)
    found: list[Tensor] = []
    for row in basis:  # one may be the centre itself
        part = row - (row @ centre.double()) * centre.double()
        for other in found:
            part = part - (part @ other) * other
        if torch.linalg.vector_norm(part) > 1e-3 and len(found) < 2:
            found.append(part / torch.linalg.vector_norm(part))
    while len(found) < 2:  # of two dimensions there is one
        found.append(torch.zeros_like(centre).double())
    return torch.stack(found, dim=1).to(vectors.dtype)


def _tangents(centre: Tensor, vectors: Tensor) -> Tensor:
    """(N, D) unit vectors at the centre that point towards the others; 0 where one is the centre itself."""
    off = vectors - (vectors @ centre)[:, None] * centre
    length = torch.linalg.vector_norm(off, dim=1, keepdim=True)
    return torch.where(length > 1e-6, off / length.clamp(min=1e-6), 0.0)


def _project(centre: Tensor, plane: Tensor, vectors: Tensor) -> Tensor:
    """(N, 2)"""
    flat = _tangents(centre, vectors) @ plane
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-9)
    return flat / length * torch.arccos((vectors @ centre).clamp(-1, 1))[:, None]
