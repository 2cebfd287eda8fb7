"""Training with Lightning's loop; the losses need none of it."""

from mixcontrast.training.image_text import ImageText
from mixcontrast.training.metric_learning import MetricLearning
from mixcontrast.training.regression import DirectRegression, Regression
from mixcontrast.training.self_supervised import SelfSupervised
from mixcontrast.training.sharding import Shards

__all__ = ["DirectRegression", "ImageText", "MetricLearning", "Regression", "SelfSupervised", "Shards"]
