"""The criteria that a command can name, with the hyper-parameters of Metrix's paper where it gives them."""

from __future__ import annotations

from collections.abc import Callable

from mixcontrast.losses import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    Loss,
    MultiSimilarityLoss,
    NCALoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SupConLoss,
    TripletLoss,
)
from mixcontrast.mixers import Metrix, Mixer, MoCHi

LOSSES: dict[str, Callable[[int, int], Loss]] = {
    "binomial-deviance": lambda num_classes, dim: BinomialDevianceLoss(),
    "contrastive": lambda num_classes, dim: ContrastiveLoss(),
    "lifted-structure": lambda num_classes, dim: LiftedStructureLoss(),
    "multi-similarity": lambda num_classes, dim: MultiSimilarityLoss(alpha=18, beta=75, base=0.77),
    "nca": lambda num_classes, dim: NCALoss(temperature=0.1),
    "proxy-anchor": lambda num_classes, dim: ProxyAnchorLoss(num_classes, dim),
    "proxy-nca": lambda num_classes, dim: ProxyNCALoss(num_classes, dim),
    "supcon": lambda num_classes, dim: SupConLoss(temperature=0.1),
    "triplet": lambda num_classes, dim: TripletLoss(only_violated=True),
}

MIXERS: dict[str, Callable[[Loss], Mixer]] = {
    "metrix": lambda loss: Metrix(loss),
    "mochi": lambda loss: MoCHi(loss, num_hardest=32, num_pair_mixes=32, num_anchor_mixes=8),
}


def criterion_of(loss: str, mixer: str | None, num_classes: int, embedding_dim: int) -> Loss | Mixer:
    """The criterion of two names; `mixer` None is the loss alone.

    Raises:
        KeyError: a name that there is not.
        TypeError: a mixer that the loss cannot read.
    """
    plain = LOSSES[loss](num_classes, embedding_dim)
    return plain if mixer is None else MIXERS[mixer](plain)
