"""Losses: each reduces the rows of a table of pairs to numbers."""

from mixcontrast.losses.base import Loss
from mixcontrast.losses.clip import ClipLoss, SigLipLoss
from mixcontrast.losses.cyclip import CyClipLoss
from mixcontrast.losses.hard_negatives import HardNegativeLoss
from mixcontrast.losses.pair_sums import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NCALoss,
)
from mixcontrast.losses.proxies import ProxyAnchorLoss, ProxyNCALoss
from mixcontrast.losses.softmax import InfoNCE, RankNContrastLoss, SupConLoss
from mixcontrast.losses.triplet import TripletLoss

__all__ = [
    "BinomialDevianceLoss",
    "ClipLoss",
    "ContrastiveLoss",
    "CyClipLoss",
    "HardNegativeLoss",
    "InfoNCE",
    "LiftedStructureLoss",
    "Loss",
    "MultiSimilarityLoss",
    "NCALoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankNContrastLoss",
    "SigLipLoss",
    "SupConLoss",
    "TripletLoss",
]
