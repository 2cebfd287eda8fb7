"""MoCHi: hard negatives mixed from each anchor's hardest negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.cells import Cells
from mixcontrast.losses.base import Batch, Loss, Part
from mixcontrast.mixers.base import Mixer, check_wrappable, self_similarity
from mixcontrast.mixers.pool import check_queue, pool_of
from mixcontrast.mixing import Interpolation, Linear
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Plan
from mixcontrast.queue import KeyQueue


@dataclass(frozen=True)
class MoCHiDraw:
    """What MoCHi mixes: columns of the table and the first parent's share.

    Attributes:
        first: (A, S) columns of pair mixes, and `second` likewise.
        second: (A, S).
        alpha: (A, S) share of `first`, uniform in (0, 1).
        negative: (A, S') columns mixed with the anchor.
        beta: (A, S') share of the anchor, uniform in (0, 0.5).
        usable: (A, 1) bool: whether the anchor has a negative at all; 1.0 where all have.
    """

    first: Tensor
    second: Tensor
    alpha: Tensor
    negative: Tensor
    beta: Tensor
    usable: Cells


class MoCHi(Mixer):
    """Adds, to each anchor's negatives, mixtures of its hardest ones and of these with the anchor itself.

    Per anchor, of its `num_hardest` most similar negatives: `num_pair_mixes` points `alpha*n_i + (1-alpha)*n_j`,
    `alpha ~ U(0, 1)`, and `num_anchor_mixes` points `beta*a + (1-beta)*n_j`, `beta ~ U(0, 0.5)`, each divided by its
    length, join the same sum as negatives of weight 1. Only negatives of weight above 0 are mixed; an anchor with fewer
    than `num_hardest` mixes those it has.

    Args:
        loss: the loss (or mixer) that reads the table.
        num_hardest: N, at least 1.
        num_pair_mixes: s, at least 0.
        num_anchor_mixes: s', at least 0. The defaults are MoCHi (1024, 1024, 128); in a small batch take fewer.
        queue: a KeyQueue: the criterion is then called with `(query, key)` or `(query, key, labels)`, as InfoNCE is,
            and each call in training mode enqueues its keys. Without, it is called as `loss` is.
        warmup_steps: how many calls in training mode pass without mixing; counted in the state dict.
        interpolation: Linear(normalize=True) as in the paper, or Geodesic().
        detach: mixtures pass no gradient to what they are made of, as in the paper; the anchor gets it.
        same_modality: around a loss of two towers that has `same_modality` set, mix columns of the anchor's own tower
            (images for an image) instead of the other's.

    Raises:
        TypeError: `loss` cannot read mixtures, or it has a queue of its own beside this one.
        ValueError: numbers out of range.

    Cost: a search for the hardest, and two cells of the table a mixture; of embeddings it reads only, for the length
    of pair mixes, those of the pairs, in chunks.

    Source: Kalantidis et al., NeurIPS 2020, arXiv 2010.01028.

    >>> from mixcontrast import InfoNCE
    >>> criterion = MoCHi(InfoNCE(temperature=0.2), num_hardest=4, num_pair_mixes=8, num_anchor_mixes=2)
    >>> pairs, = criterion.tables(torch.randn(16, 8), torch.randn(16, 8))
    >>> pairs.shape, criterion.mix(pairs, criterion.draw(pairs)).shape
    ((32, 32), (32, 42))
    """

    def __init__(
        self,
        loss: Loss | Mixer,
        *,
        num_hardest: int = 1024,
        num_pair_mixes: int = 1024,
        num_anchor_mixes: int = 128,
        queue: KeyQueue | None = None,
        warmup_steps: int = 0,
        interpolation: Interpolation = Linear(),
        detach: bool = True,
        same_modality: bool = False,
    ) -> None:
        super().__init__()
        check_wrappable("MoCHi", loss, soft_targets=False)
        if num_hardest < 1 or num_pair_mixes < 0 or num_anchor_mixes < 0 or num_pair_mixes + num_anchor_mixes < 1:
            raise ValueError(
                "MoCHi needs num_hardest of at least 1 and some mixes. "
                f"Got num_hardest={num_hardest}, num_pair_mixes={num_pair_mixes}, "
                f"num_anchor_mixes={num_anchor_mixes}; the paper's are 1024, 1024, 128."
            )
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be at least 0. Got {warmup_steps}; 0 mixes from the first step.")
        check_queue("MoCHi", loss, queue)
        self.loss = loss
        self.num_hardest, self.num_pair_mixes, self.num_anchor_mixes = num_hardest, num_pair_mixes, num_anchor_mixes
        self.queue = queue
        self.warmup_steps, self.step = warmup_steps, 0
        self.interpolation, self.detach, self.same_modality = interpolation, detach, same_modality

    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        if self.queue is None:
            return self.loss.plans(*inputs)
        return (self.queue.plan(*inputs, enqueue=self.training),)

    @torch.no_grad()
    def draw(self, pairs: Pairs, generator: torch.Generator | None = None) -> MoCHiDraw:
        pool = pool_of("MoCHi", pairs, self.same_modality, self.detach)
        hardest, number = pool.hardest(self.num_hardest)  # (A, N), (A, 1) or N
        anchors, s, t = len(pairs.anchors), self.num_pair_mixes, self.num_anchor_mixes
        size = (anchors, 2 * s + t)
        if isinstance(number, Tensor):
            place = (torch.rand(size, device=hardest.device, generator=generator) * number).long()
        else:
            place = torch.randint(number, size, device=hardest.device, generator=generator)
        first, second, negative = hardest.gather(1, place).split([s, s, t], dim=1)
        share = torch.rand(
            anchors, s + t, dtype=pairs.anchors.dtype, device=hardest.device, generator=generator
        )
        return MoCHiDraw(
            first=first,
            second=second,
            alpha=share[:, :s],
            negative=negative,
            beta=share[:, s:] / 2,
            usable=number > 0 if isinstance(number, Tensor) else 1.0,
        )

    def mix(self, pairs: Pairs, draw: MoCHiDraw) -> Pairs:
        """The table with `num_pair_mixes + num_anchor_mixes` further negatives a row."""
        pool = pool_of("MoCHi", pairs, self.same_modality, self.detach)
        s, t = draw.first.shape[1], draw.negative.shape[1]
        read = pool.read(torch.cat([draw.first, draw.second, draw.negative], dim=1))
        first, second = read.split([s, s + t], dim=1)
        own = self_similarity(pairs, self.detach).expand(-1, t)
        first = torch.cat([first, own], dim=1)  # (A, S + S') parents: of pairs, then the anchor
        share = torch.cat([draw.alpha, draw.beta], dim=1)
        cosine = pool.cosines(draw.first, draw.second, self.interpolation)
        if cosine is not None:
            with_anchor = second.detach() if self.detach else second
            cosine = torch.cat([cosine, with_anchor[:, s:]], dim=1)
        mixed = self.interpolation.similarity(first, second, share, cosine)
        kind = pool.blocks[0]
        return pairs.append(Block(mixed, 0.0, draw.usable, None, kind.same_modality, kind.temperature))

    def loss_of(self, pairs: Pairs, draw: MoCHiDraw) -> Tensor:
        return self.loss.reduce(self.mix(pairs, draw))

    def reduce(self, pairs: Pairs) -> Tensor:
        if self.step < self.warmup_steps:
            return self.loss.reduce(pairs)
        return self.loss_of(pairs, self.draw(pairs))

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        if batch.once(self, self._count_step):
            return self.loss.parts_of(tables, batch)
        return super().parts_of(tables, batch)

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]] | None:
        """Those of the wrapped loss: rows that get further negatives have some."""
        return self.loss.counts_of(tables)

    def _count_step(self) -> bool:
        """Counts a step of training; whether it is one of the warm-up."""
        warming_up = self.step < self.warmup_steps
        if self.training and (warming_up or not torch.compiler.is_compiling()):  # a graph is compiled for each count
            self.step += 1
        return warming_up

    def get_extra_state(self) -> Tensor:
        """How many training steps were counted, for the state dict."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """How many training steps were counted, from a state dict."""
        self.step = int(state)

    def extra_repr(self) -> str:
        return f"({self.num_hardest}, {self.num_pair_mixes}, {self.num_anchor_mixes}), warmup_steps={self.warmup_steps}"
