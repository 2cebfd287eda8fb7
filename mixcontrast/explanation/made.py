"""Mixtures with their parents, coefficients and places in the table, of each kind that a mixer makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.mixers import MoCHi, SupReMix, SynCo
from mixcontrast.mixers.metrix import Metrix, Parents
from mixcontrast.mixers.mochi import MoCHiDraw
from mixcontrast.mixers.pool import pool_of
from mixcontrast.mixers.supremix import SupReMixDraw
from mixcontrast.mixers.synco import SynCoDraw
from mixcontrast.mixing import Interpolation
from mixcontrast.pairs import Block, Pairs


@dataclass(frozen=True)
class Parent:
    """One of the two that mixtures are made of.

    Attributes:
        name: what it is: "anchor", "negative", "positive", "noise".
        vectors: (K, D) that it is taken from.
        rows: (A, M) which of them.
        share: (A, M) the mixture is `share * vector` plus the other parent's.
        labels: (K,) classes or values of the vectors; None where they are not known.
    """

    name: str
    vectors: Tensor
    rows: Tensor
    share: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """Mixtures of one kind, M of each anchor.

    Attributes:
        kind: in words.
        anchors: (A, D).
        anchor_labels: (A,) classes or values; None where they are not known.
        parents: the two.
        similarity: (A, M) of each mixture to its anchor, as the loss reads it.
        target: (A, M).
        weight: (A, M); 0 where the loss does not read it.
        lam: (A, M) the first parent's share before the mixture is divided by its length; None where it is a step.
        embedded: (M, D) the mixtures, where the network embedded them: parents are then mixed at its layer.
        cells: the table's block that holds them, which of its columns, and whether mixtures are its rows.
    """

    kind: str
    anchors: Tensor
    anchor_labels: Tensor | None
    parents: tuple[Parent, Parent]
    similarity: Tensor
    target: Tensor
    weight: Tensor
    lam: Tensor | None
    cells: tuple[Block, slice, bool]
    embedded: Tensor | None = None

    def vectors(self, anchor: int) -> Tensor:
        """(M, D) the mixtures of one anchor, built, as training never does."""
        if self.embedded is not None:
            return self.embedded
        return sum(part.share[anchor][:, None] * part.vectors[part.rows[anchor]] for part in self.parents)


def dense(cells: Tensor | float, like: Tensor) -> Tensor:
    """Targets or weights of a block as a table."""
    return torch.as_tensor(cells, device=like.device).to(like.dtype).expand_as(like)


def made(
    kind: str,
    pairs: Pairs,
    parents: tuple[Parent, Parent],
    block: Block,
    columns: slice,
    lam: Tensor | None,
) -> Made:
    """Mixtures that are the columns of a block, with that table's anchors."""
    similarity = block.similarity[:, columns]
    return Made(
        kind, pairs.anchors.detach(), pairs.anchor_labels, parents, similarity.detach(),
        dense(block.target, block.similarity)[:, columns], dense(block.weight, block.similarity)[:, columns], lam,
        (block, columns, False),
    )  # fmt: skip


def mixed_parents(
    first: tuple[str, Tensor, Tensor, Tensor | None],
    second: tuple[str, Tensor, Tensor, Tensor | None],
    lam: Tensor,
    interpolation: Interpolation,
) -> tuple[Parent, Parent]:
    """The parents of mixtures at share `lam` of the first: (name, vectors, rows, labels) each."""
    table = first[1] @ second[1].mT
    cosine = table[first[2], second[2]]
    shares = (share.expand(cosine.shape) for share in interpolation.coefficients(lam, cosine))
    return tuple(
        Parent(name, vectors, rows.expand(cosine.shape), share, labels)
        for (name, vectors, rows, labels), share in zip((first, second), shares, strict=True)
    )


def stepped_parents(
    first: tuple[str, Tensor, Tensor, Tensor | None], name: str, steps: Tensor, rows: Tensor
) -> tuple[Parent, Parent]:
    """The parents of `(x + e) / |x + e|`, `e` a row of `steps`."""
    who, vectors, mine, labels = first
    rows = rows.expand(mine.shape)
    length = torch.linalg.vector_norm(vectors[mine] + steps[rows], dim=-1)
    return Parent(who, vectors, mine, 1 / length, labels), Parent(name, steps, rows, 1 / length)


def of_metrix(mixer: Metrix, pairs: Pairs, draw: Sequence[Parents], mixed: Pairs) -> list[Made]:
    """A kind of mixture a block of the mixed table."""
    anchors, candidates = pairs.anchors.detach(), pairs.real[0].candidates.detach()
    labels = pairs.candidate_labels
    found = []
    for kind, block in zip(draw, mixed, strict=True):
        rows, width = block.similarity.shape
        own = torch.arange(rows, device=anchors.device)[:, None]
        right = kind.right
        if right is None:  # every column, beside each left parent in turn
            right = torch.arange(len(candidates), device=anchors.device).repeat(width // len(candidates))[None]
        first = ("anchor", anchors, own, pairs.anchor_labels)
        if kind.left is not None:
            left = kind.left if kind.right is not None else kind.left.repeat_interleave(len(candidates), dim=1)
            first = ("positive" if kind.positive else "negative", candidates, left, labels)
        lam = kind.lam.expand(rows, width)
        second = ("negative", candidates, right.expand(rows, width), labels)
        parents = mixed_parents(first, second, lam, mixer.interpolation)
        found.append(made(f"{first[0]} with negative", pairs, parents, block, slice(None), lam))
    return found


def _pool(mixer: MoCHi | SynCo, pairs: Pairs) -> tuple[Tensor, Tensor | None, Tensor]:
    """(K, D) columns that are mixed, their labels, and (A, 1) the anchors' own rows."""
    pool = pool_of(type(mixer).__name__, pairs, mixer.same_modality, mixer.detach)
    candidates = torch.cat([block.candidates for block in pool.blocks]).detach()
    known = pairs.candidate_labels
    labels = known if known is not None and len(known) == len(candidates) else None
    return candidates, labels, torch.arange(len(pairs.anchors), device=candidates.device)[:, None]


def of_mochi(mixer: MoCHi, pairs: Pairs, draw: MoCHiDraw, mixed: Pairs) -> list[Made]:
    """Pairs of hard negatives, and hard negatives with the anchor."""
    candidates, labels, own = _pool(mixer, pairs)
    block, anchors, found = mixed.blocks[-1], pairs.anchors.detach(), []
    split = draw.first.shape[1]
    if split:
        first, second = (("negative", candidates, rows, labels) for rows in (draw.first, draw.second))
        parents = mixed_parents(first, second, draw.alpha, mixer.interpolation)
        found.append(made("two hard negatives", pairs, parents, block, slice(0, split), draw.alpha))
    if draw.negative.shape[1]:
        first = ("anchor", anchors, own, pairs.anchor_labels)
        parents = mixed_parents(first, ("negative", candidates, draw.negative, labels), draw.beta, mixer.interpolation)
        found.append(made("anchor with hard negative", pairs, parents, block, slice(split, None), draw.beta))
    return found


def of_synco(mixer: SynCo, pairs: Pairs, draw: SynCoDraw, mixed: Pairs) -> list[Made]:
    """The six kinds, in the order of their columns."""
    candidates, labels, own = _pool(mixer, pairs)
    block, anchors = mixed.blocks[-1], pairs.anchors.detach()
    itself = ("anchor", anchors, own, pairs.anchor_labels)

    def negative(rows: Tensor) -> tuple[str, Tensor, Tensor, Tensor | None]:
        return "negative", candidates, rows, labels

    def between(first, second, lam: Tensor) -> tuple[tuple[Parent, Parent], Tensor]:
        return mixed_parents(first, second, lam, mixer.interpolation), lam

    def step(rows: Tensor, name: str, steps: Tensor, of: Tensor) -> tuple[tuple[Parent, Parent], None]:
        return stepped_parents(negative(rows), name, steps, of), None

    number = torch.arange(len(draw.noise), device=candidates.device)[None]
    sign = mixer.sign_step * anchors.sign()
    kinds = [
        ("interpolated", draw.interpolated, lambda rows: between(itself, negative(rows), draw.alpha)),
        ("extrapolated", draw.extrapolated, lambda rows: between(itself, negative(rows), 1 - draw.beta)),
        ("two hard negatives", draw.first, lambda rows: between(negative(rows), negative(draw.second), draw.gamma)),
        ("with noise", draw.noised, lambda rows: step(rows, "noise", draw.noise, number)),
        ("along the gradient", draw.towards, lambda rows: step(rows, "gradient", mixer.gradient_step * anchors, own)),
        ("along its sign", draw.by_sign, lambda rows: step(rows, "sign", sign, own)),
    ]
    found, start = [], 0
    for kind, rows, build in kinds:
        width = rows.shape[1]
        if width:
            parents, lam = build(rows)
            found.append(made(kind, pairs, parents, block, slice(start, start + width), lam))
        start += width
    return found


def of_supremix(mixer: SupReMix, pairs: Pairs, draw: SupReMixDraw, mixed: Pairs) -> list[Made]:
    """Mix-neg and Mix-pos, the last blocks of the mixed table."""
    anchors, candidates = pairs.anchors.detach(), pairs.real[0].candidates.detach()
    labels, found = pairs.candidate_labels, []
    of_kinds = list(mixed.blocks[-((draw.lam is not None) + (draw.below is not None)) :])
    if draw.lam is not None:
        own = torch.arange(len(anchors), device=anchors.device)[:, None]
        every = torch.arange(len(candidates), device=anchors.device)[None]
        parents = mixed_parents(
            ("anchor", anchors, own, pairs.anchor_labels), ("other value", candidates, every, labels), draw.lam,
            mixer.interpolation,
        )  # fmt: skip
        found.append(made("Mix-neg", pairs, parents, of_kinds.pop(0), slice(None), draw.lam))
    if draw.below is not None:
        share = draw.share.to(anchors.dtype)
        parents = mixed_parents(
            ("below", candidates, draw.below, labels), ("above", candidates, draw.above, labels), share,
            mixer.interpolation,
        )  # fmt: skip
        found.append(made("Mix-pos", pairs, parents, of_kinds.pop(0), slice(None), share))
    return found
