"""Networks: those to train by class, and encoders by name for `mixcontrast embed`."""

from mixcontrast.models.heads import MLP, FeatureHead, ProjectionHead
from mixcontrast.models.networks import EfficientNetLite0Network, TimmNetwork

__all__ = ["MLP", "EfficientNetLite0Network", "FeatureHead", "ProjectionHead", "TimmNetwork"]
