"""Metrix: mixtures of positives and negatives, with mixed labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixcontrast.losses.base import Loss
from mixcontrast.mixers.base import (
    Mixer,
    check_wrappable,
    innermost,
    is_among_itself,
    only_real_block,
    parent_cosine,
    pick,
    self_similarity,
    source,
)
from mixcontrast.mixing import Interpolation, Linear, needs_cosine, sample_beta
from mixcontrast.pairs import Block, Pairs


@dataclass(frozen=True)
class Parents:
    """Mixtures of one kind. M is P * C where every left parent meets every column, else the number drawn.

    Attributes:
        left: (A, P) columns, or (A, M); None: the anchor itself.
        right: (A, M) columns; None: every column of the table.
        lam: (A, M) share of the left parent, or one number (0-dimensional) for all.
        keep: (A, M) bool, or (A, 1): which of them count.
    """

    left: Tensor | None
    right: Tensor | None
    lam: Tensor
    keep: Tensor


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
        self.loss = loss
        self.weight, self.alpha = weight, alpha
        self.positive_negative, self.anchor_negative = positive_negative, anchor_negative
        self.negative_negative, self.num_mixtures = negative_negative, num_mixtures
        self.shared_lambda = shared_lambda
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
        positive = torch.as_tensor(block.positive > 0).expand_as(block.similarity)
        negative = torch.as_tensor(block.negative > 0).expand_as(block.similarity) & ~positive
        make = self._all if self.num_mixtures is None else self._some
        return make(block.similarity, positive, negative, generator)

    def _all(
        self, like: Tensor, positive: Tensor, negative: Tensor, generator: torch.Generator | None
    ) -> tuple[Parents, ...]:
        kinds = []
        if self.positive_negative:
            most = max(int(positive.sum(dim=1).max()), 1)
            left = positive.to(torch.int8).topk(most, dim=1).indices  # (A, P), rows with fewer hold others too
            keep = positive.gather(1, left)[:, :, None] & negative[:, None, :]  # (A, P, C)
            kinds.append((left, keep))
        if self.anchor_negative:
            kinds.append((None, negative))
        if self.negative_negative:
            columns = torch.arange(like.shape[1], device=like.device)
            later = columns[:, None] < columns[None, :]  # each two once
            kinds.append((columns.expand_as(like), negative[:, :, None] & negative[:, None, :] & later))
        return tuple(
            Parents(left, None, self._lambdas(keep.flatten(1).shape, like, generator), keep.flatten(1))
            for left, keep in kinds
        )

    def _some(
        self, like: Tensor, positive: Tensor, negative: Tensor, generator: torch.Generator | None
    ) -> tuple[Parents, ...]:
        shape = (like.shape[0], self.num_mixtures)

        def columns(mask: Tensor) -> Tensor:
            return pick(mask, torch.rand(shape, device=like.device, generator=generator))

        some_positive, some_negative = positive.any(dim=1, keepdim=True), negative.any(dim=1, keepdim=True)
        kinds = []
        if self.positive_negative:
            kinds.append((columns(positive), columns(negative), some_positive & some_negative))
        if self.anchor_negative:
            kinds.append((None, columns(negative), some_negative))
        if self.negative_negative:
            kinds.append((columns(negative), columns(negative), some_negative))
        return tuple(
            Parents(left, right, self._lambdas(shape, like, generator), keep) for left, right, keep in kinds
        )

    def _lambdas(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        return sample_beta(
            self.alpha, self.alpha, () if self.shared_lambda else tuple(shape), like=like, generator=generator
        )

    def mix(self, pairs: Pairs, draw: tuple[Parents, ...]) -> Pairs:
        """The mixed table: mixtures alone."""
        block = only_real_block("Metrix", pairs)
        table = source(pairs, block, self.detach)
        return replace(pairs, blocks=tuple(self._mixtures(pairs, block, table, parents) for parents in draw))

    def _mixtures(self, pairs: Pairs, block: Block, table: Tensor, parents: Parents) -> Block:
        target = block.target.to(table.dtype).expand_as(table)
        if parents.right is not None:
            right, label = table.gather(1, parents.right), target.gather(1, parents.right)  # (A, M)
            if parents.left is None:
                left, mine = self_similarity(pairs.anchors, self.detach), 1.0
                cosine = right.detach() if self.detach else right
            else:
                left, mine = table.gather(1, parents.left), target.gather(1, parents.left)
                cosine = parent_cosine(pairs, block, parents.left, parents.right, self.interpolation, self.detach)
            c1, c2 = self.interpolation.coefficients(parents.lam, cosine)
            mixed = c1 * left + c2 * right
            return Block(mixed, parents.lam * mine + (1 - parents.lam) * label, parents.keep)
        if parents.left is None:
            left, mine = self_similarity(pairs.anchors, self.detach)[:, :, None], 1.0  # (A, 1, 1)
            cosine = (table.detach() if self.detach else table)[:, None, :]
            shape = (len(table), 1, table.shape[1])
        else:
            left = table.gather(1, parents.left)[:, :, None]  # (A, P, 1)
            mine = target.gather(1, parents.left)[:, :, None]
            cosine = self._cosine_to_all(pairs, block, parents.left)  # (A, P, C)
            shape = (*parents.left.shape, table.shape[1])
        lam = parents.lam if parents.lam.ndim == 0 else parents.lam.view(shape)
        c1, c2 = self.interpolation.coefficients(lam, cosine)
        mixed = c1 * left + c2 * table[:, None, :]
        label = (lam * mine + (1 - lam) * target[:, None, :]).expand_as(mixed)
        return Block(mixed.flatten(1), label.flatten(1), parents.keep)

    def _cosine_to_all(self, pairs: Pairs, block: Block, left: Tensor) -> Tensor | None:
        """(A, P, C) cosines of the left parents with every column."""
        if not needs_cosine(self.interpolation):
            return None
        if is_among_itself(pairs, block):
            table = block.similarity.detach() if self.detach else block.similarity
            return table.index_select(0, left.flatten()).view(*left.shape, -1)
        candidates = block.candidates.detach() if self.detach else block.candidates
        return (candidates.index_select(0, left.flatten()) @ candidates.mT).view(*left.shape, -1)

    def loss_of(self, pairs: Pairs, draw: tuple[Parents, ...]) -> Tensor:
        return self.loss.reduce(pairs) + self.weight * innermost(self.loss).reduce(self.mix(pairs, draw))

    def extra_repr(self) -> str:
        return f"weight={self.weight}, alpha={self.alpha}, num_mixtures={self.num_mixtures}"
