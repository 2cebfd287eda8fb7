"""Metrix: mixtures of positives and negatives, with mixed labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixcontrast.checks import reads_values
from mixcontrast.losses.base import Batch, Loss, Part, value_of
from mixcontrast.mixers.base import (
    Groups,
    Mixer,
    check_wrappable,
    innermost,
    only_real_block,
    parent_cosine,
    pick,
    products_with_all,
    self_similarity,
    source,
)
from mixcontrast.mixing import Interpolation, Linear, needs_cosine, sample_beta
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Plan
from mixcontrast.records import changed


@dataclass(frozen=True)
class Parents:
    """Mixtures of one kind. M is P * C where every left parent meets every column, else the number drawn.

    Attributes:
        left: (A, P) columns, or (A, M); None: the anchor itself.
        right: (A, M) columns; None: every column of the table.
        lam: (A, M) share of the left parent, or one number (0-dimensional) for all.
        keep: (A, M) bool, or (A, 1): which of them count.
        positive: whether left parents that are columns are positives, else they are negatives.
    """

    left: Tensor | None
    right: Tensor | None
    lam: Tensor
    keep: Tensor
    positive: bool


class Metrix(Mixer):
    """Adds a second table of mixed examples, each a positive by the share of its positive parent.

    The loss is `loss(table) + weight * loss(mixed table)`. A mixture `v` of a positive (share `lam ~ Beta(alpha,
    alpha)`) and a negative of an anchor, divided by its length, has target `lam` for that anchor. Gradient flows to the
    anchor and to both parents.

    Args:
        loss: one that reads targets between 0 and 1, proxy losses included; or a mixer around one.
        weight: of the mixed table, > 0; the paper's 0.4.
        alpha: of Beta(alpha, alpha), > 0; the paper's 2.
        positive_negative: mix each positive with each negative.
        anchor_negative: mix the anchor itself, whose target is 1, with each negative.
        negative_negative: mix each two negatives as well; target 0. All of them are (C choose 2) an anchor: draw a
            number.
        num_mixtures: None for all mixtures of each kind; or how many of each kind are drawn per anchor, uniformly.
        max_positives: where all mixtures are made, how many positives of an anchor are mixed; drawn, where it has more.
            None: all, for which the most that an anchor has is counted. With `m` examples a class it is `m - 1`; told
            so, a GPU's host need not wait once a step for the count, and the whole criterion compiles in one graph.
        shared_lambda: one lambda a batch (the authors' code) instead of one a mixture (the paper).
        interpolation: Linear(normalize=True) as in the paper, or Geodesic(), or Linear(normalize=False).
        detach: the parents get no gradient; the anchor does.

    Raises:
        TypeError: `loss` cannot read mixed targets.
        ValueError: numbers out of range, or no kind of mixture.

    Cost: the mixed table, A x (positives * negatives), read off the table by broadcasting; no matrix product when
    anchors are the candidates.

    Source: Venkataramanan, Psomas et al., ICLR 2022, arXiv 2106.04990, equations 6 to 10. Prior art for mixing
    similarities, for one loss: SiMix, Patel et al., CVPR 2022, arXiv 2108.11179.

    >>> from mixcontrast import MultiSimilarityLoss
    >>> criterion = Metrix(MultiSimilarityLoss())
    >>> loss = criterion(torch.randn(8, 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    """

    def __init__(
        self,
        loss: Loss | Mixer,
        *,
        weight: float = 0.4,
        alpha: float = 2.0,
        positive_negative: bool = True,
        anchor_negative: bool = False,
        negative_negative: bool = False,
        num_mixtures: int | None = None,
        max_positives: int | None = None,
        shared_lambda: bool = False,
        interpolation: Interpolation = Linear(),
        detach: bool = False,
    ) -> None:
        super().__init__()
        check_wrappable("Metrix", loss, soft_targets=True)
        if not weight > 0 or not alpha > 0:
            raise ValueError(f"`weight` and `alpha` must be positive. Got {weight}, {alpha}; the paper's are 0.4, 2.")
        if not (positive_negative or anchor_negative):
            raise ValueError(
                "Metrix needs a kind of mixture that holds a positive. Got neither positive_negative nor "
                "anchor_negative; set one of them."
            )
        if num_mixtures is not None and num_mixtures < 1:
            raise ValueError(f"`num_mixtures` must be at least 1, or None for all. Got {num_mixtures}.")
        if max_positives is not None and (max_positives < 1 or num_mixtures is not None):
            raise ValueError(
                "`max_positives` must be at least 1, and bounds the positives where all mixtures are made. "
                f"Got max_positives={max_positives}, num_mixtures={num_mixtures}; leave one of them None."
            )
        self.loss = loss
        self.weight, self.alpha = weight, alpha
        self.positive_negative, self.anchor_negative = positive_negative, anchor_negative
        self.negative_negative, self.num_mixtures = negative_negative, num_mixtures
        self.max_positives, self.shared_lambda = max_positives, shared_lambda
        self.interpolation, self.detach = interpolation, detach

    @torch.no_grad()
    def draw(self, pairs: Pairs, generator: torch.Generator | None = None) -> tuple[Parents, ...]:
        """One `Parents` for each kind of mixture."""
        block = only_real_block("Metrix", pairs)
        if not isinstance(block.target, Tensor):
            raise ValueError(
                "Metrix mixes positives with negatives of one table. "
                f"Got a table whose real columns all have target {block.target}; for a queue of negatives use MoCHi."
            )
        positive = torch.as_tensor(block.positive > 0, device=block.similarity.device).expand_as(block.similarity)
        negative = torch.as_tensor(block.negative > 0, device=positive.device).expand_as(positive) & ~positive
        make = self._all if self.num_mixtures is None else self._some
        if pairs.tile is None or block.candidates is not pairs.tile.anchors:
            return make(block.similarity, positive, negative, generator)
        return make(block.similarity, positive, negative, generator, pairs.tile.rows[:, None])

    def _all(
        self,
        like: Tensor,
        positive: Tensor,
        negative: Tensor,
        generator: torch.Generator | None,
        itself: Tensor | None = None,
    ) -> tuple[Parents, ...]:
        kinds = []
        if self.positive_negative:
            if self.max_positives is None:
                most, order = max(int(positive.sum(dim=1).max()), 1), positive.to(torch.int8)
            else:
                most = min(self.max_positives, like.shape[1])
                order = torch.where(positive, torch.rand(like.shape, device=like.device, generator=generator), -1.0)
            left = order.topk(most, dim=1).indices  # (A, P)
            if itself is not None:  # rows with fewer hold others too, which the tile may not have
                left = torch.where(positive.gather(1, left), left, itself)
            keep = positive.gather(1, left)[:, :, None] & negative[:, None, :]  # (A, P, C)
            kinds.append((left, keep, True))
        if self.anchor_negative:
            kinds.append((None, negative, True))
        if self.negative_negative:
            columns = torch.arange(like.shape[1], device=like.device)
            later = columns[:, None] < columns[None, :]  # each two once
            keep = negative[:, :, None] & negative[:, None, :] & later
            kinds.append((columns.expand_as(like), keep, False))
        return tuple(
            Parents(left, None, self._lambdas(keep.flatten(1).shape, like, generator), keep.flatten(1), positive)
            for left, keep, positive in kinds
        )

    def _some(
        self,
        like: Tensor,
        positive: Tensor,
        negative: Tensor,
        generator: torch.Generator | None,
        itself: Tensor | None = None,
    ) -> tuple[Parents, ...]:
        shape = (like.shape[0], self.num_mixtures)

        def columns(mask: Tensor) -> Tensor:
            return pick(mask, torch.rand(shape, device=like.device, generator=generator))

        some_positive, some_negative = positive.any(dim=1, keepdim=True), negative.any(dim=1, keepdim=True)
        kinds = []
        if self.positive_negative:
            kinds.append((columns(positive), columns(negative), some_positive & some_negative, True))
        if self.anchor_negative:
            kinds.append((None, columns(negative), some_negative, True))
        if self.negative_negative:
            kinds.append((columns(negative), columns(negative), some_negative, False))
        return tuple(
            Parents(left, right, self._lambdas(shape, like, generator), keep, positive)
            for left, right, keep, positive in kinds
        )

    @torch.no_grad()
    def _lambdas(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return sample_beta(
            self.alpha, self.alpha, () if self.shared_lambda else tuple(shape), like=like, generator=generator
        )

    def mix(self, pairs: Pairs, draw: tuple[Parents, ...]) -> Pairs:
        """The mixed table: mixtures alone."""
        block = only_real_block("Metrix", pairs)
        table = source(pairs, block, self.detach)
        blocks = tuple(self._mixtures(pairs, block, table, parents) for parents in draw)
        return changed(pairs, blocks=blocks)

    def _mixtures(self, pairs: Pairs, block: Block, table: Tensor, parents: Parents) -> Block:
        if parents.right is not None:
            right = table.gather(1, parents.right)  # (A, M)
            if parents.left is None:
                left = self_similarity(pairs, self.detach)
                cosine = right.detach() if self.detach else right
            else:
                left = table.gather(1, parents.left)
                cosine = parent_cosine(pairs, block, parents.left, parents.right, self.interpolation, self.detach)
            mixed = self.interpolation.similarity(left, right, parents.lam, cosine)
            return Block(mixed, self._label(block, parents, mixed), parents.keep)
        if parents.left is None:
            left = self_similarity(pairs, self.detach)[:, :, None]  # (A, 1, 1)
            cosine = (table.detach() if self.detach else table)[:, None, :]
            shape = (len(table), 1, table.shape[1])
        else:
            left = table.gather(1, parents.left)[:, :, None]  # (A, P, 1)
            cosine = self._cosine_to_all(pairs, block, parents.left)  # (A, P, C)
            shape = (*parents.left.shape, table.shape[1])
        lam = parents.lam if parents.lam.ndim == 0 else parents.lam.view(shape)
        mixed = self.interpolation.similarity(left, table[:, None, :], lam, cosine).expand(shape).flatten(1)
        return Block(mixed, self._label(block, parents, mixed), parents.keep)

    def _label(self, block: Block, parents: Parents, mixed: Tensor) -> Tensor | float:
        """The mixed target: negatives have 0, so it is the share of a positive or of the anchor, or 0."""
        lam = parents.lam.expand(mixed.shape) if parents.lam.ndim == 0 else parents.lam
        if parents.left is None:
            return lam
        if not parents.positive:
            return 0.0
        if block.target.dtype == torch.bool:
            return lam
        mine = block.target.to(lam.dtype).expand_as(block.similarity).gather(1, parents.left)  # (A, P) or (A, M)
        if parents.right is not None:
            return lam * mine
        return (lam.unflatten(1, (mine.shape[1], -1)) * mine[:, :, None]).flatten(1)

    def _cosine_to_all(self, pairs: Pairs, block: Block, left: Tensor) -> Tensor | None:
        """(A, P, C) cosines of the left parents with every column."""
        if not needs_cosine(self.interpolation):
            return None
        return products_with_all(pairs, block, left.flatten(), self.detach).view(*left.shape, -1)

    def loss_of(self, pairs: Pairs, draw: tuple[Parents, ...]) -> Tensor:
        return self.loss.reduce(pairs) + value_of(self._parts_of_mixed([pairs], [self.mix(pairs, draw)], Batch()))

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        mixed = []
        for number, pairs in enumerate(tables):
            draw = self.draw(pairs)
            if pairs.tile is not None and self.shared_lambda:
                draw = tuple(
                    changed(parents, lam=batch.once((self, number, kind), partial(self._lambdas, (), pairs.anchors)))
                    for kind, parents in enumerate(draw)
                )
            mixed.append(self.mix(pairs, draw))
        return [*self.loss.parts_of(tables, batch), *self._parts_of_mixed(tables, mixed, batch)]

    def _parts_of_mixed(self, tables: Sequence[Pairs], mixed: Sequence[Pairs], batch: Batch) -> list[Part]:
        """Where no row is left of the mixed tables, the cause is in the tables that they were mixed of."""
        needs = "an anchor with both a positive (target above 0) and a negative (target 0)"
        words = dict(
            name="Metrix", shape=tables[0].shape, remedy="give unlike pairs the target 0",
            needs="an anchor with a negative (target 0)" if self.anchor_negative else needs,
        )  # fmt: skip
        parts = [changed(part.times(self.weight), **words) for part in innermost(self.loss).parts_of(mixed, batch)]
        if all(reads_values(part.total) and not bool(part.kept) for part in parts):
            parts = [changed(part, seen=_targets_of(tables[0])) for part in parts]
        return parts

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]] | None:
        """Also the mixed table's where its rows count if they have a mixture that holds a positive."""
        known, bottom = self.loss.counts_of(tables), innermost(self.loss)
        if known is None or not bottom.counts_rows:
            return None
        for pairs in tables:
            block = only_real_block("Metrix", pairs)
            kept = pairs.has_negative() if isinstance(block.target, Tensor) else None
            if kept is None or block.target.dtype != torch.bool:
                return None
            kept = (kept if self.anchor_negative else kept & pairs.has_positive()).sum()
            known.append((kept, kept))
        return known

    def together(self, plans: Sequence[Plan]) -> Groups | None:
        """An anchor's positives: a tile that holds them has their similarities to all columns."""
        inner = super().together(plans)
        labels = plans[0].anchor_labels
        if inner is not None or self.num_mixtures is not None or not plans[0].is_among_itself or labels is None:
            return inner
        order = labels.argsort(stable=True)
        return Groups(order, labels[order].unique_consecutive(return_counts=True)[1].tolist(), must=False)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, alpha={self.alpha}, num_mixtures={self.num_mixtures}"


def _targets_of(pairs: Pairs) -> str:
    """The range of the targets that count, for a message."""
    found = pairs.target[pairs.weight > 0]
    return f", targets {float(found.min()):.3g} to {float(found.max()):.3g}" if len(found) else ""
