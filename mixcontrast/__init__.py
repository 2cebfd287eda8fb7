"""Hard examples for contrastive and metric learning, mixed without building an embedding."""

from mixcontrast.losses import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
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
from mixcontrast.mixing import Geodesic, Linear
from mixcontrast.pairs import Block, Pairs
from mixcontrast.queue import KeyQueue

__version__ = "0.1.0"

__all__ = [
    "BinomialDevianceLoss",
    "Block",
    "ClipLoss",
    "ContrastiveLoss",
    "Geodesic",
    "InfoNCE",
    "KeyQueue",
    "LiftedStructureLoss",
    "Linear",
    "Loss",
    "MultiSimilarityLoss",
    "NCALoss",
    "Pairs",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankNContrastLoss",
    "SigLipLoss",
    "SupConLoss",
    "TripletLoss",
]
