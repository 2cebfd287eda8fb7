"""SupReMix: mixtures for contrastive regression, whose labels are real values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.checks import reads_values
from mixcontrast.losses.base import Loss
from mixcontrast.mixers.base import (
    Mixer,
    check_wrappable,
    innermost,
    only_real_block,
    parent_cosine,
    self_similarity,
    source,
)
from mixcontrast.mixing import Interpolation, Linear, needs_cosine, sample_beta
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Plan
from mixcontrast.records import changed


@dataclass(frozen=True)
class SupReMixDraw:
    """What SupReMix mixes.

    Attributes:
        lam: (A, C) the anchor's share in its mixture with each column (Mix-neg); None where that is off.
        below: (A, M) columns with a smaller value than the anchor (Mix-pos); None where that is off.
        above: (A, M) columns with a larger value.
        share: (A, M) share of `below`, such that the mixed value is the anchor's.
        keep: (A, M) bool: which of them count.
    """

    lam: Tensor | None
    below: Tensor | None
    above: Tensor | None
    share: Tensor | None
    keep: Tensor | None


class SupReMix(Mixer):
    """Adds mixed negatives and mixed positives to contrastive regression, and weighs pairs by label distance.

    For an anchor `i` of value `y_i`:
    - Mix-neg: with every column `k` of another value, `lam*z_i + (1-lam)*z_k`, `lam ~ Beta(alpha, beta)`: a negative.
    - Mix-pos: for columns `j`, `k` with `y_j < y_i < y_k`, both within `window`, `lam*z_j + (1-lam)*z_k` with
      `lam = (y_k - y_i)/(y_k - y_j)`: its value is `y_i`, a positive.
    - Distance magnifying: each pair counts `|y_i - y_v|^magnify_power + 1` in the sum over all pairs.

    Args:
        loss: SupConLoss, or another that reads targets and weights, or a mixer around one.
        alpha: of Mix-neg's Beta(alpha, beta), > 0; the paper's 2.
        beta: > 0; the paper's 8.
        window: of Mix-pos, > 0, in the units of the values; the paper's 5 (years of age).
        max_positive_mixes: at most so many Mix-pos an anchor, spread evenly over all that there are, so that memory
            grows with the batch and not with its cube.
        magnify_power: 1 (L1) or 2 (L2, squared); None: every pair counts once.
        negatives: Mix-neg on or off.
        positives: Mix-pos on or off; off for values of several dimensions, which have no order.
        interpolation: Linear(normalize=False) as in the authors' code, or Linear(normalize=True), or Geodesic().
        detach: mixtures pass no gradient to what they are made of, as in the authors' code; the anchor gets it.

    Called with `(embeddings (A, D), values (A,) or (A, L))`, floats; for two views an example, `torch.cat([view1,
    view2])` and `values.repeat(2)`. Distances over L dimensions are L1, or squared L2.

    Raises:
        TypeError: `loss` cannot read mixtures; integer values.
        ValueError: numbers out of range; values of several dimensions with Mix-pos on; values all the same.

    Cost: Mix-neg is one more table; Mix-pos `max_positive_mixes` cells an anchor at the most.

    Source: Wu, Dong et al., arXiv 2309.16633. Differs from the authors' code: each mixture keeps its own label, and one
    maximum is subtracted in the log-sum-exp. With images two views and temperature 0.3 there.

    >>> from mixcontrast import SupConLoss
    >>> criterion = SupReMix(SupConLoss(temperature=0.3), window=5)
    >>> loss = criterion(torch.randn(8, 4), torch.tensor([20., 22., 25., 31.]).repeat(2))
    """

    def __init__(
        self,
        loss: Loss | Mixer,
        *,
        alpha: float = 2.0,
        beta: float = 8.0,
        window: float = 5.0,
        max_positive_mixes: int = 1024,
        magnify_power: int | None = 1,
        negatives: bool = True,
        positives: bool = True,
        interpolation: Interpolation = Linear(normalize=False),
        detach: bool = True,
    ) -> None:
        super().__init__()
        check_wrappable("SupReMix", loss, soft_targets=False)
        bottom = innermost(loss)
        if bottom.towers or any(True for _ in bottom.parameters()):
            raise TypeError(
                "SupReMix compares examples with real values among themselves. "
                f"Got {type(bottom).__name__}, which compares them with others; use SupConLoss."
            )
        for name, number in {"alpha": alpha, "beta": beta, "window": window}.items():
            if not number > 0:
                raise ValueError(f"`{name}` must be positive. Got {name}={number}; the paper's are 2, 8 and 5.")
        if max_positive_mixes < 1:
            raise ValueError(f"`max_positive_mixes` must be at least 1. Got {max_positive_mixes}; or positives=False.")
        if magnify_power not in (None, 1, 2):
            raise ValueError(f"`magnify_power` must be 1, 2 or None. Got {magnify_power}.")
        self.loss = loss
        self.alpha, self.beta, self.window = alpha, beta, window
        self.max_positive_mixes, self.magnify_power = max_positive_mixes, magnify_power
        self.negatives, self.positives = negatives, positives
        self.interpolation, self.detach = interpolation, detach

    def plans(self, embeddings: Tensor, values: Tensor) -> tuple[Plan]:
        return (Plan.from_values(embeddings, values),)

    @torch.no_grad()
    def draw(self, pairs: Pairs, generator: torch.Generator | None = None) -> SupReMixDraw:
        block = only_real_block("SupReMix", pairs)
        values = pairs.anchor_labels
        if values is None or not values.is_floating_point():
            raise TypeError(
                "SupReMix mixes real values. Got a table without; build it by Pairs.from_values(embeddings, values)."
            )
        lam = None
        if self.negatives:
            lam = sample_beta(
                self.alpha, self.beta, tuple(block.similarity.shape), like=block.similarity, generator=generator
            )
        if not self.positives:
            return SupReMixDraw(lam, None, None, None, None)
        if values.ndim != 1 and values.shape[1] != 1:
            raise ValueError(
                f"Mix-pos needs values with an order, one an example. Got values {tuple(values.shape)}; "
                "set positives=False for several dimensions."
            )
        return SupReMixDraw(lam, *self._between(values.flatten(), pairs.candidate_labels.flatten(), generator))

    def _between(
        self, mine: Tensor, theirs: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Columns below and above each anchor within the window, the share of the lower one, and which count.

        In sorted order the columns below an anchor are one range and those above another, so a pair of them is a
        number below the product of the ranges' lengths, and a number of pairs is drawn without listing all.
        """
        rising, order = theirs.contiguous().sort()
        mine = mine.contiguous()
        first_below, num_below, first_above, num_above = self._ranges(mine, rising)
        total = (num_below * num_above)[:, None]  # (A, 1)
        half = (len(theirs) - 1) // 2  # below and above are at most all the others
        most = int(total.max()) if reads_values(total) else half * (len(theirs) - 1 - half)
        most = max(min(most, self.max_positive_mixes), 1)
        place = torch.arange(most, device=mine.device)  # (M,)
        spread = torch.rand(len(mine), most, dtype=torch.float64, device=mine.device, generator=generator)
        spread = ((place + spread) / most * total).long().clamp(max=total - 1)  # one from each of M equal shares
        number = torch.where(total <= most, place, spread)
        keep = number < total
        number, num_above = torch.where(keep, number, 0), num_above.clamp(min=1)[:, None]
        last = len(theirs) - 1
        below = order[(first_below[:, None] + number // num_above).clamp(max=last)]
        above = order[(first_above[:, None] + number % num_above).clamp(max=last)]
        low, high = theirs[below], theirs[above]
        share = torch.where(keep, (high - mine[:, None]) / torch.where(keep, high - low, 1.0), 0.5)
        return below, above, share, keep

    def _ranges(self, mine: Tensor, rising: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(A,) each: where the values below an anchor's begin, within the window, and how many; of those above too."""
        first_below = torch.searchsorted(rising, mine - self.window)
        num_below = torch.searchsorted(rising, mine) - first_below
        first_above = torch.searchsorted(rising, mine, right=True)
        num_above = torch.searchsorted(rising, mine + self.window, right=True) - first_above
        return first_below, num_below, first_above, num_above

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]] | None:
        """A row counts that has a positive, mixed or not."""
        if not isinstance(self.loss, Loss) or not self.loss.counts_rows:
            return None
        if not self.positives:
            return self.loss.counts_of(tables)
        (pairs,) = tables
        rising = pairs.candidate_labels.flatten().sort().values
        _, below, _, above = self._ranges(pairs.anchor_labels.flatten().contiguous(), rising)
        kept = (pairs.has_positive() | ((below > 0) & (above > 0))).sum()
        return [(kept, kept)]

    def mix(self, pairs: Pairs, draw: SupReMixDraw) -> Pairs:
        """The table with mixed columns, and with the weights of distance magnifying."""
        block = only_real_block("SupReMix", pairs)
        table = source(pairs, block, self.detach)
        apart = self._apart(pairs).to(table.dtype)  # (A, C)
        used = torch.as_tensor(block.weight > 0, device=table.device).expand_as(table)
        mixed = []
        if draw.lam is not None:
            cosine = (block.similarity.detach() if self.detach else block.similarity) if self._reads_cosine else None
            own = self_similarity(pairs, self.detach)
            similarity = self.interpolation.similarity(own, table, draw.lam, cosine)
            other = used & (apart > 0)
            if self.magnify_power is None:
                mixed.append(Block(similarity, 0.0, other))
            else:
                weight = apart * (1 - draw.lam) ** self.magnify_power + 1
                mixed.append(Block(similarity, 0.0, torch.where(other, weight, 0.0)))
        if draw.below is not None:
            cosine = parent_cosine(pairs, block, draw.below, draw.above, self.interpolation, self.detach)
            low, high = table.gather(1, draw.below), table.gather(1, draw.above)
            similarity = self.interpolation.similarity(low, high, draw.share.to(table.dtype), cosine)
            both_used = used.gather(1, draw.below) & used.gather(1, draw.above)
            mixed.append(Block(similarity, 1.0, draw.keep & both_used))
        if self.magnify_power is not None:
            block = changed(block, weight=(apart + 1) * block.weight)
        others = tuple(known for known in pairs.blocks if known.candidates is None)
        return changed(pairs, blocks=(block, *others, *mixed))

    @property
    def _reads_cosine(self) -> bool:
        return needs_cosine(self.interpolation)

    def _apart(self, pairs: Pairs) -> Tensor:
        """(A, C) label distances: L1, or squared L2 where the magnifying power is 2."""
        difference = pairs.anchor_labels[:, None] - pairs.candidate_labels[None, :]  # (A, C) or (A, C, L)
        difference = difference.square() if self.magnify_power == 2 else difference.abs()
        return difference if difference.ndim == 2 else difference.sum(dim=-1)

    def loss_of(self, pairs: Pairs, draw: SupReMixDraw) -> Tensor:
        return self.loss.reduce(self.mix(pairs, draw))

    def extra_repr(self) -> str:
        return f"Beta({self.alpha}, {self.beta}), window={self.window}, max_positive_mixes={self.max_positive_mixes}"
