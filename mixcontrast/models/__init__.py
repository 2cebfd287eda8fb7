"""Networks: those to train by class, models of two towers, and encoders by name for `mixcontrast embed`."""

from mixcontrast.models.heads import MLP, FeatureHead, ProjectionHead
from mixcontrast.models.networks import EfficientNetLite0Network, TimmNetwork
from mixcontrast.models.towers import FeatureTowers, OpenClip, PackagedTowers, Towers

__all__ = [
    "MLP",
    "EfficientNetLite0Network",
    "FeatureHead",
    "FeatureTowers",
    "OpenClip",
    "PackagedTowers",
    "ProjectionHead",
    "TimmNetwork",
    "Towers",
]
