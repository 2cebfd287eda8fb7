"""What a mixer made of a table: how hard, how often wrong, and how much of the gradient it carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixcontrast.checks import check_labels
from mixcontrast.pairs import Block, Pairs


@dataclass(frozen=True)
class Hardness:
    """Similarities of a table's cells by kind, (number of cells,) each, in no order, cells of weight 0 left out.

    Attributes:
        positive: of real columns with target 1.
        negative: of real columns with target 0.
        between: of real columns with a target between.
        mixed_positive: of mixtures with target 1.
        mixed_negative: of mixtures with target 0.
        mixed_between: of mixtures with a target between.
        mixed_target: the targets of `mixed_between`, in its order.
    """

    positive: Tensor
    negative: Tensor
    between: Tensor
    mixed_positive: Tensor
    mixed_negative: Tensor
    mixed_between: Tensor
    mixed_target: Tensor

    @property
    def mixtures(self) -> Tensor:
        """The similarities of all mixtures."""
        return torch.cat([self.mixed_positive, self.mixed_negative, self.mixed_between])


@torch.no_grad()
def hardness(pairs: Pairs, mixed: Pairs | None = None) -> Hardness:
    """The similarities of positives, negatives and mixtures, ready for a histogram.

    Args:
        pairs: the table before mixing: `criterion.tables(...)[0]`.
        mixed: the table that a mixer made of it, `criterion.mix(pairs, criterion.draw(pairs))`: what it holds beside
            the columns of `pairs` are mixtures. None: there are none.

    Raises:
        ValueError: the tables have different numbers of anchors.

    >>> from mixcontrast import MoCHi, SupConLoss
    >>> criterion = MoCHi(SupConLoss(), num_hardest=4, num_pair_mixes=3, num_anchor_mixes=2)
    >>> pairs, = criterion.tables(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
    >>> found = hardness(pairs, criterion.mix(pairs, criterion.draw(pairs)))
    >>> len(found.positive), len(found.negative), len(found.mixed_negative)  # 6 x 1, 6 x 4, 6 x 5
    (6, 24, 30)
    """
    if mixed is not None and mixed.shape[0] != pairs.shape[0]:
        raise ValueError(
            "A mixed table has the anchors of the table it was made of. "
            f"Got {pairs.shape[0]} anchors before and {mixed.shape[0]} after; give the two of one call."
        )
    real = list(pairs)
    made = [] if mixed is None else [b for b in mixed if all(b.similarity is not r.similarity for r in real)]
    empty = pairs.blocks[0].similarity.new_zeros(0)
    positive, negative, between, _ = _by_target(real, empty)
    return Hardness(positive, negative, between, *_by_target(made, empty))


def _by_target(blocks: list[Block], empty: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarities where the target is 1, 0, and between, and the targets of these."""
    kinds: tuple[list[Tensor], ...] = ([empty], [empty], [empty], [empty])
    for block in blocks:
        similarity = block.similarity
        target = torch.as_tensor(block.target, device=similarity.device).expand_as(similarity)
        counts = torch.as_tensor(block.weight, device=similarity.device).expand_as(similarity) > 0
        one, zero = counts & (target == 1), counts & (target == 0)
        rest = counts & ~one & ~zero
        for kind, cells in zip(kinds, (similarity[one], similarity[zero], similarity[rest], target[rest]), strict=True):
            kind.append(cells.to(empty.dtype))
    return tuple(torch.cat(kind) for kind in kinds)  # type: ignore[return-value]


@dataclass(frozen=True)
class FalseNegatives:
    """Shares, in [0, 1], of mixtures made as negatives that are of the anchor's own class.

    Attributes:
        any: at least one parent is of the anchor's class; the anchor itself does not count.
        all: every parent is.
        count: of how many mixtures; those with a label of -1 (unknown) are left out.
    """

    any: float
    all: float
    count: int


@torch.no_grad()
def false_negatives(
    anchor_labels: Tensor, candidate_labels: Tensor, *parents: Tensor, keep: Tensor | None = None
) -> FalseNegatives:
    """How many mixtures of negatives are none, where the classes are known but were not used.

    Args:
        anchor_labels: (A,) integers; -1 where unknown.
        candidate_labels: (K,) integers, of the columns that were mixed; -1 where unknown.
        parents: (A, M) columns each: of MoCHi's pair mixes `draw.first, draw.second`, of its mixes with the anchor
            `draw.negative` alone; of real negatives `torch.arange(K).expand(A, K)`.
        keep: bool, broadcasts to (A, M): which mixtures count; None: all.

    Raises:
        TypeError: labels that are not integers.
        ValueError: no parents, shapes that do not fit, columns that do not exist, or no mixture with known labels.

    >>> parents = torch.tensor([[0, 0, 1], [1, 1, 2]]), torch.tensor([[1, 2, 2], [2, 1, 0]])
    >>> false_negatives(torch.tensor([7, 8]), torch.tensor([7, 7, 8]), *parents)
    FalseNegatives(any=0.8333333333333334, all=0.16666666666666666, count=6)
    """
    check_labels(anchor_labels, anchor_labels)
    check_labels(candidate_labels, candidate_labels)
    shapes = [tuple(p.shape) for p in parents]
    if not parents or any(p.ndim != 2 or len(p) != len(anchor_labels) or p.shape != parents[0].shape for p in parents):
        raise ValueError(
            "`parents` must be one or more tables of columns (anchors, mixtures), all of one shape. "
            f"Got {len(anchor_labels)} anchors and parents {shapes}; give the columns of the mixer's draw."
        )
    stacked = torch.stack(parents)  # (P, A, M)
    if stacked.numel() and not 0 <= int(stacked.min()) <= int(stacked.max()) < len(candidate_labels):
        raise ValueError(
            f"`parents` must be columns of the {len(candidate_labels)} candidates. "
            f"Got columns from {int(stacked.min())} to {int(stacked.max())}; give the labels of the columns mixed."
        )
    theirs, mine = candidate_labels[stacked], anchor_labels[:, None]
    known = (theirs != -1).all(dim=0) & (mine != -1)
    if keep is not None:
        known = known & keep
    count = int(known.sum())
    if count == 0:
        raise ValueError(
            "No mixture has known labels. "
            f"Got {len(anchor_labels)} anchors and mixtures {shapes[0]}, each with a label of -1 or left out."
        )
    same = theirs == mine
    return FalseNegatives(
        any=int((same.any(dim=0) & known).sum()) / count, all=int((same.all(dim=0) & known).sum()) / count, count=count
    )


def gradient_shares(reduce: Callable[..., Tensor], *tables: Pairs) -> tuple[Tensor, ...]:
    """Which share of a loss's gradient each block of columns carries.

    The gradient of the loss by each similarity, in absolute value, summed over a block and divided by the sum over
    all blocks of all tables. Each cell counts on its own: mixtures are not followed to their parents.

    Args:
        reduce: the tables to the loss; `loss.reduce` of a loss that reads one table.
        tables: as the loss reads them, after mixing: for Metrix, the real and the mixed one.

    Returns:
        For each table the shares of its blocks, (number of blocks,); all together they sum to 1.

    Raises:
        ValueError: no table, or a loss without gradient, so that there is nothing to share.

    >>> from mixcontrast import Metrix, MultiSimilarityLoss
    >>> criterion = Metrix(MultiSimilarityLoss())
    >>> pairs, = criterion.tables(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
    >>> mixed = criterion.mix(pairs, criterion.draw(pairs))
    >>> def reduce(pairs, mixed):
    ...     return criterion.loss.reduce(pairs) + criterion.weight * criterion.loss.reduce(mixed)
    >>> [shares.shape for shares in gradient_shares(reduce, pairs, mixed)]
    [torch.Size([1]), torch.Size([1])]
    """
    grads = cell_gradients(reduce, *tables)
    sums = torch.stack([grad.abs().sum() for of_table in grads for grad in of_table])
    total = sums.sum()
    if not bool(total > 0):
        raise ValueError(
            "There is no gradient to share. Got a loss whose gradient is 0 (or NaN) in every cell; "
            "give a batch on which the loss is not 0."
        )
    return tuple((sums / total).split([len(pairs.blocks) for pairs in tables]))


def cell_gradients(reduce: Callable[..., Tensor], *tables: Pairs) -> list[list[Tensor]]:
    """The gradient of a loss by each similarity: for each table, for each of its blocks, (A, C).

    Arguments as in `gradient_shares`; 0 in blocks that the loss does not read.

    Raises:
        ValueError: no table, or a loss that does not depend on the similarities.
    """
    if not tables:
        raise ValueError("`gradient_shares` needs a table. Got none; give the tables that the loss reads.")
    cells: list[Tensor] = []
    copies = []
    for pairs in tables:
        blocks = tuple(replace(block, similarity=block.similarity.detach().requires_grad_()) for block in pairs)
        cells += [block.similarity for block in blocks]
        copies.append(replace(pairs, blocks=blocks))
    with torch.enable_grad():
        loss = reduce(*copies)
    if not loss.requires_grad:
        raise ValueError(
            "The loss must depend on the similarities of its tables. Got one without gradient; "
            "`reduce` must read the tables that it is given."
        )
    grads = torch.autograd.grad(loss, cells, allow_unused=True)
    found = [torch.zeros_like(cell) if grad is None else grad for grad, cell in zip(grads, cells, strict=True)]
    return [[found.pop(0) for _ in pairs.blocks] for pairs in tables]
