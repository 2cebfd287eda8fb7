"""Proxy losses: one learned vector a class stands for its examples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixcontrast.losses.base import Loss, Part, positive_number
from mixcontrast.losses.pair_sums import nca_rows
from mixcontrast.losses.rowsums import log_sum_exp, negatives, positives
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan


class ProxyNCALoss(Loss):
    """Each example against one proxy a class.

    Per example `-log(e^(s+/temperature) / sum_proxies e^(s/temperature))`, with `s` the cosine to a proxy.

    Args:
        num_classes: how many proxies (P); labels lie in [0, P).
        embedding_dim: their width (D).
        temperature: divides, > 0; the default 1/18 in cosine is ProxyNCA++'s 1/9 in squared distance. For
            pytorch-metric-learning's ProxyNCALoss(softmax_scale) it is `1 / (2 * softmax_scale)`.
        positives_in_denominator: False is ProxyNCA, True is ProxyNCA++ and pytorch-metric-learning.

    The proxies are parameters: give `criterion.parameters()` to the optimizer, often at 100 times the learning rate.
    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_proxies`.

    Source: Movshovitz-Attias et al., ICCV 2017, arXiv 1703.07464; Teh et al., ECCV 2020, arXiv 2004.01113.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        temperature: float = 1 / 18,
        positives_in_denominator: bool = True,
    ) -> None:
        super().__init__()
        positive_number(num_classes=num_classes, embedding_dim=embedding_dim, temperature=temperature)
        self.temperature, self.positives_in_denominator = temperature, positives_in_denominator
        self.proxies = _proxies(num_classes, embedding_dim)

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_proxies(embeddings, labels, self.proxies),)

    def rows(self, pairs: Pairs) -> Tensor:
        return nca_rows(pairs, self.temperature, self.positives_in_denominator)


class ProxyAnchorLoss(Loss):
    """Each proxy is an anchor: it pulls its class's examples and pushes the others.

    The mean over proxies with examples in the batch of `log(1 + sum_positives e^(-alpha (s - delta)))` plus the mean
    over all proxies of `log(1 + sum_negatives e^(alpha (s + delta)))`.

    Args:
        num_classes: how many proxies (P); labels lie in [0, P).
        embedding_dim: their width (D).
        alpha: slope, > 0.
        delta: margin, cosine.

    The proxies are parameters: give `criterion.parameters()` to the optimizer, often at 100 times the learning rate.
    Called with `(embeddings (A, D), labels (A,))`; raises as `Pairs.from_proxies`.

    Source: Kim et al., CVPR 2020, arXiv 2003.13911, equation 4; equal to pytorch-metric-learning's.
    """

    counts_rows = False

    def __init__(self, num_classes: int, embedding_dim: int, *, alpha: float = 32.0, delta: float = 0.1) -> None:
        super().__init__()
        positive_number(num_classes=num_classes, embedding_dim=embedding_dim, alpha=alpha)
        self.alpha, self.delta = alpha, delta
        self.proxies = _proxies(num_classes, embedding_dim)

    def plans(self, embeddings: Tensor, labels: Tensor) -> tuple[Plan]:
        return (Plan.from_proxies(embeddings, labels, self.proxies).transpose(),)

    def kept(self, pairs: Pairs) -> Tensor:
        """Every row: a proxy without examples still pushes."""
        return pairs.has_positive() | pairs.has_negative()

    def rows(self, pairs: Pairs) -> Tensor:
        pull, push = self._both(pairs)
        with_examples = pairs.has_positive().sum().clamp(min=1)
        return pull * (self.kept(pairs).sum() / with_examples) + push

    def parts(self, pairs: Pairs) -> list[Part]:
        kept = self.kept(pairs)
        (examples, number), _ = self.counts(pairs)
        pull, push = (torch.where(kept, rows, 0.0).sum() for rows in self._both(pairs))
        return [self.part(pull, examples, pairs, kept=number), self.part(push, number, pairs)]

    def counts(self, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
        number = self.kept(pairs).sum()
        return [(pairs.has_positive().sum(), number), (number, number)]

    def _both(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(A,) each: what positives and what negatives give."""
        pull = F.softplus(log_sum_exp(*positives(pairs), -self.alpha) + self.alpha * self.delta)
        push = F.softplus(log_sum_exp(*negatives(pairs), self.alpha) + self.alpha * self.delta)
        return pull, push


def _proxies(num_classes: int, embedding_dim: int) -> nn.Parameter:
    proxies = torch.empty(num_classes, embedding_dim)
    nn.init.kaiming_normal_(proxies, mode="fan_out")
    return nn.Parameter(proxies)
