"""The criteria that a command can name, with the hyper-parameters of the methods' papers where they give them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mixcontrast.losses import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
    CyClipLoss,
    HardNegativeLoss,
    InfoNCE,
    LiftedStructureLoss,
    Loss,
    MultiSimilarityLoss,
    NCALoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SigLipLoss,
    SupConLoss,
    TripletLoss,
)
from mixcontrast.mixers import GeodesicMixup, Metrix, Mixer, MoCHi, SupReMix, SynCo
from mixcontrast.training.fitting import LABELS, TOWERS, VALUES, VIEWS
from mixcontrast.wording import nearest


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        make: a class of mixcontrast.
        arguments: of it.
        sized: whether it has a vector a class, so that it is told how many classes and how wide.
        inner: the loss that it stands around, where it is a loss around a loss.
    """

    make: type
    arguments: dict[str, Any] = field(default_factory=dict)
    sized: bool = False
    inner: Named | None = None


LOSSES: dict[str, Named] = {
    "binomial-deviance": Named(BinomialDevianceLoss),
    "contrastive": Named(ContrastiveLoss),
    "lifted-structure": Named(LiftedStructureLoss),
    "multi-similarity": Named(MultiSimilarityLoss, {"alpha": 18.0, "beta": 75.0, "base": 0.77}),
    "nca": Named(NCALoss, {"temperature": 0.1}),
    "proxy-anchor": Named(ProxyAnchorLoss, sized=True),
    "proxy-nca": Named(ProxyNCALoss, sized=True),
    "supcon": Named(SupConLoss, {"temperature": 0.1}),
    "triplet": Named(TripletLoss, {"only_violated": True}),
}
"""Losses of labelled examples."""

_SMALL = {"num_hardest": 32, "num_pair_mixes": 32, "num_anchor_mixes": 8}
_SIX = {
    "num_hardest": 32, "num_interpolated": 8, "num_extrapolated": 8, "num_pairs": 8, "num_noised": 4,
    "num_gradient": 4, "num_sign": 4,
}  # fmt: skip

MIXERS: dict[str, Named] = {
    "metrix": Named(Metrix),
    "mochi": Named(MoCHi, _SMALL),
    "synco": Named(SynCo, _SIX),
}
"""Mixers of labelled examples; of a batch's negatives there are few, so few are mixed."""

_OFF = {"m2": None, "v": None, "l": None, "vl": None}


def _alone(term: str) -> Named:
    """One term of m3-Mix."""
    return Named(GeodesicMixup, {name: off for name, off in _OFF.items() if name != term})


NAMED: dict[tuple[str, str], tuple[dict[str, Named], dict[str, Named]]] = {
    LABELS: (LOSSES, MIXERS),
    VIEWS: (
        {
            "infonce": Named(InfoNCE, {"temperature": 0.2}),
            "hard-negative": Named(HardNegativeLoss, {"tau_plus": 0.0}, inner=Named(InfoNCE, {"temperature": 0.2})),
            "debiased": Named(HardNegativeLoss, {"beta": 0.0}, inner=Named(InfoNCE, {"temperature": 0.2})),
        },
        {"mochi": Named(MoCHi, _SMALL), "synco": Named(SynCo, _SIX)},
    ),
    VALUES: (
        {
            "rank-n-contrast": Named(RankNContrastLoss),
            "supcon": Named(SupConLoss, {"temperature": 0.1}),
        },
        {"supremix": Named(SupReMix)},
    ),
    TOWERS: (
        {
            "clip": Named(ClipLoss),
            "clip-same-modality": Named(ClipLoss, {"same_modality": True, "same_modality_temperature": 0.15}),
            "siglip": Named(SigLipLoss),
        },
        {
            "m2": _alone("m2"), "v": _alone("v"), "l": _alone("l"), "vl": _alone("vl"), "m3": Named(GeodesicMixup),
            "mochi": Named(MoCHi, {"num_hardest": 64, "num_pair_mixes": 64, "num_anchor_mixes": 16}),
            "synco": Named(
                SynCo,
                {"num_hardest": 64, "num_interpolated": 16, "num_extrapolated": 16, "num_pairs": 16, "num_noised": 4,
                 "num_gradient": 4, "num_sign": 4},
            ),
            "hard-negative": Named(HardNegativeLoss, {"tau_plus": 0.0}),
            "cyclip": Named(CyClipLoss),
        },
    ),
}  # fmt: skip
"""For what a criterion is called with: its losses, and its mixers and losses around a loss, by name. Around
`clip-same-modality` MoCHi and SynCo mix columns of the anchor's own tower."""

MODULES = {LABELS: "MetricLearning", VIEWS: "SelfSupervised", VALUES: "Regression", TOWERS: "ImageText"}
"""For what a criterion is called with: the class of mixcontrast.training that calls it so."""


def parts_of(name: str, kind: tuple[str, str] = LABELS) -> tuple[Named, list[Named]]:
    """The loss and the mixers, innermost first, that `loss + mixer + mixer` stands for.

    Raises:
        ValueError: a name that there is not, or that is of another module.
    """
    losses, mixers = NAMED[kind]
    first, *others = (part.strip() for part in name.split("+"))
    if first not in losses:
        of = [MODULES[other] for other, (known, _) in NAMED.items() if first in known]
        if of:
            there = ", ".join(sorted(losses))
            raise ValueError(
                f"{MODULES[kind]} needs a criterion of its own. Got {name!r}, which is of {' and '.join(of)}; take one "
                f"of {there}."
            )
    for part, known in ((first, losses), *((other, mixers) for other in others)):
        if part not in known:
            there = ", ".join(sorted(losses) + [f"+ {mixer}" for mixer in mixers])
            raise ValueError(f"There is no criterion {name!r}.{nearest(part, known, 1) or f' There are {there}.'}")
    return losses[first], [mixers[other] for other in others]


def written_criterion(
    name: str, num_classes: int, embedding_dim: int, kind: tuple[str, str] = LABELS
) -> dict[str, Any]:
    """The criterion of a name as a recipe has it: `class_path` and `init_args`, all the way down.

    Raises:
        ValueError: a name that there is not.
    """
    loss, mixers = parts_of(name, kind)
    sizes = {"num_classes": num_classes, "embedding_dim": embedding_dim} if loss.sized else {}
    inner = {} if loss.inner is None else {"loss": _written(loss.inner, {})}
    found = _written(loss, sizes | inner)
    for mixer in mixers:
        found = _written(mixer, {"loss": found, **_own_tower(loss, mixer)})
    return found


def _own_tower(loss: Named, mixer: Named) -> dict[str, Any]:
    """What tells a mixer to mix the columns of the anchor's own tower, where the loss has them."""
    return {"same_modality": True} if loss.arguments.get("same_modality") and mixer.make in (MoCHi, SynCo) else {}


def _written(named: Named, more: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": f"mixcontrast.{named.make.__name__}", "init_args": {**named.arguments, **more}}


def criterion_of(loss: str, mixer: str | None, num_classes: int, embedding_dim: int) -> Loss | Mixer:
    """The criterion of two names of labelled examples; `mixer` None is the loss alone.

    Raises:
        ValueError: a name that there is not.
        TypeError: a mixer that the loss cannot read.
    """
    plain, mixers = parts_of(loss if mixer is None else f"{loss} + {mixer}")
    sizes = {"num_classes": num_classes, "embedding_dim": embedding_dim} if plain.sized else {}
    found = plain.make(**plain.arguments, **sizes)
    for named in mixers:
        found = named.make(found, **named.arguments)
    return found
