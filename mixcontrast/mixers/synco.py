"""SynCo: six kinds of synthetic negatives of each anchor's hardest negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixcontrast.cells import Cells
from mixcontrast.losses.base import Batch, Loss, Part
from mixcontrast.mixers.base import Mixer, check_wrappable, self_similarity
from mixcontrast.mixers.pool import Pool, check_queue, pool_of
from mixcontrast.mixing import Interpolation, Linear, stepped_similarity
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Plan
from mixcontrast.queue import KeyQueue
from mixcontrast.records import changed
from mixcontrast.similarity import similarity_table


@dataclass(frozen=True)
class SynCoDraw:
    """What SynCo makes its negatives of: columns of the table, and coefficients.

    Attributes:
        interpolated: (A, S1) columns mixed with the anchor.
        alpha: (A, S1) share of the anchor, uniform in (0, 0.5).
        extrapolated: (A, S2) columns moved away from the anchor.
        beta: (A, S2) how far, uniform in (1, 1.5).
        first: (A, S3) columns of pairs, and `second` likewise.
        second: (A, S3).
        gamma: (A, S3) share of `first`, uniform in (0, 1).
        noised: (A, S4) columns that get noise.
        noise: (S4, D) the noise of the m-th of them.
        towards: (A, S5) columns moved along the gradient.
        by_sign: (A, S6) columns moved along its sign.
        usable: (A, 1) bool: whether the anchor has a negative at all; 1.0 where all have.
    """

    interpolated: Tensor
    alpha: Tensor
    extrapolated: Tensor
    beta: Tensor
    first: Tensor
    second: Tensor
    gamma: Tensor
    noised: Tensor
    noise: Tensor
    towards: Tensor
    by_sign: Tensor
    usable: Cells


class SynCo(Mixer):
    """Adds, to each anchor's negatives, six kinds of synthetic ones made of its `num_hardest` most similar negatives.

    With anchor `a` and hard negatives `n`, each divided by its length, of weight 1:
    - interpolated `alpha*a + (1-alpha)*n`, `alpha ~ U(0, 0.5)`;
    - extrapolated `a + beta*(n - a)`, `beta ~ U(1, 1.5)`;
    - pairs `gamma*n_i + (1-gamma)*n_j`, `gamma ~ U(0, 1)`;
    - noised `n + e`, `e ~ N(0, noise_scale^2)`;
    - along the gradient of `a.n` by `n`, which is `a`: `n + gradient_step*a`;
    - along its sign: `n + sign_step*sign(a)`.

    Only negatives of weight above 0 are used; an anchor with fewer than `num_hardest` uses those it has.

    Args:
        loss: the loss (or mixer) that reads the table.
        num_hardest: N, at least 1.
        num_interpolated: at least 0; the other five numbers likewise, not all 0. The defaults are the paper's; in a
            small batch take fewer.
        noise_scale: standard deviation of each number of the noise, > 0.
        gradient_step: > 0.
        sign_step: > 0.
        queue: as MoCHi's.
        warmup_steps: how many calls in training mode pass without synthetic negatives; counted in the state dict.
        interpolation: of the first three kinds: Linear(normalize=True) as in the paper, or Geodesic().
        detach: synthetic negatives pass no gradient to what they are made of, as in the paper; the anchor gets it.
        same_modality: as MoCHi's.

    Raises:
        TypeError: `loss` cannot read mixtures, or it has a queue of its own beside this one.
        ValueError: numbers out of range.

    Cost: as MoCHi. All kinds are read from the table; noise and sign take, for the length, a product of two rows each,
    in chunks.

    Source: Giakoumoglou and Stathaki, arXiv 2410.02401. Differs: the m-th noised negatives of all anchors share their
    noise, so that it is one product (each anchor's are drawn as in the paper); the gradient is exact, where the
    authors' code probes it with noise of 1e-5 and so hardly moves.

    >>> from mixcontrast import InfoNCE
    >>> criterion = SynCo(InfoNCE(temperature=0.2), num_hardest=4, num_interpolated=3, num_extrapolated=3, num_pairs=3,
    ...                   num_noised=1, num_gradient=1, num_sign=1)
    >>> pairs, = criterion.tables(torch.randn(16, 8), torch.randn(16, 8))
    >>> pairs.shape, criterion.mix(pairs, criterion.draw(pairs)).shape
    ((32, 32), (32, 44))
    """

    def __init__(
        self,
        loss: Loss | Mixer,
        *,
        num_hardest: int = 1024,
        num_interpolated: int = 256,
        num_extrapolated: int = 256,
        num_pairs: int = 256,
        num_noised: int = 64,
        num_gradient: int = 64,
        num_sign: int = 64,
        noise_scale: float = 0.01,
        gradient_step: float = 0.01,
        sign_step: float = 0.01,
        queue: KeyQueue | None = None,
        warmup_steps: int = 0,
        interpolation: Interpolation = Linear(),
        detach: bool = True,
        same_modality: bool = False,
    ) -> None:
        super().__init__()
        check_wrappable("SynCo", loss, soft_targets=False)
        numbers = num_interpolated, num_extrapolated, num_pairs, num_noised, num_gradient, num_sign
        if num_hardest < 1 or min(numbers) < 0 or sum(numbers) < 1:
            raise ValueError(
                "SynCo needs num_hardest of at least 1 and some negatives to make. "
                f"Got num_hardest={num_hardest} and {numbers} of the six kinds; the paper's are 1024 and "
                "(256, 256, 256, 64, 64, 64)."
            )
        if not (noise_scale > 0 and gradient_step > 0 and sign_step > 0):
            raise ValueError(
                f"SynCo's noise_scale, gradient_step and sign_step must be positive. Got {noise_scale}, "
                f"{gradient_step}, {sign_step}; the paper's are 0.01, and a number of 0 leaves a kind out."
            )
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be at least 0. Got {warmup_steps}; 0 mixes from the first step.")
        check_queue("SynCo", loss, queue)
        self.loss = loss
        self.num_hardest, self.numbers = num_hardest, numbers
        self.noise_scale, self.gradient_step, self.sign_step = noise_scale, gradient_step, sign_step
        self.queue = queue
        self.warmup_steps, self.step = warmup_steps, 0
        self.interpolation, self.detach, self.same_modality = interpolation, detach, same_modality

    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        if self.queue is None:
            return self.loss.plans(*inputs)
        return (self.queue.plan(*inputs, enqueue=self.training),)

    @torch.no_grad()
    def draw(self, pairs: Pairs, generator: torch.Generator | None = None) -> SynCoDraw:
        pool = pool_of("SynCo", pairs, self.same_modality, self.detach)
        hardest, number = pool.hardest(self.num_hardest)  # (A, N), (A, 1) or N
        on = dict(device=hardest.device, generator=generator)
        i, e, p, n, g, s = self.numbers
        size = (len(pairs.anchors), i + e + 2 * p + n + g + s)
        if isinstance(number, Tensor):
            place = (torch.rand(size, **on) * number).long()
        else:
            place = torch.randint(number, size, **on)
        columns = hardest.gather(1, place).split([i, e, p, p, n, g, s], dim=1)
        share = torch.rand(size[0], i + e + p, dtype=pairs.anchors.dtype, **on)
        share[:, : i + e] /= 2
        alpha, beta, gamma = share.split([i, e, p], dim=1)
        noise = self._noise(pairs.anchors, generator)
        return SynCoDraw(
            interpolated=columns[0],
            alpha=alpha,
            extrapolated=columns[1],
            beta=1 + beta,
            first=columns[2],
            second=columns[3],
            gamma=gamma,
            noised=columns[4],
            noise=noise,
            towards=columns[5],
            by_sign=columns[6],
            usable=number > 0 if isinstance(number, Tensor) else 1.0,
        )

    @torch.no_grad()
    def _noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(S4, D)"""
        size = self.numbers[3], like.shape[1]
        return torch.randn(size, dtype=like.dtype, device=like.device, generator=generator) * self.noise_scale

    def mix(self, pairs: Pairs, draw: SynCoDraw) -> Pairs:
        """The table with the six kinds as further negatives a row, in the order of the class's description."""
        pool = pool_of("SynCo", pairs, self.same_modality, self.detach)
        num_pairs = draw.first.shape[1]
        num_mixed = draw.interpolated.shape[1] + draw.extrapolated.shape[1] + num_pairs
        columns = [draw.first, draw.interpolated, draw.extrapolated, draw.second]  # what is mixed, by its parents
        columns += [draw.noised, draw.towards, draw.by_sign]
        read = pool.read(torch.cat(columns, dim=1))
        first, second, stepped = read.split([num_pairs, num_mixed, read.shape[1] - num_pairs - num_mixed], dim=1)
        own = self_similarity(pairs, self.detach)  # (A, 1)
        mixed = torch.cat([self._mixed(pool, draw, own, first, second), self._stepped(pool, draw, own, stepped)], dim=1)
        kind = pool.blocks[0]
        return pairs.append(Block(mixed, 0.0, draw.usable, None, kind.same_modality, kind.temperature))

    def _mixed(self, pool: Pool, draw: SynCoDraw, own: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """(A, S1 + S2 + S3) the first three kinds; of the pairs' parents and the other negatives, first and second."""
        with_anchor = second.shape[1] - first.shape[1]
        first = torch.cat([own.expand(-1, with_anchor), first], dim=1)
        share = torch.cat([draw.alpha, 1 - draw.beta, draw.gamma], dim=1)
        cosine = pool.cosines(draw.first, draw.second, self.interpolation)
        if cosine is not None:
            to_anchor = second.detach() if self.detach else second
            cosine = torch.cat([to_anchor[:, :with_anchor], cosine], dim=1)
        return self.interpolation.similarity(first, second, share, cosine)

    def _stepped(self, pool: Pool, draw: SynCoDraw, own: Tensor, similarity: Tensor) -> Tensor:
        """(A, S4 + S5 + S6) the other three kinds: negatives that take a step, their similarities given."""
        anchors, noise, step = pool.pairs.anchors, draw.noise, self.gradient_step
        row, number = (torch.arange(len(x), device=x.device) for x in (anchors, noise))
        moves = self.sign_step * anchors.detach().sign()  # (A, D)
        num_noised, num_towards, num_by_sign = (c.shape[1] for c in (draw.noised, draw.towards, draw.by_sign))
        to_anchor = similarity.detach() if self.detach else similarity
        steps = [
            similarity_table(anchors, noise),
            (step * own).expand(-1, num_towards),
            (anchors * moves).sum(dim=1, keepdim=True).expand(-1, num_by_sign),
        ]
        inner = [
            pool.products(draw.noised, noise, number.expand_as(draw.noised)),
            step * to_anchor[:, num_noised : num_noised + num_towards],
            pool.products(draw.by_sign, moves, row[:, None].expand_as(draw.by_sign)),
        ]
        squared = [
            noise.square().sum(dim=1).expand_as(draw.noised),
            own.new_full((1, 1), step * step).expand_as(draw.towards),
            moves.square().sum(dim=1, keepdim=True).expand_as(draw.by_sign),
        ]
        return stepped_similarity(similarity, *(torch.cat(kinds, dim=1) for kinds in (steps, inner, squared)))

    def loss_of(self, pairs: Pairs, draw: SynCoDraw) -> Tensor:
        return self.loss.reduce(self.mix(pairs, draw))

    def reduce(self, pairs: Pairs) -> Tensor:
        if self.step < self.warmup_steps:
            return self.loss.reduce(pairs)
        return self.loss_of(pairs, self.draw(pairs))

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        if batch.once(self, self._count_step):
            return self.loss.parts_of(tables, batch)
        mixed = []
        for number, pairs in enumerate(tables):
            draw = self.draw(pairs)
            if pairs.tile is not None:  # one noise for all rows
                draw = changed(draw, noise=batch.once((self, number), partial(self._noise, pairs.anchors)))
            mixed.append(self.mix(pairs, draw))
        return self.loss.parts_of(mixed, batch)

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
        return f"{self.num_hardest} hardest, {self.numbers} of the six kinds, warmup_steps={self.warmup_steps}"
