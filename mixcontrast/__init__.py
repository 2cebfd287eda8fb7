"""Hard examples for contrastive and metric learning, mixed without building an embedding."""

from mixcontrast.caching import cached_backward
from mixcontrast.distributed import Gathered
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
from mixcontrast.mixers import DeepMetrix, GeodesicMixup, Metrix, Mixer, MixTerm, MoCHi, SupReMix, SynCo
from mixcontrast.mixing import Geodesic, Linear
from mixcontrast.pairs import Block, Pairs
from mixcontrast.queue import KeyQueue
from mixcontrast.tiling import Tiled

__version__ = "0.1.0"

__all__ = [
    "BinomialDevianceLoss",
    "Block",
    "ClipLoss",
    "ContrastiveLoss",
    "CyClipLoss",
    "DeepMetrix",
    "Gathered",
    "Geodesic",
    "GeodesicMixup",
    "HardNegativeLoss",
    "InfoNCE",
    "KeyQueue",
    "LiftedStructureLoss",
    "Linear",
    "Loss",
    "Metrix",
    "MixTerm",
    "Mixer",
    "MoCHi",
    "MultiSimilarityLoss",
    "NCALoss",
    "Pairs",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankNContrastLoss",
    "SigLipLoss",
    "SupConLoss",
    "SupReMix",
    "SynCo",
    "Tiled",
    "TripletLoss",
    "cached_backward",
]
